package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"skiff/internal/host"
	"skiff/internal/network/nettest"
	"skiff/internal/network/nft"
)

var (
	testCIDR  = netip.MustParsePrefix("10.244.3.0/24")
	testCIDR6 = netip.MustParsePrefix("fd00:10:244:3::/64")
)

func testConfig() Config {
	return Config{
		PodCIDRs:     []netip.Prefix{testCIDR, testCIDR6},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		NodeIPs:      []netip.Addr{nettest.NodeIP, nettest.NodeIP6},
	}
}

type testNode struct {
	t             *testing.T
	node, outside *nettest.Space
	inst          host.Instance
	journal       *host.Journal
	net           *Network
}

func newNode(t *testing.T, name string) *testNode {
	t.Helper()
	node, outside := nettest.Node(t)
	inst, journal := nettest.Instance(t, name)
	tn := &testNode{t: t, node: node, outside: outside, inst: inst, journal: journal}
	tn.start()
	t.Cleanup(func() { tn.net.Close() })
	return tn
}

func (tn *testNode) start() {
	tn.t.Helper()
	n, err := New(Deps{Instance: tn.inst, Journal: tn.journal, NetNS: tn.node.Path})
	if err != nil {
		tn.t.Fatal(err)
	}
	if err := n.Configure(tn.t.Context(), testConfig()); err != nil {
		tn.t.Fatal(err)
	}
	tn.net = n
}

// restart is what a killed and started skiff does.
func (tn *testNode) restart() {
	tn.t.Helper()
	tn.net.Close()
	tn.start()
}

func (tn *testNode) attach(id string, ports ...HostPort) (*nettest.Space, []netip.Addr) {
	tn.t.Helper()
	s := nettest.New(tn.t)
	r, err := tn.net.Attach(tn.t.Context(), Sandbox{ID: id, NetNS: s.Path, HostPorts: ports})
	if err != nil {
		tn.t.Fatal(err)
	}
	if len(r.IPs) != 2 || !testCIDR.Contains(r.IPs[0]) || !testCIDR6.Contains(r.IPs[1]) {
		tn.t.Fatalf("addresses %v: want one of each of %s and %s", r.IPs, testCIDR, testCIDR6)
	}
	return s, r.IPs
}

func at(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }

func TestPacketsFlow(t *testing.T) {
	tn := newNode(t, "net-test-flow")
	a, aIPs := tn.attach("a")
	b, bIPs := tn.attach("b")
	a.ServeTCP(":8080", "a")
	b.ServeTCP(":8080", "b")
	b.ServeUDP(":8080", "b")
	tn.node.ServeTCP(":9090", "node")
	tn.outside.ServeTCP(":7070", "outside")
	for i, fam := range []struct{ node, outside netip.Addr }{
		{nettest.NodeIP, nettest.OutsideIP}, {nettest.NodeIP6, nettest.Outside6},
	} {
		for _, c := range []struct {
			what         string
			from         *nettest.Space
			network, to  string
			name, source string
		}{
			{"pod to pod", a, "tcp", at(bIPs[i], 8080), "b", aIPs[i].String()},
			{"pod to pod, UDP", a, "udp", at(bIPs[i], 8080), "b", aIPs[i].String()},
			{"pod to itself", a, "tcp", at(aIPs[i], 8080), "a", aIPs[i].String()},
			{"pod to host", a, "tcp", at(fam.node, 9090), "node", aIPs[i].String()},
			{"host to pod", tn.node, "tcp", at(aIPs[i], 8080), "a", fam.node.String()},
			{"pod to outside, as the node", a, "tcp", at(fam.outside, 7070), "outside", fam.node.String()},
		} {
			name, source := c.from.MustAsk(c.network, c.to)
			if name != c.name || source != c.source {
				t.Errorf("%s: answered by %s, which saw %s; want %s and %s", c.what, name, source, c.name, c.source)
			}
		}
	}
	a.Netlink(func(h *netlink.Handle) {
		l, err := h.LinkByName("eth0")
		if err != nil || l.Attrs().MTU != nettest.MTU {
			t.Errorf("eth0 of the pod: %v, %v; want MTU %d", l, err, nettest.MTU)
		}
	})
	if v, err := tn.net.ns.Sysctl("net.ipv4.ip_forward"); err != nil || v != "1" {
		t.Errorf("ip_forward %q, %v", v, err)
	}
}

