package core

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// PodTemplate declares core/v1 podtemplates.
func PodTemplate() *resource.Resource {
	path := field.NewPath("template")
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "PodTemplate", Plural: "podtemplates", Singular: "podtemplate",
		Namespaced: true, Prefix: "/registry/podtemplates/", ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.PodTemplate{} },
		NewList: func() runtime.Object { return &corev1.PodTemplateList{} },
		Columns: append(append([]metav1.TableColumnDefinition{resource.NameColumn()}, pod.TemplateColumns(0, "")...),
			resource.Column("Pod Labels", "string", "The labels for the pod template.", 0)),
	}, resource.StrategyOf[*corev1.PodTemplate]{
		Default:             func(t *corev1.PodTemplate) { pod.DefaultSpec(&t.Template.Spec) },
		UnconditionalUpdate: true,
		PrepareCreate: func(env resource.Env, t *corev1.PodTemplate) {
			t.Generation = 1
			pod.DropDisabled(env.Features, &t.Template, nil)
		},
		PrepareUpdate: func(env resource.Env, t, old *corev1.PodTemplate) {
			pod.DropDisabled(env.Features, &t.Template, &old.Template)
			t.Generation = old.Generation
			if !equal(t.Template, old.Template) {
				t.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, t *corev1.PodTemplate) field.ErrorList {
			return append(resource.ValidateMeta(t, true, resource.DNSSubdomain),
				pod.ValidateTemplate(&t.Template, path, pod.TemplateOptions(env.Features, nil))...)
		},
		ValidateUpdate: func(env resource.Env, t, old *corev1.PodTemplate) field.ErrorList {
			return append(resource.ValidateMetaUpdate(t, old),
				pod.ValidateTemplate(&t.Template, path, pod.TemplateOptions(env.Features, &old.Template))...)
		},
		Warnings: func(_ resource.Env, t, old *corev1.PodTemplate) []string {
			if old != nil && old.Generation == t.Generation {
				return nil
			}
			return pod.TemplateWarnings(path, &t.Template)
		},
		Row: func(t *corev1.PodTemplate, _ time.Time) []any {
			return append(append([]any{t.Name}, pod.TemplateCells(&t.Template)...), labels.FormatLabels(t.Template.Labels))
		},
	})
}
