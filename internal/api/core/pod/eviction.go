package pod

import (
	"context"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

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

// evictTries bounds how often an eviction starts over because the pod changed.
const evictTries = 20

// evict deletes a pod as the one who asks wants it deleted, and writes into its
// status why it goes. Disruption budgets are not asked: there are none yet.
func evict(ctx context.Context, env resource.Env, ops resource.Ops, namespace, name string, body resource.Object, o metav1.CreateOptions) (resource.Object, error) {
	e := body.(*policyv1.Eviction)
	if e.Name != name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	options, err := evictionOptions(e, o)
	if err != nil {
		return nil, err
	}
	bound := options.Preconditions != nil && options.Preconditions.ResourceVersion != nil
	for try := 1; ; try++ {
		err := evictOnce(ctx, env, ops, namespace, name, options.DeepCopy(), bound)
		if bound || try == evictTries || !apierrors.IsConflict(err) {
			return nil, err
		}
	}
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

func evictOnce(ctx context.Context, env resource.Env, ops resource.Ops, namespace, name string, o *metav1.DeleteOptions, bound bool) error {
	obj, err := ops.Get(ctx, namespace, name)
	if err != nil {
		return err
	}
	pod := obj.(*corev1.Pod)
	if !bound && pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil {
		// A pending pod goes without further questions as long as it is pending.
		version := pod.ResourceVersion
		if o.Preconditions == nil {
			o.Preconditions = &metav1.Preconditions{}
		}
		o.Preconditions.ResourceVersion = &version
	}
	if len(o.DryRun) == 0 {
		changed, err := ops.Mutate(ctx, namespace, name, false, func(obj resource.Object) error {
			pod := obj.(*corev1.Pod)
			if err := asExpected(pod, o.Preconditions); err != nil {
				return err
			}
			setCondition(&pod.Status, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			}, env.Now())
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
	return client.For[*corev1.Pod](env.Client).In(namespace).Delete(ctx, name, *o)
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
