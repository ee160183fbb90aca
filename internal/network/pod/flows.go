package pod

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes conntrack entries of UDP to host ports that were mapped
// elsewhere before, or not at all: a client that keeps sending from one port would
// reach a pod that has gone, or nobody, for ever. It runs under mu.
func (n *Network) forgetFlows(before, now []mapping) error {
	var changed []mapping
	for _, m := range slices.Concat(before, now) {
		if m.proto == unix.IPPROTO_UDP && !(slices.Contains(before, m) && slices.Contains(now, m)) {
			changed = append(changed, m)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	var ct *netlink.Handle
	err := n.ns.Do(func() (err error) { ct, err = netlink.NewHandle(unix.NETLINK_NETFILTER); return err })
	if err != nil {
		return fmt.Errorf("forget UDP flows to host ports: %w", err)
	}
	defer ct.Close()
	addrs, err := n.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("forget UDP flows to host ports: list addresses: %w", err)
	}
	s := staleFlows{n: n, changed: changed, node: map[netip.Addr]bool{}}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			s.node[ip.Unmap()] = true
		}
	}
	for _, f := range n.families {
		family := netlink.InetFamily(unix.AF_INET)
		if f.AddrLen == 16 {
			family = unix.AF_INET6
		}
		if _, err := ct.ConntrackDeleteFilters(netlink.ConntrackTable, family, s); err != nil {
			return fmt.Errorf("forget UDP flows to host ports: %w", err)
		}
	}
	return nil
}

// staleFlows matches conntrack entries to changed host ports that do not go where
// the port is mapped now.
type staleFlows struct {
	n       *Network
	changed []mapping
	node    map[netip.Addr]bool
}

// MatchConntrackFlow is the filter that the netlink library asks.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 || !s.node[dst.Unmap()] {
		return false
	}
	dst, by := dst.Unmap(), netip.AddrPortFrom(src.Unmap(), flow.Reverse.SrcPort)
	maps := func(m mapping) bool {
		return m.proto == unix.IPPROTO_UDP && m.port == flow.Forward.DstPort && m.to.Addr().Is4() == dst.Is4() &&
			(m.hostIP == dst || m.hostIP.IsUnspecified())
	}
	if !slices.ContainsFunc(s.changed, maps) {
		return false
	}
	for _, ms := range s.n.hostPorts {
		if slices.ContainsFunc(ms, func(m mapping) bool { return maps(m) && m.to == by }) {
			return false
		}
	}
	return true
}
