package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// sockets are what a keeper holds: files, of which each server gets a duplicate.
type sockets struct {
	// unanswered is the file of queries in work, if any.
	unanswered string
	udp, tcp   *os.File
	addr       string
}

func newSockets(t *testing.T) *sockets {
	t.Helper()
	for range 20 {
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: pc.LocalAddr().(*net.UDPAddr).Port})
		if err != nil {
			pc.Close()
			continue // someone else has the port for TCP
		}
		s := &sockets{addr: pc.LocalAddr().String()}
		if s.udp, err = pc.File(); err == nil {
			s.tcp, err = ln.File()
		}
		if err = errors.Join(err, pc.Close(), ln.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.udp.Close(); s.tcp.Close() })
		return s
	}
	t.Fatal("no free port")
	return nil
}

// serve runs a server on duplicates of the sockets until stop is called.
func (s *sockets) serve(t *testing.T, srv *Server) (stop func()) {
	t.Helper()
	pc, err := net.FilePacketConn(s.udp)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return srv.Serve(ctx, Door{UDP: pc, TCP: ln, Unanswered: s.unanswered}) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ask(network, addr, name string, typ uint16, edns uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(name, typ)
	if edns != 0 {
		q.SetEdns0(edns, false)
	}
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	m, _, err := c.Exchange(q, addr)
	return m, err
}

func TestServe(t *testing.T) {
	s := newSockets(t)
	s.serve(t, newServer(t, testIndex()))
	for _, network := range []string{"udp", "tcp"} {
		m, err := ask(network, s.addr, "web.default.svc.cluster.local.", dns.TypeA, 0)
		if err != nil || !strings.HasSuffix(show(m), "A 10.96.0.20") {
			t.Errorf("%s: %v, %v", network, m, err)
		}
		if m.IsEdns0() != nil {
			t.Errorf("%s: EDNS in the answer to a query without", network)
		}
		m, err = ask(network, s.addr, "web.default.svc.cluster.local.", dns.TypeA, 4096)
		if err != nil || m.IsEdns0() == nil || m.IsEdns0().UDPSize() != ednsSize {
			t.Errorf("%s with EDNS: %v, %v", network, m, err)
		}
	}
	// Garbage is not answered, or with an error, and harms nobody.
	c, err := net.Dial("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range []string{"", "x", strings.Repeat("\xff", 12), strings.Repeat("\xc0\x0c", 300)} {
		if _, err := c.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask("udp", s.addr, "cluster.local.", dns.TypeSOA, 0); err != nil {
		t.Fatal(err)
	}
}

func TestLargeAnswers(t *testing.T) {
	x := testIndex()
	big := &Service{Namespace: "default", Name: "big"}
	for i := range 200 {
		big.Endpoints = append(big.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 245, 0, byte(i)})})
	}
	x.Set(big)
	s := newSockets(t)
	s.serve(t, newServer(t, x))
	for _, c := range []struct {
		network string
		edns    uint16
		whole   bool
		most    int
	}{{"udp", 0, false, 512}, {"udp", 1232, false, 1232}, {"udp", 65535, true, 65535}, {"tcp", 0, true, 65535}} {
		m, err := ask(c.network, s.addr, "big.default.svc.cluster.local.", dns.TypeA, c.edns)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		m.Compress = true
		if m.Truncated == c.whole || (len(m.Answer) == 200) != c.whole || m.Len() > c.most || len(m.Answer) == 0 {
			t.Errorf("%+v: %d answers, truncated %v, %d bytes", c, len(m.Answer), m.Truncated, m.Len())
		}
	}
}

