package scheduler

import (
	"math"
	"slices"

	"skiff/internal/scheduler/framework"
)

// domains keeps, for one table, what its topological plugins have counted: sums
// over the pods of every topology domain. They follow the snapshot node by node.
//
// Of a key with few domains a node's signature (see bucket) names the domain, and
// a changed sum moves no node. Of a key with about as many domains as nodes (the
// host name) it holds the sums themselves, so that nodes of different domains with
// the same sums are judged together, and a changed sum moves the few nodes of its
// domain.
type domains struct {
	plugins []topoPlugin
	counts  []counter
	keys    []topoKey

	moved []int32 // slots whose signature changed beside the one updated
}

type topoPlugin struct {
	framework.Topological
	topology framework.Topology
	weight   int64
	first    int // index of its first count
	// Of the candidates, while scoring.
	least, most int64
	candidates  []int
}

type topoKey struct {
	name string
	// fine tells that signatures hold sums; coarse forbids it.
	fine, coarse bool
	ids          map[string]int32
	at           []int32 // domain of a slot, -1 for none
	members      [][]int32
}

type counter struct {
	framework.Count
	key      int
	at       []int64 // what the node in a slot adds
	eligible []bool
	sum      []int64 // by domain
	nodes    []int32 // eligible ones, by domain
	number   int     // of domains with eligible nodes
	total    int64
	// had counts domains with eligible nodes by their sum; least is the least.
	had   map[int64]int
	least int64
	seen  domainSet // while candidates are counted
}

// fineBelow is the number of nodes per domain below which a key is fine, unless
// there are no more than fewDomains.
const (
	fineBelow  = 16
	fewDomains = 64
)

// newDomains returns nil where no plugin has anything to say.
func newDomains(enabled []topoEnabled, sub framework.Subject, s *framework.Snapshot) *domains {
	d := &domains{}
	for _, e := range enabled {
		top := e.Topology(sub, s)
		top.Filters, top.Scores = top.Filters && e.filters, top.Scores && e.weight > 0
		if !top.Filters && !top.Scores {
			continue
		}
		d.plugins = append(d.plugins, topoPlugin{
			Topological: e.Topological, topology: top, weight: e.weight, first: len(d.counts), candidates: make([]int, len(top.Counts)),
		})
		for _, c := range top.Counts {
			k := d.key(c.Key)
			if c.Distinct && !c.PerNode {
				d.keys[k].coarse = true
			}
			d.counts = append(d.counts, counter{Count: c, key: k})
		}
	}
	if len(d.plugins) == 0 {
		return nil
	}
	return d
}

func (d *domains) key(name string) int {
	for i := range d.keys {
		if d.keys[i].name == name {
			return i
		}
	}
	d.keys = append(d.keys, topoKey{name: name})
	return len(d.keys) - 1
}

// rebuild counts everything anew.
func (d *domains) rebuild(s *framework.Snapshot) {
	for i := range d.keys {
		k := &d.keys[i]
		k.ids, k.at, k.members = map[string]int32{}, nil, nil
		for _, n := range s.All() {
			if v, ok := n.Obj.Labels[k.name]; ok {
				if _, known := k.ids[v]; !known {
					k.ids[v] = int32(len(k.ids))
				}
			}
		}
		k.fine = !k.coarse && len(k.ids) > fewDomains && len(k.ids)*fineBelow > s.NumNodes()
		clear(k.ids) // ids are given by update, in order of slots
	}
	for i := range d.counts {
		c := &d.counts[i]
		*c = counter{Count: c.Count, key: c.key}
		if c.Least {
			c.had = map[int64]int{}
		}
	}
	d.grow(s.Slots())
	for slot := range s.Slots() {
		d.update(s, slot)
	}
	d.moved = d.moved[:0]
}

func (d *domains) grow(slots int) {
	for i := range d.keys {
		d.keys[i].grow(slots - 1)
	}
	for i := range d.counts {
		c := &d.counts[i]
		for len(c.at) < slots {
			c.at, c.eligible = append(c.at, 0), append(c.eligible, false)
		}
	}
}

