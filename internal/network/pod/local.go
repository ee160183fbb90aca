package pod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"strconv"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/nft"
)

// KindAddress is the journal's kind for an address on lo; to undo it, delete the
// address.
const KindAddress host.Kind = "address"

// LocalAddrs returns the addresses at which a node serves its own pods (DNS), one
// per family. They are not routed, the same on every node, on lo alone, and
// derive from the instance's name, so that several instances do not meet. The
// IPv4 one is link-local, above the part that addresses known to be used there
// come from (gateways, metadata services, other DNS caches).
func LocalAddrs(i host.Instance) []netip.Addr {
	tag, err := strconv.ParseUint(i.Tag(), 16, 16)
	if err != nil {
		tag = 0 // Tag is four hex digits
	}
	v6 := netip.MustParseAddr("fd73:6b69:6666::53").As16()
	binary.BigEndian.PutUint16(v6[6:], uint16(tag))
	return []netip.Addr{
		netip.AddrFrom4([4]byte{169, 254, byte(192 + tag>>8%62), byte(1 + tag%254)}),
		netip.AddrFrom16(v6),
	}
}

// setLocalAddrs puts the addresses of families in use on lo, in a way that the
// kernel does not choose them as the source of other packets (masqueraded ones,
// say). It runs under mu.
func (n *Network) setLocalAddrs(addrs []netip.Addr) error {
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, a := range addrs {
		if !n.uses(a) {
			continue
		}
		if err := n.deps.Journal.Record(host.Entry{Kind: KindAddress, Name: "lo " + single(a).String()}); err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: single(a), Scope: int(netlink.SCOPE_HOST)}
		if a.Is6() {
			// The scope of an IPv6 address is in the address. One that is valid but
			// not preferred is a source only when asked for.
			addr = &netlink.Addr{IPNet: single(a), ValidLft: math.MaxUint32, Flags: unix.IFA_F_NODAD}
		}
		err := n.nl.AddrAdd(lo, addr)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("add address %s to lo: %w", a, err)
		}
		if err := waitLocal(n.nl, []netip.Addr{a}); err != nil {
			return err
		}
	}
	return nil
}

// guardLocal adds the rules that keep the local addresses to this node and its
// pods: the kernel takes a packet for any address of the host from any link.
func (n *Network) guardLocal(t *nft.Txn, r rules, c Config) {
	ch := &nftables.Chain{Table: r.table, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter}
	t.AddChain(ch)
	if c.External {
		// Any link may be a pod's. Who was sent here by a service's address may come,
		// as to any other service.
		t.Rule(ch, nft.Rule{}.CTStatus(nft.DNATed).Accept())
	}
	for _, a := range c.LocalAddrs {
		if !r.f.Has(a) {
			continue
		}
		t.Rule(ch, nft.Rule{}.DAddr(r.f, 0).Eq(0, a.AsSlice()).
			IfName(0).Neq(0, append([]byte("lo"), 0)).
			IfName(0).Neq(0, []byte(n.deps.Instance.LinkPrefix())).Drop())
	}
}
