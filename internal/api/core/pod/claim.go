package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// DefaultClaimSpec fills in what the spec of a claim leaves out.
func DefaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	unset(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	WholeMillis(s.Resources.Limits, s.Resources.Requests)
}

// ValidateClaimSpec validates the spec of a new claim.
func ValidateClaimSpec(p *field.Path, s *corev1.PersistentVolumeClaimSpec, f resource.Features) field.ErrorList {
	c := &check{Options: Options{features: f}}
	c.claimSpec(p, s)
	return c.errs
}

// ClaimWarnings are the warnings about the spec of a claim.
func ClaimWarnings(p *field.Path, s *corev1.PersistentVolumeClaimSpec) []string {
	w := &advice{}
	rp := p.Child("resources")
	w.fraction(rp.Child("requests"), s.Resources.Requests, corev1.ResourceStorage)
	w.fraction(rp.Child("limits"), s.Resources.Limits, corev1.ResourceStorage)
	return w.texts
}
