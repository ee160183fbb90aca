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
	"time"

	"github.com/miekg/dns"
)

const (
	// perServer is how long one resolver is waited for, inFlight how many
	// questions are asked at the same time.
	perServer = 2 * time.Second
	inFlight  = 1000
	// maxTTL bounds how long an answer is kept, cacheSize how many are.
	maxTTL    = 30 * time.Second
	cacheSize = 8192
	// recheck is how often the file of resolvers is looked at.
	recheck = 2 * time.Second
)

var (
	errNoServers = errors.New("the host names no resolver that can be asked")
	errBusy      = fmt.Errorf("%d questions are being asked already", inFlight)
)

// forwarder asks other resolvers. Equal questions that come while one is
// being asked wait for its answer: this is also why a resolver that sends its
// questions back here makes no endless loop.
type forwarder struct {
	deps Deps

	mu      sync.Mutex
	cache   map[question]cached
	calls   map[question]*call
	routes  []*route
	checked time.Time
	modTime time.Time
}

type question struct {
	name  string
	qtype uint16
	do    bool
	cd    bool
}

type cached struct {
	msg    *dns.Msg
	stored time.Time
	until  time.Time
}

type call struct {
	done chan struct{}
	msg  *dns.Msg
	err  error
}

func newForwarder(d Deps) (*forwarder, error) {
	routes, err := newRoutes(d)
	if err != nil {
		return nil, err
	}
	return &forwarder{deps: d, routes: routes, cache: map[question]cached{}, calls: map[question]*call{}}, nil
}

// answer returns the answer to r; SERVFAIL where nobody has one.
func (f *forwarder) answer(ctx context.Context, r *dns.Msg) *dns.Msg {
	q := r.Question[0]
	key := question{name: strings.ToLower(q.Name), qtype: q.Qtype, cd: r.CheckingDisabled}
	if o := r.IsEdns0(); o != nil {
		key.do = o.Do()
	}
	msg, err := f.lookup(ctx, key)
	m := new(dns.Msg)
	m.SetReply(r)
	if err != nil {
		f.deps.Log.Debug("forward DNS query", "name", q.Name, "err", err)
		return m.SetRcode(r, dns.RcodeServerFailure)
	}
	m.Rcode, m.AuthenticatedData = msg.Rcode, msg.AuthenticatedData
	m.Answer, m.Ns = msg.Answer, msg.Ns
	for _, rr := range msg.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			m.Extra = append(m.Extra, rr)
		}
	}
	// The client must see its own spelling.
	for _, rr := range m.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, q.Name) {
			h.Name = q.Name
		}
	}
	return m
}

