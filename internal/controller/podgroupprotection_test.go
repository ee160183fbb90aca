package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/control"
)

func TestPodGroupKey(t *testing.T) {
	name := "g"
	for _, c := range []struct {
		group *corev1.PodSchedulingGroup
		want  control.Key
		ok    bool
	}{
		{nil, control.Key{}, false},
		{&corev1.PodSchedulingGroup{}, control.Key{}, false},
		{&corev1.PodSchedulingGroup{PodGroupName: &name}, control.Key{Namespace: "n", Name: "g"}, true},
	} {
		got, ok := podGroupKey(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n"}, Spec: corev1.PodSpec{SchedulingGroup: c.group}})
		if got != c.want || ok != c.ok {
			t.Errorf("%+v: %v %v", c.group, got, ok)
		}
	}
}
