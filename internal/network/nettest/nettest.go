// Package nettest makes networks of namespaces for tests: a node with an uplink
// to an outside host, and pods. The machine's own network is not touched, and
// everything goes when the test ends.
package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/ns"
)

// Addresses of the network that Node makes.
var (
	NodeIP    = netip.MustParseAddr("192.0.2.10")
	NodeIP6   = netip.MustParseAddr("2001:db8::10")
	OutsideIP = netip.MustParseAddr("192.0.2.1")
	Outside6  = netip.MustParseAddr("2001:db8::1")
)

// MTU of the node's uplink.
const MTU = 1450

// Space is a network namespace of a test.
type Space struct {
	t    testing.TB
	f    *os.File
	ns   ns.NS
	Path string
}

// New makes an empty namespace with lo up.
func New(t testing.TB) *Space {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	type made struct {
		f   *os.File
		err error
	}
	ch := make(chan made)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so that no other
		// code runs in this namespace by accident.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		var f *os.File
		if err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		ch <- made{f, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatalf("make network namespace: %v", m.err)
	}
	s := &Space{t: t, f: m.f, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.f.Fd())}
	var err error
	if s.ns, err = ns.Open(s.Path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Close ends the namespace, once nothing else has it open.
func (s *Space) Close() {
	s.ns.Close()
	s.f.Close()
}

// Do calls fn in the namespace.
func (s *Space) Do(fn func() error) error { return s.ns.Do(fn) }

// Netlink calls fn with a handle on the namespace.
func (s *Space) Netlink(fn func(*netlink.Handle)) {
	s.t.Helper()
	var h *netlink.Handle
	if err := s.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }); err != nil {
		s.t.Fatal(err)
	}
	defer h.Close()
	fn(h)
}

// Node makes a node's namespace: eth0 with NodeIP and a default route to an
// outside host, which knows no way to pods.
func Node(t testing.TB) (node, outside *Space) {
	t.Helper()
	node, outside = New(t), New(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	up := func(h *netlink.Handle, link string, addrs ...string) netlink.Link {
		t.Helper()
		lo, err := h.LinkByName("lo")
		must(err)
		must(h.LinkSetUp(lo))
		l, err := h.LinkByName(link)
		must(err)
		// No further addresses, which come when they have been announced.
		must(h.LinkSetIP6AddrGenMode(l, nl.IN6_ADDR_GEN_MODE_NONE))
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(err)
			addr.Flags = unix.IFA_F_NODAD
			must(h.AddrAdd(l, addr))
		}
		must(h.LinkSetUp(l))
		return l
	}
	node.Netlink(func(h *netlink.Handle) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "eth0", MTU
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(outside.f.Fd())
		must(h.LinkAdd(v))
		outside.Netlink(func(o *netlink.Handle) {
			up(o, "eth0", OutsideIP.String()+"/24", Outside6.String()+"/64")
		})
		l := up(h, "eth0", NodeIP.String()+"/24", NodeIP6.String()+"/64")
		outside.settle()
		node.settle()
		must(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: OutsideIP.AsSlice()}))
		must(h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: Outside6.AsSlice()}))
	})
	return node, outside
}

// settle waits until eth0 passes packets and has the routes that come with that.
func (s *Space) settle() {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	s.Netlink(func(h *netlink.Handle) {
		for {
			l, err := h.LinkByName("eth0")
			if err != nil {
				s.t.Fatal(err)
			}
			routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: l.Attrs().Index},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
			if err != nil {
				s.t.Fatal(err)
			}
			var all, own bool
			for _, r := range routes {
				all = all || r.Dst != nil && r.Dst.String() == "ff00::/8"
				own = own || r.Type == unix.RTN_LOCAL
			}
			if l.Attrs().OperState == netlink.OperUp && all && own {
				return
			}
			if time.Now().After(deadline) {
				s.t.Fatalf("eth0 is %s and has the routes %v", l.Attrs().OperState, routes)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// Instance returns an instance with directories of the test.
func Instance(t testing.TB, name string) (host.Instance, *host.Journal) {
	t.Helper()
	i, err := host.New(name, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	i.RunDir = t.TempDir()
	j, err := host.OpenJournal(i.JournalPath())
	if err != nil {
		t.Fatal(err)
	}
	return i, j
}

// ServeTCP answers each connection at addr with "name remoteIP", until the test
// ends or the returned function is called.
func (s *Space) ServeTCP(addr, name string) (stop func()) {
	s.t.Helper()
	var ln net.Listener
	if err := s.Do(func() (err error) { ln, err = net.Listen("tcp", addr); return err }); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			remote, _ := netip.ParseAddrPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s", name, remote.Addr().Unmap())
			c.Close()
		}
	}()
	stop = func() { ln.Close(); <-done }
	s.t.Cleanup(stop)
	return stop
}

// ServeUDP answers each datagram at addr with "name remoteIP".
func (s *Space) ServeUDP(addr, name string) (stop func()) {
	s.t.Helper()
	var pc net.PacketConn
	if err := s.Do(func() (err error) { pc, err = net.ListenPacket("udp", addr); return err }); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			remote, _ := netip.ParseAddrPort(from.String())
			_, _ = pc.WriteTo([]byte(fmt.Sprintf("%s %s", name, remote.Addr().Unmap())), from)
		}
	}()
	stop = func() { pc.Close(); <-done }
	s.t.Cleanup(stop)
	return stop
}

// Dial opens a connection from the namespace.
func (s *Space) Dial(network, addr string, timeout time.Duration) (net.Conn, error) {
	var c net.Conn
	err := s.Do(func() (err error) { c, err = net.DialTimeout(network, addr, timeout); return err })
	return c, err
}

// Ask connects and returns the answer of a server of ServeTCP or ServeUDP.
func (s *Space) Ask(network, addr string, timeout time.Duration) (name, from string, err error) {
	c, err := s.Dial(network, addr, timeout)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(timeout))
	var b []byte
	if network == "udp" {
		if b, err = askAgain(c, timeout); err != nil {
			return "", "", err
		}
	} else if b, err = io.ReadAll(c); err != nil {
		return "", "", err
	}
	name, from, _ = strings.Cut(string(b), " ")
	return name, from, nil
}

// askAgain asks up to three times from one port: a machine that is busy may lose a
// datagram; a flow that leads to nobody loses all.
func askAgain(c net.Conn, timeout time.Duration) ([]byte, error) {
	const tries = 3
	buf := make([]byte, 1500)
	for try := 1; ; try++ {
		if _, err := c.Write([]byte("?")); err != nil {
			return nil, err
		}
		_ = c.SetReadDeadline(time.Now().Add(timeout / tries))
		n, err := c.Read(buf)
		if err == nil || try == tries || !errors.Is(err, os.ErrDeadlineExceeded) {
			return buf[:n], err
		}
	}
}

// MustAsk is Ask where an answer must come.
func (s *Space) MustAsk(network, addr string) (name, from string) {
	s.t.Helper()
	name, from, err := s.Ask(network, addr, 10*time.Second)
	if err != nil {
		s.t.Fatalf("%s %s: %v", network, addr, err)
	}
	return name, from
}

// Ruleset returns what nft(8), where installed, shows of the namespace's rules,
// for the output of a failing test.
func (s *Space) Ruleset() string {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return "(nft is not installed)"
	}
	var out []byte
	_ = s.Do(func() error { out, err = exec.Command(nft, "list", "ruleset").CombinedOutput(); return nil })
	return string(out)
}
