package service

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes conntrack entries of UDP whose endpoint serves no more, or
// that were made before their service had one: a client that keeps sending from
// one port would never be sent elsewhere. As in upstream, policies and readiness
// say nothing of a flow that is there: it goes on while its endpoint serves, and
// flows of a deleted service are left to their end.
func (p *Proxy) forgetFlows() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ct, rt *netlink.Handle
	err := p.ns.Do(func() (err error) {
		if ct, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		rt, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if ct != nil {
		defer ct.Close()
	}
	if err != nil {
		return fmt.Errorf("forget UDP flows: %w", err)
	}
	defer rt.Close()
	addrs, err := rt.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("forget UDP flows: list addresses: %w", err)
	}
	m := staleFlows{p.state, map[netip.Addr]bool{}}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			m.node[ip.Unmap()] = true
		}
	}
	for _, f := range p.families {
		family := netlink.InetFamily(unix.AF_INET)
		if f.AddrLen == 16 {
			family = unix.AF_INET6
		}
		if _, err := ct.ConntrackDeleteFilters(netlink.ConntrackTable, family, m); err != nil {
			return fmt.Errorf("forget UDP flows: %w", err)
		}
	}
	p.forgot++
	return nil
}

// staleFlows matches conntrack entries.
type staleFlows struct {
	s *state
	// node has the node's own addresses.
	node map[netip.Addr]bool
}

// MatchConntrackFlow is the filter that the netlink library asks.
func (m staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	dst, src = dst.Unmap(), src.Unmap()
	return m.stale(netip.AddrPortFrom(dst, flow.Forward.DstPort), netip.AddrPortFrom(src, flow.Reverse.SrcPort))
}

// stale tells that a flow, sent to and answered by, must not go on.
func (m staleFlows) stale(to, by netip.AddrPort) bool {
	at := frontend{to.Addr(), unix.IPPROTO_UDP, to.Port()}
	f, ok := m.s.front(at)
	if ok {
		return !contains(f.serving, []netip.AddrPort{by})
	}
	at.addr = netip.IPv6Unspecified()
	if to.Addr().Is4() {
		at.addr = netip.IPv4Unspecified()
	}
	if f, ok = m.s.front(at); !ok || contains(f.serving, []netip.AddrPort{by}) {
		return false
	}
	if by.Addr() != to.Addr() {
		return true
	}
	// It was not rewritten: it came to this node before the node port had an
	// endpoint, or goes to the same port of someone else. Without an endpoint,
	// the port may be a program's own.
	return m.node[to.Addr()] && len(f.serving) > 0
}
