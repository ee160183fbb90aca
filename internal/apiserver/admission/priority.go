package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/scheduling"
	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// Priority gives pods and pod groups the priority of their class, and holds that there is one
// default class at most and that the system's classes stay.
type Priority struct{}

var priorityClasses = schema.GroupResource{Group: schedulingv1.GroupName, Resource: "priorityclasses"}

// Name implements apiserver.Admission.
func (Priority) Name() string { return "Priority" }

// Admit implements apiserver.Admission.
func (Priority) Admit(ctx context.Context, a *apiserver.Attributes) error {
	if a.Subresource != "" {
		return nil
	}
	if g, ok := a.Object.(*schedulingv1beta1.PodGroup); ok && a.Operation == apiserver.OpCreate {
		return admitPodGroup(ctx, a, g)
	}
	if resourceOf(a) != podsResource {
		return nil
	}
	p, ok := a.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	if old, ok := a.Old.(*corev1.Pod); ok && a.Operation == apiserver.OpUpdate {
		// A client that does not know these fields must not lose them.
		if p.Spec.Priority == nil {
			p.Spec.Priority = old.Spec.Priority
		}
		if p.Spec.PreemptionPolicy == nil {
			p.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
		return nil
	}
	if a.Operation != apiserver.OpCreate {
		return nil
	}
	name, value, policy, err := priorityOf(ctx, a, p.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	p.Spec.PriorityClassName = name
	if have := p.Spec.Priority; have != nil && *have != value {
		return forbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *have, value))
	}
	p.Spec.Priority = &value
	if policy != nil {
		if have := p.Spec.PreemptionPolicy; have != nil && *have != *policy {
			return forbidden(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *have, *policy))
		}
		v := *policy
		p.Spec.PreemptionPolicy = &v
	}
	return nil
}

func admitPodGroup(ctx context.Context, a *apiserver.Attributes, g *schedulingv1beta1.PodGroup) error {
	name, value, _, err := priorityOf(ctx, a, g.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	if have := g.Spec.Priority; have != nil && *have != value {
		return forbidden(a, fmt.Errorf("priority set in the pod group (%d) must match the priority computed (%d) based on the priority class set in the spec", *have, value))
	}
	g.Spec.Priority, g.Spec.PriorityClassName = &value, name
	return nil
}

func priorityOf(ctx context.Context, a *apiserver.Attributes, name string) (string, int32, *corev1.PreemptionPolicy, error) {
	if name != "" {
		c, err := cached[*schedulingv1.PriorityClass](ctx, a.Env.Client, "", name)
		if apierrors.IsNotFound(err) {
			return "", 0, nil, forbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
		}
		if err != nil {
			return "", 0, nil, apierrors.NewInternalError(fmt.Errorf("failed to resolve PriorityClass with name %s: %w", name, err))
		}
		return name, c.Value, c.PreemptionPolicy, nil
	}
	c, err := defaultClass(ctx, a.Env.Client)
	if err != nil {
		return "", 0, nil, apierrors.NewInternalError(fmt.Errorf("error occurred while retrieving default priority class: %w", err))
	}
	if c != nil {
		return c.Name, c.Value, c.PreemptionPolicy, nil
	}
	lower := corev1.PreemptLowerPriority
	return "", 0, &lower, nil
}

// defaultClass returns the class of pods that name none; nil where there is none.
func defaultClass(ctx context.Context, c *client.Client) (*schedulingv1.PriorityClass, error) {
	list, err := c.Transport().List(ctx, client.Ref{GVR: client.KindOf[*schedulingv1.PriorityClass]().GVR}, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out *schedulingv1.PriorityClass
	for _, o := range list.Items {
		if pc, ok := o.(*schedulingv1.PriorityClass); ok && pc.GlobalDefault && (out == nil || out.Value > pc.Value) {
			out = pc
		}
	}
	return out, nil
}

// Validate implements apiserver.Admission.
func (Priority) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if a.Subresource != "" || resourceOf(a) != priorityClasses {
		return nil
	}
	if a.Operation == apiserver.OpDelete {
		for _, s := range scheduling.SystemClasses() {
			if s.Name == a.Name {
				return apierrors.NewForbidden(priorityClasses, a.Name, errors.New("this is a system priority class and cannot be deleted"))
			}
		}
		return nil
	}
	c, ok := a.Object.(*schedulingv1.PriorityClass)
	if !ok || !c.GlobalDefault {
		return nil
	}
	d, err := defaultClass(ctx, a.Env.Client)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to get default priority class: %w", err))
	}
	if d != nil && (a.Operation == apiserver.OpCreate || d.Name != c.Name) {
		return forbidden(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", d.Name))
	}
	return nil
}
