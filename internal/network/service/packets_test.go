package service

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"skiff/internal/host"
	"skiff/internal/network/nettest"
	"skiff/internal/network/pod"
)

var (
	podCIDR, podCIDR6 = netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:10:244:3::/64")
	svcCIDR, svcCIDR6 = netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")
	vip, vip6         = netip.MustParseAddr("10.96.0.20"), netip.MustParseAddr("fd00:10:96::20")
)

// testNode is a node with a pod network, services and an outside host that
// routes to it what it can.
type testNode struct {
	t             testing.TB
	node, outside *nettest.Space
	inst          host.Instance
	journal       *host.Journal
	pods          *pod.Network
	proxy         *Proxy
	stop          func()
}

func newNode(t testing.TB, name string) *testNode {
	t.Helper()
	node, outside := nettest.Node(t)
	inst, journal := nettest.Instance(t, name)
	n, err := pod.New(pod.Deps{Instance: inst, Journal: journal, NetNS: node.Path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	err = n.Configure(t.Context(), pod.Config{
		PodCIDRs: []netip.Prefix{podCIDR, podCIDR6}, ClusterCIDRs: []netip.Prefix{podCIDR, podCIDR6},
		ServiceCIDRs: []netip.Prefix{svcCIDR, svcCIDR6}, NodeIPs: []netip.Addr{nettest.NodeIP, nettest.NodeIP6},
		LocalAddrs: pod.LocalAddrs(inst),
	})
	if err != nil {
		t.Fatal(err)
	}
	tn := &testNode{t: t, node: node, outside: outside, inst: inst, journal: journal, pods: n}
	tn.start()
	return tn
}

func (tn *testNode) start() {
	tn.t.Helper()
	p, err := New(Deps{Instance: tn.inst, Journal: tn.journal, NetNS: tn.node.Path,
		ClusterCIDRs: []netip.Prefix{podCIDR, podCIDR6}, ServiceCIDRs: []netip.Prefix{svcCIDR, svcCIDR6}})
	if err != nil {
		tn.t.Fatal(err)
	}
	p.checkEvery = 100 * time.Millisecond
	tn.proxy = p
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return p.Run(ctx) })
	tn.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(g.Wait(), p.Close()); err != nil {
			tn.t.Error(err)
		}
	})
	tn.t.Cleanup(tn.stop)
}

// restart is what a killed and started skiff does.
func (tn *testNode) restart() {
	tn.t.Helper()
	tn.stop()
	tn.start()
}

type testPod struct {
	*nettest.Space
	name string
	ips  []netip.Addr
	stop []func()
}

// pod makes a pod that answers with its name on port 80.
func (tn *testNode) pod(name string) *testPod {
	tn.t.Helper()
	s := nettest.New(tn.t)
	r, err := tn.pods.Attach(tn.t.Context(), pod.Sandbox{ID: name, NetNS: s.Path})
	if err != nil {
		tn.t.Fatal(err)
	}
	p := &testPod{Space: s, name: name, ips: r.IPs}
	p.stop = []func(){s.ServeTCP(":80", name), s.ServeUDP(":80", name)}
	return p
}

// endpoint is a ready endpoint on this node.
func (p *testPod) endpoint(family int) Endpoint {
	return Endpoint{Addr: netip.AddrPortFrom(p.ips[family], 80), Local: true, Ready: true, Serving: true}
}

func endpointsOf(pods ...*testPod) []Endpoint {
	var out []Endpoint
	for _, p := range pods {
		out = append(out, p.endpoint(0), p.endpoint(1))
	}
	return out
}

func web(pods ...*testPod) Service {
	return Service{
		Key: "default/web", ClusterIPs: []netip.Addr{vip, vip6},
		Ports: []Port{
			{Name: "http", Protocol: "TCP", Port: 8080, NodePort: 30080, Endpoints: endpointsOf(pods...)},
			{Name: "udp", Protocol: "UDP", Port: 8080, NodePort: 30080, Endpoints: endpointsOf(pods...)},
		},
	}
}

func (tn *testNode) sync(svcs ...Service) {
	tn.t.Helper()
	if err := tn.proxy.Sync(tn.t.Context(), svcs); err != nil {
		tn.t.Fatal(err)
	}
}

