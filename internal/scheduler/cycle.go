package scheduler

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// Cycle decides where pods go. It is the pure core of the scheduler: what
// Schedule answers follows from the plugins, the snapshot, the pods and the seed
// alone. It is not safe for concurrent use.
//
// Every node is judged, as with upstream's percentageOfNodesToScore at 100: what
// did not change since the last decision for pods that are alike costs nothing.
//
// Between calls it keeps, for the subjects that it met last, a table of judged
// nodes that follows the snapshot's log.
type Cycle struct {
	profile     plugins.Profile
	globals     []framework.Global
	post        []framework.PostFilterer
	reserve     []framework.Reserver
	permit      []framework.Permitter
	topological []topoEnabled
	extenders   extenders
	rand        *rand.Rand

	of     *framework.Snapshot
	tables map[framework.Subject]*table
	tick   uint64
}

// tableMemory bounds what the tables take, tableSlot is what one takes for each
// node, about.
const (
	tableMemory = 64 << 20
	tableSlot   = 96
)

// NewCycle returns a cycle with the plugins given, asked in that order.
func NewCycle(enabled []plugins.Enabled, seed uint64) *Cycle {
	return newCycle(plugins.ProfileOf("", enabled), seed)
}

func newCycle(profile plugins.Profile, seed uint64) *Cycle {
	c := &Cycle{profile: profile, rand: rand.New(rand.NewPCG(seed, 0x736b696666)), tables: map[framework.Subject]*table{}}
	c.post = acting[framework.PostFilterer](profile.PostFilter)
	c.reserve = acting[framework.Reserver](profile.Reserve)
	c.permit = acting[framework.Permitter](profile.Permit)
	for _, p := range profile.Filter {
		if f, ok := p.Plugin.(framework.Topological); ok {
			c.topological = append(c.topological, topoEnabled{Topological: f, filters: true})
		}
	}
	for _, p := range profile.Score {
		if g, ok := p.Plugin.(framework.Global); ok && p.Weight > 0 {
			c.globals = append(c.globals, g)
		}
		f, ok := p.Plugin.(framework.Topological)
		if !ok {
			continue
		}
		i := slices.IndexFunc(c.topological, func(t topoEnabled) bool { return t.Name() == p.Name() })
		if i < 0 {
			i = len(c.topological)
			c.topological = append(c.topological, topoEnabled{Topological: f})
		}
		c.topological[i].weight = p.Weight
	}
	return c
}

