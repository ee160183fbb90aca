// Package dns is the cluster's DNS server. Each node answers its own pods: names
// below the cluster domain from memory, as version 1.1.0 of the Kubernetes DNS
// specification says and CoreDNS does where that is silent, everything else from
// the resolvers of the host, or those that were said, through a cache.
//
// The server does not open its sockets: they are given to Serve, since they
// outlive it. What is sent while no server runs waits in them and is answered by
// the next one. Until Records are complete a query for a cluster name waits, for
// at most Deps.Wait, and then fails with SERVFAIL: it is never told that a name
// does not exist because it is not known yet.
//
// Pods reach it under the cluster IP of the service kube-dns, which
// network/service rewrites to an address of this node (Port.NodeLocal).
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// TTL of the answers for cluster names, in seconds.
const TTL = 5

// Version is the version of the specification that TXT records of dns-version
// tell.
const Version = "1.1.0"

// Deps is what a Server needs.
type Deps struct {
	// Domain is the cluster's, cluster.local where empty.
	Domain string
	// Records answer for the domain.
	Records Records
	// ResolvConf names the file with the host's resolvers; it is read again when
	// it changes. Empty: /etc/resolv.conf.
	ResolvConf string
	// Upstreams are asked instead of the host's resolvers, where there are any, and
	// StubDomains about names at or below those domains, the longest that fits: IP
	// addresses, with a port or without.
	Upstreams   []string
	StubDomains map[string][]string
	// Hosts have these addresses, and the addresses these names, whatever others say.
	Hosts map[string][]netip.Addr
	// Own are addresses at which this server or its peers are reached: they are
	// never asked, even if the file names them.
	Own []netip.Addr
	// Wait is how long a query waits for Records to be complete; 0 means 4
	// seconds, less than the 5 after which a resolver asks again.
	Wait time.Duration
	// Now is the clock of the cache; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Server answers queries.
type Server struct {
	deps    Deps
	zone    zone
	hosts   hosts
	forward *forwarder
}

// New returns a server.
func New(d Deps) (*Server, error) {
	if d.Records == nil {
		return nil, errors.New("dns: needs records")
	}
	if d.Domain == "" {
		d.Domain = "cluster.local"
	}
	if _, ok := dns.IsDomainName(d.Domain); !ok {
		return nil, fmt.Errorf("dns: domain %q: must be a domain name", d.Domain)
	}
	if d.ResolvConf == "" {
		d.ResolvConf = "/etc/resolv.conf"
	}
	if d.Wait == 0 {
		d.Wait = 4 * time.Second
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	h, err := newHosts(d.Hosts)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	f, err := newForwarder(d)
	if err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	return &Server{
		deps: d, hosts: h,
		zone:    zone{name: strings.ToLower(dns.Fqdn(d.Domain)), records: d.Records, serial: uint32(d.Now().Unix())},
		forward: f,
	}, nil
}

// receiveBuffer is what waits in the socket while no server runs.
const receiveBuffer = 4 << 20

// Door is a place where queries come in. UDP or TCP may be nil.
type Door struct {
	UDP net.PacketConn
	TCP net.Listener
	// Unanswered names a file that remembers the queries that were read from UDP and
	// not answered, over the death of the process: the next server on the same socket
	// answers them. Empty: they are lost, and asked again after five seconds.
	Unanswered string
}

// Serve answers at all doors until ctx ends; then it answers what it has read and
// closes them. Others that hold the sockets keep what has not been read, and
// Door.Unanswered what a killed server has not answered.
func (s *Server) Serve(ctx context.Context, doors ...Door) error {
	g, gctx := errgroup.WithContext(ctx)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if err := s.serve(gctx, w, r); err != nil {
			s.deps.Log.Debug("answer DNS query", "err", err)
		}
	})
	run := func(srv *dns.Server) {
		srv.Handler = handler
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		g.Go(func() error {
			defer close(done)
			if err := srv.ActivateAndServe(); err != nil {
				return fmt.Errorf("dns: %w", err)
			}
			return nil
		})
		g.Go(func() error {
			select {
			case <-done:
				return nil
			case <-gctx.Done():
			}
			select {
			case <-done:
				return nil
			case <-started:
			}
			return srv.Shutdown()
		})
	}
	for _, d := range doors {
		if d.UDP != nil {
			pc, release := s.hold(d)
			defer release()
			// The timeout would only wake an idle server.
			run(&dns.Server{PacketConn: pc, UDPSize: dns.DefaultMsgSize, ReadTimeout: time.Hour})
		}
		if d.TCP != nil {
			run(&dns.Server{Listener: d.TCP, MaxTCPQueries: -1})
		}
	}
	return g.Wait()
}

