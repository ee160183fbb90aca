package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"skiff/internal/api/core"
	"skiff/internal/api/storage"
	"skiff/internal/apiserver"
)

// DefaultStorageClass gives claims that name no class the default one.
type DefaultStorageClass struct{ noValidation }

// Name implements apiserver.Admission.
func (DefaultStorageClass) Name() string { return "DefaultStorageClass" }

// Admit implements apiserver.Admission.
func (DefaultStorageClass) Admit(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate || a.Subresource != "" || resourceOf(a) != claimsResource {
		return nil
	}
	c, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	if _, old := c.Annotations[corev1.BetaStorageClassAnnotation]; old || c.Spec.StorageClassName != nil {
		return nil
	}
	classes, err := listed[*storagev1.StorageClass](ctx, a.Env.Client)
	if err != nil {
		return forbidden(a, err)
	}
	if d := storage.DefaultClass(classes); d != nil {
		name := d.Name
		c.Spec.StorageClassName = &name
	}
	return nil
}

// Finalizers that keep what is in use; a controller takes them off.
const (
	volumeProtection     = "kubernetes.io/pv-protection"
	claimProtection      = "kubernetes.io/pvc-protection"
	attributesProtection = "kubernetes.io/vac-protection"
)

// StorageObjectInUseProtection keeps volumes, claims, and classes of attributes from
// going while they are in use.
type StorageObjectInUseProtection struct{ noValidation }

// Name implements apiserver.Admission.
func (StorageObjectInUseProtection) Name() string { return "StorageObjectInUseProtection" }

// Admit implements apiserver.Admission.
func (StorageObjectInUseProtection) Admit(_ context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate || a.Subresource != "" {
		return nil
	}
	var finalizer string
	switch a.Object.(type) {
	case *corev1.PersistentVolume:
		finalizer = volumeProtection
	case *corev1.PersistentVolumeClaim:
		finalizer = claimProtection
	case *storagev1.VolumeAttributesClass:
		finalizer = attributesProtection
	default:
		return nil
	}
	if list := a.Object.GetFinalizers(); !slices.Contains(list, finalizer) {
		a.Object.SetFinalizers(append(slices.Clone(list), finalizer))
	}
	return nil
}

// PersistentVolumeClaimResize lets claims grow only where their class allows it.
type PersistentVolumeClaimResize struct{}

// Name implements apiserver.Admission.
func (PersistentVolumeClaimResize) Name() string { return "PersistentVolumeClaimResize" }

// Admit implements apiserver.Admission.
func (PersistentVolumeClaimResize) Admit(context.Context, *apiserver.Attributes) error { return nil }

// Validate implements apiserver.Admission.
func (PersistentVolumeClaimResize) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpUpdate || a.Subresource != "" || resourceOf(a) != claimsResource {
		return nil
	}
	c, ok := a.Object.(*corev1.PersistentVolumeClaim)
	old, wasOK := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !wasOK {
		return nil
	}
	size, was := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case size.Cmp(was) <= 0:
		return nil
	case old.Status.Phase != corev1.ClaimBound:
		return forbidden(a, errors.New("Only bound persistent volume claims can be expanded")) //nolint:staticcheck // clients see it so
	case !mayGrow(ctx, a, c, old):
		return forbidden(a, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
	}
	return nil
}

func mayGrow(ctx context.Context, a *apiserver.Attributes, c, old *corev1.PersistentVolumeClaim) bool {
	name := core.ClaimClass(c)
	if name == "" || name != core.ClaimClass(old) {
		return false
	}
	sc, err := cached[*storagev1.StorageClass](ctx, a.Env.Client, "", name)
	return err == nil && sc.AllowVolumeExpansion != nil && *sc.AllowVolumeExpansion
}