// update takes the state of one slot.
func (d *domains) update(s *framework.Snapshot, slot int) {
	n := s.At(slot)
	for i := range d.counts {
		c := &d.counts[i]
		k := &d.keys[c.key]
		was := k.at[slot]
		now := k.domainOf(n)
		eligible := now >= 0 && (c.Eligible == nil || c.Eligible(n))
		var at int64
		if n != nil && (eligible || c.PerNode) {
			for _, p := range n.Pods {
				at += c.Weigh(p)
			}
		}
		if c.PerNode {
			c.at[slot] = at
			continue
		}
		c.grow(len(k.ids))
		if was == now && c.eligible[slot] == eligible && c.at[slot] == at {
			continue
		}
		before := was >= 0 && c.eligible[slot]
		switch {
		case before && eligible && was == now:
			c.add(now, at-c.at[slot], 0)
			d.touch(k, now, slot)
		default:
			if before {
				c.add(was, -c.at[slot], -1)
				d.touch(k, was, slot)
			}
			if eligible {
				c.add(now, at, 1)
				d.touch(k, now, slot)
			}
		}
		c.at[slot], c.eligible[slot] = at, eligible
	}
	// The domains themselves change last: the counts of one key share them.
	for i := range d.keys {
		d.keys[i].set(slot, d.keys[i].domainOf(n))
	}
}

// touch notes that the sum of a fine domain changed, which its members show.
func (d *domains) touch(k *topoKey, domain int32, but int) {
	if !k.fine || int(domain) >= len(k.members) {
		return
	}
	for _, m := range k.members[domain] {
		if int(m) != but {
			d.moved = append(d.moved, m)
		}
	}
}

// domainOf returns the domain that a node says it is in, which may be a new one;
// -1 for none.
func (k *topoKey) domainOf(n *framework.Node) int32 {
	if n == nil {
		return -1
	}
	v, ok := n.Obj.Labels[k.name]
	if !ok {
		return -1
	}
	id, ok := k.ids[v]
	if !ok {
		id = int32(len(k.ids))
		k.ids[v] = id
	}
	return id
}

func (k *topoKey) grow(slot int) {
	for len(k.at) <= slot {
		k.at = append(k.at, -1)
	}
}

func (k *topoKey) set(slot int, domain int32) {
	was := k.at[slot]
	if was == domain {
		return
	}
	k.at[slot] = domain
	if !k.fine {
		return
	}
	if was >= 0 {
		m := k.members[was]
		for i := range m {
			if int(m[i]) == slot {
				m[i] = m[len(m)-1]
				k.members[was] = m[:len(m)-1]
				break
			}
		}
	}
	if domain >= 0 {
		for len(k.members) <= int(domain) {
			k.members = append(k.members, nil)
		}
		k.members[domain] = append(k.members[domain], int32(slot))
	}
}

func (c *counter) grow(domains int) {
	for len(c.sum) < domains {
		c.sum, c.nodes = append(c.sum, 0), append(c.nodes, 0)
	}
}

// add changes a domain's sum and its number of eligible nodes.
func (c *counter) add(domain int32, sum int64, nodes int32) {
	was, had := c.sum[domain], c.nodes[domain]
	c.sum[domain] += sum
	c.nodes[domain] += nodes
	c.total += sum
	if had > 0 {
		c.drop(was)
	}
	if c.nodes[domain] > 0 {
		c.number++
		if c.had != nil {
			now := c.sum[domain]
			c.had[now]++
			if c.number == 1 || now < c.least {
				c.least = now
			}
		}
	}
}

// drop takes a domain of that sum out.
func (c *counter) drop(sum int64) {
	c.number--
	if c.had == nil {
		return
	}
	if c.had[sum]--; c.had[sum] > 0 {
		return
	}
	delete(c.had, sum)
	if sum != c.least || len(c.had) == 0 {
		return
	}
	c.least = c.next(sum)
}