// TestRestart asks while no server runs, and all the time over restarts.
func TestRestart(t *testing.T) {
	s := newSockets(t)
	x := testIndex()
	stop := s.serve(t, newServer(t, x))
	if _, err := ask("udp", s.addr, "cluster.local.", dns.TypeSOA, 0); err != nil {
		t.Fatal(err)
	}
	stop()
	var g errgroup.Group
	for _, network := range []string{"udp", "tcp"} {
		g.Go(func() error {
			m, err := ask(network, s.addr, "web.default.svc.cluster.local.", dns.TypeA, 0)
			if err == nil && len(m.Answer) != 1 {
				err = fmt.Errorf("%s: %v", network, m)
			}
			return err
		})
	}
	time.Sleep(50 * time.Millisecond) // so that they most likely ask before
	stop = s.serve(t, newServer(t, x))
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var asked atomic.Int64
	for range 4 {
		g.Go(func() error {
			for ctx.Err() == nil {
				if _, err := ask("udp", s.addr, "web.default.svc.cluster.local.", dns.TypeA, 0); err != nil {
					return err
				}
				asked.Add(1)
			}
			return nil
		})
	}
	for range 10 {
		time.Sleep(10 * time.Millisecond)
		stop()
		stop = s.serve(t, newServer(t, x))
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatalf("after %d: %v", asked.Load(), err)
	}
}

func TestQueriesWaitForRecords(t *testing.T) {
	x := NewIndex()
	s := newServer(t, x)
	q := new(dns.Msg)
	q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	var g errgroup.Group
	var m *dns.Msg
	g.Go(func() error { m = s.Answer(t.Context(), q); return nil })
	time.Sleep(20 * time.Millisecond)
	x.Set(&Service{Namespace: "default", Name: "web", ClusterIPs: ips("10.96.0.20")})
	x.MarkSynced()
	_ = g.Wait()
	if !strings.HasSuffix(show(m), "10.96.0.20") {
		t.Errorf("got %s", show(m))
	}
	late, err := New(Deps{Records: NewIndex(), ResolvConf: resolvConf(t), Wait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if m := late.Answer(t.Context(), q); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("records that never come: %s", show(m))
	}
}

// upstream is a resolver of the host.
type upstream struct {
	addr  string
	asked atomic.Int64
}

func newUpstream(t *testing.T, ip string, handle func(w dns.ResponseWriter, r *dns.Msg)) *upstream {
	t.Helper()
	u := &upstream{}
	start := func(srv *dns.Server) {
		var g errgroup.Group
		ready := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(ready) }
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { u.asked.Add(1); handle(w, r) })
		g.Go(srv.ActivateAndServe)
		<-ready
		t.Cleanup(func() { _ = srv.Shutdown(); _ = g.Wait() })
	}
	for range 20 {
		pc, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err != nil {
			pc.Close()
			continue
		}
		u.addr = pc.LocalAddr().String()
		start(&dns.Server{PacketConn: pc})
		start(&dns.Server{Listener: ln})
		return u
	}
	t.Fatal("no free port")
	return nil
}

