package apiserver

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestSharedResources(t *testing.T) {
	pod := func(cpu string, limits corev1.ResourceList) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}, Limits: limits,
		}}}}}
	}
	requests := func(p *corev1.Pod) uintptr {
		return reflect.ValueOf(p.Spec.Containers[0].Resources.Requests).Pointer()
	}
	var s shared
	a, b, c, d := pod("1", nil), pod("1", nil), pod("2", nil), pod("1", corev1.ResourceList{})
	for _, p := range []*corev1.Pod{a, b, c, d} {
		before := p.DeepCopy()
		s.in(p)
		if !reflect.DeepEqual(before, p) {
			t.Errorf("changed: %v, was %v", p, before)
		}
	}
	if requests(a) != requests(b) {
		t.Error("equal resources are not shared")
	}
	if requests(a) == requests(c) || requests(a) == requests(d) {
		t.Error("resources that differ are shared")
	}
}
