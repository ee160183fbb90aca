// Package service is the load balancing of Services on a node: nftables maps,
// written over netlink.
//
// The input is plain values, one Service at a time or all; a pure function
// compiles them and only the difference is written, in one transaction: a packet
// sees the rules before a change or those after it. No rule belongs to one
// service. A new connection's destination is looked up in the set "services";
// where it is in, in the sets of the kinds (how many endpoints, which policies)
// that there are, each of which leads to a chain. That draws a number below the
// count of endpoints; destination and number are looked up in the map "endpoints",
// which has the address to rewrite to. So a packet costs the same with ten services
// or ten thousand, and a change costs its elements.
//
// Established connections are not touched by any change: they go on to an
// endpoint that is no longer in the rules (UDP flows excepted, which have no
// end: those to an endpoint that no longer serves are forgotten, see flows.go). A
// service refuses
// connections only when it is known to have no endpoint, whether ready or
// terminating but serving; so Sync must be called with a complete state, and
// endpoints must change together with their service.
//
// The rules survive the process. The first Sync of the next one replaces them in
// one transaction; hooks and session affinity stay as they are, unless another
// version of this package made them.
//
// As in upstream's nftables mode: node ports are on all addresses of the node
// but those of loopback; external traffic under the Local policy keeps its
// source, and from pods and the node itself reaches all endpoints; connections
// to a port that a cluster IP does not have are refused; those to an address of
// the service CIDRs that no service has are dropped.
//
// Several instances on a host keep apart: pods of another one do not reach this
// one's cluster IPs, and a node port that another one has stays its own (Refused).
// One bit of the packet mark
// (Deps.Mark) is used on the way through the node.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"skiff/internal/host"
	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// Service is a Service and its endpoints.
type Service struct {
	// Key is namespace/name.
	Key string
	// ClusterIPs is empty for headless services, which have no rules.
	ClusterIPs      []netip.Addr
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// LoadBalancerRanges are where clients of LoadBalancerIPs must be; empty means
	// anywhere.
	LoadBalancerRanges []netip.Prefix
	Ports              []Port
	// ExternalLocal and InternalLocal are the traffic policies "Local".
	ExternalLocal, InternalLocal bool
	// Affinity is how long a client keeps its endpoint; 0 means none.
	Affinity time.Duration
}

// Port is a port of a Service.
type Port struct {
	Name     string
	Protocol string // TCP, UDP, SCTP
	Port     uint16
	// NodePort is 0 when there is none.
	NodePort uint16
	// NodeLocal replaces the endpoints for the cluster IPs, one per family: this
	// node answers by itself. It is for the cluster's DNS.
	NodeLocal []netip.AddrPort
	Endpoints []Endpoint
}

// Endpoint is an endpoint of a port, with its conditions as in an EndpointSlice.
type Endpoint struct {
	Addr                        netip.AddrPort
	Local                       bool // on this node
	Ready, Serving, Terminating bool
}

// Journal records what is put on the host (host.Journal has it).
type Journal interface {
	Record(host.Entry) error
}

// DefaultMark is the bit upstream uses for the same.
const DefaultMark = 0x4000

// Deps is what a Proxy needs.
type Deps struct {
	Instance host.Instance
	Journal  Journal
	// NetNS is the path of the node's network namespace; empty for the process's.
	NetNS string
	// ClusterCIDRs hold the pods of all nodes: other clients of a cluster IP get
	// the node's address as their source.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are where cluster IPs come from.
	ServiceCIDRs []netip.Prefix
	// Mark is one bit; 0 means DefaultMark.
	Mark uint32
	Log  *slog.Logger
}

