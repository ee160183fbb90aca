package clienttest

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/client"
)

// scaleOf is an object as its scale subresource shows it.
func scaleOf(ref client.Ref, o client.Object) (*autoscalingv1.Scale, error) {
	s := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), CreationTimestamp: o.GetCreationTimestamp(),
	}}
	set := func(replicas *int32, now int32, sel *metav1.LabelSelector) {
		if replicas != nil {
			s.Spec.Replicas = *replicas
		}
		s.Status = autoscalingv1.ScaleStatus{Replicas: now, Selector: metav1.FormatLabelSelector(sel)}
	}
	switch o := o.(type) {
	case *appsv1.Deployment:
		set(o.Spec.Replicas, o.Status.Replicas, o.Spec.Selector)
	case *appsv1.ReplicaSet:
		set(o.Spec.Replicas, o.Status.Replicas, o.Spec.Selector)
	case *appsv1.StatefulSet:
		set(o.Spec.Replicas, o.Status.Replicas, o.Spec.Selector)
	case *corev1.ReplicationController:
		set(o.Spec.Replicas, o.Status.Replicas, nil)
		s.Status.Selector = labels.SelectorFromSet(o.Spec.Selector).String()
	default:
		return nil, apierrors.NewGenericServerResponse(404, "get", ref.GVR.GroupResource(), ref.Name, "", 0, true)
	}
	return s, nil
}

// setScale is o with the number of replicas of a scale.
func setScale(o client.Object, s *autoscalingv1.Scale) client.Object {
	o = o.DeepCopyObject().(client.Object)
	n := s.Spec.Replicas
	switch o := o.(type) {
	case *appsv1.Deployment:
		o.Spec.Replicas = &n
	case *appsv1.ReplicaSet:
		o.Spec.Replicas = &n
	case *appsv1.StatefulSet:
		o.Spec.Replicas = &n
	case *corev1.ReplicationController:
		o.Spec.Replicas = &n
	}
	o.SetResourceVersion(s.ResourceVersion)
	return o
}
