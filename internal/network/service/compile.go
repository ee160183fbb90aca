package service

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// frontend is what a client connects to. A node port has the unspecified
// address of its family.
type frontend struct {
	addr  netip.Addr
	proto byte
	port  uint16
}

// front is a frontend with what stands behind it.
type front struct {
	frontend
	chain chain
	// cluster are the endpoints of all nodes, local those of this node, for
	// external traffic under the Local policy. A slot is an index: it keeps its
	// endpoint as long as the endpoint is there.
	cluster, local []netip.AddrPort
	// serving are all endpoints that still answer, whatever the policies say of new
	// connections: flows to them go on. In order; for UDP alone.
	serving []netip.AddrPort
}

// fragment is a service compiled: everything that is in the rules because of it.
type fragment struct {
	clusterIPs []netip.Addr
	fronts     []front
}

// verdicts that need no endpoint.
const (
	verdictReject = "refuse"
	verdictDrop   = "discard"
)

// masq is whose connections get the node's address as source.
type masq byte

const (
	masqNever   masq = iota // the node's own DNS
	masqOutside             // all but pods: cluster IPs
	masqAlways              // external traffic, so that the answer comes back this way
)

// chain says what is done with a new connection to a front. Fronts with equal
// values share one chain of rules.
type chain struct {
	// verdict, where not empty, is all that is done.
	verdict string
	// node is set for node ports.
	node bool
	masq masq
	// split is the Local policy of external traffic: pods and the node itself
	// reach all endpoints, others local ones alone.
	split          bool
	cluster, local int
	affinity       time.Duration
	// from, where not empty, are the prefixes that clients must be in, in text,
	// separated by spaces.
	from string
}

// name is unique for a value, and at most 30 characters long.
func (c chain) name() string {
	if c.verdict != "" {
		return c.verdict
	}
	if c.from != "" {
		sum := sha256.Sum256([]byte(c.open().name() + " " + c.from))
		return fmt.Sprintf("from-%x", sum[:12])
	}
	s := "to"
	if c.node {
		s = "node"
	}
	s += "-" + strconv.Itoa(c.cluster)
	if c.split {
		s += "-local-" + strconv.Itoa(c.local)
	} else {
		s += [...]string{"", "-outside", "-masq"}[c.masq]
	}
	if c.affinity > 0 {
		s += "-" + strconv.Itoa(int(c.affinity/time.Second)) + "s"
	}
	return s
}

// open is the chain for clients from anywhere.
func (c chain) open() chain {
	c.from = ""
	return c
}

// compile returns the fragment of a service. prev is the one before, or nil: the
// endpoints that are in both keep their slots, so that the difference is small.
// What is wrong with a service is left out and reported.
func compile(s Service, prev *fragment) (*fragment, error) {
	old := map[frontend]front{}
	if prev != nil {
		for _, f := range prev.fronts {
			old[f.frontend] = f
		}
	}
	frag := &fragment{clusterIPs: s.ClusterIPs}
	seen := map[frontend]bool{}
	var errs []error
	for _, p := range s.Ports {
		proto, err := protoNumber(p.Protocol)
		if err == nil && p.Port == 0 {
			err = errors.New("port 0: must be between 1 and 65535")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("service %s, port %q: %w", s.Key, p.Name, err))
			continue
		}
		add := func(f front) {
			if seen[f.frontend] {
				return
			}
			seen[f.frontend] = true
			f.cluster = place(old[f.frontend].cluster, f.cluster)
			f.local = place(old[f.frontend].local, f.local)
			if proto == unix.IPPROTO_UDP {
				f.serving = serving(p, f.addr.Is4())
			}
			frag.fronts = append(frag.fronts, f)
		}
		for _, v4 := range []bool{true, false} {
			g := group(p.Endpoints, v4)
			for _, ip := range s.ClusterIPs {
				if ip.Is4() == v4 {
					add(internal(s, p, frontend{ip, proto, p.Port}, g))
				}
			}
			for _, ip := range s.ExternalIPs {
				if ip.Is4() == v4 {
					add(external(s, frontend{ip, proto, p.Port}, g))
				}
			}
			for _, ip := range s.LoadBalancerIPs {
				if ip.Is4() == v4 {
					add(guarded(external(s, frontend{ip, proto, p.Port}, g), s.LoadBalancerRanges))
				}
			}
			if p.NodePort != 0 && hasFamily(s.ClusterIPs, v4) {
				unspecified := netip.IPv6Unspecified()
				if v4 {
					unspecified = netip.IPv4Unspecified()
				}
				add(external(s, frontend{unspecified, proto, p.NodePort}, g))
			}
		}
	}
	return frag, errors.Join(errs...)
}

