package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// zone answers for the cluster domain. It does no I/O.
type zone struct {
	name    string // lower case, fully qualified
	records Records
	serial  uint32
}

// reply is what the zone says of a question: no answer and success means that
// the name exists without records of that type.
type reply struct {
	answer, extra []dns.RR
	rcode         int
	// target is the name to go on with, when the answer ends in an alias.
	target string
}

var nameError = reply{rcode: dns.RcodeNameError}

func (z zone) has(name string) bool {
	return dns.IsSubDomain(z.name, strings.ToLower(name))
}

func (z zone) soa() dns.RR {
	return &dns.SOA{Hdr: header(z.name, dns.TypeSOA), Ns: "ns.dns." + z.name, Mbox: "hostmaster." + z.name,
		Serial: z.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: TTL}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: TTL}
}

func (z zone) answer(q dns.Question) reply {
	name := strings.ToLower(q.Name)
	if name == z.name {
		return z.apex(q)
	}
	labels := dns.SplitDomainName(strings.TrimSuffix(name, "."+z.name))
	switch last := labels[len(labels)-1]; {
	case len(labels) == 1 && last == "dns-version":
		if q.Qtype == dns.TypeTXT {
			return reply{answer: []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{Version}}}}
		}
		return reply{}
	case len(labels) == 2 && labels[0] == "ns" && last == "dns":
		return z.nameserver(q)
	case last == "svc":
		return z.services(q, labels[:len(labels)-1])
	case last == "pod":
		return z.pods(q, labels[:len(labels)-1])
	case len(labels) == 1 && last == "dns":
		return reply{}
	}
	return nameError
}

// apex answers for the domain itself.
func (z zone) apex(q dns.Question) reply {
	switch q.Qtype {
	case dns.TypeSOA:
		return reply{answer: []dns.RR{z.soa()}}
	case dns.TypeNS:
		ns := &dns.NS{Hdr: header(z.name, dns.TypeNS), Ns: "ns.dns." + z.name}
		return reply{answer: []dns.RR{ns}, extra: addresses(ns.Ns, dns.TypeANY, z.dnsIPs())}
	}
	return reply{}
}

func (z zone) nameserver(q dns.Question) reply {
	return reply{answer: addresses(q.Name, q.Qtype, z.dnsIPs())}
}

// dnsIPs are the cluster IPs under which pods reach DNS.
func (z zone) dnsIPs() []netip.Addr {
	if s, ok := z.records.Service("kube-system", "kube-dns"); ok {
		return s.ClusterIPs
	}
	return nil
}

// pods answers a-b-c-d.namespace.pod. Whether there is such a pod is not looked
// up, only its namespace: as CoreDNS does with "pods insecure".
func (z zone) pods(q dns.Question, labels []string) reply {
	if len(labels) == 0 {
		return reply{}
	}
	if len(labels) > 2 || !z.records.Namespace(labels[len(labels)-1]) {
		return nameError
	}
	if len(labels) == 1 {
		return reply{}
	}
	ip, ok := parseDashed(labels[0])
	if !ok {
		return nameError
	}
	return reply{answer: addresses(q.Name, q.Qtype, []netip.Addr{ip})}
}

// parseDashed reads 10-1-2-3, and fd00--1.
func parseDashed(s string) (netip.Addr, bool) {
	if ip, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ".")); err == nil && ip.Is4() {
		return ip, true
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(s, "-", ":"))
	return ip, err == nil && ip.Is6() && ip.Zone() == ""
}