// Proxy keeps the rules of a node.
type Proxy struct {
	deps     Deps
	ns       ns.NS
	nft      *nft.Conn
	families []nft.Family
	// stale tells Run that there may be UDP flows to endpoints that have gone.
	stale chan struct{}
	// idle tells it that there may be kinds that have no fronts.
	idle chan struct{}

	mu    sync.Mutex
	state *state
	// synced is whether the kernel has what state says.
	synced  bool
	removed bool
	// refused are the node ports that other instances have, by service.
	refused map[string][]Refused

	checkEvery time.Duration
	// forgot counts how often stale flows have been forgotten.
	forgot int
}

// New returns a Proxy and touches nothing. Close it at the end.
func New(d Deps) (*Proxy, error) {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.Mark == 0 {
		d.Mark = DefaultMark
	}
	if d.Mark&(d.Mark-1) != 0 {
		return nil, fmt.Errorf("mark %#x: must be one bit", d.Mark)
	}
	space, err := ns.Open(d.NetNS)
	if err != nil {
		return nil, err
	}
	return &Proxy{deps: d, ns: space, nft: nft.Dial(space), stale: make(chan struct{}, 1), idle: make(chan struct{}, 1),
		families: []nft.Family{nft.IPv4, nft.IPv6}, state: newState(), refused: map[string][]Refused{}, checkEvery: checkEvery}, nil
}

// Close closes the sockets. The rules stay.
func (p *Proxy) Close() error { return errors.Join(p.nft.Close(), p.ns.Close()) }

// flowGrace is how long UDP flows to an endpoint that has gone are left: what it
// has been asked before, it may still answer.
const flowGrace = 200 * time.Millisecond

// checkEvery is how often Run looks whether the rules are still there: services
// of the host that load their own rules are known to delete everyone's.
const checkEvery = 30 * time.Second

// tidyAfter is how long a kind that lost its last front stays: an endpoint that is
// replaced leads back to it, and of many changes those that follow soon are tidied
// up after together.
const tidyAfter = time.Second

// Run forgets UDP flows to endpoints that have gone, takes the chains of kinds away
// that no front is of any more, and writes the rules again when someone else has
// deleted them, until ctx ends. What is left to do then, the next run does at its
// first Sync.
func (p *Proxy) Run(ctx context.Context) error {
	check := time.NewTicker(p.checkEvery)
	defer check.Stop()
	var tidy <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			if err := p.check(); err != nil {
				p.deps.Log.Error("check service rules", "err", err)
			}
			continue
		case <-p.idle:
			if tidy == nil {
				tidy = time.After(tidyAfter)
			}
			continue
		case <-tidy:
			tidy = nil
			if err := p.tidy(); err != nil {
				p.deps.Log.Error("tidy up service rules", "err", err)
			}
			continue
		case <-p.stale:
		}
		t := time.NewTimer(flowGrace)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if err := p.forgetFlows(); err != nil {
			p.deps.Log.Error("forget UDP flows", "err", err)
		}
	}
}

// check writes the rules where they are not.
func (p *Proxy) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.state.complete || p.removed {
		return nil
	}
	for _, f := range p.families {
		found, err := p.layout(f).find(p.nft)
		if err != nil {
			return err
		}
		p.synced = p.synced && found != nil
	}
	if p.synced {
		return nil
	}
	p.deps.Log.Warn("service rules are missing, writing them anew")
	return p.write(newDelta())
}

// tidy takes away what the rules have for kinds of which there is no front. Every
// new connection passes all kinds: there must be no more of them than are in use.
func (p *Proxy) tidy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	used, idle := p.state.idle()
	if len(idle) == 0 || !p.synced || p.removed {
		return nil
	}
	err := p.nft.Do(func(t *nft.Txn) {
		for _, f := range p.families {
			p.layout(f).tidy(t, used, idle)
		}
	})
	if err != nil {
		p.deps.Log.Warn("service rules were changed by someone else, writing them anew", "err", err)
		p.synced = false
		return p.write(newDelta())
	}
	for _, c := range idle {
		delete(p.state.kinds, c)
	}
	return nil
}

