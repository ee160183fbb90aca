package pod

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/apps/poddisruptionbudget"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

func evictionDoor() resource.Subresource {
	return resource.Subresource{
		Name: "eviction", Kind: policyv1.SchemeGroupVersion.WithKind("Eviction"), Verbs: []string{"create"},
		NewBody: func() resource.Object { return &policyv1.Eviction{} },
		Post:    evict,
		Older: func(body runtime.Object) resource.Object {
			old, ok := body.(*policyv1beta1.Eviction)
			if !ok {
				return nil
			}
			return &policyv1.Eviction{ObjectMeta: old.ObjectMeta, DeleteOptions: old.DeleteOptions}
		},
	}
}

// evictTries bounds how often an eviction starts over because the pod, or its
// disruption budget, changed.
const evictTries = 20

// mostDisrupted is how many evictions a budget may have that its controller has
// not seen yet.
const mostDisrupted = 2000

// evict deletes a pod as the one who asks wants it deleted, and writes into its
// status why it goes. A pod that serves nobody goes at once; any other only if its
// disruption budget allows it, which is noted in the budget's status.
func evict(ctx context.Context, env resource.Env, ops resource.Ops, namespace, name string, body resource.Object, o metav1.CreateOptions) (resource.Object, error) {
	e := body.(*policyv1.Eviction)
	if e.Name != name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	options, err := evictionOptions(e, o)
	if err != nil {
		return nil, err
	}
	v := &eviction{env: env, ops: ops, namespace: namespace, name: name, options: options}
	v.bound = options.Preconditions != nil && options.Preconditions.ResourceVersion != nil
	pod, err := v.evictIdle(ctx)
	if err != nil || pod == nil {
		return nil, err
	}
	return nil, v.evictServing(ctx, pod)
}

// eviction is one request to evict.
type eviction struct {
	env             resource.Env
	ops             resource.Ops
	namespace, name string
	options         *metav1.DeleteOptions
	// bound: whoever asks means one version of the pod. Then nothing is tried again.
	bound bool
}

// evictIdle deletes a pod that no budget counts: one that ended, has not started,
// or is on its way out. It returns any other pod.
func (v *eviction) evictIdle(ctx context.Context) (*corev1.Pod, error) {
	for try := 1; ; try++ {
		obj, err := v.ops.Get(ctx, v.namespace, v.name)
		if err != nil {
			return nil, err
		}
		pod := obj.(*corev1.Pod)
		ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.DeletionTimestamp != nil
		if !ended && pod.Status.Phase != corev1.PodPending {
			return pod, nil
		}
		options := v.options.DeepCopy()
		if !ended && !v.bound {
			// It goes without further questions as long as it is pending.
			atVersion(options, pod.ResourceVersion)
		}
		err = v.delete(ctx, options)
		if v.bound || try == evictTries || !apierrors.IsConflict(err) {
			return nil, err
		}
	}
}

// evictServing deletes a pod if its disruption budget allows it.
func (v *eviction) evictServing(ctx context.Context, pod *corev1.Pod) error {
	budget, err := v.budget(ctx, pod)
	if err != nil {
		return err
	}
	options := v.options.DeepCopy()
	uncounted := budget != nil && goesUncounted(pod, budget)
	switch {
	case uncounted:
		// It must not have become ready meanwhile.
		atVersion(options, pod.ResourceVersion)
	case budget != nil:
		if err := v.spend(ctx, budget); err != nil {
			return err
		}
	}
	err = v.delete(ctx, options)
	if uncounted && !v.bound && apierrors.IsConflict(err) {
		return stillProcessed(budget.Name)
	}
	return err
}

func atVersion(o *metav1.DeleteOptions, version string) {
	if o.Preconditions == nil {
		o.Preconditions = &metav1.Preconditions{}
	}
	o.Preconditions.ResourceVersion = &version
}

