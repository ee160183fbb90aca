// Package metrics declares the resources of metrics.k8s.io: what nodes and pods use
// of processors and memory. Nothing of it is stored; every answer is made of what
// the source of usage knows at that moment.
package metrics

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

var (
	v1      = schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1"}
	v1beta1 = schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1beta1"}
)

func columns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: string(corev1.ResourceCPU), Type: "string", Format: "quantity"},
		{Name: string(corev1.ResourceMemory), Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"},
	}
}

func cells(name string, used corev1.ResourceList, window time.Duration) []any {
	cpu, memory := used[corev1.ResourceCPU], used[corev1.ResourceMemory]
	return []any{name, cpu.String(), memory.String(), window.String()}
}

// about is the metadata of a measurement of an object.
func about(obj resource.Object, now time.Time) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), Labels: obj.GetLabels(), CreationTimestamp: metav1.NewTime(now.Truncate(time.Second)),
	}
}

// live makes the objects of a resource that is about another one of core/v1. Measure
// is called where there is a source of usage.
func live[T any, P interface {
	*T
	resource.Object
}](of string, measure func(ctx context.Context, env resource.Env, objs []resource.Object) ([]T, error)) *resource.Live {
	return &resource.Live{
		Of: corev1.SchemeGroupVersion.WithResource(of),
		Measure: func(ctx context.Context, env resource.Env, objs []resource.Object) ([]resource.Object, error) {
			if env.Usage == nil {
				return nil, nil
			}
			list, err := measure(ctx, env, objs)
			return each(list, func(t T) resource.Object { return P(&t) }), err
		},
	}
}

func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
