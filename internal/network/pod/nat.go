package pod

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"skiff/internal/network/nft"
)

func (n *Network) tableName() string { return n.deps.Instance.Table() + "-pods" }

// rules are the tables' parts for one family: masquerading of what leaves the
// cluster, and host ports.
//
// A host port is found under (protocol, port, address of the host), then under
// (protocol, port, any). A pod that reaches itself through a host port is seen
// as the host, by the pairs in hairpin.
type rules struct {
	f       nft.Family
	table   *nftables.Table
	keep    *nftables.Set // destinations for which pods keep their address
	ports   *nftables.Set
	hairpin *nftables.Set
}

func (n *Network) rules(f nft.Family) rules {
	t := &nftables.Table{Name: n.tableName(), Family: f.Table}
	return rules{
		f: f, table: t,
		keep: &nftables.Set{Table: t, Name: "no-masquerade", KeyType: f.AddrType, Interval: true},
		ports: &nftables.Set{Table: t, Name: "host-ports", IsMap: true, Concatenation: true,
			KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, f.AddrType),
			DataType: nftables.MustConcatSetType(f.AddrType, nftables.TypeInetService)},
		hairpin: &nftables.Set{Table: t, Name: "hairpin", Concatenation: true,
			KeyType: nftables.MustConcatSetType(f.AddrType, f.AddrType)},
	}
}

// rulesVersion is part of the mark that rules carry; another layout gets another.
const rulesVersion = "2"

// mark names what the rules are made from. It is the name of a chain, so that a
// restart which would write the same rules leaves them alone: a connection made
// while hooks change could pass between the former and the new ones.
func (n *Network) mark(c Config) string {
	sum := sha256.Sum256(fmt.Append(nil, rulesVersion, n.deps.Instance.Name,
		c.PodCIDRs, c.ClusterCIDRs, c.ServiceCIDRs, c.NoMasquerade, c.LocalAddrs))
	if c.External {
		sum = sha256.Sum256(fmt.Append(sum[:], n.leaves(c)))
	}
	return "made-" + hex.EncodeToString(sum[:8])
}

// writeRules writes the tables, in one transaction, with the host ports that are
// mapped, unless they are there. It runs under mu.
func (n *Network) writeRules(c Config) error {
	mark := n.mark(c)
	current := true
	for _, f := range n.families {
		if err := n.adoptHostPorts(f); err != nil {
			return err
		}
		var there bool
		err := n.nft.Query(func(q *nftables.Conn) error {
			chains, err := q.ListChainsOfTableFamily(f.Table)
			if err != nil {
				return fmt.Errorf("list chains: %w", err)
			}
			there = slices.ContainsFunc(chains, func(ch *nftables.Chain) bool {
				return ch.Table.Name == n.tableName() && ch.Name == mark
			})
			return nil
		})
		if err != nil {
			return err
		}
		current = current && there
	}
	if current {
		return nil
	}
	err := n.nft.Do(func(t *nft.Txn) {
		for _, f := range n.families {
			r := n.rules(f)
			t.ReplaceTable(r.table)
			t.AddChain(&nftables.Chain{Table: r.table, Name: mark})
			t.AddSet(r.keep)
			keep := slices.Concat(c.ClusterCIDRs, c.PodCIDRs, c.ServiceCIDRs, c.NoMasquerade)
			t.Add(r.keep, nft.Ranges(nft.Disjoint(f.Only(keep))))
			t.AddSet(r.ports)
			t.AddSet(r.hairpin)
			for _, hook := range []struct {
				name string
				num  *nftables.ChainHook
			}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
				ch := &nftables.Chain{Table: r.table, Name: hook.name, Type: nftables.ChainTypeNAT,
					Hooknum: hook.num, Priority: nftables.ChainPriorityNATDest}
				t.AddChain(ch)
				w := f.Words
				addr, port := 2+w, 2+w+w // where the lookup's value goes
				match := func() nft.Rule { return nft.Rule{}.DstLocal(0).L4Proto(0).DPort(1) }
				t.Rule(ch, match().DAddr(f, 2).Map(r.ports, 0, addr).DNAT(f, addr, port))
				anywhere := match()
				if f.AddrLen != 4 { // the kernel routes nothing from ::1 to elsewhere
					anywhere = anywhere.DAddr(f, 2).NotInPrefix(f, 2, loopback(f))
				}
				t.Rule(ch, anywhere.Imm(2, f.Any().AsSlice()).Map(r.ports, 0, addr).DNAT(f, addr, port))
			}
			ch := &nftables.Chain{Table: r.table, Name: "postrouting", Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
			t.AddChain(ch)
			t.Rule(ch, nft.Rule{}.CTStatus(nft.DNATed).SAddr(f, 0).DAddr(f, f.Words).In(r.hairpin, 0).Masquerade())
			if f.AddrLen == 4 {
				n.fromLoopback(t, r, ch)
			}
			for _, p := range f.Only(c.PodCIDRs) {
				if n.leaves(c) {
					break
				}
				t.Rule(ch, nft.Rule{}.SAddr(f, 0).InPrefix(f, 0, p).DAddr(f, 0).NotInPrefix(f, 0, multicast(f)).
					DAddr(f, 0).NotIn(r.keep, 0).Masquerade())
			}
			n.guardLocal(t, r, c)
			for _, ms := range n.hostPorts {
				ports, hairpin := r.elements(ms)
				t.Add(r.ports, ports)
				t.Add(r.hairpin, hairpin)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("write pod network rules: %w%s", err, nft.Hint(err))
	}
	return nil
}

// fromLoopback lets host ports be reached by loopback addresses: a pod sees the host
// itself. The links of such pods may carry those addresses (localPorts), so nothing
// that comes from a pod is addressed to them.
func (n *Network) fromLoopback(t *nft.Txn, r rules, postrouting *nftables.Chain) {
	t.Rule(postrouting, nft.Rule{}.CTStatus(nft.DNATed).SAddr(r.f, 0).InPrefix(r.f, 0, loopback(r.f)).
		DAddr(r.f, 0).NotInPrefix(r.f, 0, loopback(r.f)).Masquerade())
	ch := &nftables.Chain{Table: r.table, Name: "from-pods", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw}
	t.AddChain(ch)
	t.Rule(ch, nft.Rule{}.DAddr(r.f, 0).InPrefix(r.f, 0, loopback(r.f)).
		IfName(0).Eq(0, []byte(n.deps.Instance.LinkPrefix())).Drop())
}

// localPorts has a link carry packets from loopback addresses, where its pod has host
// ports; the kernel drops them otherwise. It goes with the link.
func (n *Network) localPorts(link string, want []mapping) error {
	if !slices.ContainsFunc(want, func(m mapping) bool { return m.to.Addr().Is4() }) {
		return nil
	}
	return n.ns.SetSysctl("net.ipv4.conf."+link+".route_localnet", "1")
}

func loopback(f nft.Family) netip.Prefix {
	if f.AddrLen == 4 {
		return netip.MustParsePrefix("127.0.0.0/8")
	}
	return netip.MustParsePrefix("::1/128")
}

func multicast(f nft.Family) netip.Prefix {
	if f.AddrLen == 4 {
		return netip.MustParsePrefix("224.0.0.0/4")
	}
	return netip.MustParsePrefix("ff00::/8")
}