func TestAttachTwice(t *testing.T) {
	tn := newNode(t, "net-test-twice")
	s, ips := tn.attach("a")
	r, err := tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: s.Path})
	if err != nil || fmt.Sprint(r.IPs) != fmt.Sprint(ips) {
		t.Fatalf("second attach: %v, %v; want %v", r.IPs, err, ips)
	}
	// A namespace that is new is attached anew.
	s2 := nettest.New(t)
	r, err = tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: s2.Path})
	if err != nil {
		t.Fatal(err)
	}
	s2.ServeTCP(":80", "new")
	if name, _ := tn.node.MustAsk("tcp", at(r.IPs[0], 80)); name != "new" {
		t.Fatalf("answered by %s", name)
	}
}

func TestRestartKeepsAddresses(t *testing.T) {
	tn := newNode(t, "net-test-restart")
	a, aIPs := tn.attach("a", HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	a.ServeTCP(":80", "a")
	_, gone := tn.attach("b")
	if err := tn.net.Detach(t.Context(), Sandbox{ID: "b"}); err != nil {
		t.Fatal(err)
	}
	tn.restart()
	r, err := tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: a.Path,
		HostPorts: []HostPort{{Protocol: "TCP", HostPort: 8081, ContainerPort: 80}}})
	if err != nil || fmt.Sprint(r.IPs) != fmt.Sprint(aIPs) {
		t.Fatalf("attach after the restart: %v, %v; want %v", r.IPs, err, aIPs)
	}
	if name, _ := tn.outside.MustAsk("tcp", at(nettest.NodeIP, 8081)); name != "a" {
		t.Fatalf("host port after the restart: answered by %q\n%s", name, tn.node.Ruleset())
	}
	_, c := tn.attach("c")
	if c[0] == gone[0] || c[0] == aIPs[0] {
		t.Fatalf("%s is used again at once after the restart", c[0])
	}
}

func TestDetach(t *testing.T) {
	tn := newNode(t, "net-test-detach")
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return tn.net.Run(ctx) })
	defer func() { cancel(); g.Wait() }()
	s, ips := tn.attach("a", HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	s.ServeTCP(":80", "a")
	tn.node.MustAsk("tcp", at(ips[0], 80))
	for range 2 {
		if err := tn.net.Detach(t.Context(), Sandbox{ID: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tn.node.Ask("tcp", at(ips[0], 80), time.Second); err == nil {
		t.Fatal("the pod answers after Detach")
	}
	deadline := time.Now().Add(20 * time.Second)
	for len(tn.links()) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("links left: %v", tn.links())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, b := tn.attach("b"); b[0] == ips[0] {
		t.Fatalf("%s is used again at once", b[0])
	}
}

func (tn *testNode) links() []string {
	names, err := tn.net.ownLinks()
	if err != nil {
		tn.t.Fatal(err)
	}
	return names
}

func TestRetainDropsTheRest(t *testing.T) {
	tn := newNode(t, "net-test-retain")
	a, aIPs := tn.attach("a")
	a.ServeTCP(":80", "a")
	_, bIPs := tn.attach("b", HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	tn.restart()
	if err := tn.net.Retain(t.Context(), []string{"a"}); err != nil {
		t.Fatal(err)
	}
	if name, _ := tn.node.MustAsk("tcp", at(aIPs[0], 80)); name != "a" {
		t.Fatalf("answered by %q", name)
	}
	routes, err := tn.net.routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if ip, ok := hostAddr(r); ok && (ip == bIPs[0] || ip == bIPs[1]) {
			t.Errorf("route to %s is left", ip)
		}
	}
	if len(tn.net.hostPorts) != 0 {
		t.Errorf("host ports left: %v", tn.net.hostPorts)
	}
}

// TestInterruptedAttachIsRedone ends Attach after each of the steps that leave a
// link on the host.
func TestInterruptedAttachIsRedone(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(tn *testNode, h *netlink.Handle, index int, ips []netip.Addr) error
	}{
		{"before the routes", func(tn *testNode, h *netlink.Handle, index int, ips []netip.Addr) error {
			return errors.Join(h.RouteDel(tn.net.podRoute(index, ips[0])), h.RouteDel(tn.net.podRoute(index, ips[1])))
		}},
		{"between the routes", func(tn *testNode, h *netlink.Handle, index int, ips []netip.Addr) error {
			return h.RouteDel(tn.net.podRoute(index, ips[0]))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tn := newNode(t, "net-test-half")
			s, ips := tn.attach("a")
			tn.node.Netlink(func(h *netlink.Handle) {
				l, err := h.LinkByName(tn.inst.Link("a"))
				if err != nil {
					t.Fatal(err)
				}
				if err := c.cut(tn, h, l.Attrs().Index, ips); err != nil {
					t.Fatal(err)
				}
			})
			tn.restart()
			r, err := tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: s.Path})
			if err != nil {
				t.Fatal(err)
			}
			s.ServeTCP(":80", "a")
			for _, ip := range r.IPs {
				tn.node.MustAsk("tcp", at(ip, 80))
			}
			if len(r.IPs) != 2 || len(tn.links()) != 1 {
				t.Errorf("addresses %v, links %v", r.IPs, tn.links())
			}
		})
	}
}

