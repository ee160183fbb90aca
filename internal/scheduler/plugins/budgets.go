package plugins

import (
	"cmp"
	"slices"
	"sync/atomic"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// budgets are the disruption budgets of now.
type budgets struct {
	informer *client.Informer[*policyv1.PodDisruptionBudget]
	version  atomic.Uint64 // grows with every change
	at       uint64
	by       map[string][]budget // by namespace, for at
}

type budget struct {
	name     string
	selector labels.Selector
	allowed  int32
	going    map[string]metav1.Time // pods whose end was allowed already
}

func newBudgets(inf *client.Informers) *budgets {
	return &budgets{informer: client.InformerFor[*policyv1.PodDisruptionBudget](inf)}
}

func (b *budgets) watch() []<-chan struct{} {
	b.informer.OnChange(func(client.Change[*policyv1.PodDisruptionBudget]) { b.version.Add(1) })
	return []<-chan struct{}{b.informer.Synced()}
}

// load takes the budgets as they are now, and returns their version.
func (b *budgets) load() uint64 {
	if b == nil {
		return 0
	}
	v := b.version.Load()
	if v == b.at && b.by != nil {
		return v
	}
	b.at, b.by = v, map[string][]budget{}
	for o := range b.informer.All() {
		sel, err := metav1.LabelSelectorAsSelector(o.Spec.Selector)
		if err != nil || sel.Empty() {
			continue // it guards nothing
		}
		b.by[o.Namespace] = append(b.by[o.Namespace], budget{o.Name, sel, o.Status.DisruptionsAllowed, o.Status.DisruptedPods})
	}
	for _, of := range b.by {
		slices.SortFunc(of, func(x, y budget) int { return cmp.Compare(x.name, y.name) })
	}
	return v
}

// split tells the pods apart whose end, all of them ending in this order, a budget
// would not allow.
func (b *budgets) split(pods []*framework.Pod) (guarded, rest []*framework.Pod) {
	if b == nil {
		return nil, pods
	}
	b.load()
	if len(b.by) == 0 {
		return nil, pods
	}
	left := map[string][]int32{}
	for _, p := range pods {
		of := b.by[p.Namespace]
		allowed := left[p.Namespace]
		if allowed == nil && len(of) > 0 {
			for i := range of {
				allowed = append(allowed, of[i].allowed)
			}
			left[p.Namespace] = allowed
		}
		if violates(p, of, allowed) {
			guarded = append(guarded, p)
		} else {
			rest = append(rest, p)
		}
	}
	return guarded, rest
}

// violates takes a pod's end off the budgets that select it, up to the first that
// has nothing left.
func violates(p *framework.Pod, of []budget, allowed []int32) bool {
	if len(p.Labels) == 0 {
		return false
	}
	for i := range of {
		if !of[i].selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		if _, ok := of[i].going[p.Name]; ok {
			continue
		}
		if allowed[i]--; allowed[i] < 0 {
			return true
		}
	}
	return false
}
