package scheduling

import (
	"time"

	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling/rules"
)

type workload = schedulingv1beta1.Workload

// Workload declares workloads: the templates of the pod groups that a controller
// makes (KEP 4671).
func Workload() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: schedulingv1beta1.SchemeGroupVersion, Kind: "Workload", Plural: "workloads", Singular: "workload",
		Namespaced: true, Prefix: "/registry/workloads/",
		New:     func() resource.Object { return &workload{} },
		NewList: func() runtime.Object { return &schedulingv1beta1.WorkloadList{} },
		Columns: []metav1.TableColumnDefinition{resource.NameColumn(), resource.AgeColumn()},
	}, resource.StrategyOf[*workload]{
		PrepareCreate: func(env resource.Env, w *workload) { dropWorkload(env.Features, &w.Spec, nil) },
		PrepareUpdate: func(env resource.Env, w, old *workload) { dropWorkload(env.Features, &w.Spec, &old.Spec) },
		ValidateCreate: func(env resource.Env, w *workload) field.ErrorList {
			errs := append(resource.ValidateMeta(w, true, resource.DNSSubdomain), validateTemplates(&w.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_Workload, w, nil)...)
		},
		ValidateUpdate: func(env resource.Env, w, old *workload) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(w, old), validateTemplates(&w.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_Workload, w, old)...)
		},
		Row: func(w *workload, now time.Time) []any {
			return []any{w.Name, resource.Age(w.CreationTimestamp, now)}
		},
	})
}

// dropWorkload drops what belongs to gates that are off, unless the object has it.
// Templates are compared by their place: they cannot be added or removed.
// Composite templates are dropped whole: their gate is off.
func dropWorkload(f resource.Features, s, old *schedulingv1beta1.WorkloadSpec) {
	if old == nil {
		old = &schedulingv1beta1.WorkloadSpec{}
	}
	for i := range s.PodGroupTemplates {
		t, was := &s.PodGroupTemplates[i], schedulingv1beta1.PodGroupTemplate{}
		if i < len(old.PodGroupTemplates) {
			was = old.PodGroupTemplates[i]
		}
		if !f.Enabled(topologyGate) && was.SchedulingConstraints == nil {
			t.SchedulingConstraints = nil
		}
		if !f.Enabled(claimsGate) && len(was.ResourceClaims) == 0 {
			t.ResourceClaims = nil
		}
		if !f.Enabled(preemptionGate) && was.PreemptionPolicy == nil {
			t.PreemptionPolicy = nil
		}
	}
	if !f.Enabled(compositeGate) && len(old.CompositePodGroupTemplates) == 0 {
		s.CompositePodGroupTemplates = nil
	}
}

// validateTemplates: all templates of a workload have one priority.
func validateTemplates(s *schedulingv1beta1.WorkloadSpec) field.ErrorList {
	for _, t := range s.PodGroupTemplates {
		first := s.PodGroupTemplates[0]
		if t.PriorityClassName != first.PriorityClassName || !ptr.Equal(t.Priority, first.Priority) {
			return field.ErrorList{field.Invalid(field.NewPath("spec"), nil, "detected multiple priority configurations")}
		}
	}
	return nil
}
