package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// hostMAC is the hardware address of every host end. Each pair is a link of its
// own, so it need not be unique.
var hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

const podLink = "eth0"

// upWithin bounds the wait for a link: the kernel may put such events off for a
// second.
const upWithin = 5 * time.Second

func newHandle() (*netlink.Handle, error) { return netlink.NewHandle(unix.NETLINK_ROUTE) }

// podMAC derives a locally administered hardware address from the pod's.
func podMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// connect makes the pair and all that goes with it. The routes of the host come
// last: they mark the work as complete.
func (n *Network) connect(name string, pod ns.NS, ph *netlink.Handle, ips []netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Flags = name, n.mtuNow(), hostMAC, net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = podLink, podMAC(ips[0]), netlink.NsFd(pod.Fd())
	err := n.nl.LinkAdd(veth)
	if errors.Is(err, fs.ErrExist) {
		// What an interrupted Attach left, or the link of a namespace that is
		// about to go.
		if err := n.deleteLink(name); err != nil {
			return err
		}
		err = n.nl.LinkAdd(veth)
	}
	if err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	if veth.Index == 0 {
		return fmt.Errorf("add link %s: it has gone again", name)
	}
	if err := ph.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	eth0, err := ph.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("find %s: %w", podLink, err)
	}
	if err := ph.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set %s up: %w", podLink, err)
	}
	for _, ip := range ips {
		if err := podSide(ph, eth0, ip); err != nil {
			return err
		}
	}
	// The primary address last: its route says that the others are complete.
	for _, ip := range slices.Backward(ips) {
		if err := n.hostSide(veth.Index, ip, veth.PeerHardwareAddr); err != nil {
			return err
		}
	}
	if err := n.waitUp(veth.Index, name); err != nil {
		return err
	}
	return waitLocal(ph, ips)
}

// waitLocal waits until IPv6 addresses are taken for the namespace's own: the
// kernel makes the route that says so in the background.
func waitLocal(h *netlink.Handle, ips []netip.Addr) error {
	deadline := time.Now().Add(upWithin)
	for _, ip := range ips {
		for ip.Is6() {
			rs, err := h.RouteGet(ip.AsSlice())
			if err == nil && len(rs) > 0 && rs[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %s is not in use after %s: %v, %v", ip, upWithin, rs, err)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}

// waitUp waits until the host end passes packets. It has its carrier since the
// pod's end is up, but drops what it is given until the kernel has dealt with
// that event in the background; newer kernels do so before they answer here.
func (n *Network) waitUp(index int, name string) error {
	deadline := time.Now().Add(upWithin)
	for {
		l, err := n.nl.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("link %s is %s after %s", name, l.Attrs().OperState, upWithin)
		}
		time.Sleep(time.Millisecond)
	}
}

func podSide(ph *netlink.Handle, eth0 netlink.Link, ip netip.Addr) error {
	gw, flags := gateway4, 0
	if ip.Is6() {
		// Nobody else can have the address: no need to ask around for a second.
		gw, flags = gateway6, unix.IFA_F_NODAD
	}
	addr := &netlink.Addr{IPNet: single(ip), Flags: flags}
	if err := ph.AddrReplace(eth0, addr); err != nil {
		return fmt.Errorf("add address %s: %w", ip, err)
	}
	if err := ph.NeighSet(neighbour(eth0.Attrs().Index, gw, hostMAC)); err != nil {
		return fmt.Errorf("add gateway %s: %w", gw, err)
	}
	route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := ph.RouteReplace(route); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

func (n *Network) hostSide(index int, ip netip.Addr, mac net.HardwareAddr) error {
	if err := n.nl.NeighSet(neighbour(index, ip, mac)); err != nil {
		return fmt.Errorf("add neighbour %s: %w", ip, err)
	}
	if err := n.nl.RouteReplace(n.podRoute(index, ip)); err != nil {
		return fmt.Errorf("add route to %s: %w", ip, err)
	}
	return nil
}

func (n *Network) podRoute(index int, ip netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: single(ip), Scope: netlink.SCOPE_LINK, Protocol: n.proto}
	if ip.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cfg != nil {
		r.Src = source(*n.cfg, ip)
	}
	return r
}

func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}
}

func neighbour(index int, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	fam := unix.AF_INET
	if ip.Is6() {
		fam = unix.AF_INET6
	}
	return &netlink.Neigh{LinkIndex: index, Family: fam, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

// connected tells whether the link is there and its other end is in ph's
// namespace.
func (n *Network) connected(name string, ph *netlink.Handle) bool {
	link, err := n.nl.LinkByName(name)
	if err != nil {
		return false
	}
	eth0, err := ph.LinkByName(podLink)
	return err == nil && link.Attrs().ParentIndex == eth0.Attrs().Index && eth0.Attrs().ParentIndex == link.Attrs().Index
}

func (n *Network) deleteLink(name string) error {
	link, err := n.nl.LinkByName(name)
	if err == nil {
		err = n.nl.LinkDel(link)
	}
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func (n *Network) deleteRoute(ip netip.Addr, name string) error {
	r := &netlink.Route{Dst: single(ip), Protocol: n.proto, Scope: netlink.SCOPE_LINK}
	if ip.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	if err := n.nl.RouteDel(r); err != nil && !gone(err) {
		return fmt.Errorf("delete route to %s (%s): %w", ip, name, err)
	}
	return nil
}

func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENXIO)
}

// ownLinks returns the names of the links of this instance.
func (n *Network) ownLinks() ([]string, error) {
	links, err := ns.Dump(n.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, n.deps.Instance.LinkPrefix()) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// adopt reads back what is attached, and gives it the node's present address as
// the source of the host's packets. It runs under mu.
func (n *Network) adopt(c Config) error {
	links, err := ns.Dump(n.nl.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, n.deps.Instance.LinkPrefix()) {
			names[l.Attrs().Index] = l.Attrs().Name
		}
	}
	routes, err := n.routes()
	if err != nil {
		return err
	}
	found := map[string][]netip.Addr{}
	for _, r := range routes {
		name, ok := names[r.LinkIndex]
		ip, single := hostAddr(r)
		if !ok || !single {
			continue
		}
		found[name] = append(found[name], ip)
		if src := source(c, ip); !r.Src.Equal(src) {
			r.Src = src
			if err := n.nl.RouteReplace(&r); err != nil {
				return fmt.Errorf("change route to %s: %w", ip, err)
			}
		}
	}
	for name, ips := range found {
		// The primary family first.
		slices.SortFunc(ips, func(a, b netip.Addr) int { return n.rank(a) - n.rank(b) })
		if _, ok := n.links[name]; !ok && n.rank(ips[0]) == 0 {
			n.links[name] = ips
		}
	}
	for _, ips := range n.links {
		for _, p := range n.pools {
			for _, ip := range ips {
				p.adopt(ip)
			}
		}
	}
	return nil
}

func (n *Network) rank(a netip.Addr) int {
	for i, f := range n.families {
		if f.Has(a) {
			return i
		}
	}
	return len(n.families)
}

func (n *Network) mtuNow() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mtu
}

// findMTU returns the configured MTU, or that of the link that carries the
// node's traffic.
func (n *Network) findMTU(c Config) (int, error) {
	if c.MTU != 0 {
		return c.MTU, nil
	}
	if len(c.NodeIPs) > 0 {
		addrs, err := n.addresses()
		if err != nil {
			return 0, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if a.IP.Equal(c.NodeIPs[0].AsSlice()) {
				return n.linkMTU(a.LinkIndex)
			}
		}
	}
	routes, err := n.main(&netlink.Route{}, 0)
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.LinkIndex != 0 {
			return n.linkMTU(r.LinkIndex)
		}
	}
	return 1500, nil
}

