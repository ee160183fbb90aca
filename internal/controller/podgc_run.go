package controller

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/client"
	"skiff/internal/control"
)

// clientGrace is how long after its end a container of `skiff run --rm` is left for
// the client that waits for its exit code, and removes it then.
const clientGrace = 10 * time.Second

// runRemoval tells when a pod is to be removed because whoever ran it said --rm.
func runRemoval(p *corev1.Pod) (at time.Time, wanted bool) {
	if p.DeletionTimestamp != nil || !podTerminal(p) {
		return time.Time{}, false
	}
	switch p.Labels[runpod.LabelRemove] {
	case runpod.RemoveAtEnd:
		return time.Time{}, true
	case runpod.RemoveByClient:
		end := p.CreationTimestamp.Time // where nothing ran, nobody waits for a code
		for i := range p.Status.ContainerStatuses {
			if t := p.Status.ContainerStatuses[i].State.Terminated; t != nil && t.FinishedAt.After(end) {
				end = t.FinishedAt.Time
			}
		}
		return end.Add(clientGrace), true
	}
	return time.Time{}, false
}

// reconcile removes a pod of skiff run that has ended.
func (g *podGC) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	p, ok := g.pods.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	at, wanted := runRemoval(p)
	if !wanted {
		return control.Result{}, nil
	}
	if left := at.Sub(g.now()); left > 0 {
		return control.Result{After: left}, nil
	}
	err := client.For[*corev1.Pod](g.Client).In(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &p.UID},
	})
	return control.Result{}, ignoreGone(err)
}