// TestNodeAddressChanges gives the host's packets to pods that are attached the
// new address.
func TestNodeAddressChanges(t *testing.T) {
	tn := newNode(t, "net-test-addr")
	s, ips := tn.attach("a")
	s.ServeTCP(":80", "a")
	second := netip.MustParseAddr("192.0.2.11")
	tn.node.Netlink(func(h *netlink.Handle) {
		l, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: single(second)}); err != nil {
			t.Fatal(err)
		}
	})
	cfg := testConfig()
	cfg.NodeIPs[0] = second
	if err := tn.net.Configure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, from := tn.node.MustAsk("tcp", at(ips[0], 80)); from != second.String() {
		t.Errorf("the host is seen as %s, want %s", from, second)
	}
}

func TestHostPorts(t *testing.T) {
	tn := newNode(t, "net-test-ports")
	a, _ := tn.attach("a",
		HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80},
		HostPort{Protocol: "UDP", HostPort: 8081, ContainerPort: 80},
		HostPort{Protocol: "TCP", HostIP: nettest.NodeIP, HostPort: 8082, ContainerPort: 80})
	a.ServeTCP(":80", "a")
	a.ServeUDP(":80", "a")
	b, _ := tn.attach("b")
	for _, c := range []struct {
		what        string
		from        *nettest.Space
		network, to string
	}{
		{"from outside", tn.outside, "tcp", at(nettest.NodeIP, 8081)},
		{"from outside, UDP", tn.outside, "udp", at(nettest.NodeIP, 8081)},
		{"from outside, IPv6", tn.outside, "tcp", at(nettest.NodeIP6, 8081)},
		{"one address", tn.outside, "tcp", at(nettest.NodeIP, 8082)},
		{"from the host", tn.node, "tcp", at(nettest.NodeIP, 8081)},
		{"from a pod", b, "tcp", at(nettest.NodeIP, 8081)},
		{"from itself", a, "tcp", at(nettest.NodeIP, 8081)},
	} {
		name, _, err := c.from.Ask(c.network, c.to, 10*time.Second)
		if err != nil || name != "a" {
			t.Errorf("%s: %q, %v", c.what, name, err)
		}
	}
	if _, _, err := tn.outside.Ask("tcp", at(nettest.NodeIP6, 8082), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port of one address, on another: %v; want refused", err)
	}
	if t.Failed() {
		t.Log(tn.node.Ruleset())
	}
	_, err := tn.net.Attach(t.Context(), Sandbox{ID: "c", NetNS: nettest.New(t).Path,
		HostPorts: []HostPort{{Protocol: "TCP", HostPort: 8081, ContainerPort: 81}}})
	if err == nil || !strings.Contains(err.Error(), "host port 8081 is mapped to") {
		t.Fatalf("a host port twice: %v", err)
	}
	for _, l := range tn.links() {
		if l == tn.inst.Link("c") {
			t.Fatal("the failed attach left its link")
		}
	}
}

