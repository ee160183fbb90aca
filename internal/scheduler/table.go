package scheduler

import (
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
)

// table is the judgement of every node for one class: refused and why, or how
// well it suits. It follows its snapshot's log: a node is judged again only when
// it changed.
type table struct {
	class   *framework.Class
	filters []boundFilter
	scores  []boundScore
	// nodes, where not nil, are the only nodes that may be judged (by name).
	nodes      []string
	namedBy    string            // the plugins that said so
	named      []int             // the slots of those that exist
	preFilter  *framework.Status // a refusal of the class whatever the node
	cursor     uint64
	prints     []uint64 // fingerprints of global plugins
	generation []uint64
	status     []*framework.Status // nil: the node can take the pod
	fixed      []int64             // weighted scores that need no normalizing
	norms      []norm
	tree       tree
	failure    *Failure // why no node can do, while nothing changed
	used       uint64
}

type boundFilter struct {
	framework.Filterer
	state any
}

type boundScore struct {
	framework.Scorer
	state  any
	weight int64
	norm   int // index into norms, -1 where the score is final
}

// norm holds the raw scores of a plugin that normalizes, and their bounds over
// the nodes that can take the pod.
type norm struct {
	framework.Normalizer
	weight          int64
	raw             []int64
	least, most     int64
	atLeast, atMost int // how many nodes have them
}

// absent is the status of a slot without a node.
var absent = &framework.Status{Code: framework.Unresolvable}

func (c *Cycle) newTable(class *framework.Class) *table {
	t := &table{class: class}
	for _, p := range c.plugins {
		var state any
		skipped := false
		if pre, ok := p.Plugin.(framework.PreFilterer); ok {
			var names []string
			var st *framework.Status
			state, names, st = pre.PreFilter(class)
			if st != nil && st.Code == framework.Skip {
				skipped = true
			} else if st.Refused() {
				t.preFilter = st
				return t
			}
			if names != nil {
				if t.nodes == nil {
					t.nodes, t.namedBy = names, p.Name()
				} else {
					t.nodes, t.namedBy = intersect(t.nodes, names), t.namedBy+" "+p.Name()
				}
			}
		}
		if f, ok := p.Plugin.(framework.Filterer); ok && !skipped {
			t.filters = append(t.filters, boundFilter{f, state})
		}
		s, ok := p.Plugin.(framework.Scorer)
		if !ok || p.Weight == 0 {
			continue
		}
		b := boundScore{Scorer: s, weight: p.Weight, norm: -1}
		if pre, ok := p.Plugin.(framework.PreScorer); ok {
			var st *framework.Status
			if b.state, st = pre.PreScore(class); st != nil && st.Code == framework.Skip {
				continue
			}
		}
		if n, ok := p.Plugin.(framework.Normalizer); ok {
			b.norm = len(t.norms)
			t.norms = append(t.norms, norm{Normalizer: n, weight: p.Weight})
		}
		t.scores = append(t.scores, b)
	}
	return t
}

func intersect(a, b []string) []string {
	in := make(map[string]bool, len(b))
	for _, s := range b {
		in[s] = true
	}
	out := a[:0:0]
	for _, s := range a {
		if in[s] {
			out = append(out, s)
		}
	}
	return out
}

// refilter says whether a node can take a pod of the class, as it is and when the
// pods that wait for it have come; but is not counted among those.
func (t *table) refilter(n *framework.Node, but types.UID) *framework.Status {
	if st := t.filter(n); st != nil || len(n.Nominated) == 0 {
		return st
	}
	var coming []*framework.Pod
	for _, p := range n.Nominated {
		if p.Class.Priority >= t.class.Priority && p.UID != but {
			coming = append(coming, p)
		}
	}
	if len(coming) == 0 {
		return nil
	}
	return t.filter(n.With(coming...))
}

// filter runs the filters on one node; the first refusal is the answer.
func (t *table) filter(n *framework.Node) *framework.Status {
	for i := range t.filters {
		if st := t.filters[i].Filter(t.filters[i].state, t.class, n); st.Refused() {
			return st
		}
	}
	return nil
}

// refresh brings the table up to the state of the snapshot.
func (t *table) refresh(c *Cycle, s *framework.Snapshot) {
	changed, now, ok := s.Changed(t.cursor)
	if ok && len(t.status) > 0 && !t.globalsMoved(c, s) && len(changed) <= 2*s.Slots() {
		t.cursor = now
		for _, slot := range changed {
			t.update(c, s, int(slot))
		}
		return
	}
	t.globalsMoved(c, s)
	t.cursor = now
	t.rebuild(c, s)
}

