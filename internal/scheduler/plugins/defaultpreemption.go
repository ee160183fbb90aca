package plugins

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// DefaultPreemption looks for pods of lower priority whose end would let a pod
// run, when no node can take it as things are.
//
// What was found for a node is remembered with the class of pods, as long as the
// node is the same: when many pods of a class have to make room for themselves, each
// looks at the nodes alone that the one before it changed.
type DefaultPreemption struct {
	budgets *budgets // nil for none
	// least and percent bound the nodes that are looked at where nothing can be
	// remembered.
	least, percent int
	// Narrow, where set, leaves out what others (extenders) object to.
	Narrow func(p *framework.Pod, s *framework.Snapshot, found map[string]Victims) (map[string]Victims, error)
}

// Victims are the pods that would have to leave a node, most important first, and how
// many of them a disruption budget would keep.
type Victims struct {
	Pods       []*framework.Pod
	Violations int
}

// NewDefaultPreemption returns the plugin with arguments that were defaulted and
// validated; without informers it knows of no budgets.
func NewDefaultPreemption(inf *client.Informers, args *config.DefaultPreemptionArgs) *DefaultPreemption {
	d := &DefaultPreemption{least: leastCandidates, percent: percentCandidates}
	if inf != nil {
		d.budgets = newBudgets(inf)
	}
	if args.MinCandidateNodesAbsolute != nil {
		d.least = int(*args.MinCandidateNodesAbsolute)
	}
	if args.MinCandidateNodesPercentage != nil {
		d.percent = int(*args.MinCandidateNodesPercentage)
	}
	return d
}

// Defaults of how many candidates are enough.
const (
	leastCandidates   = 100
	percentCandidates = 10
)

const (
	noHelp    = "Preemption is not helpful for scheduling"
	noVictims = "No preemption victims found for incoming pod"
)

// Name implements framework.Plugin.
func (*DefaultPreemption) Name() string { return "DefaultPreemption" }

// Watch implements framework.Watcher.
func (d *DefaultPreemption) Watch(func(framework.Event)) []<-chan struct{} {
	if d.budgets == nil {
		return nil
	}
	return d.budgets.watch()
}

// candidate is a node and the pods that would have to leave it, or why no such pods
// would do.
type candidate struct {
	name       string
	generation uint64
	victims    Victims
	why        []string
	// What makes one better than another, see better.
	count  int
	top    int32
	sum    int64
	oldest int64
	held   float64
}

// memory is what was found for the nodes, by slot, for one class.
type memory struct {
	budgets uint64
	of      []*candidate
}

// Guarded implements framework.Guard.
func (d *DefaultPreemption) Guarded(pods []*framework.Pod) (guarded, rest []*framework.Pod) {
	if d.budgets == nil {
		return nil, pods
	}
	d.budgets.load()
	return d.budgets.split(pods)
}

// PostFilter implements framework.PostFilterer.
func (d *DefaultPreemption) PostFilter(p *framework.Pod, s *framework.Snapshot, judged framework.Judged) framework.PostFilterResult {
	if why := ineligible(p, s, judged); why != "" {
		return framework.PostFilterResult{Node: s.NominatedNode(p.UID), Message: "preemption: not eligible due to " + why}
	}
	found, reasons := d.candidates(p, s, judged)
	if len(found) > 0 && d.Narrow != nil {
		var err error
		if found, err = d.narrowed(p, s, found); err != nil {
			return framework.PostFilterResult{Message: "preemption: " + err.Error()}
		}
		if len(found) == 0 {
			return framework.PostFilterResult{Message: "preemption: no candidate node for preemption"}
		}
	}
	if len(found) == 0 {
		return framework.PostFilterResult{Message: "preemption: " + reasons.Message(s.NumNodes())}
	}
	best := found[0]
	for _, c := range found[1:] {
		if better(c, best) {
			best = c
		}
	}
	return framework.PostFilterResult{
		Node: best.name, Victims: best.victims.Pods, Violations: best.victims.Violations,
		Message: fmt.Sprintf("preemption: found a potential placement for pod on node %v, preempting %d victims", best.name, len(best.victims.Pods)),
	}
}