func (tn *testNode) apply(svcs ...Service) {
	tn.t.Helper()
	if err := tn.proxy.Apply(tn.t.Context(), svcs, nil); err != nil {
		tn.t.Fatal(err)
	}
}

func at(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }

// want asks until each of names has answered, and nobody else.
func want(t testing.TB, from *nettest.Space, network, to string, names ...string) {
	t.Helper()
	missing := map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	for range 200 {
		name, _, err := from.Ask(network, to, 10*time.Second)
		if err != nil {
			t.Fatalf("%s %s: %v", network, to, err)
		}
		known := false
		for _, n := range names {
			known = known || n == name
		}
		if !known {
			t.Fatalf("%s %s: answered by %q, want one of %q", network, to, name, names)
		}
		if delete(missing, name); len(missing) == 0 {
			return
		}
	}
	t.Fatalf("%s %s: never answered by %v", network, to, missing)
}

func wantRefused(t testing.TB, from *nettest.Space, network, to string) {
	t.Helper()
	_, _, err := from.Ask(network, to, 5*time.Second)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("%s %s: %v, want refused", network, to, err)
	}
}

func wantTimeout(t testing.TB, from *nettest.Space, network, to string) {
	t.Helper()
	_, _, err := from.Ask(network, to, 300*time.Millisecond)
	var nerr net.Error
	if !errors.As(err, &nerr) || !nerr.Timeout() {
		t.Fatalf("%s %s: %v, want no answer", network, to, err)
	}
}

func TestClusterIP(t *testing.T) {
	tn := newNode(t, "svc-test-vip")
	a, b, c := tn.pod("a"), tn.pod("b"), tn.pod("c")
	tn.sync(web(a, b))
	defer func() {
		if t.Failed() {
			t.Log(tn.node.Ruleset())
		}
	}()
	for i, ip := range []netip.Addr{vip, vip6} {
		for _, network := range []string{"tcp", "udp"} {
			want(t, c.Space, network, at(ip, 8080), "a", "b")
			want(t, tn.node, network, at(ip, 8080), "a", "b")
			want(t, a.Space, network, at(ip, 8080), "a", "b") // itself too
		}
		// A pod is seen by its address, the host by the node's.
		if _, from := c.MustAsk("tcp", at(ip, 8080)); from != c.ips[i].String() {
			t.Errorf("a pod was seen as %s, want %s", from, c.ips[i])
		}
		wantRefused(t, c.Space, "tcp", at(ip, 81))
		wantRefused(t, c.Space, "udp", at(ip, 81))
		wantRefused(t, tn.node, "tcp", at(ip, 81))
	}
	wantTimeout(t, c.Space, "tcp", at(netip.MustParseAddr("10.96.0.99"), 8080))

	tn.apply(web(b))
	want(t, c.Space, "tcp", at(vip, 8080), "b")
	tn.apply(web())
	wantRefused(t, c.Space, "tcp", at(vip, 8080))
	wantRefused(t, c.Space, "udp", at(vip6, 8080))
	tn.apply(web(c, a, b))
	want(t, tn.node, "tcp", at(vip, 8080), "a", "b", "c")
	if err := tn.proxy.Apply(t.Context(), nil, []string{"default/web"}); err != nil {
		t.Fatal(err)
	}
	wantTimeout(t, c.Space, "tcp", at(vip, 8080))
}

func TestNodePort(t *testing.T) {
	tn := newNode(t, "svc-test-np")
	a, b := tn.pod("a"), tn.pod("b")
	tn.sync(web(a, b))
	for i, ip := range []netip.Addr{nettest.NodeIP, nettest.NodeIP6} {
		for _, network := range []string{"tcp", "udp"} {
			want(t, tn.outside, network, at(ip, 30080), "a", "b")
			want(t, tn.node, network, at(ip, 30080), "a", "b")
			want(t, a.Space, network, at(ip, 30080), "a", "b")
		}
		if _, from := tn.outside.MustAsk("tcp", at(ip, 30080)); from != ip.String() {
			t.Errorf("an outside client was seen as %s, want the node's %s", from, ip)
		}
		_ = i
	}
	wantRefused(t, tn.node, "tcp", "127.0.0.1:30080")
	tn.apply(web())
	wantRefused(t, tn.outside, "tcp", at(nettest.NodeIP, 30080))
}

