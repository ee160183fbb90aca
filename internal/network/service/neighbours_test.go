package service

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"skiff/internal/network/nettest"
	"skiff/internal/network/pod"
)

// neighbour is another instance on the node of tn, with ranges of its own.
func (tn *testNode) neighbour(name string, pods, services netip.Prefix) *testNode {
	tn.t.Helper()
	inst, journal := nettest.Instance(tn.t, name)
	n, err := pod.New(pod.Deps{Instance: inst, Journal: journal, NetNS: tn.node.Path})
	if err != nil {
		tn.t.Fatal(err)
	}
	tn.t.Cleanup(func() { n.Close() })
	err = n.Configure(tn.t.Context(), pod.Config{
		PodCIDRs: []netip.Prefix{pods}, ClusterCIDRs: []netip.Prefix{pods}, ServiceCIDRs: []netip.Prefix{services},
		NodeIPs: []netip.Addr{nettest.NodeIP}, LocalAddrs: pod.LocalAddrs(inst),
	})
	if err != nil {
		tn.t.Fatal(err)
	}
	p, err := New(Deps{Instance: inst, Journal: journal, NetNS: tn.node.Path, ClusterCIDRs: []netip.Prefix{pods}, ServiceCIDRs: []netip.Prefix{services}})
	if err != nil {
		tn.t.Fatal(err)
	}
	tn.t.Cleanup(func() { p.Close() })
	return &testNode{t: tn.t, node: tn.node, outside: tn.outside, inst: inst, journal: journal, pods: n, proxy: p}
}

// TestNeighbours has two clusters on one node, each with a service on the same
// node port: cluster IPs answer the cluster's own pods and the host, and the port
// stays with the one that had it first until that one gives it up.
func TestNeighbours(t *testing.T) {
	one := newNode(t, "svc-test-one")
	two := one.neighbour("svc-test-two", netip.MustParsePrefix("10.180.0.0/24"), netip.MustParsePrefix("10.130.0.0/16"))
	vip2 := netip.MustParseAddr("10.130.0.20")
	a, b := one.pod("a"), two.pod("b")
	one.sync(web(a))
	other := Service{Key: "default/web", ClusterIPs: []netip.Addr{vip2}, Ports: []Port{
		{Protocol: "TCP", Port: 8080, NodePort: 30080, Endpoints: []Endpoint{b.endpoint(0)}},
		{Protocol: "TCP", Port: 8081, NodePort: 30081, Endpoints: []Endpoint{b.endpoint(0)}},
	}}
	two.sync(other)

	answers := func(what string, from *nettest.Space, to, want string) {
		t.Helper()
		if name, _ := from.MustAsk("tcp", to); name != want {
			t.Errorf("%s is answered by %s, want %s", what, name, want)
		}
	}
	silent := func(what string, from *nettest.Space, to string) {
		t.Helper()
		if name, seen, err := from.Ask("tcp", to, time.Second); err == nil {
			t.Errorf("%s is answered by %s, which saw %s", what, name, seen)
		}
	}
	answers("one's cluster IP, from its pod", a.Space, at(vip, 8080), "a")
	answers("two's cluster IP, from its pod", b.Space, at(vip2, 8080), "b")
	answers("one's cluster IP, from the host", one.node, at(vip, 8080), "a")
	answers("two's cluster IP, from the host", one.node, at(vip2, 8080), "b")
	silent("two's cluster IP, from one's pod", a.Space, at(vip2, 8080))
	silent("one's cluster IP, from two's pod", b.Space, at(vip, 8080))
	// Node ports are for everybody, and the first one's stays the first one's.
	answers("the port that both want", one.outside, at(nettest.NodeIP, 30080), "a")
	answers("the port that both want, from two's pod", b.Space, at(nettest.NodeIP, 30080), "a")
	answers("two's own port", one.outside, at(nettest.NodeIP, 30081), "b")
	answers("two's own port, from one's pod", a.Space, at(nettest.NodeIP, 30081), "b")
	refused := []Refused{{Service: "default/web", Protocol: "TCP", Port: 30080, By: "svc-test-one"}}
	if got := two.proxy.Refused(); !slices.Equal(got, refused) {
		t.Errorf("refused is %v, want %v", got, refused)
	}
	if got := one.proxy.Refused(); len(got) > 0 {
		t.Errorf("the first one is refused %v", got)
	}

	// A restart of the first finds its port still its own.
	one.restart()
	one.sync(web(a))
	answers("the port after a restart", one.outside, at(nettest.NodeIP, 30080), "a")
	if got := one.proxy.Refused(); len(got) > 0 {
		t.Errorf("after its restart the first one is refused %v", got)
	}

	// It gives the port up: the other gets it with the next try.
	free := web(a)
	for i := range free.Ports {
		free.Ports[i].NodePort = 0
	}
	one.sync(free)
	if err := two.proxy.Apply(t.Context(), []Service{other}, nil); err != nil {
		t.Fatal(err)
	}
	answers("the port that was given up", one.outside, at(nettest.NodeIP, 30080), "b")
	if got := two.proxy.Refused(); len(got) > 0 {
		t.Errorf("refused is still %v", got)
	}
}