// lookup returns an answer of the caller's own. Who asks first asks for all: ctx
// is the server's, not that of one query.
func (f *forwarder) lookup(ctx context.Context, key question) (*dns.Msg, error) {
	f.mu.Lock()
	now := f.deps.Now()
	if c, ok := f.cache[key]; ok {
		if now.Before(c.until) {
			f.mu.Unlock()
			return aged(c.msg, now.Sub(c.stored)), nil
		}
		delete(f.cache, key)
	}
	c, ok := f.calls[key]
	if !ok {
		if len(f.calls) >= inFlight {
			f.mu.Unlock()
			return nil, errBusy
		}
		c = &call{done: make(chan struct{})}
		f.calls[key] = c
		f.mu.Unlock()
		f.ask(ctx, key, c)
	} else {
		f.mu.Unlock()
		select {
		case <-c.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	return c.msg.Copy(), nil
}

// ask asks the resolvers and finishes the call.
func (f *forwarder) ask(ctx context.Context, key question, c *call) {
	c.msg, c.err = f.exchange(ctx, key)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.calls, key)
	close(c.done)
	if c.err != nil {
		return
	}
	ttl := keepFor(c.msg)
	if ttl <= 0 {
		return
	}
	for k := range f.cache {
		if len(f.cache) < cacheSize {
			break
		}
		delete(f.cache, k) // any: which one a map yields first is random
	}
	now := f.deps.Now()
	f.cache[key] = cached{msg: c.msg.Copy(), stored: now, until: now.Add(ttl)}
}

func (f *forwarder) exchange(ctx context.Context, key question) (*dns.Msg, error) {
	r, servers, first := f.upstream(key.name)
	if len(servers) == 0 {
		return nil, errNoServers
	}
	var errs []error
	var last *dns.Msg
	for i := range servers {
		n := (first + i) % len(servers)
		m, err := f.askOne(ctx, servers[n], key)
		if err != nil {
			errs = append(errs, fmt.Errorf("ask %s: %w", servers[n], err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
			last = m // another may know more
			continue
		}
		f.mu.Lock()
		r.good = n
		f.mu.Unlock()
		return m, nil
	}
	if last != nil {
		return last, nil
	}
	return nil, errors.Join(errs...)
}

func (f *forwarder) askOne(ctx context.Context, server string, key question) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(key.name, key.qtype)
	q.CheckingDisabled = key.cd
	q.SetEdns0(ednsSize, key.do)
	for _, network := range []string{"udp", "tcp"} {
		c := &dns.Client{Net: network, Timeout: perServer, UDPSize: ednsSize}
		m, _, err := c.ExchangeContext(ctx, q, server)
		if err != nil {
			return nil, err
		}
		if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, key.name) || m.Question[0].Qtype != key.qtype {
			return nil, errors.New("the answer is to another question")
		}
		if !m.Truncated || network == "tcp" {
			return m, nil
		}
	}
	return nil, errors.New("no whole answer")
}

// upstream returns the resolvers for a name, and which to ask first.
func (f *forwarder) upstream(name string) (r *route, servers []string, first int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r = range f.routes { // the last one has every name
		if dns.IsSubDomain(r.zone, name) {
			break
		}
	}
	if r.zone == "." && len(f.deps.Upstreams) == 0 {
		f.readResolvers(r)
	}
	return r, r.servers, r.good
}

// readResolvers makes r's resolvers those of the host. It runs under mu.
func (f *forwarder) readResolvers(r *route) {
	now := f.deps.Now()
	if !f.checked.IsZero() && now.Sub(f.checked) < recheck {
		return
	}
	f.checked = now
	info, err := os.Stat(f.deps.ResolvConf)
	if err != nil || info.ModTime().Equal(f.modTime) {
		return // what is known stays true while the file is away
	}
	cfg, err := dns.ClientConfigFromFile(f.deps.ResolvConf)
	if err != nil {
		f.deps.Log.Warn("read resolvers", "path", f.deps.ResolvConf, "err", err)
		return
	}
	f.modTime, r.good, r.servers = info.ModTime(), 0, nil
	for _, s := range cfg.Servers {
		if ip, err := netip.ParseAddr(s); err == nil && !f.own(ip) {
			r.servers = append(r.servers, net.JoinHostPort(s, cfg.Port))
		}
	}
}

func (f *forwarder) own(ip netip.Addr) bool {
	for _, o := range f.deps.Own {
		if o == ip.Unmap().WithZone("") {
			return true
		}
	}
	return false
}

// keepFor is how long an answer may be kept: the least of its records, or what
// the zone says of names that do not exist.
func keepFor(m *dns.Msg) time.Duration {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError || m.Truncated {
		return 0
	}
	ttl := maxTTL
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	if len(m.Answer) > 0 {
		return ttl
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(ttl, time.Duration(soa.Minttl)*time.Second)
		}
	}
	return 0
}

// aged returns a copy whose records have grown older.
func aged(m *dns.Msg, by time.Duration) *dns.Msg {
	m = m.Copy()
	s := uint32(by / time.Second)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(s, h.Ttl)
			}
		}
	}
	return m
}
