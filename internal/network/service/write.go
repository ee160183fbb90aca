package service

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/nft"
)

// layout are the table, chains and sets of one family.
//
// Fields of the keys, in order, each padded to whole registers:
//
//	services, kind-*  address . protocol . port
//	endpoints         address . protocol . port . slot           -> address . port
//	affinity[-local]  client . address . protocol . port         -> address . port
//	pinned[-local]    address . protocol . port . address . port
//	hairpin           address . address
//
// What is in services is in one of the sets kind-*, each of which leads to its
// chain: there are as many as there are combinations of a number of endpoints and
// policies. A map to verdicts would be one lookup, but for each change of such a
// map the kernel walks all of it, to find loops; and a map to numbers that are
// looked up in turn cannot be listed by nft(8) 1.0.6, say, which ends abnormally
// at it (as it does at the rules for session affinity).
type layout struct {
	f                   nft.Family
	mark                uint32
	knowsPods           bool
	table               *nftables.Table
	services, endpoints *nftables.Set
	affinity, pinned    [2]*nftables.Set // of all endpoints, of local ones
	hairpin, clusterIPs *nftables.Set
	clusters            *nftables.Set // addresses of pods
}

// The chains that are always there, besides those of the fixed kinds.
const (
	chainLookup = "lookup"
	chainKinds  = "kinds"      // of addresses
	chainNode   = "kinds-node" // of node ports
)

// affinitySize bounds how many clients are remembered per family: beyond it new
// ones are balanced without being remembered.
const affinitySize = 1 << 18

func (p *Proxy) layout(f nft.Family) layout {
	t := &nftables.Table{Name: p.tableName(), Family: f.Table}
	concat := nftables.MustConcatSetType
	ip, proto, port := f.AddrType, nftables.TypeInetProto, nftables.TypeInetService
	l := layout{
		f: f, mark: p.deps.Mark, knowsPods: len(f.Only(p.deps.ClusterCIDRs)) > 0, table: t,
		services: &nftables.Set{Table: t, Name: "services", Concatenation: true, KeyType: concat(ip, proto, port)},
		endpoints: &nftables.Set{Table: t, Name: "endpoints", IsMap: true, Concatenation: true,
			KeyType: concat(ip, proto, port, nftables.TypeMark), DataType: concat(ip, port)},
		hairpin:    &nftables.Set{Table: t, Name: "hairpin", Concatenation: true, KeyType: concat(ip, ip)},
		clusterIPs: &nftables.Set{Table: t, Name: "cluster-ips", KeyType: ip},
		clusters:   &nftables.Set{Table: t, Name: "pods", KeyType: ip, Interval: true},
	}
	for i, suffix := range []string{"", "-local"} {
		l.affinity[i] = &nftables.Set{Table: t, Name: "affinity" + suffix, IsMap: true, Concatenation: true,
			Dynamic: true, HasTimeout: true, Size: affinitySize,
			KeyType: concat(ip, ip, proto, port), DataType: concat(ip, port)}
		l.pinned[i] = &nftables.Set{Table: t, Name: "pinned" + suffix, Concatenation: true,
			KeyType: concat(ip, proto, port, ip, port)}
	}
	return l
}

// version names this layout; another one gets another name. A table has a chain
// with that name.
const version = "layout-2"

// present are the names of what is in a table.
type present struct{ chains, sets []string }

// find returns what is in the table that is there; nil where there is none, or
// one of another layout.
func (l layout) find(conn *nft.Conn) (found *present, err error) {
	err = conn.Query(func(c *nftables.Conn) error {
		found = nil
		chains, err := c.ListChainsOfTableFamily(l.f.Table)
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		p := &present{}
		for _, ch := range chains {
			if ch.Table.Name == l.table.Name {
				p.chains = append(p.chains, ch.Name)
			}
		}
		if !slices.Contains(p.chains, version) {
			return nil
		}
		sets, err := c.GetSets(l.table)
		if err != nil {
			return fmt.Errorf("list sets: %w", err)
		}
		for _, s := range sets {
			p.sets = append(p.sets, s.Name)
		}
		found = p
		return nil
	})
	return found, err
}

// kindSet is the set of the fronts of a kind.
func (l layout) kindSet(c chain) *nftables.Set {
	return &nftables.Set{Table: l.table, Name: kindPrefix + c.name(), Concatenation: true, KeyType: l.services.KeyType}
}

const kindPrefix = "kind-"

func (l layout) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: l.table, Name: name}
}

// front loads the key of services for a packet to an address, or to a port of the
// node.
func (l layout) front(node bool) nft.Rule {
	r := nft.Rule{}
	if node {
		r = r.Imm(0, l.f.Any().AsSlice())
	} else {
		r = r.DAddr(l.f, 0)
	}
	return r.L4Proto(l.f.Words).DPort(l.f.Words + 1)
}

