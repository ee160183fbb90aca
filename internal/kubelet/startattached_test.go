package kubelet

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
)

// TestAwaitsClient: which starts wait for a client, and for how long.
func TestAwaitsClient(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	created := func(before time.Duration) container {
		return container{id: "c1", name: "a", state: runtimeapi.ContainerState_CONTAINER_CREATED, created: now.Add(-before)}
	}
	attached := created(time.Second)
	attached.attached = true
	restarted := created(time.Second)
	restarted.restarts = 1
	for _, tc := range []struct {
		name    string
		word    string
		runtime string
		has     []container
		until   time.Time // zero: it starts
	}{
		{"does not ask for it", "", ownRuntime, nil, time.Time{}},
		{"just made", runpod.StartAttached, ownRuntime, nil, now.Add(attachPatience)},
		{"made before", runpod.StartAttached, ownRuntime, []container{created(time.Second)}, now.Add(attachPatience - time.Second)},
		{"attached", runpod.StartAttached, ownRuntime, []container{attached}, time.Time{}},
		{"nobody came", runpod.StartAttached, ownRuntime, []container{created(attachPatience)}, time.Time{}},
		{"restarted", runpod.StartAttached, ownRuntime, []container{restarted}, time.Time{}},
		{"another runtime", runpod.StartAttached, "containerd", nil, time.Time{}},
	} {
		pod := newPod("web", "a")
		pod.Annotations = map[string]string{runpod.AnnotationStart: tc.word}
		w := &worker{k: &Kubelet{d: Deps{Now: func() time.Time { return now }}, runtimeName: tc.runtime}, waiting: map[string]waiting{}, blocked: map[string]time.Time{}}
		o := &observed{containers: tc.has}
		held := w.awaitsClient(pod, o, &corev1.Container{Name: "a"}, "c1")
		if held != !tc.until.IsZero() || !w.blocked["a"].Equal(tc.until) || held != (w.waiting["a"].reason == runpod.ReasonUnattached) {
			t.Errorf("%s: held %v until %v (%+v), want %v", tc.name, held, w.blocked["a"], w.waiting["a"], tc.until)
		}
		// What is held is due at once when a client has come.
		a := actions{start: []start{{container: &pod.Spec.Containers[0], id: "c1"}}}
		if starts, _ := w.due(&observed{containers: []container{attached}}, a, now); len(starts) != 1 {
			t.Errorf("%s: with a client it is not due", tc.name)
		}
	}
}
