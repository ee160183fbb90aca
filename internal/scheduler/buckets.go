package scheduler

import (
	"encoding/binary"

	"skiff/internal/scheduler/framework"
)

// A bucket holds the nodes that can take a pod as far as each is judged by itself,
// and that are alike in all else: the raw scores that are normalized, and the
// domains or sums that topological plugins judge by. What they say of one holds
// for all, and within a bucket the order of nodes is that of a key which only the
// node itself changes. So a decision looks at buckets, few, and never at nodes.
type bucket struct {
	signature string
	index     int
	// raw are the scores to be normalized, by table.norms.
	raw []int64
	// domain is the domain by domains.keys, -1 without; of a fine key 0 for any.
	domain []int32
	sums   []int64 // by domains.counts; of coarse keys unset
	// alone is the slot of a node for which pods wait, and which is judged with
	// them; -1 otherwise.
	alone int
	nodes heapOfSlots
	// Of the last judgement.
	status *framework.Status
	topo   []int64 // raw scores, by domains.plugins
}

// buckets are all buckets of a table.
type buckets struct {
	all    []*bucket
	by     map[string]*bucket
	of     []*bucket // by slot; nil where no bucket holds it
	places []int32   // by slot, within its bucket's heap
	keys   []uint64  // by slot
	buf    []byte
	ints   []int64
}

func (bs *buckets) reset(slots int) {
	bs.all, bs.by = nil, map[string]*bucket{}
	bs.of = make([]*bucket, slots)
	bs.places, bs.keys = make([]int32, slots), make([]uint64, slots)
}

func (bs *buckets) grow(slots int) {
	for len(bs.of) < slots {
		bs.of, bs.places, bs.keys = append(bs.of, nil), append(bs.places, 0), append(bs.keys, 0)
	}
}

// remove takes a slot out of its bucket, and a bucket that is empty then away.
func (bs *buckets) remove(slot int) {
	b := bs.of[slot]
	if b == nil {
		return
	}
	bs.of[slot] = nil
	b.nodes.remove(bs, int(bs.places[slot]))
	if len(b.nodes) > 0 {
		return
	}
	last := len(bs.all) - 1
	bs.all[b.index] = bs.all[last]
	bs.all[b.index].index = b.index
	bs.all[last] = nil
	bs.all = bs.all[:last]
	delete(bs.by, b.signature)
}

// place puts a slot into the bucket of its signature under a key.
func (t *table) place(slot, alone int, key uint64) {
	bs := &t.buckets
	bs.buf = t.sign(bs.buf[:0], slot, alone)
	b := bs.of[slot]
	if b != nil && b.signature == string(bs.buf) {
		bs.keys[slot] = key
		b.nodes.fix(bs, int(bs.places[slot]))
		return
	}
	bs.remove(slot)
	if b = bs.by[string(bs.buf)]; b == nil {
		b = t.newBucket(string(bs.buf), slot, alone)
		b.index = len(bs.all)
		bs.all = append(bs.all, b)
		bs.by[b.signature] = b
	}
	bs.of[slot], bs.keys[slot] = b, key
	b.nodes.push(bs, int32(slot))
}

// sign writes what is common to the nodes of a bucket.
func (t *table) sign(buf []byte, slot, alone int) []byte {
	buf = binary.AppendVarint(buf, int64(alone))
	for i := range t.norms {
		buf = binary.AppendVarint(buf, t.norms[i].raw[slot])
	}
	d := t.domains
	if d == nil {
		return buf
	}
	at := t.slotOf(slot)
	for i := range d.keys {
		k := &d.keys[i]
		domain := k.at[at]
		if k.fine {
			domain = min(domain, 0)
		}
		buf = binary.AppendVarint(buf, int64(domain))
	}
	for i := range d.counts {
		if v, ok := d.signed(i, at); ok {
			buf = binary.AppendVarint(buf, v)
		}
	}
	return buf
}

// signed returns a count of a node, where it is part of its signature.
func (d *domains) signed(i, slot int) (int64, bool) {
	c := &d.counts[i]
	switch {
	case c.PerNode:
		return c.at[slot], true
	case !d.keys[c.key].fine:
		return 0, false
	}
	if at := d.keys[c.key].at[slot]; at >= 0 && int(at) < len(c.sum) {
		return c.sum[at], true
	}
	return 0, true
}

func (t *table) newBucket(signature string, slot, alone int) *bucket {
	b := &bucket{signature: signature, alone: alone, raw: make([]int64, len(t.norms))}
	for i := range t.norms {
		b.raw[i] = t.norms[i].raw[slot]
	}
	d := t.domains
	if d == nil {
		return b
	}
	at := t.slotOf(slot)
	b.domain, b.sums, b.topo = make([]int32, len(d.keys)), make([]int64, len(d.counts)), make([]int64, len(d.plugins))
	for i := range d.keys {
		b.domain[i] = d.keys[i].at[at]
		if d.keys[i].fine {
			b.domain[i] = min(b.domain[i], 0)
		}
	}
	for i := range d.counts {
		b.sums[i], _ = d.signed(i, at)
	}
	return b
}

