// Package policy declares the resources of the policy group.
package policy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// PodDisruptionBudget declares policy/v1 poddisruptionbudgets.
func PodDisruptionBudget() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: policyv1.SchemeGroupVersion, Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", Singular: "poddisruptionbudget",
		ShortNames: []string{"pdb"}, Namespaced: true, Prefix: "/registry/poddisruptionbudgets/",
		New:     func() resource.Object { return &policyv1.PodDisruptionBudget{} },
		NewList: func() runtime.Object { return &policyv1.PodDisruptionBudgetList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Min Available", "string", "The minimum number of pods that must be available.", 0),
			resource.Column("Max Unavailable", "string", "The maximum number of pods that may be unavailable.", 0),
			resource.Column("Allowed Disruptions", "integer", "Calculated number of pods that may be disrupted at this time.", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{
			resource.StatusOf(resource.StrategyOf[*policyv1.PodDisruptionBudget]{
				ResetFields:   []string{"spec"},
				PrepareUpdate: func(_ resource.Env, b, old *policyv1.PodDisruptionBudget) { b.Spec = old.Spec },
				ValidateUpdate: func(_ resource.Env, b, _ *policyv1.PodDisruptionBudget) field.ErrorList {
					return validateStatus(&b.Status)
				},
			}),
		},
	}, resource.StrategyOf[*policyv1.PodDisruptionBudget]{
		ResetFields: []string{"status"},
		PrepareCreate: func(_ resource.Env, b *policyv1.PodDisruptionBudget) {
			b.Status = policyv1.PodDisruptionBudgetStatus{}
			b.Generation = 1
			dropEmptyMatch(b.Spec.Selector)
		},
		PrepareUpdate: func(_ resource.Env, b, old *policyv1.PodDisruptionBudget) {
			b.Status = old.Status
			b.Generation = old.Generation
			if !equal(b.Spec, old.Spec) {
				b.Generation++
			}
			if !equal(b.Spec.Selector, old.Spec.Selector) {
				dropEmptyMatch(b.Spec.Selector)
			}
		},
		ValidateCreate: func(_ resource.Env, b *policyv1.PodDisruptionBudget) field.ErrorList {
			return validateSpec(&b.Spec, false)
		},
		ValidateUpdate: func(_ resource.Env, b, old *policyv1.PodDisruptionBudget) field.ErrorList {
			return validateSpec(&b.Spec, len(metavalidation.ValidateLabelSelector(old.Spec.Selector, metavalidation.LabelSelectorValidationOptions{}, nil)) > 0)
		},
		Row: func(b *policyv1.PodDisruptionBudget, now time.Time) []any {
			return []any{b.Name, shown(b.Spec.MinAvailable), shown(b.Spec.MaxUnavailable), int64(b.Status.DisruptionsAllowed), resource.Age(b.CreationTimestamp, now)}
		},
	})
}

// equal is upstream's semantic equality: nil and empty are the same.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func shown(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}

// emptyMatch is a label that only an old version's empty selector asks for. It
// stands alone.
const emptyMatch = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match"

func dropEmptyMatch(s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	alone := func(op metav1.LabelSelectorOperator) bool {
		return equal(s, &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: emptyMatch, Operator: op}}})
	}
	if alone(metav1.LabelSelectorOpExists) || alone(metav1.LabelSelectorOpDoesNotExist) {
		return
	}
	s.MatchExpressions = slices.DeleteFunc(s.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return r.Key == emptyMatch })
}

// validateSpec: with lax, values of the selector may be bad.
func validateSpec(s *policyv1.PodDisruptionBudgetSpec, lax bool) field.ErrorList {
	var errs field.ErrorList
	if s.MinAvailable != nil && s.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(specPath, resource.Shown(*s), "minAvailable and maxUnavailable cannot be both set"))
	}
	errs = append(errs, validateAmount(specPath.Child("minAvailable"), s.MinAvailable)...)
	errs = append(errs, validateAmount(specPath.Child("maxUnavailable"), s.MaxUnavailable)...)
	errs = append(errs, metavalidation.ValidateLabelSelector(s.Selector,
		metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: lax}, specPath.Child("selector"))...)
	if p := s.UnhealthyPodEvictionPolicy; p != nil && *p != policyv1.IfHealthyBudget && *p != policyv1.AlwaysAllow {
		errs = append(errs, field.NotSupported(specPath.Child("unhealthyPodEvictionPolicy"), *p, []policyv1.UnhealthyPodEvictionPolicyType{policyv1.AlwaysAllow, policyv1.IfHealthyBudget}))
	}
	return errs
}

// validateAmount checks a number or a share of pods.
func validateAmount(p *field.Path, v *intstr.IntOrString) field.ErrorList {
	if v == nil {
		return nil
	}
	if v.Type == intstr.Int {
		return apivalidation.ValidateNonnegativeField(int64(v.IntValue()), p)
	}
	var errs field.ErrorList
	for _, msg := range validation.IsValidPercent(v.StrVal) {
		errs = append(errs, field.Invalid(p, *v, msg))
	}
	if n, _ := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%")); len(errs) == 0 && n > 100 {
		errs = append(errs, field.Invalid(p, *v, "must not be greater than 100%"))
	}
	return errs
}

func validateStatus(s *policyv1.PodDisruptionBudgetStatus) field.ErrorList {
	errs := metavalidation.ValidateConditions(s.Conditions, statusPath.Child("conditions"))
	return append(errs, resource.NotNegative(statusPath, resource.N("disruptionsAllowed", s.DisruptionsAllowed), resource.N("currentHealthy", s.CurrentHealthy),
		resource.N("desiredHealthy", s.DesiredHealthy), resource.N("expectedPods", s.ExpectedPods))...)
}
