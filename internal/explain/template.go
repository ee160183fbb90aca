package explain

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/explanation"
	"skiff/internal/client"
)

// template is where the spec of a pod comes from: its owner's template, or the pod
// itself where it has no owner that is known.
func (w *World) template(p *corev1.Pod) *editable {
	own := &editable{
		ref: explanation.Reference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name}, obj: p,
		spec: func(o client.Object) *corev1.PodSpec { return &o.(*corev1.Pod).Spec },
	}
	o := metav1.GetControllerOfNoCopy(p)
	if o == nil || len(p.Spec.SchedulingGates) > 0 {
		return own // gates are taken off the pod itself
	}
	switch o.Kind {
	case "ReplicaSet":
		rs, ok := get[*appsv1.ReplicaSet](w, p.Namespace, o.Name)
		if !ok {
			return own
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
			if d, ok := get[*appsv1.Deployment](w, p.Namespace, up.Name); ok {
				return owner("apps/v1", "Deployment", d, func(o client.Object) *corev1.PodSpec { return &o.(*appsv1.Deployment).Spec.Template.Spec })
			}
		}
		return owner("apps/v1", "ReplicaSet", rs, func(o client.Object) *corev1.PodSpec { return &o.(*appsv1.ReplicaSet).Spec.Template.Spec })
	case "StatefulSet":
		if s, ok := get[*appsv1.StatefulSet](w, p.Namespace, o.Name); ok {
			return owner("apps/v1", "StatefulSet", s, func(o client.Object) *corev1.PodSpec { return &o.(*appsv1.StatefulSet).Spec.Template.Spec })
		}
	case "DaemonSet":
		if s, ok := get[*appsv1.DaemonSet](w, p.Namespace, o.Name); ok {
			return owner("apps/v1", "DaemonSet", s, func(o client.Object) *corev1.PodSpec { return &o.(*appsv1.DaemonSet).Spec.Template.Spec })
		}
	case "Job":
		if j, ok := get[*batchv1.Job](w, p.Namespace, o.Name); ok {
			return owner("batch/v1", "Job", j, func(o client.Object) *corev1.PodSpec { return &o.(*batchv1.Job).Spec.Template.Spec })
		}
	}
	return own
}

func owner(version, kind string, o client.Object, spec func(client.Object) *corev1.PodSpec) *editable {
	return &editable{ref: explanation.Reference{APIVersion: version, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}, obj: o, spec: spec}
}
