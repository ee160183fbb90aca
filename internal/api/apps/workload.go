package apps

import (
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func number(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

func unset(n **int32, def int32) {
	if *n == nil {
		*n = &def
	}
}

func dropTerminating(f resource.Features, n **int32, old *int32) {
	if !f.Enabled("DeploymentReplicaSetTerminatingReplicas") && old == nil {
		*n = nil
	}
}

// validateSelected checks a selector and the template of the pods it selects,
// which run until they are deleted.
func validateSelected(s *metav1.LabelSelector, t *corev1.PodTemplateSpec, o pod.Options) field.ErrorList {
	var errs field.ErrorList
	sp, tp := specPath.Child("selector"), specPath.Child("template")
	if s == nil {
		errs = append(errs, field.Required(sp, ""))
	} else {
		errs = append(errs, metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, sp)...)
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(sp, s, "empty selector is invalid for deployment"))
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return append(errs, field.Invalid(sp, s, "invalid label selector"))
	}
	if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, pod.ValidateTemplate(t, tp, o)...)
	return append(errs, pod.ValidateEndless(tp, t, "ReplicaSet")...)
}
