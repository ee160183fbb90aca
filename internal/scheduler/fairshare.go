package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/scheduler/framework"
)

// Fair sharing among namespaces is on while any namespace has one of these; without,
// the queue's order is upstream's (priority, then time) to the letter.
const (
	// ShareWeight is a label of a namespace: its part of the cluster when there is not
	// enough for all, in relation to the others', 1 where it has none.
	ShareWeight = "skiff.io/share-weight"
	// ShareQuota is an annotation of a namespace: what it gets before anything is shared
	// out by weight, "cpu=4,memory=8Gi". What others have left idle it may take beyond.
	ShareQuota = "skiff.io/share-quota"
)

// maxWeight bounds weights: a million times another's is nothing for that one.
const maxWeight = 1_000_000

// portion is what a namespace is to get.
type portion struct {
	weight float64
	quota  corev1.ResourceList
}

// portionOf reads a namespace's marks; given is false where it has none.
func portionOf(ns *corev1.Namespace) (p portion, given bool, err error) {
	p.weight = 1
	if v, ok := ns.Labels[ShareWeight]; ok {
		given = true
		w, perr := strconv.ParseFloat(v, 64)
		if perr != nil || !(w > 0) || w > maxWeight {
			err = fmt.Errorf("label %s: %q is no weight: a number above 0, %d at most", ShareWeight, v, maxWeight)
		} else {
			p.weight = w
		}
	}
	if v, ok := ns.Annotations[ShareQuota]; ok {
		given = true
		quota := corev1.ResourceList{}
		for part := range strings.SplitSeq(v, ",") {
			name, amount, _ := strings.Cut(strings.TrimSpace(part), "=")
			q, perr := resource.ParseQuantity(amount)
			if name == "" || perr != nil || q.Sign() < 0 {
				return p, given, fmt.Errorf("annotation %s: %q is no amount of a resource, such as cpu=4", ShareQuota, part)
			}
			quota[corev1.ResourceName(name)] = q
		}
		p.quota = quota
	}
	return p, given, err
}

// fairness orders the queue by dominant resource share (Ghodsi et al., NSDI 2011).
type fairness struct {
	snapshot *framework.Snapshot
	portions map[string]portion
}

// setPortion takes what a namespace is to get; not given ends that.
func (s *Scheduler) setPortion(name string, p portion, given bool) {
	f := s.queue.fair
	switch {
	case given && f == nil:
		f = &fairness{snapshot: s.snapshot, portions: map[string]portion{}}
		s.queue.fair = f
		s.snapshot.TrackUse(true)
	case f == nil:
		return
	}
	if given {
		f.portions[name] = p
		return
	}
	if delete(f.portions, name); len(f.portions) == 0 {
		s.queue.fair = nil
		s.snapshot.TrackUse(false)
	}
}

// tenant is a namespace with pods that can be tried.
type tenant struct {
	portion
	pods fairHeap
	used framework.Resource
}

// share is the greatest part of any resource of the cluster that a tenant has, by its
// weight, when it has half of the pod p. With none of it those with small weights would
// come out ahead, by the size of a pod, with all of it the others (as with the methods
// of Adams, Webster and Jefferson for seats).
func (t *tenant) share(total *framework.Resource, p *framework.Pod) float64 {
	ask := &p.Class.Requests
	part := func(used, more, of int64) float64 {
		if of <= 0 {
			return 0
		}
		return (float64(used) + float64(more)/2) / float64(of)
	}
	most := max(part(t.used.MilliCPU, ask.MilliCPU, total.MilliCPU), part(t.used.Memory, ask.Memory, total.Memory),
		part(t.used.EphemeralStorage, ask.EphemeralStorage, total.EphemeralStorage), part(t.used.Pods, 1, total.Pods))
	for name, of := range total.Scalar {
		most = max(most, part(t.used.Scalar[name], ask.Scalar[name], of))
	}
	return most / t.weight
}

