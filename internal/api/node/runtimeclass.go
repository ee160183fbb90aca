// Package node declares the resources of node.k8s.io.
package node

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// RuntimeClass declares node.k8s.io/v1 runtimeclasses (KEP-585, KEP-688): which
// handler of a node's container runtime runs a pod, and what that costs.
func RuntimeClass() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: nodev1.SchemeGroupVersion, Kind: "RuntimeClass", Plural: "runtimeclasses", Singular: "runtimeclass",
		Prefix:  "/registry/runtimeclasses/",
		New:     func() resource.Object { return &nodev1.RuntimeClass{} },
		NewList: func() runtime.Object { return &nodev1.RuntimeClassList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Handler", "string", "", 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*nodev1.RuntimeClass]{
		CreateOnUpdate: true,
		ValidateCreate: func(_ resource.Env, c *nodev1.RuntimeClass) field.ErrorList {
			return append(validate(c), shortName(handlerPath, c.Handler)...)
		},
		ValidateUpdate: func(_ resource.Env, c, old *nodev1.RuntimeClass) field.ErrorList {
			errs := append(validate(c), resource.ValidateMetaUpdate(c, old)...)
			if c.Handler == old.Handler {
				return errs
			}
			if c.Handler == "" {
				return append(errs, field.Invalid(handlerPath, nil, apivalidation.FieldImmutableErrorMsg), field.Required(handlerPath, ""))
			}
			// The marker stops at the immutable field; an older rule goes on, in words of its own.
			for _, msg := range resource.DNSLabel(c.Handler, false) {
				errs = append(errs, field.Invalid(handlerPath, c.Handler, msg))
			}
			return append(errs, field.Invalid(handlerPath, nil, apivalidation.FieldImmutableErrorMsg))
		},
		Warnings: func(_ resource.Env, c, _ *nodev1.RuntimeClass) []string {
			if c.Scheduling == nil {
				return nil
			}
			var out []string
			for _, k := range slices.Sorted(maps.Keys(c.Scheduling.NodeSelector)) {
				if text, ok := pod.DeprecatedNodeLabels[k]; ok {
					out = append(out, fmt.Sprintf("%s: %s", schedulingPath.Child("nodeSelector"), text))
				}
			}
			return out
		},
		Row: func(c *nodev1.RuntimeClass, now time.Time) []any {
			return []any{c.Name, c.Handler, resource.Age(c.CreationTimestamp, now)}
		},
	})
}

var (
	handlerPath    = field.NewPath("handler")
	schedulingPath = field.NewPath("scheduling")
)

// validate checks all but the handler, whose rules are markers on the type and
// come last.
func validate(c *nodev1.RuntimeClass) field.ErrorList {
	errs := resource.ValidateMeta(c, false, resource.DNSSubdomain)
	if c.Overhead != nil {
		errs = append(errs, pod.ValidateOverhead(field.NewPath("overhead"), c.Overhead.PodFixed)...)
	}
	if s := c.Scheduling; s != nil {
		errs = append(errs, metavalidation.ValidateLabels(s.NodeSelector, schedulingPath.Child("nodeSelector"))...)
		errs = append(errs, validateTolerations(schedulingPath.Child("tolerations"), s.Tolerations)...)
	}
	return errs
}

// shortName is the marker's rule of a name, k8s-short-name.
func shortName(p *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	var errs field.ErrorList
	for _, msg := range content.IsDNS1123Label(name) {
		errs = append(errs, field.Invalid(p, name, msg))
	}
	return errs
}

// validateTolerations: two that differ in their seconds alone are the same.
func validateTolerations(p *field.Path, list []corev1.Toleration) field.ErrorList {
	errs := pod.ValidateTolerations(p, list)
	said := map[corev1.Toleration]bool{}
	for i, t := range list {
		key := t
		key.TolerationSeconds = nil
		if said[key] {
			errs = append(errs, field.Duplicate(p.Index(i), resource.Shown(t)))
		}
		said[key] = true
	}
	return errs
}
