package scheduler

import (
	"container/heap"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// place is where in the queue a pod is.
type place int8

const (
	nowhere place = iota
	// active: to be tried in the next cycle.
	active
	// backingOff: to be tried when its wait is over, or, unless it failed by an
	// error, as soon as nothing else is to be done.
	backingOff
	// unschedulable: to be tried when something happens that may help.
	unschedulable
	// gated: a plugin keeps it out.
	gated
	// inFlight: decided and being bound.
	inFlight
)

// queued is a pending pod.
type queued struct {
	pod   *framework.Pod
	place place
	// since is when the pod entered the queue, last; order breaks ties.
	since time.Time
	first time.Time // when it entered first
	order uint64
	until time.Time // end of the back-off
	heap  int       // index in the heap of its place

	attempts int // failed for want of a node
	errors   int // failed by an error, in a row
	refused  []string
	gate     string // the plugin that keeps it out, while gated
	alike    alike  // while unschedulable
	early    bool   // tried before its back-off was over
	message  string
	waits    string    // for victims to end on this node
	tried    time.Time // when it was taken last
	leftover bool      // it was tried last for having waited long

	gang *gang // that it belongs to; nil for none
	held bool  // gated by a plugin
}

// Bounds of the wait between two tries of one pod, and the time after which an
// unschedulable pod is tried although nothing happened.
const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
	flushAfter   = 5 * time.Minute
)

// queue holds the pending pods. It is not safe for concurrent use, and reads no
// clock: the caller says what time it is.
type queue struct {
	pods    map[types.UID]*queued
	active  activeHeap
	backoff backoffHeap
	// waiting has the unschedulable pods: what may help one helps its like.
	waiting map[alike]map[types.UID]*queued
	// gates has the gated pods by the plugin that keeps them out.
	gates map[string]map[types.UID]*queued
	order uint64
	gated int
	// leftover is when the unschedulable pods are looked through next.
	leftover time.Time

	// fair is nil while namespaces are not to get shares.
	fair *fairness

	gangs map[gangKey]*gang
	// untold are the incomplete groups whose pods were not told, and when they are.
	untold map[*gang]time.Time
	// at is when flush was called last.
	at time.Time

	// By schedulerName: what keeps pods out, and the hints by plugin.
	preEnqueue map[string][]framework.PreEnqueuer
	hints      map[string]map[string]framework.Hinter
	// The first wait of a pod that could not be placed, and the longest.
	first, last time.Duration
	// incoming, where set, is told where a pod came to and what brought it there.
	incoming func(to place, event string)
}

// profile tells what acts on the pods of a profile.
func (qu *queue) profile(p plugins.Profile) {
	hints := map[string]framework.Hinter{}
	for _, pl := range p.All {
		if h, ok := pl.Plugin.(framework.Hinter); ok {
			hints[pl.Name()] = h
		}
	}
	qu.hints[p.Name] = hints
	qu.preEnqueue[p.Name] = acting[framework.PreEnqueuer](p.PreEnqueue)
}

// alike is what the answer to an event depends on.
type alike struct {
	class   *framework.Class
	kin     *framework.Kin
	group   *framework.Group
	refused string // by plugins, joined
}

func newQueue() *queue {
	return &queue{
		pods: map[types.UID]*queued{}, waiting: map[alike]map[types.UID]*queued{}, gates: map[string]map[types.UID]*queued{},
		hints: map[string]map[string]framework.Hinter{}, preEnqueue: map[string][]framework.PreEnqueuer{},
		gangs: map[gangKey]*gang{}, untold: map[*gang]time.Time{},
		first: firstBackoff, last: lastBackoff,
	}
}