func hasFamily(ips []netip.Addr, v4 bool) bool {
	return slices.ContainsFunc(ips, func(a netip.Addr) bool { return a.Is4() == v4 })
}

// endpoints of one port and family.
type endpoints struct {
	cluster, local []netip.AddrPort
	any            bool
}

// group picks the endpoints that get new connections: the ready ones; where none
// is ready, those that still serve while they terminate.
func group(all []Endpoint, v4 bool) endpoints {
	var g endpoints
	var clusterEnding, localEnding []netip.AddrPort
	for _, e := range all {
		if !e.Addr.IsValid() || e.Addr.Addr().Is4() != v4 {
			continue
		}
		switch {
		case e.Ready:
			g.any = true
			g.cluster = append(g.cluster, e.Addr)
			if e.Local {
				g.local = append(g.local, e.Addr)
			}
		case e.Serving && e.Terminating:
			g.any = true
			clusterEnding = append(clusterEnding, e.Addr)
			if e.Local {
				localEnding = append(localEnding, e.Addr)
			}
		}
	}
	if len(g.cluster) == 0 {
		g.cluster = clusterEnding
	}
	if len(g.local) == 0 {
		g.local = localEnding
	}
	g.cluster, g.local = distinct(g.cluster), distinct(g.local)
	return g
}

// serving are the endpoints of one family that flows may go on to.
func serving(p Port, v4 bool) []netip.AddrPort {
	var out []netip.AddrPort
	for _, to := range p.NodeLocal {
		if to.Addr().Is4() == v4 {
			out = append(out, to)
		}
	}
	for _, e := range p.Endpoints {
		if e.Addr.IsValid() && e.Addr.Addr().Is4() == v4 && (e.Ready || e.Serving) {
			out = append(out, e.Addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

func distinct(in []netip.AddrPort) []netip.AddrPort {
	seen := make(map[netip.AddrPort]bool, len(in))
	return slices.DeleteFunc(slices.Clone(in), func(a netip.AddrPort) bool {
		dup := seen[a]
		seen[a] = true
		return dup
	})
}

func internal(s Service, p Port, at frontend, g endpoints) front {
	for _, to := range p.NodeLocal {
		if to.Addr().Is4() == at.addr.Is4() {
			return front{frontend: at, cluster: []netip.AddrPort{to}, chain: chain{masq: masqNever, cluster: 1}}
		}
	}
	eps := g.cluster
	if s.InternalLocal {
		eps = g.local
	}
	if len(eps) == 0 {
		return front{frontend: at, chain: none(g.any)}
	}
	return front{frontend: at, cluster: eps, chain: chain{masq: masqOutside, cluster: len(eps), affinity: s.Affinity}}
}

func external(s Service, at frontend, g endpoints) front {
	c := chain{node: at.addr.IsUnspecified(), masq: masqAlways, cluster: len(g.cluster), affinity: s.Affinity}
	if len(g.cluster) == 0 {
		return front{frontend: at, chain: none(g.any)}
	}
	if !s.ExternalLocal {
		return front{frontend: at, cluster: g.cluster, chain: c}
	}
	c.split, c.local, c.masq = true, len(g.local), masqNever
	return front{frontend: at, cluster: g.cluster, local: g.local, chain: c}
}

// guarded lets clients of the ranges alone to a front. Those of the other family say
// nothing of it.
func guarded(f front, ranges []netip.Prefix) front {
	if f.chain.verdict != "" {
		return f
	}
	var from []string
	for _, r := range ranges {
		if r.Addr().Is4() == f.addr.Is4() {
			from = append(from, r.Masked().String())
		}
	}
	slices.Sort(from)
	f.chain.from = strings.Join(slices.Compact(from), " ")
	return f
}

// none is for a front that has no endpoint it may use: refused where the service
// has none at all, so that a client learns it at once; dropped where another
// node has one, since a client that tries again may reach that.
func none(elsewhere bool) chain {
	if elsewhere {
		return chain{verdict: verdictDrop}
	}
	return chain{verdict: verdictReject}
}

// place orders next so that what was in prev stays where it was, as far as the
// new length allows.
func place(prev, next []netip.AddrPort) []netip.AddrPort {
	if len(next) == 0 {
		return nil
	}
	out := make([]netip.AddrPort, len(next))
	in := make(map[netip.AddrPort]bool, len(next))
	for _, a := range next {
		in[a] = true
	}
	for i, a := range prev {
		if i < len(out) && in[a] {
			out[i] = a
			delete(in, a)
		}
	}
	i := 0
	for _, a := range next {
		if !in[a] {
			continue
		}
		for out[i].IsValid() {
			i++
		}
		out[i] = a
	}
	return out
}

func protoNumber(name string) (byte, error) {
	switch name {
	case "TCP", "":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: must be TCP, UDP or SCTP", name)
}
