package dns

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	heldEnv = "SKIFF_DNS_TEST_UNANSWERED"
	inWork  = 3
)

// asking are records that are never complete: queries for them stay in work. Each
// that waits is told.
type asking struct {
	*Index
	asked chan struct{}
}

func (a asking) Synced() <-chan struct{} {
	a.asked <- struct{}{}
	return make(chan struct{})
}

// TestServeUntilKilled is the server that TestQueriesInWorkOutliveTheServer kills.
func TestServeUntilKilled(t *testing.T) {
	path, ok := os.LookupEnv(heldEnv)
	if !ok {
		t.Skip("part of TestQueriesInWorkOutliveTheServer, which runs it in a process of its own")
	}
	pc, err := net.FilePacketConn(os.NewFile(3, "udp"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 64)
	srv, err := New(Deps{Records: asking{NewIndex(), asked}, Wait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range asked {
			fmt.Println("asked")
		}
	}()
	t.Fatal(srv.Serve(context.Background(), Door{UDP: pc, Unanswered: path}))
}

// TestQueriesInWorkOutliveTheServer kills a server that has read queries and not
// answered them; the next one on the same socket answers at once.
func TestQueriesInWorkOutliveTheServer(t *testing.T) {
	s := newSockets(t)
	s.unanswered = filepath.Join(t.TempDir(), "unanswered")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestServeUntilKilled$")
	cmd.Env = append(os.Environ(), heldEnv+"="+s.unanswered)
	cmd.ExtraFiles = []*os.File{s.udp}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for i := range inWork {
		c, err := net.Dial("udp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("svc-%d.default.svc.cluster.local.", i), dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	lines := bufio.NewScanner(out)
	for n := 0; n < 2*inWork; { // each is told when it looks and when it waits
		if !lines.Scan() {
			t.Fatal("the server ended by itself")
		}
		if lines.Text() == "asked" {
			n++
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed

	x := NewIndex()
	x.SetNamespace("default", true)
	x.MarkSynced()
	srv, err := New(Deps{Records: x})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	stop := s.serve(t, srv)
	for i, c := range clients {
		_ = c.SetReadDeadline(began.Add(2 * time.Second))
		b := make([]byte, 512)
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("query %d that the killed server had read: %v", i, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b[:n]); err != nil || m.Rcode != dns.RcodeNameError {
			t.Errorf("the answer is %v, %v", m, err)
		}
	}
	t.Logf("answered %v after the new server began", time.Since(began))
	stop()

	// Answered queries are not answered again.
	srv, err = New(Deps{Records: x})
	if err != nil {
		t.Fatal(err)
	}
	s.serve(t, srv)
	if _, err := ask("udp", s.addr, "kubernetes.default.svc.cluster.local.", dns.TypeA, 0); err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := c.Read(make([]byte, 512)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("query %d is answered again: %d bytes, %v", i, n, err)
		}
	}
}

// What is old, damaged or no query is not handed out; a full table does not stop
// lookups.
func TestHeldQueries(t *testing.T) {
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	path, now := filepath.Join(t.TempDir(), "dir", "unanswered"), time.Unix(1_000_000, 0)
	open := func() *held {
		t.Helper()
		h, err := hold(pc, path, func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.release() })
		return h
	}
	from := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	msg := func(id byte, size int) []byte { b := make([]byte, size); b[1] = id; return b }
	h := open()
	h.note(query{from, msg(1, 40)})
	h.note(query{from, msg(2, maxHeld)})
	h.note(query{from, msg(3, maxHeld+1)}) // too large
	h.note(query{from, msg(4, 11)})        // no message
	answer := msg(5, 40)
	answer[2] = 0x80
	h.note(query{from, answer})
	h = open()
	if len(h.left) != 2 || h.left[0].from != from || len(h.left[0].msg)+len(h.left[1].msg) != 40+maxHeld {
		t.Fatalf("left are %d", len(h.left))
	}
	b := make([]byte, 600)
	for range 2 {
		if _, _, err := h.ReadFrom(b); err != nil {
			t.Fatal(err)
		}
	}
	// Handed out and not answered by this one either.
	if h = open(); len(h.left) != 2 {
		t.Errorf("left by the second are %d", len(h.left))
	}
	h.note(query{from, msg(1, 40)})
	now = now.Add(6 * time.Second)
	if h = open(); len(h.left) != 0 {
		t.Errorf("%d queries are handed out that were asked again long ago", len(h.left))
	}
	for i := range slots + 10 {
		h.note(query{from, msg(byte(i), 40)})
	}
	if len(h.free) != 0 {
		t.Errorf("%d of %d slots are free", len(h.free), slots)
	}
	now = now.Add(6 * time.Second)
	if h.note(query{from, msg(1, 40)}); len(h.free) != slots-1 {
		t.Errorf("%d of %d slots are free when all but one are old", len(h.free), slots)
	}
	if err := os.WriteFile(path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h = open(); len(h.left) != 0 {
		t.Errorf("a damaged file has %d queries", len(h.left))
	}
}
