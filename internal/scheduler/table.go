package scheduler

import (
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// table is the judgement of every node for one subject: refused and why, or how
// well it suits. It follows its snapshot's log: a node is judged again only when
// it changed. What depends on the pods of other nodes is judged by buckets, at
// every decision.
type table struct {
	subject framework.Subject
	filters []boundFilter
	scores  []boundScore
	// nodes, where not nil, are the only nodes that may be judged (by name).
	nodes      []string
	namedBy    string            // the plugins that said so
	named      []int             // the slots of those that exist; nil for all
	preFilter  *framework.Status // a refusal of the class whatever the node
	once       bool              // a plugin said what holds for this decision alone
	s          *framework.Snapshot
	cursor     uint64
	prints     []uint64 // fingerprints of global plugins
	generation []uint64
	status     []*framework.Status // nil: the node by itself can take the pod
	fixed      []int64             // weighted scores that need no normalizing
	norms      []norm
	domains    *domains // nil where no topological plugin has anything to say
	// What domains was made for; see framework.Snapshot.
	termsVersion, namespacesVersion uint64

	buckets buckets
	view    domainsAt // scratch
	failure *Failure  // why no node can do, while nothing changed
	memo    any       // of the plugin that preempts
	used    uint64
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
// the nodes that could take the pod at the last decision.
type norm struct {
	framework.Normalizer
	weight      int64
	raw         []int64
	least, most int64
}

// absent is the status of a slot without a node.
var absent = &framework.Status{Code: framework.Unresolvable}

func (c *Cycle) newTable(sub framework.Subject, snapshot *framework.Snapshot) *table {
	class := sub.Class
	t := &table{subject: sub, s: snapshot}
	states := map[string]any{}
	skipped := map[string]bool{}
	prepare := func(p plugins.Enabled, refuses bool) bool {
		pre, ok := p.Plugin.(framework.PreFilterer)
		if !ok {
			return true
		}
		var names []string
		var st *framework.Status
		if sv, ok := pre.(framework.Surveyor); ok && sv.Surveys(class) {
			states[p.Name()], names, st = sv.Survey(class, snapshot)
			t.once = true
		} else {
			states[p.Name()], names, st = pre.PreFilter(class)
		}
		switch {
		case st != nil && st.Code == framework.Skip:
			skipped[p.Name()] = true
		case st.Refused() && !refuses:
			skipped[p.Name()] = true
		case st.Refused():
			t.preFilter = st
			return false
		}
		if names == nil || !refuses {
			return true
		}
		if t.nodes == nil {
			t.nodes, t.namedBy = names, p.Name()
		} else {
			t.nodes, t.namedBy = intersect(t.nodes, names), t.namedBy+" "+p.Name()
		}
		return true
	}
	for _, p := range c.profile.PreFilter {
		if !prepare(p, true) {
			return t
		}
	}
	for _, p := range c.profile.Filter {
		f, ok := p.Plugin.(framework.Filterer)
		if !ok {
			continue
		}
		if _, done := states[p.Name()]; !done {
			// It does not act before, but knows by that what to look at.
			prepare(p, false)
		}
		if !skipped[p.Name()] {
			t.filters = append(t.filters, boundFilter{f, states[p.Name()]})
		}
	}
	for _, p := range c.profile.Score {
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
	t.domains = newDomains(c.topological, sub, snapshot)
	t.termsVersion, t.namespacesVersion = snapshot.TermsVersion(), snapshot.NamespacesVersion()
	return t
}

// slotOf returns the slot in the snapshot of place i in the table.
func (t *table) slotOf(i int) int {
	if t.named != nil {
		return t.named[i]
	}
	return i
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

// refilter says whether a node can take a pod of the subject, as it is and when
// the pods that wait for it have come; but is not counted among those.
func (t *table) refilter(n *framework.Node, but types.UID) *framework.Status {
	coming := t.coming(n, but)
	st := t.filter(n, coming)
	if st != nil || t.domains == nil {
		return st
	}
	slot, ok := t.s.SlotOf(n.Name)
	if !ok {
		return absent
	}
	if st := t.domains.filter(n, slot); st != nil || len(coming) == 0 {
		return st
	}
	return t.domains.filter(n.With(coming...), slot)
}

// topologyOf is the part of refilter that looks at other nodes.
func (t *table) topologyOf(n *framework.Node, slot int) *framework.Status {
	if st := t.domains.filter(n, slot); st != nil {
		return st
	}
	return t.domains.filter(n.With(t.coming(n, "")...), slot)
}

// coming are the pods that wait for a node and must not be forestalled.
func (t *table) coming(n *framework.Node, but types.UID) []*framework.Pod {
	var out []*framework.Pod
	for _, p := range n.Nominated {
		if p.Class.Priority >= t.subject.Priority && p.UID != but {
			out = append(out, p)
		}
	}
	return out
}

// filter runs the filters that judge a node by itself, as it is and with the pods
// that are coming; the first refusal is the answer.
func (t *table) filter(n *framework.Node, coming []*framework.Pod) *framework.Status {
	for i := range t.filters {
		if st := t.filters[i].Filter(t.filters[i].state, t.subject.Class, n); st.Refused() {
			return st
		}
	}
	if len(coming) == 0 {
		return nil
	}
	return t.filter(n.With(coming...), nil)
}

// statusOf is the last judgement of a place in the table, of other nodes' pods too.
func (t *table) statusOf(i int) *framework.Status {
	if st := t.status[i]; st != nil {
		return st
	}
	if b := t.buckets.of[i]; b != nil {
		return b.status
	}
	return nil
}

// refresh brings the table up to the state of the snapshot.
func (t *table) refresh(c *Cycle, s *framework.Snapshot) {
	t.s = s
	changed, now, ok := s.Changed(t.cursor)
	moved := t.globalsMoved(c, s)
	if t.domainsMoved(c, s) || moved || !ok || len(t.status) == 0 || len(changed) > 2*s.Slots() {
		t.cursor = now
		t.rebuild(c, s)
		return
	}
	t.cursor = now
	for _, slot := range changed {
		t.update(c, s, int(slot))
	}
}

// domainsMoved notes what topological plugins want counted and tells whether that
// is new.
func (t *table) domainsMoved(c *Cycle, s *framework.Snapshot) bool {
	if len(c.topological) == 0 {
		return false
	}
	terms, namespaces := s.TermsVersion(), s.NamespacesVersion()
	if t.termsVersion == terms && t.namespacesVersion == namespaces {
		return false
	}
	now := newDomains(c.topological, t.subject, s)
	same := t.namespacesVersion == namespaces && t.domains.serves(now)
	t.termsVersion, t.namespacesVersion = terms, namespaces
	if !same {
		t.domains = now
	}
	return !same
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
		if f := g.Fingerprint(t.subject.Class, s); f != t.prints[i] {
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
	t.buckets.grow(slots)
}

// judge judges a node by itself and puts it into its bucket.
func (t *table) judge(c *Cycle, s *framework.Snapshot, i int, n *framework.Node) {
	if n == nil {
		t.status[i], t.generation[i] = absent, 0
		t.buckets.remove(i)
		return
	}
	t.generation[i] = n.Generation
	coming := t.coming(n, "")
	if t.status[i] = t.filter(n, coming); t.status[i] != nil {
		t.buckets.remove(i)
		return
	}
	var fixed int64
	for j := range t.scores {
		b := &t.scores[j]
		v := b.Score(b.state, t.subject.Class, n, s)
		if b.norm < 0 {
			fixed += b.weight * bounded(v)
		} else {
			t.norms[b.norm].raw[i] = v
		}
	}
	t.fixed[i] = fixed
	alone := -1
	if len(coming) > 0 && t.domains != nil {
		alone = i
	}
	// Ties are broken at random.
	t.place(i, alone, uint64(fixed+1)<<32|uint64(c.rand.Uint32()))
}

// bounded keeps a score within what the order of keys can take.
func bounded(score int64) int64 { return min(max(score, 0), framework.MaxScore) }

func (t *table) rebuild(c *Cycle, s *framework.Snapshot) {
	t.failure = nil
	slots := s.Slots()
	if t.domains != nil {
		t.domains.rebuild(s)
	}
	t.buckets.reset(max(slots, len(t.status)))
	t.grow(slots)
	for slot := range slots {
		t.judge(c, s, slot, s.At(slot))
	}
}

// update judges one slot again, if it changed.
func (t *table) update(c *Cycle, s *framework.Snapshot, slot int) {
	n := s.At(slot)
	if slot < len(t.generation) && (n != nil && t.generation[slot] == n.Generation || n == nil && t.generation[slot] == 0) {
		return
	}
	t.failure = nil
	t.grow(s.Slots())
	if t.domains != nil {
		t.domains.grow(s.Slots())
		t.domains.update(s, slot)
	}
	t.judge(c, s, slot, n)
	if t.domains == nil {
		return
	}
	for _, m := range t.domains.moved {
		if b := t.buckets.of[m]; b != nil {
			t.place(int(m), b.alone, t.buckets.keys[m])
		}
	}
	t.domains.moved = t.domains.moved[:0]
}
