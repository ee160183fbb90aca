package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func same(t *testing.T, errs field.ErrorList, want ...string) {
	t.Helper()
	var got []string
	for _, e := range errs {
		got = append(got, e.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestPodDisruptionBudget(t *testing.T) {
	env := resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
	r := PodDisruptionBudget()
	budget := func(s policyv1.PodDisruptionBudgetSpec) *policyv1.PodDisruptionBudget {
		return &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "default", Generation: 3}, Spec: s}
	}
	same(t, r.ValidateCreate(env, budget(policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromString("50%"))})))
	same(t, r.ValidateCreate(env, budget(policyv1.PodDisruptionBudgetSpec{
		MinAvailable: new(intstr.FromString("101%")), MaxUnavailable: new(intstr.FromInt32(-1)),
		UnhealthyPodEvictionPolicy: new(policyv1.UnhealthyPodEvictionPolicyType("Never")),
	})),
		`spec: Invalid value: {"MinAvailable":"101%","Selector":null,"MaxUnavailable":-1,"UnhealthyPodEvictionPolicy":"Never"}: minAvailable and maxUnavailable cannot be both set`,
		`spec.minAvailable: Invalid value: "101%": must not be greater than 100%`,
		`spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0`,
		`spec.unhealthyPodEvictionPolicy: Unsupported value: "Never": supported values: "AlwaysAllow", "IfHealthyBudget"`)

	// The label of an old empty selector stands alone, or not at all.
	old := metav1.LabelSelectorRequirement{Key: emptyMatch, Operator: metav1.LabelSelectorOpExists}
	alone := budget(policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{old}}})
	mixed := budget(policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}, MatchExpressions: []metav1.LabelSelectorRequirement{old}}})
	was := mixed.DeepCopy()
	r.PrepareCreate(env, alone)
	r.PrepareCreate(env, mixed)
	if len(alone.Spec.Selector.MatchExpressions) != 1 || len(mixed.Spec.Selector.MatchExpressions) != 0 || mixed.Generation != 1 {
		t.Errorf("selectors %v, %v", alone.Spec.Selector, mixed.Spec.Selector)
	}
	kept := was.DeepCopy()
	r.PrepareUpdate(env, kept, was)
	if len(kept.Spec.Selector.MatchExpressions) != 1 || kept.Generation != 3 {
		t.Errorf("an update that leaves the selector made it %v", kept.Spec.Selector)
	}
	st := r.Subresource("status").Status
	b := was.DeepCopy()
	b.Status = policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: -1, ExpectedPods: -1}
	same(t, st.ValidateUpdate(env, b, was),
		`status.disruptionsAllowed: Invalid value: -1: must be greater than or equal to 0`, `status.expectedPods: Invalid value: -1: must be greater than or equal to 0`)
	if r.UnconditionalUpdate {
		t.Error("an update needs no version")
	}
}
