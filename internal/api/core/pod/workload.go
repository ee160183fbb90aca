package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// TemplateColumns are the columns about a workload's template, and its selector
// where that has a description.
func TemplateColumns(priority int32, selector string) []metav1.TableColumnDefinition {
	out := []metav1.TableColumnDefinition{
		resource.Column("Containers", "string", "Names of each container in the template.", priority),
		resource.Column("Images", "string", "Images referenced by each container in the template.", priority),
	}
	if selector != "" {
		out = append(out, resource.Column("Selector", "string", selector, priority))
	}
	return out
}

// TemplateCells are the names and the images of a template's containers. The
// template may be nil.
func TemplateCells(t *corev1.PodTemplateSpec) []any {
	var names, images []string
	if t != nil {
		for _, c := range t.Spec.Containers {
			names, images = append(names, c.Name), append(images, c.Image)
		}
	}
	return []any{strings.Join(names, ","), strings.Join(images, ",")}
}

// WorkloadWarnings are about a template, and of a new object about its name.
func WorkloadWarnings(p *field.Path, obj metav1.Object, created bool, t *corev1.PodTemplateSpec) []string {
	var out []string
	if msgs := validation.IsDNS1123Label(obj.GetName()); created && len(msgs) > 0 {
		out = append(out, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
	}
	if t == nil {
		return out
	}
	return append(out, TemplateWarnings(p, t)...)
}

// ValidateEndless checks that the pods of a template, at p, run until they are
// deleted, which pods of the kind named must.
func ValidateEndless(p *field.Path, t *corev1.PodTemplateSpec, kind string) field.ErrorList {
	var errs field.ErrorList
	if r := t.Spec.RestartPolicy; r != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(p.Child("spec", "restartPolicy"), r, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}
