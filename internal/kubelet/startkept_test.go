package kubelet

import (
	"context"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/cri"
)

// TestKeepFiles: whose files a container begins with.
func TestKeepFiles(t *testing.T) {
	ours := map[string]string{runpod.LabelName: "web"}
	replaces := map[string]string{runpod.AnnotationRootfs: "old"}
	no := false
	keep, from := map[string]string{cri.AnnotationKeep: "true"}, func(id string) map[string]string {
		return map[string]string{cri.AnnotationKeep: "true", cri.AnnotationRootfs: id}
	}
	// The newest is first.
	restarted := []container{
		{id: "b1", name: "b", state: runtimeapi.ContainerState_CONTAINER_EXITED, restarts: 5},
		{id: "a2", name: "a", state: runtimeapi.ContainerState_CONTAINER_EXITED, restarts: 2},
		{id: "a1", name: "a", state: runtimeapi.ContainerState_CONTAINER_EXITED, restarts: 1},
	}
	unstarted := append([]container{{id: "a3", name: "a", state: runtimeapi.ContainerState_CONTAINER_CREATED, restarts: 3}}, restarted...)
	for _, tc := range []struct {
		name                string
		labels, annotations map[string]string
		runtime             string
		has                 []container
		change              func(*corev1.Pod, *start)
		want                map[string]string
	}{
		{"an ordinary pod", nil, replaces, ownRuntime, restarted, nil, nil},
		{"the first", ours, nil, ownRuntime, nil, nil, keep},
		{"a restart", ours, nil, ownRuntime, restarted, nil, from("a2")},
		{"a restart of one that was not started", ours, nil, ownRuntime, unstarted, nil, from("a3")},
		{"the first of a pod that replaces another", ours, replaces, ownRuntime, nil, nil, from("old")},
		{"a restart of a pod that replaces another", ours, replaces, ownRuntime, restarted, nil, from("a2")},
		{"the second container of a pod that replaces another", ours, replaces, ownRuntime, nil, func(p *corev1.Pod, s *start) { s.container = &p.Spec.Containers[1] }, keep},
		{"one that is removed at its end", map[string]string{runpod.LabelName: "web", runpod.LabelRemove: runpod.RemoveAtEnd}, nil, ownRuntime, restarted, nil, nil},
		{"in a user namespace", ours, replaces, ownRuntime, restarted, func(p *corev1.Pod, _ *start) { p.Spec.HostUsers = &no }, nil},
		{"another runtime", ours, replaces, "containerd", restarted, nil, nil},
		{"an init container", ours, replaces, ownRuntime, restarted, func(_ *corev1.Pod, s *start) { s.init = true }, nil},
		{"an ephemeral container", ours, replaces, ownRuntime, restarted, func(_ *corev1.Pod, s *start) { s.ephemeral = &corev1.EphemeralContainer{} }, nil},
	} {
		pod := newPod("web", "a", "b")
		pod.Labels, pod.Annotations = tc.labels, tc.annotations
		s := start{container: &pod.Spec.Containers[0]}
		if tc.change != nil {
			tc.change(pod, &s)
		}
		got := map[string]string{}
		w := &worker{k: &Kubelet{runtimeName: tc.runtime}}
		w.keepFiles(pod, &observed{containers: tc.has}, s, got)
		if !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// TestKeptStays: of a pod that has ended, the container that somebody may start again is
// there even when the disk is short.
func TestKeptStays(t *testing.T) {
	for _, tc := range []struct {
		labels map[string]string
		want   int
	}{{nil, 0}, {map[string]string{runpod.LabelName: "web"}, 1}} {
		run(t, nil, func(w *world) {
			p := newPod("web", "a")
			p.Labels = tc.labels
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			w.create(p)
			w.wantPhase("web", corev1.PodRunning)
			w.exit("a", 0)
			w.wantPhase("web", corev1.PodSucceeded)
			w.k.removeDead(context.Background())
			list, err := w.rt.ListContainers(context.Background(), nil)
			if err != nil || len(list) != tc.want {
				t.Errorf("labels %v: %v, %v; want %d", slices.Collect(maps.Keys(tc.labels)), list, err, tc.want)
			}
		})
	}
}