// forwarding returns a server that asks the upstreams.
func forwarding(t *testing.T, now func() time.Time, ups ...string) *Server {
	t.Helper()
	s, err := New(Deps{Records: testIndex(), ResolvConf: resolvConf(t), Upstreams: ups, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rr(t testing.TB, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestForward(t *testing.T) {
	up := newUpstream(t, "127.0.0.1", func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		_, tcp := w.RemoteAddr().(*net.TCPAddr)
		switch name := strings.ToLower(r.Question[0].Name); name {
		case "www.example.com.":
			m.Answer = []dns.RR{rr(t, name+" 20 IN A 192.0.2.80")}
		case "big.example.com.":
			for i := range 150 {
				m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 20 IN A 192.0.2.%d", name, i)))
			}
			if !tcp {
				m.Truncate(ednsSize)
			}
		case "none.example.com.":
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, "example.com. 300 IN SOA ns.example.com. h.example.com. 1 1 1 1 10")}
		default:
			m.Rcode = dns.RcodeRefused
		}
		_ = w.WriteMsg(m)
	})
	clock := time.Unix(1_000_000_000, 0)
	s := forwarding(t, func() time.Time { return clock }, up.addr)
	query := func(name string) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		return s.Answer(t.Context(), q)
	}
	check := func(name, want string, asked int64) {
		t.Helper()
		before := up.asked.Load()
		if got := show(query(name)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		if n := up.asked.Load() - before; n != asked {
			t.Errorf("%s: asked %d times, want %d", name, n, asked)
		}
	}
	check("www.example.com.", "NOERROR: www.example.com. A 192.0.2.80", 1)
	clock = clock.Add(15 * time.Second)
	check("WWW.example.com.", "NOERROR: WWW.example.com. A 192.0.2.80", 0)
	if ttl := query("www.example.com.").Answer[0].Header().Ttl; ttl != 5 {
		t.Errorf("TTL %d after 15 s, want 5", ttl)
	}
	clock = clock.Add(5 * time.Second)
	check("www.example.com.", "NOERROR: www.example.com. A 192.0.2.80", 1)
	check("none.example.com.", "NXDOMAIN", 1)
	check("none.example.com.", "NXDOMAIN", 0)
	clock = clock.Add(10 * time.Second)
	check("none.example.com.", "NXDOMAIN", 1)
	if n := len(query("big.example.com.").Answer); n != 150 {
		t.Errorf("an answer that needs TCP: %d records", n)
	}
	check("refused.example.org.", "REFUSED", 1)
	check("ext.default.svc.cluster.local.", "NOERROR: ext.default.svc.cluster.local. CNAME www.example.com.; www.example.com. A 192.0.2.80", 0)
}

func TestNextResolver(t *testing.T) {
	fails := newUpstream(t, "127.0.0.1", func(w dns.ResponseWriter, r *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure))
	})
	works := newUpstream(t, "127.0.0.1", func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 20 IN A 192.0.2.80")}
		_ = w.WriteMsg(m)
	})
	s := forwarding(t, nil, "127.0.0.1:1", fails.addr, works.addr)
	for i := range 3 {
		q := new(dns.Msg)
		q.SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)
		if m := s.Answer(t.Context(), q); len(m.Answer) != 1 {
			t.Fatalf("got %v", m)
		}
	}
	if n := fails.asked.Load(); n != 1 {
		t.Errorf("the resolver that fails was asked %d times, want once", n)
	}
}

// TestLoop has a resolver that sends every question back.
func TestLoop(t *testing.T) {
	socks := newSockets(t)
	back := newUpstream(t, "127.0.0.1", func(w dns.ResponseWriter, r *dns.Msg) {
		m, err := dns.Exchange(r, socks.addr)
		if err != nil {
			m = new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)
		}
		_ = w.WriteMsg(m)
	})
	socks.serve(t, forwarding(t, nil, back.addr))
	m, err := ask("udp", socks.addr, "www.example.com.", dns.TypeA, 0)
	if err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v, %v", m, err)
	}
	if n := back.asked.Load(); n > 4 {
		t.Errorf("the question went round %d times", n)
	}
}

func TestResolversOfTheHost(t *testing.T) {
	path := resolvConf(t, "192.0.2.53", "10.96.0.10", "2001:db8::53")
	clock := time.Now()
	s, err := New(Deps{Records: testIndex(), ResolvConf: path, Own: ips("10.96.0.10"), Now: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	_, got, _ := s.forward.upstream("example.com.")
	if fmt.Sprint(got) != "[192.0.2.53:53 [2001:db8::53]:53]" {
		t.Errorf("got %v", got)
	}
	if err := os.WriteFile(path, []byte("nameserver 192.0.2.54\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Minute)
	if _, got, _ = s.forward.upstream("example.com."); fmt.Sprint(got) != "[192.0.2.54:53]" {
		t.Errorf("after a change: %v", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Minute)
	if _, got, _ = s.forward.upstream("example.com."); fmt.Sprint(got) != "[192.0.2.54:53]" {
		t.Errorf("without the file: %v", got)
	}
}

func BenchmarkServeUDP(b *testing.B) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var g errgroup.Group
	srv := newServer(b, testIndex())
	g.Go(func() error { return srv.Serve(ctx, Door{UDP: pc}) })
	conn, err := dns.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	q := new(dns.Msg)
	q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		if err := conn.WriteMsg(q); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.ReadMsg(); err != nil {
			b.Fatal(err)
		}
	}
	conn.Close()
	cancel()
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}
