package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// annPreResize on a volume is its size before an expansion that is under way.
const annPreResize = "volume.alpha.kubernetes.io/pre-resize-capacity"

// bind writes what is missing of a binding.
func (b *pvBinder) bind(ctx context.Context, k control.Key, v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) error {
	if next := boundVolume(v, c); next != nil {
		var err error
		if v, err = b.updateVolume(ctx, k, next); err != nil {
			return fmt.Errorf("bind volume %s to claim %s: %w", next.Name, claimKey(c), err)
		}
	}
	v, err := b.setVolumePhase(ctx, k, v, corev1.VolumeBound, "")
	if err != nil {
		return fmt.Errorf("phase of volume %s: %w", v.Name, err)
	}
	if next := boundClaim(c, v); next != nil {
		if c, err = b.updateClaim(ctx, k, next); err != nil {
			return ignoreGone(err)
		}
	}
	_, err = b.setClaimStatus(ctx, k, c, corev1.ClaimBound, v)
	return ignoreGone(err)
}

// boundVolume is v with its reference to c, nil where it has that.
func boundVolume(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	r := v.Spec.ClaimRef
	if r != nil && r.Name == c.Name && r.Namespace == c.Namespace && r.UID == c.UID {
		return nil
	}
	next := v.DeepCopy()
	if !storage.IsFor(v, c) {
		annotateObject(next, storage.BoundByController, "yes")
	}
	next.Spec.ClaimRef = storage.Reference(c)
	return next
}

// boundClaim is c with its reference to v, nil where it has that.
func boundClaim(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	_, done := c.Annotations[storage.BindCompleted]
	if done && c.Spec.VolumeName == v.Name {
		return nil
	}
	next := c.DeepCopy()
	if c.Spec.VolumeName != v.Name {
		next.Spec.VolumeName = v.Name
		annotateObject(next, storage.BoundByController, "yes")
	}
	annotateObject(next, storage.BindCompleted, "yes")
	return next
}

// claimStatus is c's status in a phase, with what it has of v, where that is bound.
func claimStatus(c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) (corev1.PersistentVolumeClaimStatus, error) {
	st := *c.Status.DeepCopy()
	st.Phase = phase
	if v == nil {
		st.AccessModes, st.Capacity, st.CurrentVolumeAttributesClassName = nil, nil, nil
		return st, nil
	}
	st.AccessModes = v.Spec.AccessModes
	if c.Status.Phase != phase {
		size, ok := v.Spec.Capacity[corev1.ResourceStorage]
		if !ok {
			return st, fmt.Errorf("PersistentVolume %q is without a storage capacity", v.Name)
		}
		if before, ok := v.Annotations[annPreResize]; ok {
			if q, err := resource.ParseQuantity(before); err == nil {
				size = q
			}
			st.Capacity = st.Capacity.DeepCopy()
			if st.Capacity == nil {
				st.Capacity = corev1.ResourceList{}
			}
			st.Capacity[corev1.ResourceStorage] = size
		} else if have, ok := st.Capacity[corev1.ResourceStorage]; !ok || have.Cmp(size) != 0 {
			st.Capacity = v.Spec.Capacity
		}
	}
	if c.Status.Phase == corev1.ClaimPending && phase == corev1.ClaimBound {
		st.CurrentVolumeAttributesClassName = v.Spec.VolumeAttributesClassName
	}
	return st, nil
}

func (b *pvBinder) setClaimStatus(ctx context.Context, k control.Key, c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	st, err := claimStatus(c, phase, v)
	if err != nil || equality.Semantic.DeepEqual(st, c.Status) {
		return c, err
	}
	next := c.DeepCopy()
	next.Status = st
	got, err := client.For[*corev1.PersistentVolumeClaim](b.Client).UpdateStatus(ctx, next)
	if err != nil {
		return c, err
	}
	control.Wrote(b.Pending, k, b.claims, got)
	return got, nil
}

func (b *pvBinder) updateClaim(ctx context.Context, k control.Key, next *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	got, err := client.For[*corev1.PersistentVolumeClaim](b.Client).Update(ctx, next)
	if err != nil {
		return next, err
	}
	control.Wrote(b.Pending, k, b.claims, got)
	return got, nil
}

func (b *pvBinder) updateVolume(ctx context.Context, k control.Key, next *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	got, err := client.For[*corev1.PersistentVolume](b.Client).Update(ctx, next)
	if err != nil {
		return next, err
	}
	control.Wrote(b.Pending, k, b.volumes, got)
	return got, nil
}

func (b *pvBinder) setVolumePhase(ctx context.Context, k control.Key, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) (*corev1.PersistentVolume, error) {
	if v.Status.Phase == phase {
		return v, nil
	}
	next := v.DeepCopy()
	next.Status.Phase, next.Status.Message = phase, message
	got, err := client.For[*corev1.PersistentVolume](b.Client).UpdateStatus(ctx, next)
	if err != nil {
		return v, err
	}
	control.Wrote(b.Pending, k, b.volumes, got)
	return got, nil
}

// unbound is a volume without the reference to its claim, or, where somebody else
// reserved it, still reserved.
func unbound(v *corev1.PersistentVolume) *corev1.PersistentVolume {
	next := v.DeepCopy()
	if _, ours := v.Annotations[storage.BoundByController]; ours {
		next.Spec.ClaimRef = nil
		delete(next.Annotations, storage.BoundByController)
	} else {
		next.Spec.ClaimRef.UID = ""
	}
	return next
}