// acting are the plugins of a list that are of a kind.
func acting[T any](list []plugins.Enabled) []T {
	var out []T
	for _, p := range list {
		if t, ok := p.Plugin.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// Decision is what becomes of one pod: a node, or the reason why none.
type Decision struct {
	Pod     *framework.Pod
	Node    string
	Failure *Failure
	// Err is why nothing could be decided: an extender did not answer.
	Err error
}

// Failure is why no node can take a pod.
type Failure struct {
	// Message is what the pod's condition and event say.
	Message string
	// Hint is a sentence to a person about the node that is nearest to taking the
	// pod; the event has it after the message. It may be empty.
	Hint string
	// Plugins refused; their hints tell when to try again. Empty where there
	// is no node at all: then any node that appears is reason enough.
	Plugins []string
	// Nominated is the node on which Victims would have to end first.
	Nominated  string
	Victims    []*framework.Pod
	Violations int // victims that a disruption budget would keep
}

// noNodes is upstream's answer where no node exists.
const noNodes = "no nodes available to schedule pods"

// Schedule decides on the pods one after the other, in the order given, each
// with those before it in place: it assumes in s every pod that it places, and
// nominates there every pod that has to wait for victims to end.
func (c *Cycle) Schedule(s *framework.Snapshot, pods []*framework.Pod) []Decision {
	out := make([]Decision, len(pods))
	for i, p := range pods {
		out[i] = c.one(s, p)
	}
	return out
}

func (c *Cycle) one(s *framework.Snapshot, p *framework.Pod) Decision {
	d := Decision{Pod: p}
	if s.NumNodes() == 0 {
		d.Failure = &Failure{Message: noNodes}
		return d
	}
	t := c.table(s, s.Subject(p))
	if t.preFilter != nil {
		d.Failure = c.preFilterFailure(s, p, t)
		return d
	}
	slot, ok := c.pick(s, t, p)
	var refused map[int]*framework.Status
	if ok && c.extenders.interested(p.Pod) {
		if slot, refused, d.Err = c.extend(s, t, p); d.Err != nil {
			return d
		}
		ok = slot >= 0
	}
	if !ok {
		d.Failure = c.explain(s, p, t, refused)
		if d.Failure.Nominated != "" {
			// The rest of the batch must not count on this place.
			s.Nominate(p, d.Failure.Nominated)
		}
		return d
	}
	n := s.At(slot)
	s.Assume(p, slot)
	if st := c.admit(p, n); st != nil {
		s.Forget(p.UID)
		r := framework.Reasons{}
		for _, why := range st.Reasons {
			r.Add(why)
		}
		d.Failure = &Failure{Message: r.Message(1), Plugins: []string{st.Plugin}}
		return d
	}
	d.Node = n.Name
	return d
}

// pick returns the slot of the best node that can take the pod.
func (c *Cycle) pick(s *framework.Snapshot, t *table, p *framework.Pod) (int, bool) {
	if t.nodes != nil {
		return c.pickNamed(s, t)
	}
	t.refresh(c, s)
	if name := s.NominatedNode(p.UID); name != "" {
		// Victims were evicted for this pod here.
		if slot, ok := s.SlotOf(name); ok && t.refilter(s.At(slot), p.UID) == nil {
			return slot, true
		}
	}
	return t.best()
}

// pickNamed judges the few nodes that the pod names. Their places in the table
// are not those in the snapshot.
func (c *Cycle) pickNamed(s *framework.Snapshot, t *table) (int, bool) {
	t.named = append(t.named[:0:0], make([]int, 0, len(t.nodes))...)
	for _, name := range t.nodes {
		if slot, ok := s.SlotOf(name); ok {
			t.named = append(t.named, slot)
		}
	}
	t.s = s
	t.status = t.status[:0]
	t.buckets.reset(len(t.named))
	t.grow(len(t.named))
	if t.domains != nil {
		t.domains.rebuild(s)
	}
	for i, slot := range t.named {
		t.judge(c, s, i, s.At(slot))
	}
	i, ok := t.best()
	if !ok {
		return 0, false
	}
	return t.named[i], true
}

// table returns the subject's table for this snapshot.
func (c *Cycle) table(s *framework.Snapshot, sub framework.Subject) *table {
	if c.of != s {
		c.of = s
		clear(c.tables)
	}
	c.tick++
	t, ok := c.tables[sub]
	if !ok {
		t = c.newTable(sub, s)
		if t.nodes == nil && t.preFilter == nil && !t.once {
			// A class that names its nodes is hardly met again.
			if len(c.tables) >= max(16, tableMemory/(tableSlot*max(s.Slots(), 16))) {
				c.evict()
			}
			c.tables[sub] = t
		}
	}
	t.used = c.tick
	return t
}

// Forget drops all that was judged of nodes: what plugins go by, beside class and
// node, has changed.
func (c *Cycle) Forget() { clear(c.tables) }

func (c *Cycle) evict() {
	used := make([]uint64, 0, len(c.tables))
	for _, t := range c.tables {
		used = append(used, t.used)
	}
	slices.Sort(used)
	for sub, t := range c.tables {
		if t.used < used[len(used)/4] {
			delete(c.tables, sub)
		}
	}
}

// admit runs Reserve and Permit, undoing all where one refuses.
func (c *Cycle) admit(p *framework.Pod, n *framework.Node) *framework.Status {
	for _, r := range c.reserve {
		if st := r.Reserve(p, n); st.Refused() {
			c.unreserve(p, n)
			return st
		}
	}
	for _, r := range c.permit {
		if st := r.Permit(p, n); st.Refused() {
			c.unreserve(p, n)
			return st
		}
	}
	return nil
}

func (c *Cycle) unreserve(p *framework.Pod, n *framework.Node) {
	for _, r := range slices.Backward(c.reserve) {
		r.Unreserve(p, n)
	}
}

// Undo takes back a decision: the pod is not, or no longer, on its way there.
func (c *Cycle) Undo(s *framework.Snapshot, p *framework.Pod, node string) {
	if !s.Forget(p.UID) {
		return
	}
	n := s.Node(node)
	if n == nil {
		n = &framework.Node{Name: node}
	}
	c.unreserve(p, n)
}

func (c *Cycle) preFilterFailure(s *framework.Snapshot, p *framework.Pod, t *table) *Failure {
	f := &Failure{Plugins: []string{t.preFilter.Plugin}}
	head := fmt.Sprintf("0/%d nodes are available: %s.", s.NumNodes(), join(t.preFilter.Reasons))
	return c.postFilter(s, p, f, head, allJudged{tableJudged{t, p.UID, c.rand}, t.preFilter})
}

func join(reasons []string) string {
	out := ""
	for i, r := range reasons {
		if i > 0 {
			out += ", "
		}
		out += r
	}
	return out
}

// explain says why no node can take a pod. For pods of one class the answer is
// the same until a node changes. extended is what extenders said of nodes that the plugins would take.
func (c *Cycle) explain(s *framework.Snapshot, p *framework.Pod, t *table, extended map[int]*framework.Status) *Failure {
	nominated := s.NominatedNode(p.UID) != ""
	if t.failure != nil && !nominated && extended == nil {
		return t.failure
	}
	reasons := framework.Reasons{}
	refused := map[string]bool{}
	mine := tableJudged{t, p.UID, c.rand}
	var judged framework.Judged = mine
	if t.nodes != nil {
		named := map[int]*framework.Status{}
		for i, slot := range t.named {
			named[slot] = t.statusOf(i)
		}
		other := &framework.Status{
			Code: framework.Unresolvable, Plugin: t.namedBy,
			Reasons: []string{fmt.Sprintf("node(s) didn't satisfy plugin(s) [%s]", t.namedBy)},
		}
		refused[t.namedBy] = true
		judged = namedJudged{mine, named, other}
	}
	if extended != nil {
		judged = extendedJudged{judged, extended}
	}
	var near nearest
	for slot, n := range s.All() {
		st := judged.Status(slot)
		if st == nil {
			continue
		}
		near.see(p.Class, n, st)
		refused[st.Plugin] = true
		for _, r := range st.Reasons {
			reasons.Add(r)
		}
	}
	f := &Failure{Hint: near.hint(c, p.Class)}
	for name := range refused {
		f.Plugins = append(f.Plugins, name)
	}
	slices.Sort(f.Plugins)
	f = c.postFilter(s, p, f, reasons.Message(s.NumNodes()), judged)
	if t.nodes == nil && !nominated && extended == nil && f.Nominated == "" {
		t.failure = f
	}
	return f
}

func (c *Cycle) postFilter(s *framework.Snapshot, p *framework.Pod, f *Failure, head string, judged framework.Judged) *Failure {
	f.Message = head
	separator := " "
	for _, pf := range c.post {
		r := pf.PostFilter(p, s, judged)
		if r.Message != "" {
			f.Message += separator + r.Message
			separator = ", "
		}
		if r.Node != "" {
			f.Nominated, f.Victims, f.Violations = r.Node, r.Victims, r.Violations
			break
		}
	}
	return f
}

// tableJudged is what a table's plugins said of the nodes to one pod.
type tableJudged struct {
	t    *table
	uid  types.UID
	rand *rand.Rand
}

func (j tableJudged) Status(slot int) *framework.Status { return j.t.statusOf(slot) }
func (j tableJudged) Refilter(n *framework.Node) *framework.Status {
	return j.t.refilter(n, j.uid)
}
func (j tableJudged) Random(n int) int { return j.rand.IntN(n) }

// Memo is nil too where a plugin looked at more than the class, and where the pod
// itself is waited for on a node: the others of its class see that one with it.
func (j tableJudged) Memo() *any {
	if j.t.once || j.t.nodes != nil || j.t.domains != nil || j.t.s.NominatedNode(j.uid) != "" {
		return nil
	}
	return &j.t.memo
}

// namedJudged is the same of a pod that names its nodes.
type namedJudged struct {
	tableJudged
	named map[int]*framework.Status
	other *framework.Status
}

func (j namedJudged) Status(slot int) *framework.Status {
	if st, ok := j.named[slot]; ok {
		return st
	}
	return j.other
}

// extendedJudged is what extenders said beside the plugins.
type extendedJudged struct {
	framework.Judged
	refused map[int]*framework.Status
}

func (j extendedJudged) Status(slot int) *framework.Status {
	if st := j.refused[slot]; st != nil {
		return st
	}
	return j.Judged.Status(slot)
}

// allJudged is one answer for all nodes.
type allJudged struct {
	tableJudged
	st *framework.Status
}

func (j allJudged) Status(int) *framework.Status { return j.st }

func (j allJudged) Refilter(*framework.Node) *framework.Status { return j.st }

func (j allJudged) Memo() *any { return nil }

// Refusal is one node's answer to a pod.
type Refusal struct {
	Node    string
	Plugin  string
	Reasons []string
	// Sentence says to a person what stands against and what would help; empty
	// where the plugin has no more to say than its reasons.
	Sentence string
	// Resolvable tells that evicting pods might help.
	Resolvable bool
}

// Explain says for every node why it cannot take a pod; nodes that can are left
// out. It decides nothing and leaves s as it is.
func (c *Cycle) Explain(s *framework.Snapshot, p *framework.Pod) []Refusal {
	t := c.newTable(s.Subject(p), s)
	if t.domains != nil {
		t.domains.rebuild(s)
	}
	var out []Refusal
	for _, n := range s.All() {
		st := t.preFilter
		if st == nil {
			st = t.refilter(n, p.UID)
		}
		if !st.Refused() {
			continue
		}
		r := Refusal{Node: n.Name, Plugin: st.Plugin, Reasons: st.Reasons, Resolvable: st.Code == framework.Unschedulable}
		for _, pl := range c.profile.All {
			if e, ok := pl.Plugin.(framework.Explainer); ok && pl.Name() == st.Plugin {
				r.Sentence = e.Explain(p.Class, n)
			}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Refusal) int { return cmp.Compare(a.Node, b.Node) })
	return out
}