// globalsMoved notes the fingerprints and tells whether one is new.
func (t *table) globalsMoved(c *Cycle, s *framework.Snapshot) bool {
	if len(c.globals) == 0 {
		return false
	}
	moved := false
	if t.prints == nil {
		t.prints = make([]uint64, len(c.globals))
	}
	for i, g := range c.globals {
		if f := g.Fingerprint(t.class, s); f != t.prints[i] {
			t.prints[i], moved = f, true
		}
	}
	return moved
}

func (t *table) grow(slots int) {
	for len(t.status) < slots {
		t.status = append(t.status, absent)
		t.generation = append(t.generation, 0)
		t.fixed = append(t.fixed, 0)
	}
	for i := range t.norms {
		for len(t.norms[i].raw) < slots {
			t.norms[i].raw = append(t.norms[i].raw, 0)
		}
	}
}

// judge fills a slot's status and scores.
func (t *table) judge(s *framework.Snapshot, slot int) {
	n := s.At(slot)
	if n == nil {
		t.status[slot], t.generation[slot] = absent, 0
		return
	}
	t.judgeAt(s, slot, n)
}

func (t *table) judgeAt(s *framework.Snapshot, slot int, n *framework.Node) {
	t.generation[slot] = n.Generation
	if t.status[slot] = t.refilter(n, ""); t.status[slot] != nil {
		return
	}
	var fixed int64
	for i := range t.scores {
		b := &t.scores[i]
		v := b.Score(b.state, t.class, n, s)
		if b.norm < 0 {
			fixed += b.weight * bounded(v)
		} else {
			t.norms[b.norm].raw[slot] = v
		}
	}
	t.fixed[slot] = fixed
}

// key is the slot's place in the order: the score, ties broken at random.
func (t *table) key(c *Cycle, slot int) uint64 {
	if t.status[slot] != nil {
		return 0
	}
	total := t.fixed[slot]
	for i := range t.norms {
		n := &t.norms[i]
		total += n.weight * bounded(n.Normalize(n.raw[slot], n.least, n.most))
	}
	return uint64(total+1)<<32 | uint64(c.rand.Uint32())
}

// bounded keeps a score within what the order of keys can take.
func bounded(score int64) int64 { return min(max(score, 0), framework.MaxScore) }

func (t *table) rebuild(c *Cycle, s *framework.Snapshot) {
	t.failure = nil
	slots := s.Slots()
	t.grow(slots)
	for slot := range slots {
		t.judge(s, slot)
	}
	t.rekey(c)
}

// rekey computes the bounds and all keys from what was judged.
func (t *table) rekey(c *Cycle) {
	for i := range t.norms {
		n := &t.norms[i]
		n.atLeast, n.atMost = 0, 0
		for slot, st := range t.status {
			if st == nil {
				n.include(n.raw[slot])
			}
		}
	}
	t.tree.reset(len(t.status))
	for slot := range t.status {
		t.tree.keys[slot] = t.key(c, slot)
	}
	t.tree.build()
}

// include counts one value into the bounds, and tells whether they moved.
func (n *norm) include(v int64) bool {
	moved := false
	if n.atLeast == 0 || v < n.least {
		moved = true
		n.least, n.atLeast = v, 1
	} else if v == n.least {
		n.atLeast++
	}
	if n.atMost == 0 || v > n.most {
		moved = true
		n.most, n.atMost = v, 1
	} else if v == n.most {
		n.atMost++
	}
	return moved
}

// exclude takes one value out, and tells whether the bounds must be sought anew.
func (n *norm) exclude(v int64) bool {
	if v == n.least {
		n.atLeast--
	}
	if v == n.most {
		n.atMost--
	}
	return n.atLeast == 0 || n.atMost == 0
}

// update judges one slot again, if it changed.
func (t *table) update(c *Cycle, s *framework.Snapshot, slot int) {
	n := s.At(slot)
	if slot < len(t.generation) && (n != nil && t.generation[slot] == n.Generation || n == nil && t.generation[slot] == 0) {
		return
	}
	t.failure = nil
	if slot >= len(t.status) {
		t.grow(s.Slots())
		if slot >= t.tree.size {
			t.judge(s, slot)
			t.rekey(c)
			return
		}
	}
	moved := false
	if t.status[slot] == nil {
		for i := range t.norms {
			moved = t.norms[i].exclude(t.norms[i].raw[slot]) || moved
		}
	}
	t.judge(s, slot)
	if t.status[slot] == nil {
		for i := range t.norms {
			moved = t.norms[i].include(t.norms[i].raw[slot]) || moved
		}
	}
	if moved {
		t.rekey(c)
		return
	}
	t.tree.set(slot, t.key(c, slot))
}