// next is the least sum of a domain above one.
func (c *counter) next(above int64) int64 {
	least := int64(math.MaxInt64)
	for v := range c.had {
		if v > above {
			least = min(least, v)
		}
	}
	return least
}

// leastBut is the least sum when one domain has another sum than it has now.
func (c *counter) leastBut(was, now int64) int64 {
	least := c.least
	if was == least && c.had[was] == 1 {
		least = c.next(was)
	}
	return min(least, now)
}

// domainsAt is what a bucket shows plugin number p.
type domainsAt struct {
	d *domains
	b *bucket
	p *topoPlugin
}

func (v *domainsAt) Has(i int) bool { return v.b.domain[v.d.counts[v.p.first+i].key] >= 0 }

func (v *domainsAt) Of(i int) int64 {
	c := &v.d.counts[v.p.first+i]
	if c.PerNode || v.d.keys[c.key].fine {
		return v.b.sums[v.p.first+i]
	}
	if at := v.b.domain[c.key]; at >= 0 && int(at) < len(c.sum) {
		return c.sum[at]
	}
	return 0
}

func (v *domainsAt) Least(i int) int64    { return v.d.counts[v.p.first+i].least }
func (v *domainsAt) Number(i int) int     { return v.d.counts[v.p.first+i].number }
func (v *domainsAt) Total(i int) int64    { return v.d.counts[v.p.first+i].total }
func (v *domainsAt) Candidates(i int) int { return v.p.candidates[i] }

// domainsOf is what a node as it would be shows.
type domainsOf struct {
	d    *domains
	n    *framework.Node
	slot int
	p    *topoPlugin
}

func (v *domainsOf) domain(i int) (c *counter, at int32) {
	c = &v.d.counts[v.p.first+i]
	return c, v.d.keys[c.key].at[v.slot]
}

// delta is what the node would add beyond what it adds now.
func (v *domainsOf) delta(c *counter) int64 {
	if !c.PerNode && !c.eligible[v.slot] {
		return 0
	}
	var at int64
	for _, p := range v.n.Pods {
		at += c.Weigh(p)
	}
	return at - c.at[v.slot]
}

func (v *domainsOf) Has(i int) bool { _, at := v.domain(i); return at >= 0 }

func (v *domainsOf) Of(i int) int64 {
	c, at := v.domain(i)
	switch {
	case c.PerNode:
		return c.at[v.slot] + v.delta(c)
	case at < 0:
		return 0
	}
	return c.sum[at] + v.delta(c)
}

func (v *domainsOf) Least(i int) int64 {
	c, at := v.domain(i)
	if at < 0 || !c.eligible[v.slot] {
		return c.least
	}
	return c.leastBut(c.sum[at], c.sum[at]+v.delta(c))
}

func (v *domainsOf) Number(i int) int { return v.d.counts[v.p.first+i].number }

func (v *domainsOf) Total(i int) int64 {
	c, _ := v.domain(i)
	return c.total + v.delta(c)
}

func (v *domainsOf) Candidates(int) int { return 0 }

// filter judges a node in a slot as it would be.
func (d *domains) filter(n *framework.Node, slot int) *framework.Status {
	for i := range d.plugins {
		p := &d.plugins[i]
		if !p.topology.Filters {
			continue
		}
		if st := p.FilterDomains(p.topology.State, &domainsOf{d, n, slot, p}); st.Refused() {
			return st
		}
	}
	return nil
}

// serves tells whether d counts what now, not yet filled, would count.
func (d *domains) serves(now *domains) bool {
	if d == nil || now == nil {
		return d == nil && now == nil
	}
	return slices.EqualFunc(d.plugins, now.plugins, func(a, b topoPlugin) bool {
		return a.Name() == b.Name() && a.topology.Shape == b.topology.Shape
	})
}

// topoEnabled is a topological plugin, whether it filters, and the weight of its score.
type topoEnabled struct {
	framework.Topological
	weight  int64
	filters bool
}
