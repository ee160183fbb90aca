package admission

import (
	"context"
	"slices"

	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"

	"skiff/internal/apiserver"
)

// PodGroupProtection keeps pod groups from going while pods belong to them: a
// controller takes the finalizer off.
type PodGroupProtection struct{ noValidation }

const podGroupFinalizer = "scheduling.k8s.io/podgroup-protection"

// Name implements apiserver.Admission.
func (PodGroupProtection) Name() string { return "PodGroupProtection" }

// Admit implements apiserver.Admission.
func (PodGroupProtection) Admit(_ context.Context, a *apiserver.Attributes) error {
	g, ok := a.Object.(*schedulingv1beta1.PodGroup)
	if !ok || a.Operation != apiserver.OpCreate || a.Subresource != "" || slices.Contains(g.Finalizers, podGroupFinalizer) {
		return nil
	}
	g.Finalizers = append(slices.Clone(g.Finalizers), podGroupFinalizer)
	return nil
}
