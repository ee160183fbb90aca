package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
)

// Team is what a decision on a group's pods needs to know beside the pods.
type Team struct {
	// Least is how many pods have to be placed, of those that are to be decided on
	// and the Placed ones that are on nodes already; fewer are not placed at all.
	Least, Placed int
	Priority      int32
	// Of tells of which group a pod on a node is, nil for none.
	Of func(*framework.Pod) *Unit
}

// Unit is a group of pods on nodes as preemption sees it.
type Unit struct {
	Priority int32
	// Pods, where not nil, end together or not at all.
	Pods []*framework.Pod
}

// Verdict is what becomes of a group.
type Verdict struct {
	// Decisions are on the pods, in the order given: Node is set for all that can go
	// when Placed, for none otherwise.
	Decisions []Decision
	Placed    bool
	// Message is what the group's condition says.
	Message string
	// Err is why nothing could be decided: an extender did not answer.
	Err error
}

// Together decides on the pods of a group (KEP 4671): each with those before it in
// place, and none where fewer than t.Least would be. Then it looks for pods of lower
// priority whose end would let the whole group run; where there are such, the pods
// are nominated to the places that they would have.
//
// A group that is refused leaves nothing behind in s but those nominations: it never
// holds places while it waits for more.
func (c *Cycle) Together(s *framework.Snapshot, pods []*framework.Pod, t Team) Verdict {
	v := c.team(s, pods, t)
	if v.Placed || v.Err != nil {
		return v
	}
	said := v.Message
	var found []Decision
	var message string
	if found, message = c.preemptFor(s, pods, t); message != "" {
		if v.Message != "" {
			v.Message += ", "
		}
		v.Message += "pod group preemption: " + message
	}
	plugins := map[string]bool{}
	for _, d := range v.Decisions {
		if d.Failure != nil {
			for _, p := range d.Failure.Plugins {
				plugins[p] = true
			}
		}
	}
	refused := slices.Sorted(maps.Keys(plugins))
	for i := range v.Decisions {
		d := &v.Decisions[i]
		f := &Failure{Message: v.Message, Plugins: refused}
		if d.Failure != nil && d.Failure.Message != said {
			f.Message = d.Failure.Message
		}
		if found != nil && found[i].Failure != nil {
			f.Nominated, f.Victims = found[i].Failure.Nominated, found[i].Failure.Victims
			s.Nominate(d.Pod, f.Nominated)
		}
		d.Node, d.Failure = "", f
	}
	return v
}

// team places the pods of a group, or none.
func (c *Cycle) team(s *framework.Snapshot, pods []*framework.Pod, t Team) Verdict {
	c.together = true
	defer func() { c.together = false }()
	v := Verdict{Decisions: make([]Decision, len(pods))}
	nominated := make([]string, len(pods))
	for i, p := range pods {
		nominated[i] = s.NominatedNode(p.UID)
		v.Decisions[i].Pod = p
	}
	placed := t.Placed
	tried := 0
	for ; tried < len(pods) && placed+len(pods)-tried >= t.Least; tried++ {
		d := c.one(s, pods[tried])
		if v.Decisions[tried] = d; d.Err != nil {
			v.Err = fmt.Errorf("failed to schedule other pod from a pod group: %w", d.Err)
			break
		}
		if d.Failure == nil {
			placed++
		}
	}
	if v.Err == nil && placed >= t.Least && placed > t.Placed {
		v.Placed = true
		return v
	}
	left := len(pods) - tried
	v.Message = fmt.Sprintf("minCount (%d) cannot be satisfied: %d scheduled, %d remaining", t.Least, placed, left)
	if placed >= t.Least {
		// It is complete; these are more, and none of them can go.
		v.Message = ""
	}
	for i, p := range slices.Backward(pods) {
		d := &v.Decisions[i]
		if i >= tried {
			d.Failure = &Failure{Message: v.Message}
			continue
		}
		if d.Failure == nil {
			c.Undo(s, p, d.Node)
			s.Nominate(p, nominated[i])
		}
	}
	return v
}

// victim is what ends as one: a pod, or the pods of a group.
type victim struct {
	pods     []*framework.Pod
	priority int32
	group    bool
	since    time.Time
	guarded  bool // by a disruption budget
}

// assignment is a place that a pod of a group would have.
type assignment struct {
	pod  *framework.Pod
	slot int
	node string
}