func TestTrafficPolicies(t *testing.T) {
	tn := newNode(t, "svc-test-pol")
	a, b := tn.pod("a"), tn.pod("b")
	svc := func(aLocal, bLocal bool) Service {
		s := web(a, b)
		s.ExternalLocal = true
		s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
		for i := range s.Ports {
			for j, e := range s.Ports[i].Endpoints {
				e.Local = aLocal && j < 2 || bLocal && j >= 2
				s.Ports[i].Endpoints[j] = e
			}
		}
		return s
	}
	np := at(nettest.NodeIP, 30080)
	tn.sync(svc(true, false))
	want(t, tn.outside, "tcp", np, "a")
	want(t, tn.outside, "udp", np, "a")
	if _, from := tn.outside.MustAsk("tcp", np); from != nettest.OutsideIP.String() {
		t.Errorf("an outside client was seen as %s under the Local policy, want %s", from, nettest.OutsideIP)
	}
	want(t, tn.node, "tcp", np, "a", "b")
	want(t, a.Space, "tcp", np, "a", "b")
	want(t, a.Space, "tcp", at(vip, 8080), "a", "b")
	want(t, tn.node, "tcp", "203.0.113.7:8080", "a", "b")
	tn.apply(svc(false, false))
	wantTimeout(t, tn.outside, "tcp", np)
	want(t, tn.node, "tcp", np, "a", "b")

	s := svc(false, true)
	s.InternalLocal = true
	tn.apply(s)
	want(t, a.Space, "tcp", at(vip, 8080), "b")
	s = svc(false, false)
	s.InternalLocal = true
	tn.apply(s)
	wantTimeout(t, a.Space, "tcp", at(vip, 8080))
}

func TestTerminatingEndpointsServe(t *testing.T) {
	tn := newNode(t, "svc-test-term")
	a, b := tn.pod("a"), tn.pod("b")
	s := web(a, b)
	set := func(ready, serving bool) Service {
		s := web(a, b)
		for i := range s.Ports {
			for j := range 2 { // a
				e := &s.Ports[i].Endpoints[j]
				e.Ready, e.Serving, e.Terminating = false, true, true
			}
			for j := 2; j < 4; j++ { // b
				e := &s.Ports[i].Endpoints[j]
				e.Ready, e.Serving, e.Terminating = ready, serving, !ready
			}
		}
		return s
	}
	tn.sync(s)
	want(t, tn.node, "tcp", at(vip, 8080), "a", "b")
	tn.apply(set(true, true))
	want(t, tn.node, "tcp", at(vip, 8080), "b")
	tn.apply(set(false, true))
	want(t, tn.node, "tcp", at(vip, 8080), "a", "b")
	tn.apply(set(false, false))
	want(t, tn.node, "tcp", at(vip, 8080), "a")
}

func TestAffinity(t *testing.T) {
	for _, c := range []struct {
		name  string
		local bool
	}{{"all", false}, {"local", true}} {
		t.Run(c.name, func(t *testing.T) {
			tn := newNode(t, "svc-test-aff-"+c.name)
			pods := []*testPod{tn.pod("a"), tn.pod("b"), tn.pod("c"), tn.pod("d")}
			svc := func(pods ...*testPod) Service {
				s := web(pods...)
				s.Affinity, s.ExternalLocal = time.Hour, c.local
				return s
			}
			tn.sync(svc(pods...))
			defer func() {
				if t.Failed() {
					t.Log(tn.node.Ruleset())
				}
			}()
			client, targets := pods[0].Space, []string{at(vip, 8080), at(vip6, 8080)}
			if c.local {
				client, targets = tn.outside, []string{at(nettest.NodeIP, 30080), at(nettest.NodeIP6, 30080)}
			}
			for _, to := range targets {
				first, _ := client.MustAsk("tcp", to)
				stays := func(when string) {
					t.Helper()
					for range 20 {
						if name, _ := client.MustAsk("tcp", to); name != first {
							t.Fatalf("%s %s: %s, then %s", to, when, first, name)
						}
					}
				}
				stays("with no change")
				tn.restart()
				tn.sync(svc(pods...))
				stays("after a restart")
				var rest []*testPod
				for _, p := range pods {
					if p.name != first {
						rest = append(rest, p)
					}
				}
				gone := first
				tn.apply(svc(rest...))
				if first, _ = client.MustAsk("tcp", to); first == gone {
					t.Fatalf("%s: sent to %s, which has gone", to, gone)
				}
				stays("after its endpoint has gone")
				tn.apply(svc(pods...))
				stays("after the former endpoint has come back")
			}
		})
	}
}

