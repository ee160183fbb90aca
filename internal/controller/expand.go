package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// newExpand says of claims that want to grow who has to make their volumes larger:
// drivers do, and skiff's own provisioner.
func newExpand(d Deps) *control.Controller {
	c := control.New("expand-controller", d.Deps)
	c.ReportAs("volume_expand")
	claims := control.Watch(c, func(ch client.Change[*corev1.PersistentVolumeClaim]) {
		if !ch.Deleted() && ch.Old != nil && wantsMore(ch.Old, ch.New) {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	volumes := control.Watch[*corev1.PersistentVolume](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"persistentvolumes"}, "update", "patch"),
		control.Rule("", []string{"persistentvolumeclaims/status"}, "update", "patch"),
	)
	c.Reconcile = func(_ context.Context, k control.Key) (control.Result, error) {
		p, ok := claims.Get(k.Namespace, k.Name)
		if !ok {
			return control.Result{}, nil
		}
		v, ok := volumes.Get("", p.Spec.VolumeName)
		if !ok {
			return control.Result{}, fmt.Errorf("failed to get PV %q: not found", p.Spec.VolumeName)
		}
		say, err := planExpansion(p, v)
		if say.reason != "" {
			c.Events.Event(p, say.kind, say.reason, "%s", say.message)
		}
		return control.Result{}, err
	}
	return c
}

// wantsMore tells that a bound claim asks for more than before.
func wantsMore(old, now *corev1.PersistentVolumeClaim) bool {
	return now.Status.Phase == corev1.ClaimBound && now.Spec.Resources.Requests.Storage().Cmp(*old.Spec.Resources.Requests.Storage()) > 0
}

// planExpansion says who is to expand the volume of a claim.
func planExpansion(p *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) (word, error) {
	if r := v.Spec.ClaimRef; r == nil || r.Namespace != p.Namespace || r.UID != p.UID {
		return word{}, fmt.Errorf("persistent Volume is not bound to PVC being updated : %s", claimKey(p))
	}
	if p.Spec.Resources.Requests.Storage().Cmp(*p.Status.Capacity.Storage()) <= 0 {
		return word{}, nil
	}
	kind := corev1.EventTypeWarning
	if v.Spec.CSI != nil || v.Annotations[storage.ProvisionedBy] == LocalProvisioner {
		kind = corev1.EventTypeNormal
	}
	return word{kind, "ExternalExpanding", "waiting for an external controller to expand this PVC"}, nil
}