// TestUDPFlowToAHostPort: a client that keeps sending from one port reaches the pod
// that has the host port, whoever had it before.
func TestUDPFlowToAHostPort(t *testing.T) {
	tn := newNode(t, "net-test-flow")
	var conns []net.Conn
	for _, to := range []netip.Addr{nettest.NodeIP, nettest.NodeIP6} {
		conn, err := tn.outside.Dial("udp", at(to, 8081), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	answered := func(what, who string) {
		t.Helper()
		for _, conn := range conns {
			deadline := time.Now().Add(20 * time.Second)
			for got := ""; got != who; {
				_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
				_, werr := conn.Write([]byte("?"))
				buf := make([]byte, 100)
				n, err := conn.Read(buf)
				got, _, _ = strings.Cut(string(buf[:n]), " ")
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(werr, syscall.ECONNREFUSED) {
					got = "refused"
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: %s is answered by %q, %v; want %q", what, conn.RemoteAddr(), got, err, who)
				}
			}
		}
	}
	answered("before", "refused")
	for _, name := range []string{"a", "b"} {
		s, _ := tn.attach(name, HostPort{Protocol: "UDP", HostPort: 8081, ContainerPort: 80})
		s.ServeUDP(":80", name)
		answered("with a pod", name)
		if err := tn.net.Detach(t.Context(), Sandbox{ID: name}); err != nil {
			t.Fatal(err)
		}
		answered("after it", "refused")
	}
}

// TestHostPortOfAPodThatWent maps a port again whose pod's namespace ended while
// no process ran.
func TestHostPortOfAPodThatWent(t *testing.T) {
	tn := newNode(t, "net-test-went")
	port := HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80}
	a, aIPs := tn.attach("a", port)
	tn.net.Close()
	a.Close()
	deadline := time.Now().Add(20 * time.Second)
	for gone := false; !gone; {
		tn.node.Netlink(func(h *netlink.Handle) {
			_, err := h.LinkByName(tn.inst.Link("a"))
			gone = err != nil
		})
		if time.Now().After(deadline) {
			t.Fatal("the link stays")
		}
		time.Sleep(5 * time.Millisecond)
	}
	tn.start()
	b, bIPs := tn.attach("b", port)
	if bIPs[0] == aIPs[0] {
		t.Fatalf("%s is used again at once", bIPs[0])
	}
	b.ServeTCP(":80", "b")
	if name, _ := tn.outside.MustAsk("tcp", at(nettest.NodeIP, 8081)); name != "b" {
		t.Fatalf("answered by %q", name)
	}
}

// TestRestartWritesNothing keeps the rules of a former run as they are, and
// replaces those that are made from something else.
func TestRestartWritesNothing(t *testing.T) {
	tn := newNode(t, "net-test-same")
	// A chain that is not ours goes when the table is replaced.
	probe := &nftables.Chain{Table: tn.net.rules(nft.IPv4).table, Name: "probe"}
	if err := tn.net.nft.Do(func(x *nft.Txn) { x.AddChain(probe) }); err != nil {
		t.Fatal(err)
	}
	kept := func() (found bool) {
		t.Helper()
		err := tn.net.nft.Query(func(c *nftables.Conn) error {
			chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
			for _, ch := range chains {
				found = found || ch.Table.Name == probe.Table.Name && ch.Name == probe.Name
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	tn.restart()
	if !kept() {
		t.Error("a restart wrote the same rules anew")
	}
	cfg := testConfig()
	cfg.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	if err := tn.net.Configure(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if kept() {
		t.Error("the rules are the former ones after a change")
	}
}

// TestRulesComeBack deletes the tables while host ports are mapped.
func TestRulesComeBack(t *testing.T) {
	tn := newNode(t, "net-test-back")
	a, _ := tn.attach("a", HostPort{Protocol: "TCP", HostPort: 8081, ContainerPort: 80})
	a.ServeTCP(":80", "a")
	tn.net.checkEvery = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return tn.net.Run(ctx) })
	defer func() { cancel(); g.Wait() }()
	err := tn.net.nft.Do(func(x *nft.Txn) {
		for _, f := range tn.net.families {
			x.DelTable(tn.net.rules(f).table)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if name, _, err := tn.outside.Ask("tcp", at(nettest.NodeIP, 8081), time.Second); err == nil && name == "a" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the rules do not come back")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestRoutesToNodes(t *testing.T) {
	tn := newNode(t, "net-test-routes")
	other := netip.MustParsePrefix("10.244.9.0/24")
	get := func() string {
		var out []string
		tn.node.Netlink(func(h *netlink.Handle) {
			rs, err := h.RouteList(nil, netlink.FAMILY_V4)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rs {
				if r.Protocol == tn.net.proto && r.Gw != nil {
					out = append(out, r.Dst.String()+" "+r.Gw.String())
				}
			}
		})
		return strings.Join(out, ",")
	}
	for _, c := range []struct {
		peers map[netip.Prefix]netip.Addr
		want  string
	}{
		{map[netip.Prefix]netip.Addr{other: nettest.OutsideIP, testCIDR: nettest.NodeIP}, "10.244.9.0/24 192.0.2.1"},
		{map[netip.Prefix]netip.Addr{other: netip.MustParseAddr("192.0.2.7")}, "10.244.9.0/24 192.0.2.7"},
		{nil, ""},
	} {
		if err := tn.net.SetRoutes(c.peers); err != nil {
			t.Fatal(err)
		}
		if got := get(); got != c.want {
			t.Fatalf("SetRoutes(%v): %q, want %q", c.peers, got, c.want)
		}
	}
	err := tn.net.SetRoutes(map[netip.Prefix]netip.Addr{other: netip.MustParseAddr("203.0.113.9")})
	if err == nil || !strings.Contains(err.Error(), "10.244.9.0/24 via 203.0.113.9") {
		t.Fatalf("a node that is on no link: %v", err)
	}
}

func TestNotConfigured(t *testing.T) {
	inst, journal := nettest.Instance(t, "net-test-none")
	n, err := New(Deps{Instance: inst, Journal: journal, NetNS: nettest.New(t).Path})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Ready(); !errors.Is(err, ErrNotConfigured) {
		t.Fatalf("Ready: %v", err)
	}
	if _, err := n.Attach(t.Context(), Sandbox{ID: "a", NetNS: "/proc/self/ns/net"}); !errors.Is(err, ErrNotConfigured) {
		t.Fatalf("Attach: %v", err)
	}
	if len(journal.Entries()) != 0 {
		t.Fatalf("journal: %v", journal.Entries())
	}
}

func TestAttachToNoNamespace(t *testing.T) {
	tn := newNode(t, "net-test-nons")
	_, err := tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: "/proc/self/ns/nothing"})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err = tn.net.Attach(t.Context(), Sandbox{ID: "a", NetNS: f.Name()}); err == nil || len(tn.links()) != 0 {
		t.Fatalf("a file that is no namespace: %v, links %v", err, tn.links())
	}
}

func TestManyAtOnce(t *testing.T) {
	tn := newNode(t, "net-test-many")
	const count = 40
	ips := make([]netip.Addr, count)
	var g errgroup.Group
	for i := range count {
		s := nettest.New(t)
		g.Go(func() error {
			r, err := tn.net.Attach(t.Context(), Sandbox{ID: fmt.Sprint(i), NetNS: s.Path})
			if err == nil {
				ips[i] = r.IPs[0]
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, ip := range ips {
		if seen[ip] {
			t.Fatalf("%s twice", ip)
		}
		seen[ip] = true
	}
}

func BenchmarkAttach(b *testing.B) {
	node, _ := nettest.Node(b)
	inst, journal := nettest.Instance(b, "net-bench")
	n, err := New(Deps{Instance: inst, Journal: journal, NetNS: node.Path})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	cfg := testConfig()
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if err := n.Configure(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		s := nettest.New(b)
		b.StartTimer()
		if _, err := n.Attach(b.Context(), Sandbox{ID: fmt.Sprint(i), NetNS: s.Path}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// TestReachableAtOnce connects to pods, and from them, as soon as Attach has
// returned: a packet that is lost then is sent again after a second.
func TestReachableAtOnce(t *testing.T) {
	tn := newNode(t, "net-test-once")
	tn.node.ServeTCP(":90", "node")
	for i := range 30 {
		s := nettest.New(t)
		s.ServeTCP(":80", "a")
		r, err := tn.net.Attach(t.Context(), Sandbox{ID: fmt.Sprint(i), NetNS: s.Path})
		if err != nil {
			t.Fatal(err)
		}
		for j, ip := range r.IPs {
			if _, _, err := tn.node.Ask("tcp", at(ip, 80), 900*time.Millisecond); err != nil {
				t.Errorf("pod %d: host to %s: %v", i, ip, err)
			}
			node := []netip.Addr{nettest.NodeIP, nettest.NodeIP6}[j]
			if _, _, err := s.Ask("tcp", at(node, 90), 900*time.Millisecond); err != nil {
				t.Errorf("pod %d: %s to host: %v", i, ip, err)
			}
		}
	}
}

func BenchmarkAttach100AtOnce(b *testing.B) {
	node, _ := nettest.Node(b)
	inst, journal := nettest.Instance(b, "net-bench-many")
	n, err := New(Deps{Instance: inst, Journal: journal, NetNS: node.Path})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	cfg := testConfig()
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if err := n.Configure(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		var spaces []*nettest.Space
		for range 100 {
			spaces = append(spaces, nettest.New(b))
		}
		b.StartTimer()
		var g errgroup.Group
		for j, s := range spaces {
			g.Go(func() error {
				_, err := n.Attach(b.Context(), Sandbox{ID: fmt.Sprint(i, j), NetNS: s.Path})
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}
