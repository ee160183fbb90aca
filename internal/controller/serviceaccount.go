package controller

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// defaultServiceAccount is the account of pods that name none.
const defaultServiceAccount = "default"

// newServiceAccount returns the controller that gives every active namespace its
// default service account. Keys are namespaces.
func newServiceAccount(d Deps) *control.Controller {
	c := control.New("service-account-controller", d.Deps)
	namespaces := control.Watch(c, func(ch client.Change[*corev1.Namespace]) {
		if !ch.Deleted() {
			c.Queue.Add(control.Key{Name: ch.New.Name})
		}
	})
	accounts := control.Watch(c, func(ch client.Change[*corev1.ServiceAccount]) {
		if ch.Deleted() && ch.Old.Name == defaultServiceAccount {
			c.Queue.Add(control.Key{Name: ch.Old.Namespace})
		}
	})
	c.Writes = append(c.Writes, control.Rule("", []string{"serviceaccounts"}, "create"))
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		ns, ok := namespaces.Get("", k.Name)
		if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
			return control.Result{}, nil
		}
		if _, ok := accounts.Get(k.Name, defaultServiceAccount); ok {
			return control.Result{}, nil
		}
		made, err := client.For[*corev1.ServiceAccount](c.Client).Create(ctx, &corev1.ServiceAccount{
			ObjectMeta: metav1.ObjectMeta{Namespace: k.Name, Name: defaultServiceAccount},
		})
		switch {
		case err == nil:
			control.Wrote(c.Pending, k, accounts, made)
		case !apierrors.IsAlreadyExists(err) && !namespaceGone(err):
			return control.Result{}, err
		}
		return control.Result{}, nil
	}
	return c
}

// namespaceGone tells that something cannot be created because its namespace is
// gone or going.
func namespaceGone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}