// hold makes the door's UDP socket one that outlives this process, as far as it can.
func (s *Server) hold(d Door) (pc net.PacketConn, release func()) {
	u, ok := d.UDP.(*net.UDPConn)
	if !ok {
		return d.UDP, func() {}
	}
	_ = u.SetReadBuffer(receiveBuffer) // as far as the host allows
	if d.Unanswered == "" {
		return u, func() {}
	}
	h, err := hold(u, d.Unanswered, time.Now)
	if err != nil {
		// Lookups work without.
		s.deps.Log.Warn("queries in work will not outlive this process", "err", err)
		return u, func() {}
	}
	return h, func() { _ = h.release() } // of memory that was mapped
}

func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) error {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	m := s.Answer(ctx, r)
	m.RecursionAvailable = true
	m.Compress = true
	size := dns.MinMsgSize
	if o := r.IsEdns0(); o != nil {
		size = max(size, int(o.UDPSize()))
		if m.IsEdns0() == nil {
			m.SetEdns0(ednsSize, o.Do())
		}
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	m.Truncate(size)
	return w.WriteMsg(m)
}

// ednsSize is the largest datagram that is offered: it passes every network in
// one piece.
const ednsSize = 1232

// Answer returns the answer to a query, of whatever size.
func (s *Server) Answer(ctx context.Context, r *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(r)
	if len(r.Question) != 1 || r.Opcode != dns.OpcodeQuery {
		return m.SetRcode(r, dns.RcodeFormatError)
	}
	q := r.Question[0]
	if q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		return m.SetRcode(r, dns.RcodeRefused)
	}
	if o := r.IsEdns0(); o != nil && o.Version() != 0 {
		m.SetRcode(r, dns.RcodeBadVers)
		m.SetEdns0(ednsSize, o.Do())
		return m
	}
	reverse, isReverse := parseReverse(q.Name)
	if rrs, ok := s.hosts.answer(q); ok {
		m.Authoritative, m.Answer = true, rrs
		return m
	}
	if rrs := s.hosts.reverse(q, reverse); isReverse && len(rrs) > 0 {
		m.Authoritative, m.Answer = true, rrs
		return m
	}
	inZone := s.zone.has(q.Name)
	if !inZone && !isReverse {
		return s.forward.answer(ctx, r)
	}
	if !s.wait(ctx) {
		if isReverse {
			return s.forward.answer(ctx, r)
		}
		return m.SetRcode(r, dns.RcodeServerFailure)
	}
	if isReverse {
		if rrs := s.zone.reverse(q, reverse); len(rrs) > 0 {
			m.Authoritative, m.Answer = true, rrs
			return m
		}
		return s.forward.answer(ctx, r)
	}
	m.Authoritative = true
	a := s.zone.answer(q)
	m.Answer, m.Extra, m.Rcode = a.answer, a.extra, a.rcode
	if a.target != "" {
		s.follow(ctx, m, r, a.target)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{s.zone.soa()}
	}
	return m
}

// wait waits until the records are complete.
func (s *Server) wait(ctx context.Context) bool {
	select {
	case <-s.deps.Records.Synced():
		return true
	default:
	}
	t := time.NewTimer(s.deps.Wait)
	defer t.Stop()
	select {
	case <-s.deps.Records.Synced():
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// maxAliases bounds a chain of external names that point at each other.
const maxAliases = 8

// follow adds the answer for the name that an external name points to.
func (s *Server) follow(ctx context.Context, m, r *dns.Msg, target string) {
	for range maxAliases {
		q := dns.Question{Name: target, Qtype: r.Question[0].Qtype, Qclass: dns.ClassINET}
		if rrs, ok := s.hosts.answer(q); ok {
			m.Answer = append(m.Answer, rrs...)
			return
		}
		if !s.zone.has(target) {
			sub := new(dns.Msg)
			sub.SetQuestion(target, q.Qtype)
			ans := s.forward.answer(ctx, sub)
			if ans.Rcode == dns.RcodeSuccess || ans.Rcode == dns.RcodeNameError {
				m.Answer, m.Rcode = append(m.Answer, ans.Answer...), ans.Rcode
				return
			}
			m.Rcode = dns.RcodeServerFailure
			return
		}
		a := s.zone.answer(q)
		m.Answer, m.Rcode = append(m.Answer, a.answer...), a.rcode
		if target = a.target; target == "" {
			return
		}
	}
	m.Rcode = dns.RcodeServerFailure
}
