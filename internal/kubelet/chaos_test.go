package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var faultyOps = []string{
	"RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "PodSandboxStatus", "ListPodSandbox",
	"CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "ListContainers", "ContainerStatus", "ImageStatus", "GetContainerEvents",
}

// TestChaos lets pods come, crash and go while calls fail, answers and events are
// lost and the kubelet is killed; then all is well again, and so must the pods be:
// every one runs, once, and nothing is left of the others.
func TestChaos(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			run(t, nil, func(w *world) { chaos(w, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(w *world, r *rand.Rand) {
	boom := errors.New("boom")
	alive := map[string]bool{}
	n := 0
	pick := func() string {
		names := slices.Sorted(maps.Keys(alive))
		if len(names) == 0 {
			return ""
		}
		return names[r.IntN(len(names))]
	}
	for range 60 {
		switch r.IntN(9) {
		case 0, 1:
			n++
			name := fmt.Sprint("p", n)
			p := newPod(name, "a", "b")
			if r.IntN(2) == 0 {
				p.Spec.InitContainers = []corev1.Container{{Name: "s", Image: "busybox", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways)}}
			}
			w.create(p)
			alive[name] = true
		case 2:
			if name := pick(); name != "" {
				w.delete(name, int64(r.IntN(3)*5))
				delete(alive, name)
			}
		case 3:
			if cs := w.rt.Containers(""); len(cs) > 0 {
				w.rt.Exit(cs[r.IntN(len(cs))].Status.Id, int32(r.IntN(2)), "")
			}
		case 4:
			if ss := w.rt.Sandboxes(); len(ss) > 0 {
				w.rt.KillSandbox(ss[r.IntN(len(ss))].Status.Id)
			}
		case 5:
			w.rt.Fail(faultyOps[r.IntN(len(faultyOps))], 1+r.IntN(4), boom)
		case 6:
			w.rt.LoseAnswer(faultyOps[r.IntN(len(faultyOps))], 1+r.IntN(4), boom)
		case 7:
			w.rt.LoseEvents(r.IntN(2) == 0)
		case 8:
			w.kill()
			w.start()
		}
		w.after(time.Duration(r.IntN(4000)) * time.Millisecond)
	}
	for _, op := range faultyOps {
		w.rt.Heal(op)
	}
	w.rt.LoseEvents(false)
	w.after(15 * time.Minute)
	for name := range alive {
		p := w.pod(name)
		if p.Status.Phase != corev1.PodRunning || condIs(p, corev1.PodReady) != "True" {
			w.t.Errorf("%s: %s, Ready %s", name, p.Status.Phase, condIs(p, corev1.PodReady))
		}
	}
	running := map[string]int{}
	for _, c := range w.rt.Containers("") {
		pod := c.Config.Labels[labelPodName]
		if !alive[pod] {
			w.t.Errorf("container %s of pod %s is left", c.Config.Metadata.Name, pod)
		}
		if c.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running[pod+"/"+c.Config.Metadata.Name]++
		}
	}
	for name := range alive {
		for _, c := range []string{"a", "b"} {
			if n := running[name+"/"+c]; n != 1 {
				w.t.Errorf("%d of %s/%s run", n, name, c)
			}
		}
	}
	ready := map[string]int{}
	for _, s := range w.rt.Sandboxes() {
		if s.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			ready[s.Config.Metadata.Name]++
		}
		if !alive[s.Config.Metadata.Name] {
			w.t.Errorf("sandbox of pod %s is left", s.Config.Metadata.Name)
		}
	}
	for name, n := range ready {
		if n != 1 {
			w.t.Errorf("%d sandboxes of %s are ready", n, name)
		}
	}
	for _, wk := range w.k.allWorkers() {
		if p, _ := wk.current(); !alive[p.Name] {
			w.t.Errorf("a worker of %s is left", p.Name)
		}
	}
}
