package scheduling

import (
	"strings"
	"testing"

	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func said(errs field.ErrorList) string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return strings.Join(out, "\n")
}

func testGroup(change func(*podGroup)) *podGroup {
	g := &podGroup{ObjectMeta: metav1.ObjectMeta{Name: "g", Namespace: "default", ResourceVersion: "1"}}
	g.Spec.SchedulingPolicy.Gang = &schedulingv1beta1.GangSchedulingPolicy{MinCount: 2}
	if change != nil {
		change(g)
	}
	return g
}

func TestPodGroupRules(t *testing.T) {
	env := resource.Env{Features: resource.DefaultFeatures()}
	strategy := PodGroup().Strategy
	for _, c := range []struct {
		name   string
		change func(*podGroup)
		create string
		update string
	}{
		{"nothing", func(*podGroup) {}, "", ""},
		{"more pods", func(g *podGroup) { g.Spec.SchedulingPolicy.Gang.MinCount = 5 }, "", ""},
		{"no pods", func(g *podGroup) { g.Spec.SchedulingPolicy.Gang.MinCount = -1 },
			"spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
			"spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1"},
		{"no policy", func(g *podGroup) { g.Spec.SchedulingPolicy.Gang = nil },
			"spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
			"spec.schedulingPolicy.gang: Invalid value: null: field cannot be cleared once set"},
		{"another template", func(g *podGroup) {
			g.Spec.WorkloadRef = &schedulingv1beta1.WorkloadReference{WorkloadName: "w", TemplateName: "t"}
		}, "", "spec.workloadRef: Invalid value"},
	} {
		old, g := testGroup(nil), testGroup(c.change)
		strategy.Default(old)
		strategy.Default(g)
		for _, got := range []struct{ what, got, want string }{
			{"create", said(strategy.ValidateCreate(env, g)), c.create},
			{"update", said(strategy.ValidateUpdate(env, g, old)), c.update},
		} {
			if (got.got == "") != (got.want == "") || !strings.Contains(got.got, got.want) {
				t.Errorf("%s, %s: %q, want %q", c.name, got.what, got.got, got.want)
			}
		}
	}
	g := testGroup(func(g *podGroup) {
		g.Spec.SchedulingConstraints = &schedulingv1beta1.PodGroupSchedulingConstraints{}
		never := schedulingv1beta1.PreemptNever
		g.Spec.PreemptionPolicy = &never
		g.Status.Conditions = []metav1.Condition{{Type: "x"}}
	})
	strategy.Default(g)
	strategy.PrepareCreate(env, g)
	if g.Spec.SchedulingConstraints != nil || g.Spec.PreemptionPolicy != nil || g.Status.Conditions != nil || g.Spec.DisruptionMode.Single == nil {
		t.Errorf("prepared: %+v", g)
	}
}

func TestPodGroupStatusShown(t *testing.T) {
	for want, conditions := range map[string][]metav1.Condition{
		"Pending":               nil,
		"Unschedulable":         {{Type: "PodGroupInitiallyScheduled", Status: "False"}},
		"Scheduled":             {{Type: "PodGroupInitiallyScheduled", Status: "True"}},
		"PreemptionByScheduler": {{Type: "DisruptionTarget", Status: "True", Reason: "PreemptionByScheduler"}, {Type: "PodGroupInitiallyScheduled", Status: "True"}},
	} {
		if got := statusOf(&podGroup{Status: schedulingv1beta1.PodGroupStatus{Conditions: conditions}}); got != want {
			t.Errorf("%v is shown as %s, want %s", conditions, got, want)
		}
	}
}

func TestWorkloadRules(t *testing.T) {
	env := resource.Env{Features: resource.DefaultFeatures()}
	strategy := Workload().Strategy
	make := func(names ...string) *workload {
		w := &workload{ObjectMeta: metav1.ObjectMeta{Name: "w", Namespace: "default", ResourceVersion: "1"}}
		for _, n := range names {
			w.Spec.PodGroupTemplates = append(w.Spec.PodGroupTemplates, schedulingv1beta1.PodGroupTemplate{
				Name: n, SchedulingPolicy: schedulingv1beta1.PodGroupSchedulingPolicy{Basic: &schedulingv1beta1.BasicSchedulingPolicy{}},
			})
		}
		return w
	}
	w := make("a", "b")
	if got := said(strategy.ValidateCreate(env, w)); got != "" {
		t.Errorf("valid: %s", got)
	}
	w.Spec.PodGroupTemplates[1].PriorityClassName = "high"
	if got := said(strategy.ValidateCreate(env, w)); got != "spec: Invalid value: null: detected multiple priority configurations" {
		t.Errorf("two priorities: %s", got)
	}
	if got := said(strategy.ValidateUpdate(env, make("a"), make("a", "b"))); !strings.Contains(got, "spec.podGroupTemplates: Forbidden: item may not be removed") {
		t.Errorf("a template goes: %s", got)
	}
}