// budget finds the disruption budget of a pod, nil where it has none.
func (v *eviction) budget(ctx context.Context, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	all, _, err := client.For[*policyv1.PodDisruptionBudget](v.env.Client).In(v.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found *policyv1.PodDisruptionBudget
	for _, b := range all {
		// A selector that is no selector selects nothing.
		if s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err != nil || !s.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if found != nil {
			return nil, plainError(errors.New("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."))
		}
		found = b
	}
	return found, nil
}

// goesUncounted: a pod that is not ready is not among the healthy ones that a
// budget counts.
func goesUncounted(pod *corev1.Pod, b *policyv1.PodDisruptionBudget) bool {
	if _, c := condition(&pod.Status, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		return false
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// spend takes one of the disruptions that a budget allows, and notes the pod in
// it: until the budget's controller sees the pod gone, it is not counted as
// available.
func (v *eviction) spend(ctx context.Context, b *policyv1.PodDisruptionBudget) error {
	budgets := client.For[*policyv1.PodDisruptionBudget](v.env.Client).In(v.namespace)
	for try := 1; ; try++ {
		if err := mayDisrupt(b); err != nil {
			return err
		}
		if len(v.options.DryRun) > 0 {
			return nil
		}
		b = b.DeepCopy()
		b.Status.DisruptionsAllowed--
		if b.Status.DisruptionsAllowed == 0 {
			poddisruptionbudget.UpdateDisruptionAllowedCondition(b)
		}
		if b.Status.DisruptedPods == nil {
			b.Status.DisruptedPods = map[string]metav1.Time{}
		}
		b.Status.DisruptedPods[v.name] = metav1.NewTime(v.env.Now())
		_, err := budgets.UpdateStatus(ctx, b)
		if try == evictTries || !apierrors.IsConflict(err) {
			return err
		}
		if b, err = budgets.Get(ctx, b.Name); err != nil {
			return err
		}
	}
}

// mayDisrupt tells why a budget allows no disruption now.
func mayDisrupt(b *policyv1.PodDisruptionBudget) error {
	s := &b.Status
	because := func(err *apierrors.StatusError, format string, args ...any) error {
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
			Type:    policyv1.DisruptionBudgetCause,
			Message: fmt.Sprintf("The disruption budget %s ", b.Name) + fmt.Sprintf(format, args...),
		})
		return err
	}
	refused := func(detail string) *apierrors.StatusError {
		return apierrors.NewForbidden(schema.GroupResource{Group: policyv1.GroupName, Resource: "poddisruptionbudget"}, b.Name, errors.New(detail))
	}
	switch {
	case s.ObservedGeneration < b.Generation:
		return stillProcessed(b.Name)
	case s.DisruptionsAllowed < 0:
		return because(refused("pdb disruptions allowed is negative"), "does not allow evicting pods currently: pdb disruptions allowed is negative")
	case len(s.DisruptedPods) > mostDisrupted:
		return because(refused("DisruptedPods map too big - too many evictions not confirmed by PDB controller"),
			"does not allow evicting pods currently: too many pending evictions not confirmed by PDB controller")
	case s.DisruptionsAllowed > 0:
		return nil
	}
	err := tooManyEvictions(0)
	c := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	explained := c != nil && c.Status == metav1.ConditionFalse && c.Message != ""
	switch {
	case explained && c.Reason == policyv1.SyncFailedReason:
		// The counts are not to be trusted then.
		return because(err, "does not allow evicting pods currently because it failed sync: %s", c.Message)
	case s.CurrentHealthy <= s.DesiredHealthy:
		return because(err, "needs %d healthy pods and has %d currently", s.DesiredHealthy, s.CurrentHealthy)
	case explained:
		return because(err, "does not allow evicting pods currently (%s): %s", c.Reason, c.Message)
	}
	return because(err, "does not allow evicting pods currently")
}

func tooManyEvictions(retryAfter int) *apierrors.StatusError {
	return apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", retryAfter)
}

// stillProcessed asks to try again: the budget's controller has not come to it.
func stillProcessed(budget string) error {
	err := tooManyEvictions(10)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: policyv1.DisruptionBudgetCause, Message: fmt.Sprintf("The disruption budget %s is still being processed by the server.", budget),
	})
	return err
}

func evictionOptions(e *policyv1.Eviction, o metav1.CreateOptions) (*metav1.DeleteOptions, error) {
	options := e.DeleteOptions
	if options == nil {
		return &metav1.DeleteOptions{DryRun: o.DryRun}, nil
	}
	if isTrue(options.IgnoreStoreReadErrorWithClusterBreakingPotential) {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: policyv1.GroupName, Kind: "Eviction"}, e.Name, field.ErrorList{
			field.Invalid(field.NewPath("deleteOptions", "ignoreStoreReadErrorWithClusterBreakingPotential"), true, "can not be set for pod eviction, try after removing the option"),
		})
	}
	if len(options.DryRun) > 0 && len(o.DryRun) > 0 && !reflect.DeepEqual(options.DryRun, o.DryRun) {
		return nil, plainError(fmt.Errorf("Non-matching dry-run options in request and content: %v and %v", o.DryRun, options.DryRun))
	}
	options = options.DeepCopy()
	if len(options.DryRun) == 0 {
		options.DryRun = o.DryRun
	}
	return options, nil
}

// delete marks the pod as disrupted and deletes it.
func (v *eviction) delete(ctx context.Context, o *metav1.DeleteOptions) error {
	if len(o.DryRun) == 0 {
		changed, err := v.ops.Mutate(ctx, v.namespace, v.name, false, func(obj resource.Object) error {
			pod := obj.(*corev1.Pod)
			if err := asExpected(pod, o.Preconditions); err != nil {
				return err
			}
			setCondition(&pod.Status, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			}, v.env.Now())
			return nil
		})
		if err != nil {
			return err
		}
		if o.Preconditions != nil && o.Preconditions.ResourceVersion != nil {
			version := changed.GetResourceVersion()
			o.Preconditions.ResourceVersion = &version
		}
	}
	return client.For[*corev1.Pod](v.env.Client).In(v.namespace).Delete(ctx, v.name, *o)
}

func asExpected(pod *corev1.Pod, p *metav1.Preconditions) error {
	gr := schema.GroupResource{Resource: "Pod"}
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != "" && *p.UID != pod.UID {
		return apierrors.NewConflict(gr, pod.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, pod.UID))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != "" && *p.ResourceVersion != pod.ResourceVersion {
		return apierrors.NewConflict(gr, pod.Name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, pod.ResourceVersion))
	}
	return nil
}