// preemptFor looks, in a copy of the snapshot, for the least important pods of lower
// priority whose end would let a group run. It returns decisions that carry what is
// nominated, and what is to be said.
func (c *Cycle) preemptFor(s *framework.Snapshot, pods []*framework.Pod, t Team) ([]Decision, string) {
	for _, p := range pods {
		if p.Class.NoPreemption {
			return nil, "not eligible due to preemptionPolicy=Never."
		}
	}
	if d := c.ongoing(s, pods, t); d != nil {
		return d, "ongoing preemption on nominated nodes"
	}
	victims := c.victimsFor(s, t)
	if len(victims) == 0 {
		return nil, "No preemption victims found for incoming preemptor"
	}
	f := s.Fork()
	sub := NewProfileCycle(c.profile, c.rand.Uint64())
	where := map[types.UID]string{}
	for _, v := range victims {
		for _, p := range v.pods {
			_, where[p.UID], _ = f.Placed(p.UID)
			f.RemovePod(p.UID)
		}
	}
	would := sub.team(f, pods, t)
	if !would.Placed {
		return nil, would.Message
	}
	var places []assignment
	used := map[string]bool{}
	for _, d := range slices.Backward(would.Decisions) {
		if d.Failure != nil {
			continue
		}
		slot, _ := f.SlotOf(d.Node)
		places = append(places, assignment{d.Pod, slot, d.Node})
		used[d.Node] = true
		sub.Undo(f, d.Pod, d.Node)
	}
	slices.Reverse(places)
	restore := func(v *victim) {
		for _, p := range v.pods {
			f.SetPod(p, where[p.UID])
		}
	}
	remove := func(v *victim) {
		for _, p := range v.pods {
			f.RemovePod(p.UID)
		}
	}
	// Those on other nodes hardly stand in the way: all at once is tried first.
	var near, far []*victim
	for _, v := range victims {
		if slices.ContainsFunc(v.pods, func(p *framework.Pod) bool { return used[where[p.UID]] }) {
			near = append(near, v)
		} else {
			far = append(far, v)
		}
	}
	for _, v := range far {
		restore(v)
	}
	if !sub.fit(f, places) {
		for _, v := range far {
			remove(v)
		}
		near = victims
	}
	slices.SortStableFunc(near, moreImportantVictim)
	var out []*framework.Pod
	for _, guarded := range []bool{true, false} {
		for _, v := range near {
			if v.guarded != guarded {
				continue
			}
			if restore(v); !sub.fit(f, places) {
				remove(v)
				out = append(out, v.pods...)
			}
		}
	}
	decisions := make([]Decision, len(pods))
	first := map[string]*Failure{}
	for _, a := range places {
		i := slices.Index(pods, a.pod)
		decisions[i] = Decision{Pod: a.pod, Failure: &Failure{Nominated: a.node}}
		if first[a.node] == nil {
			first[a.node] = decisions[i].Failure
		}
	}
	for _, p := range out {
		to := first[where[p.UID]]
		if to == nil { // one that ends since others of its group do
			to = first[places[0].node]
		}
		to.Victims = append(to.Victims, p)
	}
	return decisions, fmt.Sprintf("found a placement for podgroup, preempting %d victims", len(out))
}

// ongoing returns the nominations as they are, where victims are still ending on the
// nodes of them.
func (c *Cycle) ongoing(s *framework.Snapshot, pods []*framework.Pod, t Team) []Decision {
	out := make([]Decision, len(pods))
	found := false
	for i, p := range pods {
		name := s.NominatedNode(p.UID)
		n := s.Node(name)
		if n == nil {
			continue
		}
		out[i] = Decision{Pod: p, Failure: &Failure{Nominated: name}}
		for _, o := range n.Pods {
			found = found || o.Ending && t.priorityOf(o) < t.Priority
		}
	}
	if !found {
		return nil
	}
	return out
}

func (t Team) unit(p *framework.Pod) *Unit {
	if t.Of == nil {
		return nil
	}
	return t.Of(p)
}

func (t Team) priorityOf(p *framework.Pod) int32 {
	if u := t.unit(p); u != nil {
		return u.Priority
	}
	return p.Class.Priority
}

// victimsFor lists what could end for a group.
func (c *Cycle) victimsFor(s *framework.Snapshot, t Team) []*victim {
	var out []*victim
	var all []*framework.Pod
	seen := map[types.UID]bool{}
	for _, n := range s.All() {
		for _, p := range n.Pods {
			if seen[p.UID] || t.priorityOf(p) >= t.Priority {
				continue
			}
			v := &victim{pods: []*framework.Pod{p}, priority: t.priorityOf(p)}
			if u := t.unit(p); u != nil && u.Pods != nil {
				v.pods, v.group = u.Pods, true
			}
			for i, o := range v.pods {
				seen[o.UID] = true
				if at := startedAt(o); i == 0 || at.Before(v.since) {
					v.since = at
				}
			}
			out, all = append(out, v), append(all, v.pods...)
		}
	}
	for _, g := range c.profile.PostFilter {
		b, ok := g.Plugin.(framework.Guard)
		if !ok {
			continue
		}
		guarded, _ := b.Guarded(all)
		is := map[types.UID]bool{}
		for _, p := range guarded {
			is[p.UID] = true
		}
		for _, v := range out {
			v.guarded = v.guarded || slices.ContainsFunc(v.pods, func(p *framework.Pod) bool { return is[p.UID] })
		}
	}
	return out
}

// startedAt is when a pod began to run; one that has not counts as the youngest.
func startedAt(p *framework.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return time.Unix(1<<33, 0)
}

// moreImportantVictim: a higher priority, a group before a pod, a larger group, one
// that runs for longer.
func moreImportantVictim(a, b *victim) int {
	rank := func(v *victim) int {
		if v.group {
			return len(v.pods) + 1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(rank(b), rank(a)), a.since.Compare(b.since),
		cmp.Compare(a.pods[0].Namespace, b.pods[0].Namespace), cmp.Compare(a.pods[0].Name, b.pods[0].Name))
}

// fit tells whether the pods of a group can have their places, each with those before
// it in place. It leaves s as it is.
func (c *Cycle) fit(s *framework.Snapshot, places []assignment) bool {
	ok := true
	done := 0
	for _, a := range places {
		t := c.table(s, s.Subject(a.pod))
		if t.preFilter != nil {
			ok = false
			break
		}
		if t.nodes == nil {
			t.refresh(c, s)
		} else if t.s = s; t.domains != nil {
			t.domains.rebuild(s)
		}
		if t.refilter(s.At(a.slot), a.pod.UID) != nil {
			ok = false
			break
		}
		s.Assume(a.pod, a.slot)
		done++
	}
	for _, a := range slices.Backward(places[:done]) {
		s.Forget(a.pod.UID)
	}
	return ok
}
