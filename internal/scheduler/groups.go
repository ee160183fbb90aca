package scheduler

import (
	"sync/atomic"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// groups finds what pods without constraints of their own are spread among: the
// selectors of the services that select them and of the owner that made them.
type groups struct {
	services    *client.Informer[*corev1.Service]
	sets        *client.Informer[*appsv1.ReplicaSet]
	stateful    *client.Informer[*appsv1.StatefulSet]
	controllers *client.Informer[*corev1.ReplicationController]
	classes     *framework.Classes
	// version grows with every change of a service; known holds for one version.
	version atomic.Uint64
	at      uint64
	known   map[groupKey]*framework.Group
}

// groupKey is what decides a pod's group: an owner's selector never changes.
type groupKey struct {
	kin   *framework.Kin
	owner types.UID
}

// maxGroups bounds the answers remembered.
const maxGroups = 10_000

func newGroups(i *client.Informers, classes *framework.Classes) *groups {
	return &groups{
		services: client.InformerFor[*corev1.Service](i), sets: client.InformerFor[*appsv1.ReplicaSet](i),
		stateful: client.InformerFor[*appsv1.StatefulSet](i), controllers: client.InformerFor[*corev1.ReplicationController](i),
		classes: classes, known: map[groupKey]*framework.Group{},
	}
}

// watch follows the services, and returns what must have synced before of is asked.
func (g *groups) watch() []<-chan struct{} {
	g.services.OnChange(func(client.Change[*corev1.Service]) { g.version.Add(1) })
	return []<-chan struct{}{g.services.Synced(), g.sets.Synced(), g.stateful.Synced(), g.controllers.Synced()}
}

func (g *groups) of(p *framework.Pod) *framework.Group {
	if len(p.Class.Spreads) > 0 {
		return nil
	}
	if v := g.version.Load(); v != g.at || len(g.known) >= maxGroups {
		g.at = v
		clear(g.known)
	}
	owner := metav1.GetControllerOfNoCopy(p.Pod)
	key := groupKey{kin: p.Kin}
	if owner != nil {
		key.owner = owner.UID
	}
	if known, ok := g.known[key]; ok {
		return known
	}
	selector, ok := g.selector(p, owner)
	out := g.classes.Group(selector)
	if ok {
		g.known[key] = out
	}
	return out
}

// selector is that of a pod's services and owner; not ok where the owner was not
// seen yet: then it is asked for again with the next pod.
func (g *groups) selector(p *framework.Pod, owner *metav1.OwnerReference) (labels.Selector, bool) {
	set := labels.Set{}
	for _, s := range g.services.List(p.Namespace, nil) {
		if len(s.Spec.Selector) > 0 && labels.Set(s.Spec.Selector).AsSelectorPreValidated().Matches(labels.Set(p.Labels)) {
			set = labels.Merge(set, s.Spec.Selector)
		}
	}
	selector := set.AsSelectorPreValidated()
	if owner == nil {
		return selector, true
	}
	var own *metav1.LabelSelector
	switch owner.APIVersion + " " + owner.Kind {
	case "apps/v1 ReplicaSet":
		rs, ok := g.sets.Get(p.Namespace, owner.Name)
		if !ok {
			return selector, false
		}
		own = rs.Spec.Selector
	case "apps/v1 StatefulSet":
		ss, ok := g.stateful.Get(p.Namespace, owner.Name)
		if !ok {
			return selector, false
		}
		own = ss.Spec.Selector
	case "v1 ReplicationController":
		rc, ok := g.controllers.Get(p.Namespace, owner.Name)
		if !ok {
			return selector, false
		}
		return labels.Merge(set, rc.Spec.Selector).AsSelectorPreValidated(), true
	default:
		return selector, true
	}
	if more, err := metav1.LabelSelectorAsSelector(own); err == nil {
		requirements, _ := more.Requirements()
		selector = selector.Add(requirements...)
	}
	return selector, true
}