// Remove deletes the rules, as reset does.
func (p *Proxy) Remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.nft.Do(func(t *nft.Txn) {
		for _, f := range p.families {
			t.DelTable(p.layout(f).table)
		}
	})
	if err != nil {
		return fmt.Errorf("remove service rules: %w", err)
	}
	p.synced, p.removed = false, true
	return nil
}

// Sync makes the rules what services says, which must be all there are. The
// error names the services that are wrong; the others are in effect unless it
// wraps ErrNotWritten.
func (p *Proxy) Sync(ctx context.Context, services []Service) error {
	gone := map[string]bool{}
	p.mu.Lock()
	for key := range p.state.fragments {
		gone[key] = true
	}
	p.mu.Unlock()
	for _, s := range services {
		delete(gone, s.Key)
	}
	var del []string
	for key := range gone {
		del = append(del, key)
	}
	return p.change(services, del, true)
}

// Apply changes services: upsert are new or changed, remove are keys. It must
// not come before the first Sync. It returns when packets see the change.
func (p *Proxy) Apply(ctx context.Context, upsert []Service, remove []string) error {
	return p.change(upsert, remove, false)
}

var (
	// ErrNotSynced is what Apply returns before the first Sync.
	ErrNotSynced = errors.New("apply services: the first change must be a full sync")
	// ErrNotWritten means that the rules are as before; the next change writes
	// this one as well.
	ErrNotWritten = errors.New("service rules not written")
)

func (p *Proxy) change(upsert []Service, remove []string, full bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !full && !p.state.complete {
		return ErrNotSynced
	}
	var errs []error
	next := make(map[string]*fragment, len(upsert)+len(remove))
	for _, key := range remove {
		next[key] = nil
	}
	for _, s := range upsert {
		prev := p.state.fragments[s.Key]
		frag, err := compile(s, prev)
		if err != nil {
			errs = append(errs, err)
		}
		if prev != nil && reflect.DeepEqual(prev, frag) {
			continue
		}
		next[s.Key] = frag
	}
	defer p.yield(next)()
	p.removed = false
	d := p.state.change(next, !p.synced)
	p.state.complete = true
	if err := p.write(d); err != nil {
		p.synced = false
		return errors.Join(append(errs, fmt.Errorf("%w: %w%s", ErrNotWritten, err, nft.Hint(err)))...)
	}
	for _, tell := range []struct {
		when bool
		c    chan struct{}
	}{{d.udp, p.stale}, {d.idle, p.idle}} {
		if tell.when {
			select {
			case tell.c <- struct{}{}:
			default: // Run knows already
			}
		}
	}
	return errors.Join(errs...)
}

// write writes the difference, or everything where the kernel does not have what
// it should.
func (p *Proxy) write(d *delta) error {
	if p.synced {
		if d.empty() {
			return nil
		}
		err := p.nft.Do(func(t *nft.Txn) {
			for _, f := range p.families {
				p.layout(f).write(t, d.chains, d.dels(), d.adds())
			}
		})
		if err == nil {
			return nil
		}
		p.deps.Log.Warn("service rules were changed by someone else, writing them anew", "err", err)
	}
	for _, f := range p.families {
		e := host.Entry{Kind: host.KindTable, Name: f.Name() + " " + p.tableName()}
		if err := p.deps.Journal.Record(e); err != nil {
			return err
		}
	}
	found := make([]*present, len(p.families))
	for i, f := range p.families {
		var err error
		if found[i], err = p.layout(f).find(p.nft); err != nil {
			return err
		}
	}
	chains, all := p.state.all()
	err := p.nft.Do(func(t *nft.Txn) {
		for i, f := range p.families {
			l := p.layout(f)
			l.writeBase(t, p.deps, found[i])
			l.write(t, chains, content{}, all)
			l.deleteRest(t, chains, found[i])
		}
	})
	if err != nil {
		return err
	}
	p.synced = true
	d.udp = p.state.hasUDP() // flows may be stale since the former run
	return nil
}

func (p *Proxy) tableName() string { return p.deps.Instance.Table() + "-services" }
