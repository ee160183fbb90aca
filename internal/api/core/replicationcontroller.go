package core

import (
	"maps"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// ReplicationController declares core/v1 replicationcontrollers.
func ReplicationController() *resource.Resource {
	spec, status := corev1.ReplicationControllerSpec{}.SwaggerDoc(), corev1.ReplicationControllerStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "ReplicationController", Plural: "replicationcontrollers", Singular: "replicationcontroller",
		ShortNames: []string{"rc"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/controllers/",
		New:     func() resource.Object { return &corev1.ReplicationController{} },
		NewList: func() runtime.Object { return &corev1.ReplicationControllerList{} },
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Desired", "integer", spec["replicas"], 0),
			resource.Column("Current", "integer", status["replicas"], 0),
			resource.Column("Ready", "integer", status["readyReplicas"], 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, spec["selector"])...),
		Subresources: []resource.Subresource{
			resource.ScaleOf(resource.Scaled[*corev1.ReplicationController]{
				Replicas: func(rc *corev1.ReplicationController) **int32 { return &rc.Spec.Replicas },
				Current:  func(rc *corev1.ReplicationController) int32 { return rc.Status.Replicas },
				Selector: func(rc *corev1.ReplicationController) *metav1.LabelSelector {
					return &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
				},
			}),
			resource.StatusOf(resource.StrategyOf[*corev1.ReplicationController]{
				Default:             defaultReplicationController,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate:       func(_ resource.Env, rc, old *corev1.ReplicationController) { rc.Spec = old.Spec },
				ValidateUpdate: func(_ resource.Env, rc, old *corev1.ReplicationController) field.ErrorList {
					return append(resource.ValidateMetaUpdate(rc, old), validateControllerStatus(&rc.Status)...)
				},
			}),
		},
	}, resource.StrategyOf[*corev1.ReplicationController]{
		Default:             defaultReplicationController,
		UnconditionalUpdate: true,
		OrphanByDefault:     true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, rc *corev1.ReplicationController) {
			rc.Status = corev1.ReplicationControllerStatus{}
			rc.Generation = 1
			if rc.Spec.Template != nil {
				pod.DropDisabled(env.Features, rc.Spec.Template, nil)
			}
		},
		PrepareUpdate: func(env resource.Env, rc, old *corev1.ReplicationController) {
			rc.Status = old.Status
			if rc.Spec.Template != nil {
				pod.DropDisabled(env.Features, rc.Spec.Template, old.Spec.Template)
			}
			rc.Generation = old.Generation
			if !equal(rc.Spec, old.Spec) {
				rc.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, rc *corev1.ReplicationController) field.ErrorList {
			return append(resource.ValidateMeta(rc, true, controllerName),
				validateControllerSpec(&rc.Spec, pod.TemplateOptions(env.Features, nil))...)
		},
		ValidateUpdate: func(env resource.Env, rc, old *corev1.ReplicationController) field.ErrorList {
			errs := resource.ValidateMetaUpdate(rc, old)
			errs = append(errs, validateControllerSpec(&rc.Spec, pod.TemplateOptions(env.Features, old.Spec.Template))...)
			return append(errs, validateConvertible(rc, old)...)
		},
		Warnings: func(_ resource.Env, rc, old *corev1.ReplicationController) []string {
			switch {
			case old == nil:
				return pod.WorkloadWarnings(specPath.Child("template"), rc, true, rc.Spec.Template)
			case old.Generation != rc.Generation:
				// As upstream: what is warned about is the template as it was.
				return pod.WorkloadWarnings(specPath.Child("template"), rc, false, old.Spec.Template)
			}
			return nil
		},
		Selectable: func(rc *corev1.ReplicationController) fields.Set {
			return fields.Set{"status.replicas": strconv.Itoa(int(rc.Status.Replicas))}
		},
		Row: func(rc *corev1.ReplicationController, now time.Time) []any {
			var desired int32
			if rc.Spec.Replicas != nil {
				desired = *rc.Spec.Replicas
			}
			return append(append([]any{rc.Name, int64(desired), int64(rc.Status.Replicas), int64(rc.Status.ReadyReplicas),
				resource.Age(rc.CreationTimestamp, now)}, pod.TemplateCells(rc.Spec.Template)...), labels.FormatLabels(rc.Spec.Selector))
		},
	})
}

// controllerName is the usual rule in newer words.
func controllerName(name string, prefix bool) []string {
	if prefix {
		return resource.DNSSubdomain(name, true)
	}
	return content.IsDNS1123Subdomain(name)
}

func defaultReplicationController(rc *corev1.ReplicationController) {
	if t := rc.Spec.Template; t != nil {
		if t.Labels != nil {
			if len(rc.Spec.Selector) == 0 {
				rc.Spec.Selector = maps.Clone(t.Labels)
			}
			if len(rc.Labels) == 0 {
				rc.Labels = maps.Clone(t.Labels)
			}
		}
		pod.DefaultSpec(&t.Spec)
	}
	if rc.Spec.Replicas == nil {
		rc.Spec.Replicas = new(int32(1))
	}
}

func validateControllerSpec(s *corev1.ReplicationControllerSpec, o pod.Options) field.ErrorList {
	errs := resource.NotNegative(specPath, resource.N("minReadySeconds", s.MinReadySeconds))
	if len(s.Selector) == 0 {
		errs = append(errs, field.Required(specPath.Child("selector"), ""))
	}
	errs = append(errs, resource.NotNegative(specPath, resource.N("replicas", *s.Replicas))...)
	tp, t := specPath.Child("template"), s.Template
	if t == nil {
		return append(errs, field.Required(tp, ""))
	}
	if selector := labels.SelectorFromSet(s.Selector); !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, pod.ValidateTemplate(t, tp, o)...)
	return append(errs, pod.ValidateEndless(tp, t, "ReplicationController")...)
}

// validateConvertible keeps what an annotation says that other kinds cannot
// express.
func validateConvertible(rc, old *corev1.ReplicationController) field.ErrorList {
	const prefix = "non-convertible.kubernetes.io"
	var errs field.ErrorList
	for _, key := range sortedKeys(old.Annotations) {
		if !strings.HasPrefix(key, prefix) {
			continue
		}
		parts := strings.Split(key, "/")
		switch {
		case len(parts) != 2:
		case !strings.Contains(parts[1], "selector"):
			errs = append(errs, &field.Error{Type: field.ErrorTypeNotFound, BadValue: old.Annotations[key], Field: parts[1], Detail: "unknown non-convertible field"})
		case !equal(old.Spec.Selector, rc.Spec.Selector):
			errs = append(errs, field.Invalid(specPath.Child("selector"), rc.Spec.Selector, "cannot update non-convertible selector"))
		}
	}
	return errs
}

func validateControllerStatus(s *corev1.ReplicationControllerStatus) field.ErrorList {
	parts := []resource.Count{resource.N("fullyLabeledReplicas", s.FullyLabeledReplicas), resource.N("readyReplicas", s.ReadyReplicas),
		resource.N("availableReplicas", s.AvailableReplicas)}
	errs := resource.NotNegative(statusPath, resource.N("replicas", s.Replicas))
	errs = append(errs, resource.NotNegative(statusPath, parts...)...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, resource.NotMore(statusPath, s.Replicas, parts...)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(statusPath.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas"))
	}
	return errs
}
