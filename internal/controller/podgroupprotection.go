package controller

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	podGroupProtection = "scheduling.k8s.io/podgroup-protection"
	byPodGroup         = "pod group of active pods"
)

// podGroupKey is the group that a pod belongs to.
func podGroupKey(p *corev1.Pod) (control.Key, bool) {
	if g := p.Spec.SchedulingGroup; g != nil && g.PodGroupName != nil {
		return control.Key{Namespace: p.Namespace, Name: *g.PodGroupName}, true
	}
	return control.Key{}, false
}

// newPodGroupProtection lets a deleted pod group go when none of its pods is left
// that has not ended. Admission gave it the finalizer; one that a user took off is
// not put on again.
func newPodGroupProtection(d Deps) *control.Controller {
	c := control.New("podgroup-protection-controller", d.Deps)
	groups := control.Watch(c, func(ch client.Change[*schedulingv1beta1.PodGroup]) {
		if !ch.Deleted() && ch.New.DeletionTimestamp != nil {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	pods := control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		replaced := ch.Old != nil && ch.New != nil && ch.Old.UID != ch.New.UID
		if ch.Deleted() || replaced {
			if k, ok := podGroupKey(ch.Old); ok {
				c.Queue.Add(k)
			}
		}
		if !ch.Deleted() && podTerminal(ch.New) {
			if k, ok := podGroupKey(ch.New); ok {
				c.Queue.Add(k)
			}
		}
	})
	pods.AddIndex(byPodGroup, func(p *corev1.Pod) []string {
		if k, ok := podGroupKey(p); ok && !podTerminal(p) {
			return []string{k.Namespace + "/" + k.Name}
		}
		return nil
	})
	c.Writes = append(c.Writes, control.Rule(schedulingv1beta1.GroupName, []string{"podgroups"}, "update"))
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		g, ok := groups.Get(k.Namespace, k.Name)
		if !ok || g.DeletionTimestamp == nil {
			return control.Result{}, nil
		}
		used := len(pods.ByIndex(byPodGroup, k.Namespace+"/"+k.Name)) > 0
		return control.Result{}, protect(ctx, c, groups, g, podGroupProtection, used)
	}
	return c
}