// services answers [endpoint. | _port._protocol.]service.namespace.svc.
func (z zone) services(q dns.Question, labels []string) reply {
	if len(labels) == 0 {
		return reply{}
	}
	namespace := labels[len(labels)-1]
	if len(labels) == 1 {
		if z.records.Namespace(namespace) {
			return reply{}
		}
		return nameError
	}
	s, ok := z.records.Service(namespace, labels[len(labels)-2])
	if !ok {
		return nameError
	}
	base := s.Name + "." + s.Namespace + ".svc." + z.name
	rest := labels[:len(labels)-2]
	if s.ExternalName != "" {
		if len(rest) > 0 {
			return nameError
		}
		return alias(q, s.ExternalName)
	}
	var port, protocol, endpoint string
	switch len(rest) {
	case 0:
	case 1:
		endpoint = rest[0]
	case 2:
		if !strings.HasPrefix(rest[0], "_") || !strings.HasPrefix(rest[1], "_") {
			return nameError
		}
		port, protocol = rest[0][1:], rest[1][1:]
	default:
		return nameError
	}
	match := func(p Port) bool {
		return len(rest) != 2 || p.Name == port && strings.EqualFold(p.Protocol, protocol)
	}

	var found []location
	if !s.Headless() && endpoint == "" {
		for _, p := range s.Ports {
			if match(p) {
				found = append(found, location{base, s.ClusterIPs, p.Port})
			}
		}
		if len(rest) == 0 && len(s.Ports) == 0 {
			return reply{answer: addresses(q.Name, q.Qtype, s.ClusterIPs)}
		}
	} else {
		for _, e := range s.Endpoints {
			host := endpointName(e)
			if endpoint != "" && host != endpoint {
				continue
			}
			ports := e.Ports
			if len(ports) == 0 && len(rest) < 2 {
				ports = []Port{{}} // a service without ports has addresses all the same
			}
			for _, p := range ports {
				if match(p) {
					found = append(found, location{host + "." + base, []netip.Addr{e.Addr}, p.Port})
				}
			}
		}
	}
	if len(found) == 0 {
		return nameError
	}
	return locate(q, found)
}

// location is a host with a port.
type location struct {
	target string
	ips    []netip.Addr
	port   uint16
}

func locate(q dns.Question, found []location) reply {
	if q.Qtype != dns.TypeSRV {
		var ips []netip.Addr
		for _, l := range found {
			for _, ip := range l.ips {
				if !slices.Contains(ips, ip) {
					ips = append(ips, ip)
				}
			}
		}
		return reply{answer: addresses(q.Name, q.Qtype, ips)}
	}
	var r reply
	weight := uint16(max(1, 100/len(found)))
	seen := map[string]bool{}
	for _, l := range found {
		if l.port == 0 {
			continue
		}
		key := l.target + ":" + strconv.Itoa(int(l.port))
		if !seen[key] {
			seen[key] = true
			r.answer = append(r.answer, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: weight, Port: l.port, Target: l.target})
		}
		for _, ip := range l.ips {
			if key := l.target + "/" + ip.String(); !seen[key] {
				seen[key] = true
				r.extra = append(r.extra, addresses(l.target, dns.TypeANY, []netip.Addr{ip})...)
			}
		}
	}
	return r
}

func alias(q dns.Question, to string) reply {
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeANY:
	default:
		return reply{}
	}
	to = dns.Fqdn(to)
	r := reply{answer: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: to}}}
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeAAAA {
		r.target = to
	}
	return r
}

// addresses returns the records of the asked type, in an order that changes.
func addresses(name string, qtype uint16, ips []netip.Addr) []dns.RR {
	var out []dns.RR
	for _, ip := range ips {
		switch {
		case ip.Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		case ip.Is6() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	if len(out) > 1 {
		rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	return out
}

// endpointName is an endpoint's own name: its hostname, or its address with
// dashes.
func endpointName(e Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	if e.Addr.Is4() {
		return strings.ReplaceAll(e.Addr.String(), ".", "-")
	}
	return strings.ReplaceAll(e.Addr.String(), ":", "-")
}

// reverse answers for an address of a service or an endpoint.
func (z zone) reverse(q dns.Question, ip netip.Addr) []dns.RR {
	if q.Qtype != dns.TypePTR {
		return nil
	}
	var out []dns.RR
	for _, s := range z.records.Owners(ip) {
		base := s.Name + "." + s.Namespace + ".svc." + z.name
		if slices.Contains(s.ClusterIPs, ip) {
			out = append(out, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: base})
			continue
		}
		for _, e := range s.Endpoints {
			if e.Addr == ip {
				out = append(out, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: endpointName(e) + "." + base})
				break
			}
		}
	}
	return out
}

// parseReverse reads a name below in-addr.arpa or ip6.arpa.
func parseReverse(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		ip, err := netip.ParseAddr(strings.Join(parts, "."))
		return ip, err == nil && ip.Is4()
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok && len(rest) == 63 {
		var b strings.Builder
		for i := 62; i >= 0; i -= 2 {
			b.WriteByte(rest[i])
			if n := (62 - i) / 2; n%4 == 3 && i > 0 {
				b.WriteByte(':')
			}
		}
		ip, err := netip.ParseAddr(b.String())
		return ip, err == nil
	}
	return netip.Addr{}, false
}
