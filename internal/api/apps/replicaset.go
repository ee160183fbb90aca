// Package apps declares the resources of the apps group.
package apps

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// ReplicaSet declares apps/v1 replicasets.
func ReplicaSet() *resource.Resource {
	spec, status := appsv1.ReplicaSetSpec{}.SwaggerDoc(), appsv1.ReplicaSetStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "ReplicaSet", Plural: "replicasets", Singular: "replicaset",
		ShortNames: []string{"rs"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/replicasets/",
		New:     func() resource.Object { return &appsv1.ReplicaSet{} },
		NewList: func() runtime.Object { return &appsv1.ReplicaSetList{} },
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Desired", "integer", spec["replicas"], 0),
			resource.Column("Current", "integer", status["replicas"], 0),
			resource.Column("Ready", "integer", status["readyReplicas"], 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, spec["selector"])...),
		Subresources: []resource.Subresource{
			resource.ScaleOf(resource.Scaled[*appsv1.ReplicaSet]{
				Replicas: func(rs *appsv1.ReplicaSet) **int32 { return &rs.Spec.Replicas },
				Current:  func(rs *appsv1.ReplicaSet) int32 { return rs.Status.Replicas },
				Selector: func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector },
			}),
			resource.StatusOf(resource.StrategyOf[*appsv1.ReplicaSet]{
				Default:             defaultReplicaSet,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate: func(env resource.Env, rs, old *appsv1.ReplicaSet) {
					rs.Spec = old.Spec
					dropTerminating(env.Features, &rs.Status.TerminatingReplicas, old.Status.TerminatingReplicas)
				},
				ValidateUpdate: func(_ resource.Env, rs, old *appsv1.ReplicaSet) field.ErrorList {
					return append(resource.ValidateMetaUpdate(rs, old), validateReplicaSetStatus(&rs.Status)...)
				},
			}),
		},
	}, resource.StrategyOf[*appsv1.ReplicaSet]{
		Default:             defaultReplicaSet,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, rs *appsv1.ReplicaSet) {
			rs.Status = appsv1.ReplicaSetStatus{}
			rs.Generation = 1
			pod.DropDisabled(env.Features, &rs.Spec.Template, nil)
		},
		PrepareUpdate: func(env resource.Env, rs, old *appsv1.ReplicaSet) {
			rs.Status = old.Status
			pod.DropDisabled(env.Features, &rs.Spec.Template, &old.Spec.Template)
			rs.Generation = old.Generation
			if !equal(rs.Spec, old.Spec) {
				rs.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, rs *appsv1.ReplicaSet) field.ErrorList {
			return append(resource.ValidateMeta(rs, true, resource.DNSSubdomain),
				validateReplicaSetSpec(&rs.Spec, pod.TemplateOptions(env.Features, nil))...)
		},
		ValidateUpdate: func(env resource.Env, rs, old *appsv1.ReplicaSet) field.ErrorList {
			errs := resource.ValidateMetaUpdate(rs, old)
			errs = append(errs, validateReplicaSetSpec(&rs.Spec, pod.TemplateOptions(env.Features, &old.Spec.Template))...)
			return append(errs, apivalidation.ValidateImmutableField(rs.Spec.Selector, old.Spec.Selector, specPath.Child("selector"))...)
		},
		Warnings: func(_ resource.Env, rs, old *appsv1.ReplicaSet) []string {
			if old != nil && old.Generation == rs.Generation {
				return nil
			}
			return pod.WorkloadWarnings(specPath.Child("template"), rs, old == nil, &rs.Spec.Template)
		},
		Row: func(rs *appsv1.ReplicaSet, now time.Time) []any {
			return append([]any{rs.Name, int64(number(rs.Spec.Replicas)), int64(rs.Status.Replicas), int64(rs.Status.ReadyReplicas),
				resource.Age(rs.CreationTimestamp, now)}, append(pod.TemplateCells(&rs.Spec.Template), metav1.FormatLabelSelector(rs.Spec.Selector))...)
		},
	})
}

func defaultReplicaSet(rs *appsv1.ReplicaSet) {
	unset(&rs.Spec.Replicas, 1)
	pod.DefaultSpec(&rs.Spec.Template.Spec)
}

func validateReplicaSetSpec(s *appsv1.ReplicaSetSpec, o pod.Options) field.ErrorList {
	errs := resource.NotNegative(specPath, resource.N("replicas", number(s.Replicas)), resource.N("minReadySeconds", s.MinReadySeconds))
	return append(errs, validateSelected(s.Selector, &s.Template, o)...)
}

func validateReplicaSetStatus(s *appsv1.ReplicaSetStatus) field.ErrorList {
	errs := resource.NotNegative(statusPath,
		resource.N("replicas", s.Replicas), resource.N("fullyLabeledReplicas", s.FullyLabeledReplicas),
		resource.N("readyReplicas", s.ReadyReplicas), resource.N("availableReplicas", s.AvailableReplicas))
	errs = append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	if s.TerminatingReplicas != nil {
		errs = append(errs, resource.NotNegative(statusPath, resource.N("terminatingReplicas", *s.TerminatingReplicas))...)
	}
	return append(errs, atMost(s.Replicas, s.ReadyReplicas, s.AvailableReplicas,
		resource.N("fullyLabeledReplicas", s.FullyLabeledReplicas), resource.N("readyReplicas", s.ReadyReplicas), resource.N("availableReplicas", s.AvailableReplicas))...)
}

// atMost checks counts of pods that are parts of all of them.
func atMost(all, ready, available int32, parts ...resource.Count) field.ErrorList {
	errs := resource.NotMore(statusPath, all, parts...)
	if available > ready {
		errs = append(errs, field.Invalid(statusPath.Child("availableReplicas"), available, "cannot be greater than readyReplicas"))
	}
	return errs
}