// best returns the slot of the best node, judging every bucket by the state of now.
func (t *table) best() (int, bool) {
	bs := &t.buckets
	if t.domains != nil {
		t.filterBuckets()
	}
	t.bounds()
	best, top := -1, uint64(0)
	for _, b := range bs.all {
		if b.status != nil {
			continue
		}
		slot := int(b.nodes[0])
		if v := bs.keys[slot] + uint64(t.common(b))<<32; best < 0 || v > top {
			best, top = slot, v
		}
	}
	return best, best >= 0
}

func (t *table) filterBuckets() {
	d := t.domains
	for _, b := range t.buckets.all {
		b.status = nil
		if b.alone >= 0 {
			// Judged with those that wait there, and without.
			b.status = t.topologyOf(t.s.At(t.slotOf(b.alone)), t.slotOf(b.alone))
			continue
		}
		for i := range d.plugins {
			p := &d.plugins[i]
			if !p.topology.Filters {
				continue
			}
			t.view = domainsAt{d, b, p}
			if b.status = p.FilterDomains(p.topology.State, &t.view); b.status.Refused() {
				break
			}
			b.status = nil
		}
	}
}

// bounds finds the least and the greatest raw scores over the buckets that can
// take the pod.
func (t *table) bounds() {
	for i := range t.norms {
		n, first := &t.norms[i], true
		for _, b := range t.buckets.all {
			if b.status != nil {
				continue
			}
			v := b.raw[i]
			if first {
				n.least, n.most, first = v, v, false
				continue
			}
			n.least, n.most = min(n.least, v), max(n.most, v)
		}
	}
	if t.domains == nil {
		return
	}
	for i := range t.domains.plugins {
		if p := &t.domains.plugins[i]; p.topology.Scores {
			t.scoreBuckets(i, p)
		}
	}
}

// unscored is the raw score of a bucket that a plugin leaves out.
const unscored = -1 << 62

func (t *table) scoreBuckets(i int, p *topoPlugin) {
	d := t.domains
	clear(p.candidates)
	for j := range p.candidates {
		d.counts[p.first+j].seen.reset()
	}
	for _, b := range t.buckets.all {
		b.topo[i] = unscored
		t.view = domainsAt{d, b, p}
		if b.status != nil || !p.Scored(p.topology.State, &t.view) {
			continue
		}
		b.topo[i] = 0
		for j := range p.candidates {
			c := &d.counts[p.first+j]
			if c.PerNode {
				p.candidates[j] += len(b.nodes)
			} else if c.Distinct && c.seen.add(b.domain[c.key]) {
				p.candidates[j]++
			}
		}
	}
	first := true
	for _, b := range t.buckets.all {
		if b.status != nil || b.topo[i] == unscored {
			continue
		}
		t.view = domainsAt{d, b, p}
		v := p.ScoreDomains(p.topology.State, &t.view)
		b.topo[i] = v
		if first {
			p.least, p.most, first = v, v, false
			continue
		}
		p.least, p.most = min(p.least, v), max(p.most, v)
	}
}

// common is the part of the score that the nodes of a bucket share.
func (t *table) common(b *bucket) int64 {
	var total int64
	for i := range t.norms {
		n := &t.norms[i]
		total += n.weight * bounded(n.Normalize(b.raw[i], n.least, n.most))
	}
	if t.domains == nil {
		return total
	}
	for i := range t.domains.plugins {
		p := &t.domains.plugins[i]
		if p.topology.Scores && b.topo[i] != unscored {
			total += p.weight * bounded(p.NormalizeDomains(b.topo[i], p.least, p.most))
		}
	}
	return total
}

// domainSet is a set of domains that is cheap to empty; -1 is one too.
type domainSet struct {
	turn uint32
	at   []uint32
}

func (s *domainSet) reset() { s.turn++ }

// add tells whether the domain is new.
func (s *domainSet) add(domain int32) bool {
	i := int(domain) + 1
	for len(s.at) <= i {
		s.at = append(s.at, 0)
	}
	if s.at[i] == s.turn {
		return false
	}
	s.at[i] = s.turn
	return true
}

// heapOfSlots has the slot with the greatest key first.
type heapOfSlots []int32

func (h heapOfSlots) swap(bs *buckets, i, j int) {
	h[i], h[j] = h[j], h[i]
	bs.places[h[i]], bs.places[h[j]] = int32(i), int32(j)
}

func (h heapOfSlots) up(bs *buckets, i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if bs.keys[h[i]] <= bs.keys[h[parent]] {
			return
		}
		h.swap(bs, i, parent)
		i = parent
	}
}

func (h heapOfSlots) down(bs *buckets, i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && bs.keys[h[child+1]] > bs.keys[h[child]] {
			child++
		}
		if bs.keys[h[child]] <= bs.keys[h[i]] {
			return
		}
		h.swap(bs, i, child)
		i = child
	}
}

func (h heapOfSlots) fix(bs *buckets, i int) {
	h.up(bs, i)
	h.down(bs, i)
}

func (h *heapOfSlots) push(bs *buckets, slot int32) {
	*h = append(*h, slot)
	bs.places[slot] = int32(len(*h) - 1)
	h.up(bs, len(*h)-1)
}

func (h *heapOfSlots) remove(bs *buckets, i int) {
	last := len(*h) - 1
	if i != last {
		h.swap(bs, i, last)
	}
	*h = (*h)[:last]
	if i != last {
		h.fix(bs, i)
	}
}
