package apiserver

import (
	"maps"
	"reflect"
	"strconv"
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

func TestSharedLabels(t *testing.T) {
	var s shared
	in := func(l map[string]string) map[string]string {
		p := &corev1.Pod{}
		p.Labels = l
		s.in(p)
		if !maps.Equal(p.Labels, l) {
			t.Errorf("%v became %v", l, p.Labels)
		}
		return p.Labels
	}
	at := func(l map[string]string) uintptr { return reflect.ValueOf(l).Pointer() }
	a := in(map[string]string{"a": "b", "c": "d"})
	if b := in(map[string]string{"c": "d", "a": "b"}); at(a) != at(b) {
		t.Error("equal labels are not shared")
	}
	if b := in(map[string]string{"a": "d", "c": "b"}); at(a) == at(b) {
		t.Error("labels that differ are shared")
	}
	for i := range 3 * keepShared {
		in(map[string]string{"n": strconv.Itoa(i)})
	}
	if n := len(s.labels.now) + len(s.labels.old); n > 2*keepShared {
		t.Errorf("%d are kept", n)
	}
}
