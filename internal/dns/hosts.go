package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// hosts are names with addresses that were said, whatever else there is.
type hosts struct {
	// addrs are by name, lower case and fully qualified; names by address.
	addrs map[string][]netip.Addr
	names map[netip.Addr][]string
}

func newHosts(said map[string][]netip.Addr) (hosts, error) {
	h := hosts{addrs: map[string][]netip.Addr{}, names: map[netip.Addr][]string{}}
	for name, ips := range said {
		if _, ok := dns.IsDomainName(name); !ok || name == "" {
			return h, fmt.Errorf("host %q: must be a domain name", name)
		}
		fqdn := strings.ToLower(dns.Fqdn(name))
		for _, ip := range ips {
			ip = ip.Unmap().WithZone("")
			h.addrs[fqdn] = append(h.addrs[fqdn], ip)
			h.names[ip] = append(h.names[ip], fqdn)
		}
	}
	for _, names := range h.names {
		slices.Sort(names) // the order of a map is none
	}
	return h, nil
}

// answer answers for a name that is here. One without an address of the asked type
// exists all the same.
func (h hosts) answer(q dns.Question) (rrs []dns.RR, ok bool) {
	ips, ok := h.addrs[strings.ToLower(q.Name)]
	return addresses(q.Name, q.Qtype, ips), ok
}

// reverse answers for an address that is here.
func (h hosts) reverse(q dns.Question, ip netip.Addr) []dns.RR {
	if q.Qtype != dns.TypePTR {
		return nil
	}
	var out []dns.RR
	for _, name := range h.names[ip] {
		out = append(out, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name})
	}
	return out
}

// ParseResolver reads the address of a resolver, with its port or without (53).
func ParseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return a, fmt.Errorf("resolver %q: must be an IP address, with a port or without", s)
	}
	return a, nil
}

// Check finds what New would refuse of Upstreams, StubDomains and Hosts.
func (d Deps) Check() error {
	if _, err := newHosts(d.Hosts); err != nil {
		return err
	}
	_, err := newRoutes(d)
	return err
}

// route says who is asked about names at or below a zone.
type route struct {
	zone    string // lower case, fully qualified
	servers []string
	good    int // of servers, the one that answered last
}

// newRoutes are those of the stub domains, the longest zone first, and that of all
// other names.
func newRoutes(d Deps) ([]*route, error) {
	var out []*route
	all := map[string][]string{".": d.Upstreams}
	for zone, servers := range d.StubDomains {
		if _, ok := dns.IsDomainName(zone); !ok || len(servers) == 0 {
			return nil, fmt.Errorf("stub domain %q: must be a domain name with resolvers", zone)
		}
		all[strings.ToLower(dns.Fqdn(zone))] = servers
	}
	for zone, servers := range all {
		r := &route{zone: zone}
		for _, s := range servers {
			a, err := ParseResolver(s)
			if err != nil {
				return nil, err
			}
			r.servers = append(r.servers, net.JoinHostPort(a.Addr().String(), fmt.Sprint(a.Port())))
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *route) int { return dns.CountLabel(b.zone) - dns.CountLabel(a.zone) })
	return out, nil
}
