package service

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"skiff/internal/network/nettest"
)

// TestRollingUpdate replaces all endpoints several times, and the process that
// writes the rules as often, while clients open new connections all the time:
// none may fail, be refused, or wait for a retransmission.
func TestRollingUpdate(t *testing.T) {
	tn := newNode(t, "svc-test-roll")
	current := []*testPod{tn.pod("0-a"), tn.pod("0-b"), tn.pod("0-c")}
	client := tn.pod("client")
	tn.sync(web(current...))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var g errgroup.Group
	var asked atomic.Int64
	for _, c := range []struct {
		what        string
		from        *nettest.Space
		network, to string
	}{
		{"pod to cluster IP", client.Space, "tcp", at(vip, 8080)},
		{"pod to cluster IP, UDP", client.Space, "udp", at(vip6, 8080)},
		{"host to cluster IP", tn.node, "tcp", at(vip6, 8080)},
		{"outside to node port", tn.outside, "tcp", at(nettest.NodeIP, 30080)},
	} {
		g.Go(func() error {
			for ctx.Err() == nil {
				if _, _, err := c.from.Ask(c.network, c.to, 900*time.Millisecond); err != nil {
					return fmt.Errorf("%s, after %d: %w", c.what, asked.Load(), err)
				}
				asked.Add(1)
				time.Sleep(time.Millisecond)
			}
			return nil
		})
	}
	for round := 1; round <= 4; round++ {
		for i := range current {
			old := current[i]
			next := tn.pod(fmt.Sprintf("%d-%c", round, 'a'+i))
			current[i] = next
			switch i {
			case 0: // the new one first, then without the old one
				tn.apply(web(append(current, old)...))
				tn.apply(web(current...))
			case 1: // at once
				tn.apply(web(current...))
			case 2: // missed, since the process was down
				tn.restart()
				tn.sync(web(current...))
			}
			// UDP clients may send from the port of a former flow, until that is
			// forgotten; and what a server has accepted it has to answer.
			tn.waitForgotten()
			time.Sleep(50 * time.Millisecond)
			for _, stop := range old.stop {
				stop()
			}
		}
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
		t.Log(tn.node.Ruleset())
	}
	if n := asked.Load(); n < 500 {
		t.Errorf("only %d connections were made", n)
	} else {
		t.Logf("%d connections", n)
	}
}

// waitForgotten waits until the flows that the last change made stale are gone.
func (tn *testNode) waitForgotten() {
	tn.t.Helper()
	count := func() int {
		tn.proxy.mu.Lock()
		defer tn.proxy.mu.Unlock()
		return tn.proxy.forgot
	}
	deadline := time.Now().Add(20 * time.Second)
	for before := count(); count() == before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			tn.t.Fatal("stale flows are never forgotten")
		}
	}
}

// TestTwoInstances runs two proxies in one namespace: each has its own rules, and
// removing one leaves the other.
func TestTwoInstances(t *testing.T) {
	tn := newNode(t, "svc-test-two")
	a := tn.pod("a")
	tn.sync(web(a))
	inst, journal := nettest.Instance(t, "svc-test-two-b")
	other, err := New(Deps{Instance: inst, Journal: journal, NetNS: tn.node.Path,
		ClusterCIDRs: []netip.Prefix{podCIDR}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := web(a)
	s.ClusterIPs, s.Ports[0].NodePort, s.Ports[1].NodePort = []netip.Addr{netip.MustParseAddr("10.97.0.20")}, 30081, 30081
	if err := other.Sync(t.Context(), []Service{s}); err != nil {
		t.Fatal(err)
	}
	want(t, tn.node, "tcp", at(vip, 8080), "a")
	want(t, tn.node, "tcp", "10.97.0.20:8080", "a")
	want(t, tn.outside, "tcp", at(nettest.NodeIP, 30080), "a")
	want(t, tn.outside, "tcp", at(nettest.NodeIP, 30081), "a")
	if err := other.Remove(); err != nil {
		t.Fatal(err)
	}
	want(t, tn.outside, "tcp", at(nettest.NodeIP, 30080), "a")
	wantRefused(t, tn.outside, "tcp", at(nettest.NodeIP, 30081))
}