// writeBase makes the table with all its hooks, or empties it of all but the
// hooks and the clients it remembers. Taking hooks away while others come would
// let packets pass between them.
func (l layout) writeBase(t *nft.Txn, d Deps, found *present) {
	f, w := l.f, l.f.Words
	if found == nil {
		t.ReplaceTable(l.table)
		t.AddChain(l.chain(version))
		t.AddSet(l.affinity[0])
		t.AddSet(l.affinity[1])
	} else {
		for _, name := range found.chains {
			t.FlushChain(l.chain(name))
		}
		for _, name := range found.sets {
			if name != l.affinity[0].Name && name != l.affinity[1].Name {
				t.FlushSet(&nftables.Set{Table: l.table, Name: name})
			}
		}
	}
	for _, s := range []*nftables.Set{l.services, l.endpoints, l.pinned[0], l.pinned[1], l.hairpin, l.clusterIPs, l.clusters} {
		t.AddSet(s)
	}
	t.Add(l.clusters, nft.Ranges(nft.Disjoint(f.Only(d.ClusterCIDRs))))
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		ch := &nftables.Chain{Table: l.table, Name: name, Type: typ, Hooknum: hook, Priority: prio}
		t.AddChain(ch)
		return ch
	}

	t.AddChain(l.chain(chainKinds))
	t.AddChain(l.chain(chainNode))
	for c := range fixedKinds() {
		t.AddSet(l.kindSet(c))
		t.AddChain(l.chain(c.name()))
	}
	l.writeFixed(t)
	t.Rule(l.chain(verdictReject), nft.Rule{}.Proto(unix.IPPROTO_TCP).RejectTCP())
	t.Rule(l.chain(verdictReject), nft.Rule{}.Reject(f))
	t.Rule(l.chain(verdictDrop), nft.Rule{}.Drop())

	lookup := l.chain(chainLookup)
	t.AddChain(lookup)
	t.Rule(lookup, l.front(false).In(l.services, 0).Goto(chainKinds))
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if f.AddrLen == 16 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	local := nft.Rule{}.DstLocal(0).DAddr(f, 0).NotInPrefix(f, 0, loopback)
	t.Rule(lookup, append(local, l.front(true)...).In(l.services, 0).Goto(chainNode))
	t.Rule(lookup, nft.Rule{}.DAddr(f, 0).In(l.clusterIPs, 0).Goto(verdictReject))
	for _, p := range f.Only(d.ServiceCIDRs) {
		t.Rule(lookup, nft.Rule{}.DAddr(f, 0).InPrefix(f, 0, p).Drop())
	}
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	stranger := func() nft.Rule {
		return nft.Rule{}.IfName(0).Eq(0, []byte(host.LinkPrefix)).Neq(0, []byte(d.Instance.LinkPrefix()))
	}
	t.Rule(pre, stranger().DAddr(f, 0).In(l.clusterIPs, 0).Drop())
	for _, p := range f.Only(d.ServiceCIDRs) {
		t.Rule(pre, stranger().DAddr(f, 0).InPrefix(f, 0, p).Drop())
	}
	t.Rule(pre, nft.Rule{}.Verdict(expr.VerdictJump, lookup.Name))
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	t.Rule(out, nft.Rule{}.Verdict(expr.VerdictJump, lookup.Name))

	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	t.Rule(post, nft.Rule{}.Marked(d.Mark).Unmark(d.Mark).Masquerade())
	t.Rule(post, nft.Rule{}.CTStatus(nft.DNATed).SAddr(f, 0).DAddr(f, w).In(l.hairpin, 0).Masquerade())

	// A packet that conntrack cannot place would reach its client with the
	// endpoint's address instead of the service's, and be answered by a reset.
	fwd := base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	t.Rule(fwd, nft.Rule{}.CTState(expr.CtStateBitINVALID).SAddr(f, 0).In(l.clusters, 0).Drop())
}

// writeFixed adds the rules of the kinds that are always there, after all others.
func (l layout) writeFixed(t *nft.Txn) {
	for _, at := range []struct {
		chain string
		node  bool
	}{{chainKinds, false}, {chainNode, true}} {
		for _, c := range []chain{{verdict: verdictReject}, {verdict: verdictDrop}} {
			t.Rule(l.chain(at.chain), l.front(at.node).In(l.kindSet(c), 0).Goto(c.name()))
		}
		// In services and of no kind: the packet came while the kind changed. It is
		// sent again.
		t.Rule(l.chain(at.chain), nft.Rule{}.Drop())
	}
}

