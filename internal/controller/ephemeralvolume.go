package controller

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"

	"skiff/internal/client"
	"skiff/internal/control"
)

// ephemeralVolumes makes the claims of pods' generic ephemeral volumes; they go with
// their pods. Keys are pods.
type ephemeralVolumes struct {
	*control.Controller
	pods   *client.Informer[*corev1.Pod]
	claims *client.Informer[*corev1.PersistentVolumeClaim]
}

func newEphemeralVolume(d Deps) *control.Controller {
	c := control.New("ephemeral-volume-controller", d.Deps)
	c.ReportAs("ephemeral_volume")
	e := &ephemeralVolumes{Controller: c}
	enqueue := func(p *corev1.Pod) {
		if p.DeletionTimestamp == nil && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Ephemeral != nil }) {
			c.Queue.Add(control.KeyOf(p))
		}
	}
	e.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if !ch.Deleted() && (ch.Old == nil || ch.Old.UID != ch.New.UID) {
			enqueue(ch.New)
		}
	})
	indexPodClaims(e.pods)
	e.claims = control.Watch(c, func(ch client.Change[*corev1.PersistentVolumeClaim]) {
		if ch.Deleted() {
			for _, p := range e.pods.ByIndex(byClaim, claimKey(ch.Old)) {
				enqueue(p)
			}
		}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"persistentvolumeclaims"}, "create"),
		control.Rule("", []string{"pods/finalizers"}, "update"),
	)
	c.Reconcile = e.reconcile
	return c
}

func (e *ephemeralVolumes) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	p, ok := e.pods.Get(k.Namespace, k.Name)
	if !ok || p.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Ephemeral == nil {
			continue
		}
		if err := e.ensure(ctx, k, p, v); err != nil {
			e.Events.Event(p, corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", v.Name, err)
			return control.Result{}, fmt.Errorf("pod %s, ephemeral volume %s: %w", k, v.Name, err)
		}
	}
	return control.Result{}, nil
}

func (e *ephemeralVolumes) ensure(ctx context.Context, k control.Key, p *corev1.Pod, v *corev1.Volume) error {
	want := ephemeralClaim(p, v)
	if c, ok := e.claims.Get(p.Namespace, want.Name); ok {
		return ephemeral.VolumeIsForPod(p, c)
	}
	got, err := client.For[*corev1.PersistentVolumeClaim](e.Client).In(p.Namespace).Create(ctx, want)
	switch {
	case err == nil:
		control.Wrote(e.Pending, k, e.claims, got)
		return nil
	case namespaceGone(err):
		return nil
	}
	return fmt.Errorf("create PVC %s: %w", want.Name, err)
}

// ephemeralClaim is the claim of an ephemeral volume of a pod, which owns it.
func ephemeralClaim(p *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolumeClaim {
	t := v.Ephemeral.VolumeClaimTemplate.DeepCopy()
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: ephemeral.VolumeClaimName(p, v), Annotations: t.Annotations, Labels: t.Labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, corev1.SchemeGroupVersion.WithKind("Pod"))},
		},
		Spec: t.Spec,
	}
}
