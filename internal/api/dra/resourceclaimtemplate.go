package dra

import (
	"context"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

type template = resourcev1.ResourceClaimTemplate

// ResourceClaimTemplate declares resourceclaimtemplates. Their spec never changes.
func ResourceClaimTemplate() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: resourcev1.SchemeGroupVersion, Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates", Singular: "resourceclaimtemplate",
		Namespaced: true, Prefix: "/registry/resourceclaimtemplates/", ReturnDeleted: true,
		New:     func() resource.Object { return &template{} },
		NewList: func() runtime.Object { return &resourcev1.ResourceClaimTemplateList{} },
		Columns: []metav1.TableColumnDefinition{resource.NameColumn(), resource.AgeColumn()},
	}, resource.StrategyOf[*template]{
		Default:             func(t *template) { defaultRequests(&t.Spec.Spec.Devices) },
		UnconditionalUpdate: true,
		PrepareCreate:       func(env resource.Env, t *template) { dropClaim(env.Features, &t.Spec.Spec, nil) },
		PrepareUpdate:       func(env resource.Env, t, old *template) { dropClaim(env.Features, &t.Spec.Spec, &old.Spec.Spec) },
		Check: func(ctx context.Context, env resource.Env, t, old *template) field.ErrorList {
			if old != nil {
				return nil
			}
			return checkAdminRequests(ctx, env, &t.Spec.Spec.Devices, t.Namespace)
		},
		ValidateCreate: func(env resource.Env, t *template) field.ErrorList {
			return append(validateTemplate(env.Features, t), marked(env.Features, rules.Validate_ResourceClaimTemplate, t, nil)...)
		},
		ValidateUpdate: func(env resource.Env, t, old *template) field.ErrorList {
			errs := append(validateTemplate(env.Features, t), resource.ValidateMetaUpdate(t, old)...)
			if !equal(t.Spec, old.Spec) {
				errs = append(errs, field.Invalid(specPath, resource.Shown(t.Spec), apivalidation.FieldImmutableErrorMsg))
			}
			return append(errs, marked(env.Features, rules.Validate_ResourceClaimTemplate, t, old)...)
		},
		Row: func(t *template, now time.Time) []any { return []any{t.Name, resource.Age(t.CreationTimestamp, now)} },
	})
}

func validateTemplate(f resource.Features, t *template) field.ErrorList {
	errs := resource.ValidateMeta(t, true, resource.DNSSubdomain)
	errs = append(errs, pod.ValidateClaimMeta(specPath.Child("metadata"), t.Spec.ObjectMeta)...)
	return append(errs, validateClaimSpec(f, specPath.Child("spec"), &t.Spec.Spec)...)
}
