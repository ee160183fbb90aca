package service

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"skiff/internal/network/nettest"
)

// flow is a client that keeps sending from one port.
type flow struct {
	t    *testing.T
	conn net.Conn
}

func newFlow(t *testing.T, from *nettest.Space, to string) *flow {
	t.Helper()
	conn, err := from.Dial("udp", to, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &flow{t, conn}
}

// ask sends a datagram and returns who answers. One that is on its way while the
// rules change may be lost: its client asks again, as clients over UDP do.
func (f *flow) ask() string {
	f.t.Helper()
	_ = f.conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := f.conn.Write([]byte("?")); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		f.t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := f.conn.Read(buf)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nobody"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case err != nil:
		f.t.Fatal(err)
	}
	name, _, _ := strings.Cut(string(buf[:n]), " ")
	return name
}

// moves waits until the flow is answered by who.
func (f *flow) moves(what, who string) {
	f.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got := f.ask()
		if got == who {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: the flow goes on to %q, want %q", what, got, who)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// forgotten returns when flows have been looked through after do.
func (tn *testNode) forgotten(do func()) {
	tn.t.Helper()
	count := func() int {
		tn.proxy.mu.Lock()
		defer tn.proxy.mu.Unlock()
		return tn.proxy.forgot
	}
	before := count()
	do()
	deadline := time.Now().Add(20 * time.Second)
	for count() == before {
		if time.Now().After(deadline) {
			tn.t.Fatal("flows were not looked through")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestUDPFlowMoves(t *testing.T) {
	tn := newNode(t, "svc-test-udp")
	a, b, c := tn.pod("a"), tn.pod("b"), tn.pod("c")
	tn.sync(web(a))
	flows := []*flow{newFlow(t, c.Space, at(vip, 8080)), newFlow(t, c.Space, at(vip6, 8080)),
		newFlow(t, tn.outside, at(nettest.NodeIP, 30080)), newFlow(t, tn.outside, at(nettest.NodeIP6, 30080))}
	moves := func(what, who string) {
		t.Helper()
		for _, f := range flows {
			f.moves(what, who)
		}
	}
	moves("at first", "a")
	tn.apply(web(b))
	moves("after a change", "b")
	tn.apply(web())
	moves("without an endpoint", "refused")
	tn.apply(web(a))
	moves("with an endpoint again", "a")
	// And over a restart that missed a change.
	tn.restart()
	tn.sync(web(b))
	moves("after a restart", "b")
}

// TestUDPFlowStays: flows go on to an endpoint that gets no new ones, as long as
// it serves.
func TestUDPFlowStays(t *testing.T) {
	tn := newNode(t, "svc-test-stay")
	a, b, c := tn.pod("a"), tn.pod("b"), tn.pod("c")
	change := func(s Service, who *testPod, how func(*Endpoint)) Service {
		for i := range s.Ports {
			for j := range s.Ports[i].Endpoints {
				e := &s.Ports[i].Endpoints[j]
				if e.Addr.Addr() == who.ips[0] || e.Addr.Addr() == who.ips[1] {
					how(e)
				}
			}
		}
		return s
	}
	tn.sync(web(a))
	four, six := newFlow(t, c.Space, at(vip, 8080)), newFlow(t, c.Space, at(vip6, 8080))
	four.moves("at first", "a")
	six.moves("at first", "a")
	stays := func(what string) {
		t.Helper()
		for range 3 {
			if x, y := four.ask(), six.ask(); x != "a" || y != "a" {
				t.Fatalf("%s the flows are answered by %q and %q", what, x, y)
			}
		}
	}
	tn.forgotten(func() {
		tn.apply(change(web(a, b), a, func(e *Endpoint) { e.Ready, e.Terminating = false, true }))
	})
	want(t, c.Space, "udp", at(vip, 8080), "b")
	stays("while the endpoint terminates and serves")
	tn.forgotten(func() {
		s := change(web(a, b), a, func(e *Endpoint) { e.Local = false })
		s.InternalLocal = true
		tn.apply(s)
	})
	want(t, c.Space, "udp", at(vip, 8080), "b")
	stays("under a policy that leaves it out")
	tn.apply(change(web(a, b), a, func(e *Endpoint) { e.Ready, e.Serving, e.Terminating = false, false, true }))
	four.moves("when it serves no more", "b")
	six.moves("when it serves no more", "b")
}

// TestUDPFlowFromBefore: who sent to a node port before there was a service reaches
// it once there is one; who sends to the same port elsewhere is left alone.
func TestUDPFlowFromBefore(t *testing.T) {
	tn := newNode(t, "svc-test-before")
	a, c := tn.pod("a"), tn.pod("c")
	tn.sync()
	four, six := newFlow(t, tn.outside, at(nettest.NodeIP, 30080)), newFlow(t, tn.outside, at(nettest.NodeIP6, 30080))
	four.moves("without a service", "refused")
	six.moves("without a service", "refused")
	defer tn.outside.ServeUDP(at(nettest.OutsideIP, 30080), "other")()
	other := newFlow(t, c.Space, at(nettest.OutsideIP, 30080))
	other.moves("beside it", "other")
	tn.forgotten(func() { tn.sync(web(a)) })
	four.moves("with a service", "a")
	six.moves("with a service", "a")
	for range 3 {
		if got := other.ask(); got != "other" {
			t.Fatalf("the flow to someone else is answered by %q", got)
		}
	}
}