// put moves q to a place, taking it from where it was.
func (qu *queue) put(q *queued, to place) {
	switch q.place {
	case active:
		heap.Remove(&qu.active, q.heap)
	case backingOff:
		heap.Remove(&qu.backoff, q.heap)
	case unschedulable:
		m := qu.waiting[q.alike]
		delete(m, q.pod.UID)
		if len(m) == 0 {
			delete(qu.waiting, q.alike)
		}
	case gated:
		qu.gated--
		if delete(qu.gates[q.gate], q.pod.UID); len(qu.gates[q.gate]) == 0 {
			delete(qu.gates, q.gate)
		}
	}
	q.place = to
	switch to {
	case active:
		heap.Push(&qu.active, q)
	case backingOff:
		heap.Push(&qu.backoff, q)
	case unschedulable:
		q.alike = alike{q.pod.Class, q.pod.Kin, q.pod.Group, strings.Join(q.refused, " ")}
		m := qu.waiting[q.alike]
		if m == nil {
			m = map[types.UID]*queued{}
			qu.waiting[q.alike] = m
		}
		m[q.pod.UID] = q
	case gated:
		qu.gated++
		if qu.gates[q.gate] == nil {
			qu.gates[q.gate] = map[types.UID]*queued{}
		}
		qu.gates[q.gate][q.pod.UID] = q
	case nowhere:
		delete(qu.pods, q.pod.UID)
		return
	}
	qu.pods[q.pod.UID] = q
}

// came tells where q came to.
func (qu *queue) came(q *queued, event string) {
	if qu.incoming != nil {
		qu.incoming(q.place, event)
	}
}

// set adds a pending pod, or tells that it changed. It returns the refusal of
// the plugin that keeps a pod out.
func (qu *queue) set(p *framework.Pod, now time.Time) *framework.Status {
	q := qu.pods[p.UID]
	if q == nil {
		qu.order++
		q = &queued{pod: p, since: now, first: now, order: qu.order}
		qu.join(q)
		st := qu.enter(q)
		qu.came(q, "UnscheduledPodAdd")
		return st
	}
	old := q.pod
	p.Group = old.Group
	switch q.place {
	case gated:
		q.pod = p
		return qu.enter(q)
	case inFlight:
		q.pod = p
		return nil
	case unschedulable:
		kind := podChange(old, p)
		qu.put(q, nowhere)
		q.pod = p
		if kind != 0 && qu.hinted(p, q.refused, framework.Event{Kind: kind, Pod: p, OldPod: old}) {
			qu.requeue(q, now)
			qu.came(q, "TargetPodUpdate")
		} else {
			qu.put(q, unschedulable)
		}
	default:
		at := q.place
		qu.put(q, nowhere)
		q.pod = p
		qu.put(q, at)
	}
	return nil
}

// enter asks the plugins that may keep a pod out.
func (qu *queue) enter(q *queued) *framework.Status {
	for _, p := range qu.preEnqueue[q.pod.Spec.SchedulerName] {
		if st := p.PreEnqueue(q.pod.Pod); st.Refused() {
			q.held = true
			qu.shut(q, st.Plugin)
			return st
		}
	}
	q.held = false
	if q.gang != nil {
		qu.shut(q, gangPlugin)
		qu.settle(q.gang)
		return nil
	}
	qu.put(q, active)
	return nil
}

// shut keeps a pod out for a plugin.
func (qu *queue) shut(q *queued, plugin string) {
	qu.put(q, nowhere)
	q.gate = plugin
	qu.put(q, gated)
}

// remove forgets a pod.
func (qu *queue) remove(uid types.UID) {
	if q := qu.pods[uid]; q != nil {
		qu.put(q, nowhere)
		if q.gang != nil {
			qu.leave(q)
		}
	}
}