// entitled tells that a pod is within its namespace's quota.
func (t *tenant) entitled(p *framework.Pod) bool {
	if t.quota == nil {
		return false
	}
	for name, q := range t.quota {
		have, limit := t.used.Of(name)+p.Class.Requests.Of(name), q.Value()
		switch name {
		case corev1.ResourceCPU:
			limit = q.MilliValue()
		case corev1.ResourcePods:
			have = t.used.Pods + 1
		}
		if have > limit {
			return false
		}
	}
	return true
}

// takeFair is take while fair sharing is on: within a priority, the pods within their
// namespace's quota first, then those of the namespace with the least share, then the
// one that waits for longest. It passes over back-offs for want of a node: a place that
// is free now goes to whom it belongs.
func (qu *queue) takeFair(n int) []*queued {
	tenants := map[string]*tenant{}
	add := func(q *queued) {
		ns := q.pod.Namespace
		t := tenants[ns]
		if t == nil {
			t = &tenant{portion: portion{weight: 1}, used: qu.fair.snapshot.Use(ns)}
			if p, ok := qu.fair.portions[ns]; ok {
				t.portion = p
			}
			tenants[ns] = t
		}
		t.pods = append(t.pods, q)
	}
	for _, q := range qu.active {
		add(q)
	}
	for _, q := range qu.backoff {
		if q.errors == 0 {
			add(q)
		}
	}
	var list []*tenant
	for _, t := range tenants {
		heap.Init(&t.pods)
		list = append(list, t)
	}
	total := qu.fair.snapshot.Total()
	var out []*queued
	for len(out) < n {
		var best *tenant
		var rank fairRank
		for _, t := range list {
			for len(t.pods) > 0 && t.pods[0].place == inFlight {
				heap.Pop(&t.pods) // taken with its group
			}
			if len(t.pods) == 0 {
				continue
			}
			r := fairRank{t.pods[0], t.entitled(t.pods[0].pod), t.share(&total, t.pods[0].pod)}
			if best == nil || r.before(rank) {
				best, rank = t, r
			}
		}
		if best == nil {
			break
		}
		q := heap.Pop(&best.pods).(*queued)
		took := []*queued{q}
		if early := q.place == backingOff; q.gang != nil {
			took = qu.takeGang(q.gang, early)
		} else {
			q.early = early
			qu.put(q, inFlight)
		}
		for _, q := range took {
			best.used.Add(&q.pod.Class.Requests)
			best.used.Pods++
		}
		out = append(out, took...)
	}
	return out
}

// fairRank is what a namespace's first pod is ordered by.
type fairRank struct {
	q        *queued
	entitled bool
	share    float64
}

func (a fairRank) before(b fairRank) bool {
	if x, y := a.q.pod.Class.Priority, b.q.pod.Class.Priority; x != y {
		return x > y
	}
	if a.entitled != b.entitled {
		return a.entitled
	}
	return cmp.Or(cmp.Compare(a.share, b.share), compareFair(a.q, b.q)) < 0
}

// compareFair orders the pods of one namespace: a try that failed costs none its turn.
func compareFair(a, b *queued) int {
	if c := cmp.Compare(b.pod.Class.Priority, a.pod.Class.Priority); c != 0 {
		return c
	}
	if x, y := a.since.IsZero(), b.since.IsZero(); x != y {
		if x { // the rest of a group that is placed in part
			return -1
		}
		return 1
	}
	return cmp.Or(a.first.Compare(b.first), cmp.Compare(a.order, b.order))
}

// fairHeap is one namespace's pods; it does not keep queued.heap.
type fairHeap []*queued

func (h fairHeap) Len() int           { return len(h) }
func (h fairHeap) Less(i, j int) bool { return compareFair(h[i], h[j]) < 0 }
func (h fairHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *fairHeap) Push(x any)        { *h = append(*h, x.(*queued)) }
func (h *fairHeap) Pop() any          { return popLast((*[]*queued)(h)) }