func TestAffinityEnds(t *testing.T) {
	tn := newNode(t, "svc-test-affend")
	s := web(tn.pod("a"), tn.pod("b"))
	s.Affinity = time.Second
	tn.sync(s)
	first, _ := tn.node.MustAsk("tcp", at(vip, 8080))
	deadline := time.Now().Add(60 * time.Second)
	for {
		time.Sleep(1200 * time.Millisecond) // longer than the affinity lasts
		if name, _ := tn.node.MustAsk("tcp", at(vip, 8080)); name != first {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("affinity never ends")
		}
	}
}

// TestNodeLocal reaches a server of the node, as pods reach DNS, at an address
// that nobody else reaches.
func TestNodeLocal(t *testing.T) {
	tn := newNode(t, "svc-test-local")
	a := tn.pod("a")
	var local []netip.AddrPort
	for _, ip := range pod.LocalAddrs(tn.inst) {
		to := netip.AddrPortFrom(ip, 10053)
		tn.node.ServeUDP(to.String(), "node")
		tn.node.ServeTCP(to.String(), "node")
		local = append(local, to)
	}
	tn.sync(Service{Key: "kube-system/kube-dns", ClusterIPs: []netip.Addr{vip, vip6}, Ports: []Port{
		{Name: "dns", Protocol: "UDP", Port: 53, NodeLocal: local}, {Name: "dns-tcp", Protocol: "TCP", Port: 53, NodeLocal: local},
	}})
	for _, network := range []string{"tcp", "udp"} {
		for i, ip := range []netip.Addr{vip, vip6} {
			name, from := a.MustAsk(network, at(ip, 53))
			if name != "node" || from != a.ips[i].String() {
				t.Errorf("%s %s: %s saw %s", network, ip, name, from)
			}
			if name, _ := tn.node.MustAsk(network, at(ip, 53)); name != "node" {
				t.Errorf("%s %s from the host: %s", network, ip, name)
			}
		}
	}
	tn.outside.Netlink(func(h *netlink.Handle) {
		for i, to := range local {
			via := []netip.Addr{nettest.NodeIP, nettest.NodeIP6}[i]
			dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Addr().BitLen(), to.Addr().BitLen())}
			if err := h.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
				t.Fatal(err)
			}
			wantTimeout(t, tn.outside, "udp", to.String())
			wantTimeout(t, tn.outside, "tcp", to.String())
		}
	})
}