// take returns the pods to try now, at most n, in order, and marks them in
// flight; the pods of a group are taken together, one after the other, however many
// they are. When none is active, those that wait only out of caution are taken.
func (qu *queue) take(n int) []*queued {
	if qu.fair != nil {
		return qu.takeFair(n)
	}
	var out []*queued
	for len(out) < n && len(qu.active) > 0 {
		q := qu.active[0]
		if q.gang != nil {
			out = append(out, qu.takeGang(q.gang, false)...)
			continue
		}
		q.early = false
		qu.put(q, inFlight)
		out = append(out, q)
	}
	if len(out) > 0 {
		return out
	}
	for _, q := range qu.backoff {
		if q.errors == 0 {
			out = append(out, q)
		}
	}
	slices.SortFunc(out, compareQueued)
	var early []*queued
	for _, q := range out[:min(n, len(out))] {
		switch {
		case q.place != backingOff: // taken with its group
		case q.gang != nil:
			early = append(early, qu.takeGang(q.gang, true)...)
		default:
			q.early = true
			qu.put(q, inFlight)
			early = append(early, q)
		}
	}
	return early
}

// failed returns a pod for which no node was found.
func (qu *queue) failed(q *queued, plugins []string, now time.Time) {
	if q.place != inFlight {
		return
	}
	q.attempts++
	q.errors = 0
	q.refused = plugins
	q.since = now
	q.until = now.Add(qu.backoffOf(q.attempts))
	q.leftover = false
	qu.put(q, unschedulable)
	qu.came(q, "ScheduleAttemptFailure")
}

// errored returns a pod whose try ended in an error.
func (qu *queue) errored(q *queued, now time.Time) {
	if q.place != inFlight {
		return
	}
	q.errors++
	q.since = now
	q.until = now.Add(qu.backoffOf(q.errors))
	qu.put(q, backingOff)
	qu.came(q, "ScheduleAttemptFailure")
}

func (qu *queue) backoffOf(tries int) time.Duration {
	d := qu.first
	for range tries - 1 {
		if d *= 2; d >= qu.last {
			return qu.last
		}
	}
	return min(d, qu.last)
}

// requeue lets a pod be tried again: now, or after its back-off.
func (qu *queue) requeue(q *queued, now time.Time) {
	if q.until.After(now) {
		qu.put(q, backingOff)
		return
	}
	qu.put(q, active)
}

// happened tries again the unschedulable pods that an event may help.
func (qu *queue) happened(e framework.Event, now time.Time) {
	var wake []*queued
	// What a victim leaves is for those who wait for it there.
	victim := e.Kind&framework.PodDeleted != 0 && e.Pod != nil && e.Pod.Ending
	for _, pods := range qu.waiting {
		for _, q := range pods {
			if victim && q.waits != "" && q.waits != e.Pod.Spec.NodeName {
				continue
			}
			if len(wake) == 0 || wake[len(wake)-1].alike != q.alike {
				if !qu.hinted(q.pod, q.refused, e) {
					break // nor does it help the rest of them
				}
			}
			wake = append(wake, q)
		}
	}
	for _, q := range wake {
		qu.requeue(q, now)
		qu.came(q, eventName(e.Kind))
	}
	qu.open(e)
}

// open lets in the gated pods that an event may help.
func (qu *queue) open(e framework.Event) {
	var wake []*queued
	for plugin, pods := range qu.gates {
		for _, q := range pods {
			if h := qu.hints[q.pod.Spec.SchedulerName][plugin]; h != nil && h.Events()&e.Kind != 0 && h.Hint(q.pod, e) {
				wake = append(wake, q)
			}
		}
	}
	slices.SortFunc(wake, compareQueued)
	for _, q := range wake {
		qu.enter(q)
	}
}

// hinted tells whether any plugin that refused the pod thinks that e may help.
func (qu *queue) hinted(p *framework.Pod, refused []string, e framework.Event) bool {
	if len(refused) == 0 {
		// There was no node at all.
		return e.Kind&framework.NodeAdded != 0
	}
	for _, name := range refused {
		h := qu.hints[p.Spec.SchedulerName][name]
		if h == nil || h.Events()&e.Kind != 0 && h.Hint(p, e) {
			return true
		}
	}
	return false
}

// leftoverEvery is how often the unschedulable pods are looked through for such
// that waited for flushAfter.
const leftoverEvery = 30 * time.Second

