package apps

import (
	"fmt"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func number(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

func unset(n **int32, def int32) {
	if *n == nil {
		*n = &def
	}
}

func dropTerminating(f resource.Features, n **int32, old *int32) {
	if !f.Enabled("DeploymentReplicaSetTerminatingReplicas") && old == nil {
		*n = nil
	}
}

func templateColumns(selector string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		resource.Column("Containers", "string", "Names of each container in the template.", 1),
		resource.Column("Images", "string", "Images referenced by each container in the template.", 1),
		resource.Column("Selector", "string", selector, 1),
	}
}

// templateCells are the names and the images of a template's containers.
func templateCells(t *corev1.PodTemplateSpec) []any {
	var names, images []string
	for _, c := range t.Spec.Containers {
		names, images = append(names, c.Name), append(images, c.Image)
	}
	return []any{strings.Join(names, ","), strings.Join(images, ",")}
}

// validateSelected checks a selector and the template of the pods it selects,
// which run until they are deleted.
func validateSelected(s *metav1.LabelSelector, t *corev1.PodTemplateSpec, o pod.Options) field.ErrorList {
	var errs field.ErrorList
	sp, tp := specPath.Child("selector"), specPath.Child("template")
	if s == nil {
		errs = append(errs, field.Required(sp, ""))
	} else {
		errs = append(errs, metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, sp)...)
		if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(sp, s, "empty selector is invalid for deployment"))
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return append(errs, field.Invalid(sp, s, "invalid label selector"))
	}
	if !selector.Empty() && !selector.Matches(labels.Set(t.Labels)) {
		errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, pod.ValidateTemplate(t, tp, o)...)
	if r := t.Spec.RestartPolicy; r != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(tp.Child("spec", "restartPolicy"), r, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(tp.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicaSet is not Supported"))
	}
	return errs
}

// workloadWarnings are about the template, and of a new object about its name.
func workloadWarnings(obj metav1.Object, created bool, t *corev1.PodTemplateSpec) []string {
	var out []string
	if msgs := validation.IsDNS1123Label(obj.GetName()); created && len(msgs) > 0 {
		out = append(out, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
	}
	return append(out, pod.TemplateWarnings(specPath.Child("template"), t)...)
}

// scaled is how a workload's scale is read and set.
type scaled[T resource.Object] struct {
	replicas func(T) **int32
	current  func(T) int32
	selector func(T) *metav1.LabelSelector
}

// scaleDoor shows a workload as an autoscaling/v1 Scale.
func scaleDoor[T resource.Object](s scaled[T]) resource.Subresource {
	return resource.Subresource{
		Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: []string{"get", "patch", "update"},
		NewView: func() resource.Object { return &autoscalingv1.Scale{} },
		Columns: []metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]},
			{Name: "Desired", Type: "integer", Description: autoscalingv1.ScaleSpec{}.SwaggerDoc()["replicas"]},
			{Name: "Available", Type: "integer", Description: autoscalingv1.ScaleStatus{}.SwaggerDoc()["replicas"]},
			{Name: "Age", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]},
		},
		Row: func(view resource.Object, now time.Time) []any {
			v := view.(*autoscalingv1.Scale)
			return []any{v.Name, int64(v.Spec.Replicas), int64(v.Status.Replicas), resource.Age(v.CreationTimestamp, now)}
		},
		View: func(obj resource.Object) (resource.Object, error) {
			t := obj.(T)
			selector, err := metav1.LabelSelectorAsSelector(s.selector(t))
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			return &autoscalingv1.Scale{
				ObjectMeta: metav1.ObjectMeta{
					Name: t.GetName(), Namespace: t.GetNamespace(), UID: t.GetUID(),
					ResourceVersion: t.GetResourceVersion(), CreationTimestamp: t.GetCreationTimestamp(),
				},
				Spec:   autoscalingv1.ScaleSpec{Replicas: number(*s.replicas(t))},
				Status: autoscalingv1.ScaleStatus{Replicas: s.current(t), Selector: selector.String()},
			}, nil
		},
		SetView: func(obj, view resource.Object) error {
			t, scale := obj.(T), view.(*autoscalingv1.Scale)
			if errs := validateScale(scale); len(errs) > 0 {
				return apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), t.GetName(), errs)
			}
			n := scale.Spec.Replicas
			*s.replicas(t) = &n
			t.SetResourceVersion(scale.ResourceVersion)
			return nil
		},
	}
}

func validateScale(s *autoscalingv1.Scale) field.ErrorList {
	errs := metavalidation.ValidateManagedFields(s.ManagedFields, field.NewPath("metadata", "managedFields"))
	return append(errs, notNegative(specPath, count{"replicas", s.Spec.Replicas})...)
}