// writeKind adds the rule that leads to the chain of a kind, before all others.
func (l layout) writeKind(t *nft.Txn, c chain) {
	from := chainKinds
	if c.node {
		from = chainNode
	}
	t.RuleFirst(l.chain(from), l.front(c.node).In(l.kindSet(c), 0).Goto(c.name()))
}

// tidy leaves the rules of the kinds in use alone, in one transaction: rules cannot
// be named, so those that lead to kinds are all written anew.
func (l layout) tidy(t *nft.Txn, used, idle []chain) {
	t.FlushChain(l.chain(chainKinds))
	t.FlushChain(l.chain(chainNode))
	l.writeFixed(t)
	keep := map[string]bool{}
	for _, c := range used {
		if c.verdict == "" {
			l.writeKind(t, c)
		}
		for _, name := range c.chains() {
			keep[name] = true
		}
	}
	var gone []string
	for _, c := range idle {
		for _, name := range c.chains() {
			if !keep[name] {
				keep[name] = true // once
				gone = append(gone, name)
			}
		}
	}
	for _, name := range gone {
		t.FlushChain(l.chain(name))
	}
	for _, name := range gone {
		t.DelChain(l.chain(name))
	}
	for _, c := range idle {
		t.DelSet(l.kindSet(c))
	}
}

// write writes a difference. Elements that go are first, so that a key can get
// another value.
func (l layout) write(t *nft.Txn, chains []chain, del, add content) {
	for _, c := range chains {
		l.writeChain(t, c)
		t.AddSet(l.kindSet(c))
		l.writeKind(t, c)
	}
	l.each(del, t.Delete)
	l.each(add, t.Add)
}

// each hands the content to do, set by set, in pieces.
func (l layout) each(c content, do func(*nftables.Set, []nftables.SetElement)) {
	if c.fronts != nil {
		kinds := map[chain][]nftables.SetElement{}
		for f, c := range c.fronts {
			if l.f.Has(f.addr) {
				kinds[c] = append(kinds[c], nftables.SetElement{Key: l.frontKey(f)})
			}
		}
		for c, elems := range kinds {
			do(l.services, elems)
			do(l.kindSet(c), elems)
		}
	}
	stream(l.endpoints, c.slots, l.slotElement, do)
	for i, set := range l.pinned {
		stream(set, c.pins, func(p pinned, _ bool) (nftables.SetElement, bool) {
			if p.local != (i == 1) || !l.f.Has(p.addr) {
				return nftables.SetElement{}, false
			}
			return nftables.SetElement{Key: append(l.frontKey(p.frontend), addrPort(p.to)...)}, true
		}, do)
	}
	l.addrs(l.clusterIPs, c.ips, 1, do)
	l.addrs(l.hairpin, c.pairs, 2, do)
}

// writeChain adds the chain for connections of one kind.
func (l layout) writeChain(t *nft.Txn, c chain) {
	ch := &nftables.Chain{Table: l.table, Name: c.name()}
	t.AddChain(ch)
	t.FlushChain(ch)
	f := l.f
	switch {
	case c.from != "":
		l.writeChain(t, c.open())
		for from := range strings.SplitSeq(c.from, " ") {
			if p, err := netip.ParsePrefix(from); err == nil && f.Has(p.Addr()) {
				t.Rule(ch, nft.Rule{}.SAddr(f, 0).InPrefix(f, 0, p).Goto(c.open().name()))
			}
		}
		t.Rule(ch, nft.Rule{}.Drop())
		return
	case c.split:
		// Pods and this node reach every endpoint, the node under its own address.
		parts := c.parts()
		l.writeChain(t, parts[0])
		t.Rule(ch, nft.Rule{}.SAddr(f, 0).In(l.clusters, 0).Goto(parts[0].name()))
		l.writeChain(t, parts[1])
		t.Rule(ch, nft.Rule{}.SrcLocal(0).Goto(parts[1].name()))
		l.writePick(t, ch, c, c.local, 1)
		return
	case c.masq == masqAlways:
		t.Rule(ch, nft.Rule{}.Mark(l.mark))
	case c.masq == masqOutside && l.knowsPods:
		t.Rule(ch, nft.Rule{}.SAddr(f, 0).NotIn(l.clusters, 0).Mark(l.mark))
	}
	l.writePick(t, ch, c, c.cluster, 0)
}