func TestEstablishedGoOn(t *testing.T) {
	tn := newNode(t, "svc-test-est")
	a, b := tn.pod("a"), tn.pod("b")
	var ln net.Listener
	if err := a.Do(func() (err error) { ln, err = net.Listen("tcp", ":90"); return err }); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := web(a)
	for i := range s.Ports[0].Endpoints {
		e := &s.Ports[0].Endpoints[i]
		e.Addr = netip.AddrPortFrom(e.Addr.Addr(), 90)
	}
	tn.sync(s)
	c, err := b.Dial("tcp", at(vip, 8080), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	srv, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	echo := func(what string) {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		buf := make([]byte, 1)
		if _, err := io.ReadFull(srv, buf); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	echo("at first")
	tn.apply(web(b))
	echo("without the endpoint")
	tn.restart()
	tn.sync(web(b))
	echo("after a restart")
	tn.apply(web())
	echo("without any endpoint")
}

func TestRulesComeBack(t *testing.T) {
	tn := newNode(t, "svc-test-back")
	a, b := tn.pod("a"), tn.pod("b")
	tn.sync(web(a))
	// Someone else deletes our tables.
	other, err := New(Deps{Instance: tn.inst, Journal: tn.journal, NetNS: tn.node.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Remove(); err != nil {
		t.Fatal(err)
	}
	tn.apply(web(b))
	want(t, tn.node, "tcp", at(vip, 8080), "b")
	// Nothing changes after that: they come back all the same.
	if err := other.Remove(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if name, _, err := tn.node.Ask("tcp", at(vip, 8080), time.Second); err == nil && name == "b" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the rules do not come back")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := tn.proxy.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := tn.proxy.Remove(); err != nil {
		t.Fatalf("a second time: %v", err)
	}
}

func TestApplyBeforeSync(t *testing.T) {
	tn := newNode(t, "svc-test-order")
	if err := tn.proxy.Apply(t.Context(), []Service{web()}, nil); !errors.Is(err, ErrNotSynced) {
		t.Fatalf("got %v", err)
	}
}

// TestNoDefaultRoute reaches services from a host that is on no network but that
// of its pods.
func TestNoDefaultRoute(t *testing.T) {
	tn := newNode(t, "svc-test-alone")
	a := tn.pod("a")
	tn.sync(web(a))
	tn.node.Netlink(func(h *netlink.Handle) {
		routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw == nil {
				continue
			}
			if err := h.RouteDel(&r); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.RouteGet(net.IPv4(8, 8, 8, 8)); err == nil {
			t.Fatal("there is a default route")
		}
	})
	for _, ip := range []netip.Addr{vip, vip6} {
		for _, network := range []string{"tcp", "udp"} {
			want(t, tn.node, network, at(ip, 8080), "a")
			want(t, a.Space, network, at(ip, 8080), "a")
		}
		wantRefused(t, tn.node, "tcp", at(ip, 81))
	}
}

func TestLoadBalancerRanges(t *testing.T) {
	tn := newNode(t, "svc-test-lb")
	a, b := tn.pod("a"), tn.pod("b")
	balanced := func(local bool, ranges ...string) Service {
		s := web(a, b)
		s.LoadBalancerIPs, s.ExternalLocal = []netip.Addr{nettest.NodeIP, nettest.NodeIP6}, local
		for _, r := range ranges {
			s.LoadBalancerRanges = append(s.LoadBalancerRanges, netip.MustParsePrefix(r))
		}
		return s
	}
	mine, mine6 := netip.PrefixFrom(nettest.OutsideIP, 32).String(), netip.PrefixFrom(nettest.NodeIP6, 64).String()
	const theirs = "198.51.100.0/24"
	lb, lb6 := at(nettest.NodeIP, 8080), at(nettest.NodeIP6, 8080)
	for _, policy := range []bool{false, true} {
		tn.sync(balanced(policy))
		want(t, tn.outside, "tcp", lb, "a", "b")
		want(t, tn.outside, "udp", lb6, "a", "b")
		tn.apply(balanced(policy, theirs))
		wantTimeout(t, tn.outside, "tcp", lb)
		wantTimeout(t, a.Space, "tcp", lb)
		want(t, tn.outside, "tcp", lb6, "a", "b") // nothing is said of IPv6
		want(t, tn.outside, "tcp", at(nettest.NodeIP, 30080), "a", "b")
		want(t, a.Space, "tcp", at(vip, 8080), "a", "b")
		tn.apply(balanced(policy, theirs, mine, mine6))
		want(t, tn.outside, "tcp", lb, "a", "b")
		want(t, tn.outside, "tcp", lb6, "a", "b")
		tn.restart()
		tn.sync(balanced(policy, mine))
		want(t, tn.outside, "tcp", lb, "a", "b")
		tn.restart()
		tn.sync(balanced(policy))
		want(t, tn.outside, "tcp", lb, "a", "b")
	}
	tn.apply(web(a, b))
	if _, _, err := tn.outside.Ask("tcp", lb, 2*time.Second); err == nil {
		t.Error("the address still answers for the service")
	}
}