// ineligible says why a pod may not preempt, "" where it may.
func ineligible(p *framework.Pod, s *framework.Snapshot, judged framework.Judged) string {
	if p.Class.NoPreemption {
		return "preemptionPolicy=Never."
	}
	slot, ok := s.SlotOf(s.NominatedNode(p.UID))
	if !ok {
		return ""
	}
	if st := judged.Status(slot); st != nil && st.Code == framework.Unresolvable {
		return "" // it will never run there: it may look elsewhere
	}
	for _, o := range s.At(slot).Pods {
		if o.Class.Priority < p.Class.Priority && endingByPreemption(o) {
			return "a terminating pod on the nominated node."
		}
	}
	return ""
}

// candidates returns the nodes on which victims would help, and why others do not.
func (d *DefaultPreemption) candidates(p *framework.Pod, s *framework.Snapshot, judged framework.Judged) ([]*candidate, framework.Reasons) {
	slots := s.Slots()
	mem, first, enough := d.remembered(judged, slots)
	var out []*candidate
	reasons, useless, safe := framework.Reasons{}, 0, false
	for i := range slots {
		slot := (first + i) % slots
		n := s.At(slot)
		if n == nil {
			continue
		}
		if st := judged.Status(slot); st == nil || st.Code != framework.Unschedulable {
			useless++
			continue
		}
		var c *candidate
		if mem != nil {
			c = mem.of[slot]
		}
		if c == nil || c.generation != n.Generation {
			c = d.judge(p, n, judged)
			if mem != nil {
				mem.of[slot] = c
			}
		}
		if c.why != nil {
			for _, r := range c.why {
				reasons.Add(r)
			}
			continue
		}
		out = append(out, c)
		safe = safe || c.victims.Violations == 0
		if len(out) >= enough && safe {
			break
		}
	}
	if useless > 0 {
		reasons[noHelp] += useless
	}
	return out, reasons
}

// remembered returns what was found before, which counts where nodes are judged by
// themselves; otherwise from where to look at how many candidates.
func (d *DefaultPreemption) remembered(judged framework.Judged, slots int) (mem *memory, first, enough int) {
	memo := judged.Memo()
	if memo == nil {
		return nil, judged.Random(slots), max(slots*d.percent/100, d.least, 1)
	}
	version := d.budgets.load()
	mem, ok := (*memo).(*memory)
	if !ok || mem.budgets != version {
		mem = &memory{budgets: version}
		*memo = mem
	}
	for len(mem.of) < slots {
		mem.of = append(mem.of, nil)
	}
	return mem, 0, slots + 1
}

// judge finds the least important pods that would have to leave a node.
func (d *DefaultPreemption) judge(p *framework.Pod, n *framework.Node, judged framework.Judged) *candidate {
	c := &candidate{name: n.Name, generation: n.Generation}
	var lower []*framework.Pod
	for _, o := range n.Pods {
		if o.Class.Priority < p.Class.Priority {
			lower = append(lower, o)
		}
	}
	if len(lower) == 0 {
		c.why = []string{noVictims}
		return c
	}
	draft := n.Without(lower...)
	if st := judged.Refilter(draft); st.Refused() {
		c.why = st.Reasons
		return c
	}
	slices.SortFunc(lower, func(a, b *framework.Pod) int {
		if x, y := leaves(a), leaves(b); x != y {
			// What goes anyway goes first.
			if x {
				return 1
			}
			return -1
		}
		return moreImportant(a, b)
	})
	// Those that a budget keeps are spared first, then the most important.
	guarded, rest := d.budgets.split(lower)
	spare := func(o *framework.Pod) bool {
		draft.Put(o)
		if !judged.Refilter(draft).Refused() {
			return true
		}
		draft.Drop(o)
		c.victims.Pods = append(c.victims.Pods, o)
		return false
	}
	for _, o := range guarded {
		if !spare(o) {
			c.victims.Violations++
		}
	}
	for _, o := range rest {
		spare(o)
	}
	if len(guarded) > 0 && len(rest) > 0 {
		slices.SortFunc(c.victims.Pods, moreImportant)
	}
	c.rank()
	c.held = held(p, n)
	return c
}

