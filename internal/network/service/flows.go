package service

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"skiff/internal/network/conntrack"
)

// forgetFlows deletes conntrack entries of UDP whose endpoint serves no more, or
// that were made before their service had one: a client that keeps sending from
// one port would never be sent elsewhere. As in upstream, policies and readiness
// say nothing of a flow that is there: it goes on while its endpoint serves, and
// flows of a deleted service are left to their end.
func (p *Proxy) forgetFlows() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgot++
	return conntrack.ForgetUDP(p.ns, p.families, p.state.stale)
}

// stale tells that a flow must not go on.
func (s *state) stale(flow conntrack.Flow) bool {
	at, by := frontend{flow.To.Addr(), unix.IPPROTO_UDP, flow.To.Port()}, []netip.AddrPort{flow.By}
	if f, ok := s.front(at); ok {
		return !contains(f.serving, by)
	}
	at.addr = netip.IPv6Unspecified()
	if flow.To.Addr().Is4() {
		at.addr = netip.IPv4Unspecified()
	}
	f, ok := s.front(at)
	if !ok || contains(f.serving, by) {
		return false
	}
	if flow.By.Addr() != flow.To.Addr() {
		return true
	}
	// It was not rewritten: it came to this node before the node port had an
	// endpoint, or goes to the same port of someone else. Without an endpoint,
	// the port may be a program's own.
	return flow.Local && len(f.serving) > 0
}
