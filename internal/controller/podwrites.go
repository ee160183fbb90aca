package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// podWrites makes and deletes pods for an owner, and tells of it in events about
// the owner.
type podWrites struct {
	c     *control.Controller
	key   control.Key
	inf   *client.Informer[*corev1.Pod]
	owner client.Object
}

// create posts p. In a namespace that is going away nothing can be made any more:
// that is no error, and nil is returned for the pod.
func (w podWrites) create(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	got, err := client.For[*corev1.Pod](w.c.Client).In(w.owner.GetNamespace()).Create(ctx, p)
	if err != nil {
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil, nil
		}
		w.c.Events.Event(w.owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		return nil, err
	}
	control.Wrote(w.c.Pending, w.key, w.inf, got)
	w.c.Events.Event(w.owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", got.Name)
	return got, nil
}

// delete deletes the very pod p; one that is gone is no error.
func (w podWrites) delete(ctx context.Context, p *corev1.Pod) error {
	uid := p.UID
	err := client.For[*corev1.Pod](w.c.Client).In(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.c.Events.Event(w.owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("unable to delete pods: %w", err)
	}
	control.Removed(w.c.Pending, w.key, w.inf, p)
	w.c.Events.Event(w.owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", p.Name)
	return nil
}
