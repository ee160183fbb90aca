package controller

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// volumeStep is what is to be done about a volume.
type volumeStep int

const (
	rest         volumeStep = iota
	available               // its phase says so
	inUse                   // its phase is Bound
	tellMismatch            // reserved for a claim of the other volume mode
	wakeClaim               // its claim is to be bound to it
	reclaim                 // its claim is gone: Released, then what the policy wants
	unbind                  // its claim took another volume
)

// stepVolume decides about a volume, given the claim of its reference: nil where
// that is gone.
func stepVolume(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) volumeStep {
	switch {
	case v.Spec.ClaimRef == nil, v.Spec.ClaimRef.UID == "":
		return available
	case c == nil || c.UID != v.Spec.ClaimRef.UID:
		return reclaim
	case c.Spec.VolumeName == "":
		if !storage.SameMode(c, v) {
			return tellMismatch
		}
		return wakeClaim
	case c.Spec.VolumeName == v.Name:
		return inUse
	}
	if _, made := v.Annotations[storage.ProvisionedBy]; made && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return reclaim
	}
	return unbind
}

func (b *pvBinder) reconcileVolume(ctx context.Context, k control.Key) error {
	v, ok := b.volumes.Get("", k.Name)
	if !ok {
		return nil
	}
	c, err := b.claimOf(ctx, v)
	if err != nil {
		return err
	}
	switch stepVolume(v, c) {
	case available:
		_, err = b.setVolumePhase(ctx, k, v, corev1.VolumeAvailable, "")
	case inUse:
		_, err = b.setVolumePhase(ctx, k, v, corev1.VolumeBound, "")
	case tellMismatch:
		b.Events.Event(v, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", c.Name)
		b.Events.Event(c, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume %q to requested PersistentVolumeClaim due to incompatible volumeMode.", v.Name)
	case wakeClaim:
		b.Queue.Add(control.KeyOf(c))
	case reclaim:
		if v.Status.Phase != corev1.VolumeReleased && v.Status.Phase != corev1.VolumeFailed {
			if v, err = b.setVolumePhase(ctx, k, v, corev1.VolumeReleased, ""); err != nil {
				return ignoreGone(err)
			}
		}
		err = b.reclaim(ctx, k, v)
	case unbind:
		if v, err = b.updateVolume(ctx, k, unbound(v)); err == nil {
			_, err = b.setVolumePhase(ctx, k, v, corev1.VolumeAvailable, "")
		}
	}
	return ignoreGone(err)
}

// claimOf is the claim that a volume refers to, nil where it is gone. A volume is
// not given up before the API itself said so: the informer may be behind.
func (b *pvBinder) claimOf(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	r := v.Spec.ClaimRef
	if r == nil || r.UID == "" {
		return nil, nil
	}
	c, ok := b.claims.Get(r.Namespace, r.Name)
	if ok && c.UID == r.UID {
		return c, nil
	}
	if !ok && (v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed) {
		return nil, nil
	}
	c, err := client.For[*corev1.PersistentVolumeClaim](b.Client).In(r.Namespace).Get(ctx, r.Name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return c, err
}

// reclaim does with a released volume what its policy wants.
func (b *pvBinder) reclaim(ctx context.Context, k control.Key, v *corev1.PersistentVolume) error {
	if v.Annotations[storage.MigratedTo] != "" {
		return nil
	}
	reason, message := cannotReclaim(v)
	if reason == "" || v.Status.Phase == corev1.VolumeFailed {
		return nil
	}
	got, err := b.setVolumePhase(ctx, k, v, corev1.VolumeFailed, message)
	if err != nil {
		return err
	}
	b.Events.Event(got, corev1.EventTypeWarning, reason, "%s", message)
	return nil
}

// cannotReclaim says why nobody does with a released volume what its policy wants;
// empty where nothing is to be done, or its provisioner does it. Nothing is deleted
// or recycled here: what is on a volume is known to the nodes and to drivers alone.
func cannotReclaim(v *corev1.PersistentVolume) (reason, message string) {
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimRetain:
		return "", ""
	case corev1.PersistentVolumeReclaimRecycle:
		return "VolumeFailedRecycle", "No recycler plugin found for the volume!"
	case corev1.PersistentVolumeReclaimDelete:
		if who := v.Annotations[storage.ProvisionedBy]; who != "" {
			if _, external := drivers[who]; external || !strings.HasPrefix(who, builtInPrefix) {
				return "", ""
			}
			return "VolumeFailedDelete", fmt.Sprintf("no volume plugin matched name: %s", who)
		}
		if v.Spec.CSI != nil {
			return "", ""
		}
		if h := v.Spec.HostPath; h != nil && !strings.HasPrefix(h.Path, "/tmp/") {
			return "VolumeFailedDelete", fmt.Sprintf("host_path deleter only supports /tmp/.+ but received provided %s", h.Path)
		}
		return "VolumeFailedDelete", fmt.Sprintf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.Name)
	}
	return "VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"
}