// flush moves what waited long enough.
func (qu *queue) flush(now time.Time) {
	qu.at = now
	for len(qu.backoff) > 0 && !qu.backoff[0].until.After(now) {
		q := qu.backoff[0]
		qu.put(q, active)
		qu.came(q, "BackoffComplete")
	}
	if len(qu.waiting) == 0 {
		qu.leftover = time.Time{}
		return
	}
	if qu.leftover.IsZero() {
		qu.leftover = now.Add(leftoverEvery)
	}
	if qu.leftover.After(now) {
		return
	}
	qu.leftover = now.Add(leftoverEvery)
	var wake []*queued
	for _, pods := range qu.waiting {
		for _, q := range pods {
			if !q.since.Add(flushAfter).After(now) {
				wake = append(wake, q)
			}
		}
	}
	slices.SortFunc(wake, compareQueued)
	for _, q := range wake {
		q.leftover = true
		qu.requeue(q, now)
		qu.came(q, "UnschedulableTimeout")
	}
}

// next returns when flush has something to do; zero for never.
func (qu *queue) next() time.Time {
	t := qu.leftover
	if len(qu.backoff) > 0 && (t.IsZero() || qu.backoff[0].until.Before(t)) {
		t = qu.backoff[0].until
	}
	for _, at := range qu.untold {
		if t.IsZero() || at.Before(t) {
			t = at
		}
	}
	return t
}

// podChange tells what of a pending pod changed that a plugin may care about.
func podChange(was, is *framework.Pod) framework.EventKind {
	var k framework.EventKind
	old, now := was.Pod, is.Pod
	if len(old.Spec.Tolerations) != len(now.Spec.Tolerations) || !equality.Semantic.DeepEqual(old.Spec.Tolerations, now.Spec.Tolerations) {
		k |= framework.PodTolerations
	}
	if len(old.Spec.SchedulingGates) != len(now.Spec.SchedulingGates) {
		k |= framework.PodGates
	}
	if !maps.Equal(old.Labels, now.Labels) {
		k |= framework.PodLabels
	}
	if len(now.Spec.ResourceClaims) > 0 && !equality.Semantic.DeepEqual(old.Status.ResourceClaimStatuses, now.Status.ResourceClaimStatuses) {
		k |= framework.PodClaims
	}
	if !was.Class.Requests.Equal(&is.Class.Requests) {
		k |= framework.PodRequests
	}
	if was.Class != is.Class {
		k |= framework.PodOther
	}
	return k
}

func compareQueued(a, b *queued) int {
	switch {
	case a.pod.Class.Priority != b.pod.Class.Priority:
		if a.pod.Class.Priority > b.pod.Class.Priority {
			return -1
		}
		return 1
	case !a.since.Equal(b.since):
		return a.since.Compare(b.since)
	case a.order < b.order:
		return -1
	case a.order > b.order:
		return 1
	}
	return 0
}

type activeHeap []*queued

func (h activeHeap) Len() int           { return len(h) }
func (h activeHeap) Less(i, j int) bool { return compareQueued(h[i], h[j]) < 0 }
func (h activeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].heap, h[j].heap = i, j }
func (h *activeHeap) Push(x any)        { q := x.(*queued); q.heap = len(*h); *h = append(*h, q) }
func (h *activeHeap) Pop() any          { return popLast((*[]*queued)(h)) }

type backoffHeap []*queued

func (h backoffHeap) Len() int { return len(h) }
func (h backoffHeap) Less(i, j int) bool {
	if !h[i].until.Equal(h[j].until) {
		return h[i].until.Before(h[j].until)
	}
	return compareQueued(h[i], h[j]) < 0
}
func (h backoffHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].heap, h[j].heap = i, j }
func (h *backoffHeap) Push(x any)   { q := x.(*queued); q.heap = len(*h); *h = append(*h, q) }
func (h *backoffHeap) Pop() any     { return popLast((*[]*queued)(h)) }

func popLast(h *[]*queued) *queued {
	old := *h
	q := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return q
}
