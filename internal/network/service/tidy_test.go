package service

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"skiff/internal/network/nettest"
)

// chainsAndSets are the names of all that the rules have, both families together.
func (tn *testNode) chainsAndSets() []string {
	tn.t.Helper()
	var names []string
	for _, f := range tn.proxy.families {
		found, err := tn.proxy.layout(f).find(tn.proxy.nft)
		if err != nil || found == nil {
			tn.t.Fatalf("rules: %v, %v", found, err)
		}
		names = append(append(names, found.chains...), found.sets...)
	}
	slices.Sort(names)
	return names
}

// TestTidy: services of many sizes and policies leave nothing behind when they
// change or go, and those that stay are reached before and after.
func TestTidy(t *testing.T) {
	tn := newNode(t, "svc-test-tidy")
	a, b, c := tn.pod("a"), tn.pod("b"), tn.pod("c")
	other := web(a)
	other.Key, other.ClusterIPs = "default/other", []netip.Addr{vip.Next(), vip6.Next()}
	other.Ports[0].NodePort, other.Ports[1].NodePort = 30081, 30081
	tn.sync(web(a, b), other)
	quiet := tn.chainsAndSets()
	for range 3 {
		for n, pods := range [][]*testPod{{a, b, c}, {c}, {}, {b, c}, {a, b}} {
			s := web(pods...)
			s.Affinity = time.Duration(n%2) * time.Hour
			s.ExternalLocal = n%3 == 1
			s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
			s.LoadBalancerRanges = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)}
			tn.apply(s)
		}
	}
	if now := tn.chainsAndSets(); len(now) < len(quiet)+10 {
		t.Errorf("no kinds come with changes: %v", now)
	}
	tn.apply(web(a, b))
	tidied := func(want []string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			now := tn.chainsAndSets()
			if slices.Equal(now, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("there is\n%v\nand not\n%v", now, want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	tidied(quiet)
	want(t, tn.node, "tcp", at(vip, 8080), "a", "b")
	want(t, tn.node, "tcp", at(other.ClusterIPs[0], 8080), "a")
	want(t, tn.outside, "tcp", at(nettest.NodeIP6, 30080), "a", "b")
	want(t, tn.outside, "udp", at(nettest.NodeIP, 30081), "a")
	// A kind that comes again after it went.
	tn.apply(web(a, b, c))
	want(t, tn.node, "tcp", at(vip6, 8080), "a", "b", "c")
	if err := tn.proxy.Apply(t.Context(), nil, []string{"default/web"}); err != nil {
		t.Fatal(err)
	}
	tn.apply(web(a, b))
	tidied(quiet)
	want(t, tn.node, "tcp", at(vip, 8080), "a", "b")
	tn.restart()
	tn.sync(web(a, b), other)
	tidied(quiet)
}
