// Package conntrack makes the kernel forget UDP flows. A flow has no end as long as
// its client keeps sending: it goes on to where its first datagram was sent, though
// the rules say something else by now.
package conntrack

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// Flow is a UDP flow as its client began it.
type Flow struct {
	// To is where the client sends, By who answers: others where the destination was
	// rewritten.
	To, By netip.AddrPort
	// Local tells that To is an address of this node.
	Local bool
}

// ForgetUDP deletes the flows of the families that are stale, in a network
// namespace.
func ForgetUDP(space ns.NS, families []nft.Family, stale func(Flow) bool) error {
	var ct, rt *netlink.Handle
	err := space.Do(func() (err error) {
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
	addrs, err := ns.Dump(func() ([]netlink.Addr, error) { return rt.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("forget UDP flows: list addresses: %w", err)
	}
	f := filter{stale, map[netip.Addr]bool{}}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			f.node[ip.Unmap()] = true
		}
	}
	for _, fam := range families {
		family := netlink.InetFamily(unix.AF_INET)
		if fam.AddrLen == 16 {
			family = unix.AF_INET6
		}
		if _, err := ns.Dump(func() (uint, error) { return ct.ConntrackDeleteFilters(netlink.ConntrackTable, family, f) }); err != nil {
			return fmt.Errorf("forget UDP flows: %w", err)
		}
	}
	return nil
}

type filter struct {
	stale func(Flow) bool
	// node has the node's own addresses.
	node map[netip.Addr]bool
}

// MatchConntrackFlow is what the netlink library asks.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	dst, src = dst.Unmap(), src.Unmap()
	return f.stale(Flow{
		To: netip.AddrPortFrom(dst, flow.Forward.DstPort), By: netip.AddrPortFrom(src, flow.Reverse.SrcPort), Local: f.node[dst],
	})
}
