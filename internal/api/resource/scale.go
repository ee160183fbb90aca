package resource

import (
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Scaled is how the scale of a workload of type T is read and set.
type Scaled[T Object] struct {
	// Replicas is where the number wanted stands, Current the number there is.
	Replicas func(T) **int32
	Current  func(T) int32
	// Selector selects its pods.
	Selector func(T) *metav1.LabelSelector
}

// ScaleOf declares the scale subresource, which shows a workload as an
// autoscaling/v1 Scale.
func ScaleOf[T Object](s Scaled[T]) Subresource {
	return Subresource{
		Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: []string{"get", "patch", "update"},
		NewView: func() Object { return &autoscalingv1.Scale{} },
		Columns: []metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]},
			{Name: "Desired", Type: "integer", Description: autoscalingv1.ScaleSpec{}.SwaggerDoc()["replicas"]},
			{Name: "Available", Type: "integer", Description: autoscalingv1.ScaleStatus{}.SwaggerDoc()["replicas"]},
			{Name: "Age", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]},
		},
		Row: func(view Object, now time.Time) []any {
			v := view.(*autoscalingv1.Scale)
			return []any{v.Name, int64(v.Spec.Replicas), int64(v.Status.Replicas), Age(v.CreationTimestamp, now)}
		},
		View: func(obj Object) (Object, error) {
			t := obj.(T)
			selector, err := metav1.LabelSelectorAsSelector(s.Selector(t))
			if err != nil {
				return nil, apierrors.NewBadRequest(err.Error())
			}
			var replicas int32
			if n := *s.Replicas(t); n != nil {
				replicas = *n
			}
			return &autoscalingv1.Scale{
				ObjectMeta: metav1.ObjectMeta{
					Name: t.GetName(), Namespace: t.GetNamespace(), UID: t.GetUID(),
					ResourceVersion: t.GetResourceVersion(), CreationTimestamp: t.GetCreationTimestamp(),
				},
				Spec:   autoscalingv1.ScaleSpec{Replicas: replicas},
				Status: autoscalingv1.ScaleStatus{Replicas: s.Current(t), Selector: selector.String()},
			}, nil
		},
		SetView: func(obj, view Object) error {
			t, scale := obj.(T), view.(*autoscalingv1.Scale)
			if errs := validateScale(scale); len(errs) > 0 {
				return apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), t.GetName(), errs)
			}
			n := scale.Spec.Replicas
			*s.Replicas(t) = &n
			t.SetResourceVersion(scale.ResourceVersion)
			return nil
		},
	}
}

func validateScale(s *autoscalingv1.Scale) field.ErrorList {
	errs := metavalidation.ValidateManagedFields(s.ManagedFields, field.NewPath("metadata", "managedFields"))
	return append(errs, NotNegative(field.NewPath("spec"), N("replicas", s.Spec.Replicas))...)
}