func (n *Network) linkMTU(index int) (int, error) {
	l, err := n.nl.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("find the uplink: %w", err)
	}
	// The MTU of lo, for one, is larger than what a veth takes.
	return min(l.Attrs().MTU, 65535), nil
}

// record notes in the journal what Configure is about to put on the host.
func (n *Network) record(families []nft.Family) error {
	entries := []host.Entry{
		{Kind: host.KindRoutes, Name: strconv.Itoa(int(n.proto))},
		{Kind: host.KindLinks, Name: n.deps.Instance.LinkPrefix()},
	}
	for _, f := range families {
		entries = append(entries, host.Entry{Kind: host.KindTable, Name: f.Name() + " " + n.tableName()})
	}
	for _, e := range entries {
		if err := n.deps.Journal.Record(e); err != nil {
			return err
		}
	}
	return nil
}

// setSysctls turns on forwarding. It runs under mu.
func (n *Network) setSysctls(families []nft.Family, nodeIPs []netip.Addr) error {
	for _, f := range families {
		if f.AddrLen == 4 {
			if err := n.sysctl("net.ipv4.ip_forward", "1"); err != nil {
				return err
			}
			continue
		}
		// A host that forwards ignores router advertisements, its own default
		// route among them, unless told not to.
		for _, a := range nodeIPs {
			if link := n.linkOf(a); a.Is6() && link != "" {
				key := "net.ipv6.conf." + strings.ReplaceAll(link, ".", "/") + ".accept_ra"
				if v, err := n.ns.Sysctl(key); err == nil && v == "1" {
					if err := n.sysctl(key, "2"); err != nil {
						return err
					}
				}
			}
		}
		if err := n.sysctl("net.ipv6.conf.all.forwarding", "1"); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) linkOf(a netip.Addr) string {
	addrs, err := n.addresses()
	if err != nil {
		return ""
	}
	for _, x := range addrs {
		if x.IP.Equal(a.AsSlice()) {
			if l, err := n.nl.LinkByIndex(x.LinkIndex); err == nil {
				return l.Attrs().Name
			}
		}
	}
	return ""
}

func (n *Network) sysctl(name, value string) error {
	prior, err := n.ns.Sysctl(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: this kernel does not have it", err)
		}
		return err
	}
	if prior == value {
		return nil
	}
	if err := n.deps.Journal.Record(host.Entry{Kind: host.KindSysctl, Name: name, Prior: prior, Value: value}); err != nil {
		return err
	}
	return n.ns.SetSysctl(name, value)
}
