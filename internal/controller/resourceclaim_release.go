package controller

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"skiff/internal/client"
	"skiff/internal/control"
)

// claimRelease takes resource claims back from pods that need them no more: the
// reservation goes, with the last one the allocation and the finalizer, and a claim
// that was made for the pod is deleted. Keys are claims.
type claimRelease struct {
	*control.Controller
	pods   *client.Informer[*corev1.Pod]
	claims *client.Informer[*resourcev1.ResourceClaim]
}

func newResourceClaimRelease(d Deps) *control.Controller {
	c := control.New("resource-claim-controller", d.Deps)
	r := &claimRelease{Controller: c}
	r.claims = control.Watch(c, control.Enqueue[*resourcev1.ResourceClaim](c))
	r.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		p := ch.Object()
		if len(p.Spec.ResourceClaims) == 0 && p.Status.ExtendedResourceClaimStatus == nil {
			return
		}
		if o := ch.Old; o != nil && !ch.Deleted() && o.UID != p.UID {
			p = o
		} else if !ch.Deleted() && !doneWithClaims(p) {
			return
		}
		for name := range resourceclaim.PodClaims(p) {
			c.Queue.Add(control.Key{Namespace: p.Namespace, Name: name})
		}
	})
	c.Writes = append(c.Writes, control.Rule(resourcev1.GroupName, []string{"resourceclaims"}, "create", "delete"),
		control.Rule(resourcev1.GroupName, []string{"resourceclaims", "resourceclaims/status", "resourceclaims/binding"}, "update", "patch"))
	c.Reconcile = r.reconcile
	return c
}

// doneWithClaims tells that a pod runs no more, or never will.
func doneWithClaims(p *corev1.Pod) bool {
	return podTerminal(p) || p.DeletionTimestamp != nil && p.Spec.NodeName == ""
}

func (r *claimRelease) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	c, ok := r.claims.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	var kept []resourcev1.ResourceClaimConsumerReference
	for _, ref := range c.Status.ReservedFor {
		needs, err := r.needed(ctx, k.Namespace, ref)
		if err != nil {
			return control.Result{}, err
		}
		if needs {
			kept = append(kept, ref)
		}
	}
	held := slices.Contains(c.Finalizers, resourcev1.Finalizer)
	claims := client.For[*resourcev1.ResourceClaim](r.Client)
	next := c.DeepCopy()
	switch {
	case len(kept) < len(c.Status.ReservedFor):
		next.Status.ReservedFor = kept
		if len(kept) == 0 && held {
			next.Status.Allocation = nil
		}
	case held && c.DeletionTimestamp != nil && len(kept) == 0:
		next.Status.Allocation = nil
	}
	freed := held && next.Status.Allocation == nil && (len(kept) < len(c.Status.ReservedFor) || c.DeletionTimestamp != nil && len(kept) == 0)
	if len(kept) < len(c.Status.ReservedFor) || freed && c.Status.Allocation != nil {
		got, err := claims.UpdateStatus(ctx, next)
		if err != nil {
			return control.Result{}, ignoreGone(err)
		}
		control.Wrote(r.Pending, k, r.claims, got)
		next = got.DeepCopy()
	}
	if freed {
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == resourcev1.Finalizer })
		got, err := claims.Update(ctx, next)
		if err != nil {
			return control.Result{}, ignoreGone(err)
		}
		control.Wrote(r.Pending, k, r.claims, got)
	}
	if len(kept) > 0 || c.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	return control.Result{}, r.deleteUnused(ctx, c)
}

// needed tells whether who holds a reservation may still use the claim. A pod that
// the informer does not know is asked for: its claim may be known before it is.
func (r *claimRelease) needed(ctx context.Context, namespace string, ref resourcev1.ResourceClaimConsumerReference) (bool, error) {
	if ref.APIGroup != "" || ref.Resource != "pods" {
		return true, nil // who reserves for others cleans up for them
	}
	p, ok := r.pods.Get(namespace, ref.Name)
	if !ok {
		var err error
		if p, err = client.For[*corev1.Pod](r.Client).In(namespace).Get(ctx, ref.Name); err != nil {
			return false, ignoreGone(err)
		}
	}
	return p.UID == ref.UID && !doneWithClaims(p), nil
}

// deleteUnused deletes a claim that was made for a pod that is done; with the pod
// itself it would go by garbage collection.
func (r *claimRelease) deleteUnused(ctx context.Context, c *resourcev1.ResourceClaim) error {
	name, uid := owningPod(c)
	if name == "" {
		return nil
	}
	p, ok := r.pods.Get(c.Namespace, name)
	if !ok || p.UID == uid && !doneWithClaims(p) {
		return nil
	}
	claim := c.UID
	err := client.For[*resourcev1.ResourceClaim](r.Client).In(c.Namespace).Delete(ctx, c.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &claim}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete unused generated claim %s/%s: %w", c.Namespace, c.Name, err)
	}
	return nil
}