// held is the greatest part of a node's CPU or memory that p, and the pods there
// that it may not evict, would take.
func held(p *framework.Pod, n *framework.Node) float64 {
	var cpu, memory float64
	take := func(o *framework.Pod) {
		cpu += float64(o.Uses().MilliCPU)
		memory += float64(o.Uses().Memory)
	}
	take(p)
	for _, on := range [][]*framework.Pod{n.Pods, n.Nominated} {
		for _, o := range on {
			if o.Class.Priority >= p.Class.Priority {
				take(o)
			}
		}
	}
	return max(cpu/float64(max(n.Allocatable.MilliCPU, 1)), memory/float64(max(n.Allocatable.Memory, 1)))
}

// leaves tells that a pod goes whatever is decided here.
func leaves(p *framework.Pod) bool { return p.Doomed || p.Ending || p.DeletionTimestamp != nil }

func moreImportant(a, b *framework.Pod) int {
	return cmp.Or(
		cmp.Compare(b.Class.Priority, a.Class.Priority),
		started(a).Compare(started(b)),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
	)
}

// rank counts what the victims cost; those that leave anyway cost nothing more.
func (c *candidate) rank() {
	c.top, c.oldest = math.MinInt32, 1<<63-1
	for _, v := range c.victims.Pods {
		if leaves(v) {
			continue
		}
		c.count++
		if c.top == math.MinInt32 {
			c.top = v.Class.Priority
		}
		// So that few pods of a negative priority are not dearer than many.
		c.sum += int64(v.Class.Priority) + 1<<31
		if v.Class.Priority == c.top {
			c.oldest = min(c.oldest, started(v).UnixNano())
		}
	}
}

// better tells whether evicting a's victims does less harm: fewer of them guarded by
// budgets, a less important most important one, a smaller sum of priorities, fewer,
// younger ones. Where it is the same, upstream takes any; here the node is better of
// which less is held: pods that make room spread over the nodes, and those after them
// find victims everywhere.
func better(a, b *candidate) bool {
	if len(a.victims.Pods) == 0 || len(b.victims.Pods) == 0 {
		return len(a.victims.Pods) < len(b.victims.Pods)
	}
	return cmp.Or(
		cmp.Compare(a.victims.Violations, b.victims.Violations),
		cmp.Compare(a.top, b.top),
		cmp.Compare(a.sum, b.sum),
		cmp.Compare(a.count, b.count),
		cmp.Compare(b.oldest, a.oldest),
		cmp.Compare(a.held, b.held),
		cmp.Compare(a.name, b.name),
	) < 0
}

// narrowed asks others what they object to. They may name other victims.
func (d *DefaultPreemption) narrowed(p *framework.Pod, s *framework.Snapshot, found []*candidate) ([]*candidate, error) {
	by, held := make(map[string]Victims, len(found)), make(map[string]float64, len(found))
	for _, c := range found {
		by[c.name], held[c.name] = c.victims, c.held
	}
	by, err := d.Narrow(p, s, by)
	if err != nil {
		return nil, err
	}
	var out []*candidate
	for name, v := range by {
		c := &candidate{name: name, victims: v, held: held[name]}
		slices.SortFunc(c.victims.Pods, moreImportant)
		c.rank()
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *candidate) int { return cmp.Compare(a.name, b.name) })
	return out, nil
}

func endingByPreemption(p *framework.Pod) bool {
	if p.Ending {
		return true
	}
	if p.DeletionTimestamp == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			return c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

// started is when a pod began to run; one that has not yet counts as the youngest.
func started(p *framework.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return time.Unix(1<<33, 0)
}