// writePick adds the rules that choose one of n endpoints, of all (side 0) or of
// this node's (side 1).
//
// Registers: client, address, protocol, port, then slot or endpoint; so that
// every key is in consecutive ones.
func (l layout) writePick(t *nft.Txn, ch *nftables.Chain, c chain, n, side int) {
	f, w := l.f, l.f.Words
	client, addr, proto, port, val := 0, w, 2*w, 2*w+1, 2*w+2
	load := func() nft.Rule {
		r := nft.Rule{}.L4Proto(proto).DPort(port)
		if c.node {
			return r.Imm(addr, f.Any().AsSlice())
		}
		return r.DAddr(f, addr)
	}
	first := uint32(side) * localSlot
	aff := *l.affinity[side]
	aff.Timeout = c.affinity
	if n > 0 && c.affinity > 0 {
		t.Rule(ch, load().SAddr(f, client).Map(&aff, client, val).In(l.pinned[side], addr).
			Store(&aff, nft.OpUpdate, client, val).DNAT(f, val, val+w))
		t.Rule(ch, load().SAddr(f, client).Random(val, uint32(n), first).Map(l.endpoints, addr, val).
			Store(&aff, nft.OpDelete, client, val).Store(&aff, nft.OpUpdate, client, val).DNAT(f, val, val+w))
	}
	if n > 1 {
		t.Rule(ch, load().Random(val, uint32(n), first).Map(l.endpoints, addr, val).DNAT(f, val, val+w))
	}
	if n > 0 {
		// The only endpoint. With several, this serves a packet that was sent here
		// just before a change and draws a slot just after it that is no more.
		t.Rule(ch, load().Imm(val, nft.NumKey(first)).Map(l.endpoints, addr, val).DNAT(f, val, val+w))
	}
	t.Rule(ch, nft.Rule{}.Drop())
}

func stream[K, V any](s *nftables.Set, in iter.Seq2[K, V], one func(K, V) (nftables.SetElement, bool),
	do func(*nftables.Set, []nftables.SetElement)) {
	if in == nil {
		return
	}
	piece := make([]nftables.SetElement, 0, 64)
	for k, v := range in {
		e, ok := one(k, v)
		if !ok {
			continue
		}
		if piece = append(piece, e); len(piece) == nft.Chunk {
			do(s, piece)
			piece = piece[:0]
		}
	}
	do(s, piece)
}

func (l layout) frontKey(f frontend) []byte {
	b := make([]byte, 0, l.f.AddrLen+28)
	b = append(b, f.addr.AsSlice()...)
	return append(b, f.proto, 0, 0, 0, byte(f.port>>8), byte(f.port), 0, 0)
}

func (l layout) slotElement(s slot, to netip.AddrPort) (nftables.SetElement, bool) {
	if !l.f.Has(s.addr) {
		return nftables.SetElement{}, false
	}
	return nftables.SetElement{Key: append(l.frontKey(s.frontend), nft.NumKey(s.index)...), Val: addrPort(to)}, true
}

func addrPort(a netip.AddrPort) []byte {
	return slices.Concat(a.Addr().AsSlice(), nft.PortKey(a.Port()))
}

// addrs hands keys of an address, repeated, to do.
func (l layout) addrs(s *nftables.Set, ips iter.Seq[netip.Addr], times int, do func(*nftables.Set, []nftables.SetElement)) {
	if ips == nil {
		return
	}
	stream(s, func(yield func(netip.Addr, struct{}) bool) {
		for ip := range ips {
			if !yield(ip, struct{}{}) {
				return
			}
		}
	}, func(ip netip.Addr, _ struct{}) (nftables.SetElement, bool) {
		if !l.f.Has(ip) {
			return nftables.SetElement{}, false
		}
		return nftables.SetElement{Key: bytes.Repeat(ip.AsSlice(), times)}, true
	}, do)
}

// deleteRest deletes what a former run had for kinds that there are no more.
func (l layout) deleteRest(t *nft.Txn, chains []chain, found *present) {
	if found == nil {
		return
	}
	used := map[string]bool{version: true, verdictReject: true, verdictDrop: true, chainLookup: true, chainKinds: true, chainNode: true,
		"prerouting": true, "output": true, "postrouting": true, "forward": true,
		kindPrefix + verdictReject: true, kindPrefix + verdictDrop: true}
	for _, c := range chains {
		used[kindPrefix+c.name()] = true
		for _, name := range c.chains() {
			used[name] = true
		}
	}
	for _, name := range found.chains {
		if !used[name] {
			t.DelChain(l.chain(name))
		}
	}
	for _, name := range found.sets {
		if strings.HasPrefix(name, kindPrefix) && !used[name] {
			t.DelSet(&nftables.Set{Table: l.table, Name: name})
		}
	}
}

// chains are the names of those that a kind needs.
func (c chain) chains() []string {
	names := []string{c.name()}
	if c.from != "" {
		c = c.open()
		names = append(names, c.name())
	}
	if c.split {
		for _, part := range c.parts() {
			names = append(names, part.name())
		}
	}
	return names
}

// parts are the chains that one under the Local policy uses for pods and for the
// node itself.
func (c chain) parts() [2]chain {
	c.split, c.local, c.masq = false, 0, masqNever
	node := c
	node.masq = masqAlways
	return [2]chain{c, node}
}
