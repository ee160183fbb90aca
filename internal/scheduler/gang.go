package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
)

// gangPlugin is upstream's name for what keeps the pods of incomplete groups out.
const gangPlugin = "GangScheduling"

// gangKey names a pod group.
type gangKey struct{ namespace, name string }

// gangOf tells which pod group a pod belongs to (spec.schedulingGroup, KEP 4671).
func gangOf(p *corev1.Pod) (gangKey, bool) {
	if g := p.Spec.SchedulingGroup; g != nil && g.PodGroupName != nil {
		return gangKey{p.Namespace, *g.PodGroupName}, true
	}
	return gangKey{}, false
}

// gang is a pod group and its pods. Its pods enter the queue when there are enough
// of them, and are taken from it together.
type gang struct {
	key gangKey
	// obj is nil until the group is seen.
	obj *schedulingv1beta1.PodGroup
	// pending are those in the queue, wherever; placed are those on nodes.
	pending map[types.UID]*queued
	placed  map[types.UID]*framework.Pod
}

// least is how many of its pods are placed together, or none: 1 for a group that is
// no gang.
func (g *gang) least() int {
	if g.obj != nil && g.obj.Spec.SchedulingPolicy.Gang != nil {
		return int(g.obj.Spec.SchedulingPolicy.Gang.MinCount)
	}
	return 1
}

func (g *gang) priority() int32 {
	if g.obj != nil && g.obj.Spec.Priority != nil {
		return *g.obj.Spec.Priority
	}
	return 0
}

// together tells that its pods end together or not at all.
func (g *gang) together() bool {
	return g.obj != nil && g.obj.Spec.DisruptionMode != nil && g.obj.Spec.DisruptionMode.All != nil
}

// exist is how many pods of the group count; those that are gated do not.
func (g *gang) exist() int {
	n := len(g.placed)
	for _, q := range g.pending {
		if !q.held {
			n++
		}
	}
	return n
}

// underway is how many are placed or being bound.
func (g *gang) underway() int {
	n := len(g.placed)
	for _, q := range g.pending {
		if q.place == inFlight {
			n++
		}
	}
	return n
}

// refusal is why the pods are kept out of the queue; "" where they are not.
func (g *gang) refusal() string {
	if g.obj == nil {
		return fmt.Sprintf("waiting for pods's pod group %q to appear in scheduling queue", g.key.name)
	}
	if have, want := g.exist(), g.least(); have < want {
		return fmt.Sprintf("waiting for minCount pods from a gang to appear in scheduling queue: %d of %d pods of the group exist", have, want)
	}
	return ""
}

// partly tells that fewer pods than belong together are placed: the rest goes first.
func (g *gang) partly() bool { return len(g.placed) > 0 && len(g.placed) < g.least() }

// tellAfter is how long the pods of a group wait for others before they are told
// so: most come at once.
const tellAfter = time.Second

// gang returns a group, known or new.
func (qu *queue) gang(k gangKey) *gang {
	g := qu.gangs[k]
	if g == nil {
		g = &gang{key: k, pending: map[types.UID]*queued{}, placed: map[types.UID]*framework.Pod{}}
		qu.gangs[k] = g
	}
	return g
}

// join makes a new pod of the queue a member of its group.
func (qu *queue) join(q *queued) {
	k, ok := gangOf(q.pod.Pod)
	if !ok {
		return
	}
	q.gang = qu.gang(k)
	q.gang.pending[q.pod.UID] = q
}

// hurry puts the rest of a group that is placed in part before all others of its
// priority.
func (qu *queue) hurry(g *gang) {
	if !g.partly() {
		return
	}
	for _, q := range g.pending {
		if at := q.place; at != inFlight && !q.since.IsZero() {
			if at != nowhere {
				qu.put(q, nowhere)
			}
			q.since = time.Time{}
			if at != nowhere {
				qu.put(q, at)
			}
		}
	}
}

// leave ends that.
func (qu *queue) leave(q *queued) {
	delete(q.gang.pending, q.pod.UID)
	qu.settle(q.gang)
}

// setGang takes a group as it is now, nil where it is gone. Fewer pods may do, so
// those that were refused are tried again.
func (qu *queue) setGang(k gangKey, obj *schedulingv1beta1.PodGroup, now time.Time) {
	g := qu.gang(k)
	least := g.least()
	fewer := g.obj != nil && obj != nil
	g.obj = obj
	qu.settle(g)
	if !fewer || g.least() >= least || g.refusal() != "" {
		return
	}
	for _, q := range g.members() {
		if q.place == unschedulable {
			qu.requeue(q, now)
		}
	}
}

// setPlaced notes that a pod of a group is on a node, or with false that it is not
// there any more.
func (qu *queue) setPlaced(p *framework.Pod, on bool) {
	k, ok := gangOf(p.Pod)
	if !ok {
		return
	}
	g := qu.gang(k)
	if on {
		g.placed[p.UID] = p
	} else {
		delete(g.placed, p.UID)
	}
	qu.settle(g)
}

// members are the pending pods in order.
func (g *gang) members() []*queued {
	out := make([]*queued, 0, len(g.pending))
	for _, q := range g.pending {
		out = append(out, q)
	}
	slices.SortFunc(out, compareQueued)
	return out
}

// settle lets a group's pods into the queue where it is complete, and takes them
// out where it is not.
func (qu *queue) settle(g *gang) {
	if g.obj == nil && len(g.pending) == 0 && len(g.placed) == 0 {
		delete(qu.gangs, g.key)
		delete(qu.untold, g)
		return
	}
	qu.hurry(g)
	complete := g.refusal() == ""
	if complete {
		delete(qu.untold, g)
	} else if len(g.pending) > 0 {
		qu.untold[g] = qu.at.Add(tellAfter)
	}
	for _, q := range g.pending {
		switch {
		case q.held || q.place == inFlight:
		case complete && q.place == gated:
			qu.put(q, active)
		case !complete && q.place != gated:
			qu.shut(q, gangPlugin)
		}
	}
}

// takeGang takes the pods of a group that may be tried.
func (qu *queue) takeGang(g *gang, early bool) []*queued {
	var out []*queued
	for _, q := range g.members() {
		if q.place == active || q.place == unschedulable || q.place == backingOff {
			q.early = early
			qu.put(q, inFlight)
			out = append(out, q)
		}
	}
	return out
}

// told returns the groups whose pods are to be told now that they wait for others.
func (qu *queue) told(now time.Time) []*gang {
	var out []*gang
	for g, at := range qu.untold {
		if !at.After(now) {
			out = append(out, g)
			delete(qu.untold, g)
		}
	}
	slices.SortFunc(out, func(a, b *gang) int {
		if a.key.namespace != b.key.namespace {
			return cmp.Compare(a.key.namespace, b.key.namespace)
		}
		return cmp.Compare(a.key.name, b.key.name)
	})
	return out
}
