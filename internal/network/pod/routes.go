package pod

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// Routing protocol numbers of instances are of this range, which no routing
// daemon that is known uses.
const (
	protoFirst = 208
	protoCount = 32
)

// chooseProtocol takes the number in the journal, or one that nobody uses: the
// first guess derives from the instance's name. It runs under mu.
func (n *Network) chooseProtocol() error {
	for _, e := range n.deps.Journal.Entries() {
		if e.Kind != host.KindRoutes {
			continue
		}
		if p, err := strconv.Atoi(e.Name); err == nil && p >= protoFirst && p < protoFirst+protoCount {
			n.proto = netlink.RouteProtocol(p)
			return nil
		}
	}
	all, err := n.main(&netlink.Route{}, 0)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	taken := map[netlink.RouteProtocol]bool{}
	for _, r := range all {
		taken[r.Protocol] = true
	}
	guess, err := strconv.ParseUint(n.deps.Instance.Tag(), 16, 32)
	if err != nil {
		return fmt.Errorf("instance tag %q: %w", n.deps.Instance.Tag(), err)
	}
	for i := range uint64(protoCount) {
		p := netlink.RouteProtocol(protoFirst + (guess+i)%protoCount)
		if !taken[p] {
			n.proto = p
			return nil
		}
	}
	return fmt.Errorf("no routing protocol number left between %d and %d: too many instances on this host", protoFirst, protoFirst+protoCount-1)
}

// main returns the routes of the main table that are like one in what mask says.
func (n *Network) main(like *netlink.Route, mask uint64) ([]netlink.Route, error) {
	like.Table = unix.RT_TABLE_MAIN
	return ns.Dump(func() ([]netlink.Route, error) {
		return n.nl.RouteListFiltered(netlink.FAMILY_ALL, like, mask|netlink.RT_FILTER_TABLE)
	})
}

// addresses returns those of all links.
func (n *Network) addresses() ([]netlink.Addr, error) {
	return ns.Dump(func() ([]netlink.Addr, error) { return n.nl.AddrList(nil, netlink.FAMILY_ALL) })
}

// routes returns this instance's routes.
func (n *Network) routes() ([]netlink.Route, error) {
	rs, err := n.main(&netlink.Route{Protocol: n.proto}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return rs, nil
}

func prefixOf(r netlink.Route) netip.Prefix {
	if r.Dst == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, bits := r.Dst.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

func hostAddr(r netlink.Route) (netip.Addr, bool) {
	p := prefixOf(r)
	return p.Addr(), p.IsValid() && p.IsSingleIP() && r.Type == unix.RTN_UNICAST
}

// setOwnRoutes drops packets to addresses of the node's pod CIDRs that no pod
// has, and gives the host a way to the service CIDRs. It runs under mu.
func (n *Network) setOwnRoutes(c Config) error {
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	want := map[netip.Prefix]bool{}
	for _, p := range c.PodCIDRs {
		if n.leaves(c) {
			break
		}
		want[p] = true
		if err := n.nl.RouteReplace(&netlink.Route{Dst: ipnet(p), Type: unix.RTN_BLACKHOLE, Protocol: n.proto}); err != nil {
			return fmt.Errorf("add route for pod CIDR %s: %w", p, err)
		}
	}
	for _, p := range c.ServiceCIDRs {
		if !n.uses(p.Addr()) {
			continue
		}
		want[p] = true
		// The MTU of lo would let connections begin with segments that no pod takes.
		r := &netlink.Route{Dst: ipnet(p), LinkIndex: lo.Attrs().Index, Protocol: n.proto, MTU: n.mtu, Src: source(c, p.Addr())}
		if p.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := n.nl.RouteReplace(r); err != nil {
			return fmt.Errorf("add route for service CIDR %s: %w", p, err)
		}
	}
	have, err := n.routes()
	if err != nil {
		return err
	}
	for _, r := range have {
		own := r.Type == unix.RTN_BLACKHOLE || r.Gw == nil && r.LinkIndex == lo.Attrs().Index
		if own && !want[prefixOf(r)] {
			if err := n.nl.RouteDel(&r); err != nil && !gone(err) {
				return fmt.Errorf("delete route for %s: %w", prefixOf(r), err)
			}
		}
	}
	return nil
}

// leaves tells whether pods are others' matter entirely. It runs under mu.
func (n *Network) leaves(c Config) bool { return c.External && len(n.links) == 0 }

func (n *Network) uses(a netip.Addr) bool {
	return slices.ContainsFunc(n.families, func(f nft.Family) bool { return f.Has(a) })
}

// source is the node's address of the family of a; nil where it has none.
func source(c Config, a netip.Addr) net.IP {
	for _, s := range c.NodeIPs {
		if s.Is4() == a.Is4() {
			return s.AsSlice()
		}
	}
	return nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// SetRoutes makes the routes to other nodes' pods what peers says: pod CIDR to
// node address. The nodes must share a link. Peers that cannot be routed to are
// reported together; the others are set.
func (n *Network) SetRoutes(peers map[netip.Prefix]netip.Addr) error {
	if err := n.Ready(); err != nil {
		return err
	}
	have, err := n.routes()
	if err != nil {
		return err
	}
	n.mu.Lock()
	own := map[netip.Prefix]bool{}
	for _, p := range n.pools {
		own[p.prefix] = true
	}
	n.mu.Unlock()
	set := map[netip.Prefix]bool{}
	var errs []error
	for _, r := range have {
		if r.Gw == nil {
			continue
		}
		p := prefixOf(r)
		if gw, ok := peers[p]; ok && !own[p] && r.Gw.Equal(gw.AsSlice()) {
			set[p] = true
			continue
		}
		if _, ok := peers[p]; ok {
			continue // replaced below, with no moment without
		}
		if err := n.nl.RouteDel(&r); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", p, err))
		}
	}
	for p, gw := range peers {
		if set[p] || own[p] {
			continue
		}
		if !p.IsValid() || !gw.IsValid() || p.Addr().Is4() != gw.Is4() {
			errs = append(errs, fmt.Errorf("route to %s via %s: must be a network and an address of one family", p, gw))
			continue
		}
		if err := n.nl.RouteReplace(&netlink.Route{Dst: ipnet(p), Gw: gw.AsSlice(), Protocol: n.proto}); err != nil {
			errs = append(errs, fmt.Errorf("add route to %s via %s: %w", p, gw, err))
		}
	}
	return errors.Join(errs...)
}
