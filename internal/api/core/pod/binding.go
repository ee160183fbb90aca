package pod

import (
	"context"
	"fmt"
	"maps"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Binding declares core/v1 bindings, the old way to bind a pod: the binding says
// which pod it is for.
func Binding() *resource.Resource {
	return &resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Binding", Plural: "bindings", Singular: "binding",
		Namespaced: true, Verbs: []string{"create"},
		New: func() resource.Object { return &corev1.Binding{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			return client.For[*corev1.Pod](env.Client).In(obj.GetNamespace()).CreateSub(ctx, obj.GetName(), "binding", obj)
		},
	}
}

func bindingDoor() resource.Subresource {
	return resource.Subresource{
		Name: "binding", Kind: corev1.SchemeGroupVersion.WithKind("Binding"), Verbs: []string{"create"},
		NewBody: func() resource.Object { return &corev1.Binding{} },
		Post:    bind,
	}
}

func validateBinding(b *corev1.Binding) field.ErrorList {
	c := &check{}
	p := field.NewPath("target")
	kind, name := b.Target.Kind, b.Target.Name
	if kind != "" && kind != "Node" {
		c.add(field.NotSupported(p.Child("kind"), kind, []string{"Node", "<empty>"}))
	}
	if c.filled(p.Child("name"), name) && (kind == "" || kind == "Node") {
		c.name(p.Child("name"), name)
	}
	return c.errs
}

// bind puts a pod on a node, once.
func bind(ctx context.Context, env resource.Env, ops resource.Ops, namespace, name string, body resource.Object, _ metav1.CreateOptions) (resource.Object, error) {
	b := body.(*corev1.Binding)
	if b.Name != name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := validateBinding(b); len(errs) > 0 {
		return nil, plainError(errs.ToAggregate())
	}
	conflict := func(format string, args ...any) error {
		return apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, name, fmt.Errorf(format, args...))
	}
	_, err := ops.Mutate(ctx, namespace, name, env.DryRun, func(obj resource.Object) error {
		pod := obj.(*corev1.Pod)
		if err := sameObject(pod, b.UID, b.ResourceVersion); err != nil {
			return err
		}
		switch {
		case pod.DeletionTimestamp != nil:
			return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
		case pod.Spec.NodeName != "":
			return conflict("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
		case len(pod.Spec.SchedulingGates) != 0:
			return conflict("pod %v has non-empty .spec.schedulingGates", pod.Name)
		}
		pod.Spec.NodeName = b.Target.Name
		if env.Features.Enabled("ClearingNominatedNodeNameAfterBinding") {
			pod.Status.NominatedNodeName = ""
		}
		merge(&pod.Annotations, b.Annotations)
		dropInitAnnotations(pod.Annotations)
		if env.Features.Enabled("PodTopologyLabelsAdmission") {
			merge(&pod.Labels, b.Labels)
		}
		setCondition(&pod.Status, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, env.Now())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return nil, nil
}

func merge(into *map[string]string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	if *into == nil {
		*into = map[string]string{}
	}
	maps.Copy(*into, m)
}

// plainError is an error that upstream gives no reason.
func plainError(err error) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}}
}

// sameObject refuses a binding that is for another pod of this name, or for
// another state of it, where it says which.
func sameObject(pod *corev1.Pod, uid types.UID, version string) error {
	detail := ""
	switch {
	case uid != "" && uid != pod.UID:
		detail = fmt.Sprintf("UID in precondition: %v, UID in object meta: %v", uid, pod.UID)
	case version != "" && version != pod.ResourceVersion:
		detail = fmt.Sprintf("ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", version, pod.ResourceVersion)
	default:
		return nil
	}
	return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, pod.Name, fmt.Errorf(
		"StorageError: invalid object, Code: 4, Key: %s%s/%s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: %s",
		prefix, pod.Namespace, pod.Name, detail))
}
