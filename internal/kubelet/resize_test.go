package kubelet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// asks reads "100m/200m 10Mi/20Mi": requests and limits of CPU and memory, "-" for
// none.
func asks(s string) corev1.ResourceRequirements {
	var r corev1.ResourceRequirements
	put := func(l *corev1.ResourceList, n corev1.ResourceName, v string) {
		if v == "" || v == "-" {
			return
		}
		if *l == nil {
			*l = corev1.ResourceList{}
		}
		(*l)[n] = resource.MustParse(v)
	}
	for i, f := range strings.Fields(s) {
		n := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}[i]
		request, limit, _ := strings.Cut(f, "/")
		put(&r.Requests, n, request)
		put(&r.Limits, n, limit)
	}
	return r
}

func sized(name, resources string) *corev1.Pod {
	p := newPod(name, "a")
	p.Spec.Containers[0].Resources = asks(resources)
	return p
}

// resizeTo changes what a pod asks for, as the door "resize" does.
func (w *world) resizeTo(name, resources string) {
	p := w.pod(name).DeepCopy()
	p.Spec.Containers[0].Resources = asks(resources)
	p.Generation++
	w.create(p)
}

func (w *world) wantResources(name, allocated, inForce string, limits *runtimeapi.LinuxContainerResources) {
	w.t.Helper()
	s := w.pod(name).Status.ContainerStatuses[0]
	if want := asks(allocated).Requests; !equality.Semantic.DeepEqual(s.AllocatedResources, want) {
		w.t.Errorf("%s has been allocated %v, want %v", name, s.AllocatedResources, want)
	}
	if want := asks(inForce); !equality.Semantic.DeepEqual(*s.Resources, want) {
		w.t.Errorf("%s shows %+v, want %+v", name, *s.Resources, want)
	}
	if limits != nil {
		r := w.container("a").Status.Resources.Linux
		if r.CpuShares != limits.CpuShares || r.CpuQuota != limits.CpuQuota || r.MemoryLimitInBytes != limits.MemoryLimitInBytes {
			w.t.Errorf("the runtime has %v, want %v", r, limits)
		}
	}
}

func TestResize(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(sized("web", "100m/200m 10Mi/20Mi"))
		w.resizeTo("web", "300m/400m 20Mi/40Mi")
		w.wantResources("web", "300m 20Mi", "300m/400m 20Mi/40Mi", &runtimeapi.LinuxContainerResources{CpuShares: 307, CpuQuota: 40000, MemoryLimitInBytes: 40 << 20})
		w.wantEvent(`ResizeStarted: Pod resize started: {"containers":[{"name":"a","resources":{"limits":{"cpu":"400m","memory":"40Mi"},"requests":{"cpu":"300m","memory":"20Mi"}}}],"generation":2}`)
		w.wantEvent(`ResizeCompleted: Pod resize completed: `)
		p := w.pod("web")
		if condIs(p, corev1.PodResizeInProgress) != "missing" || p.Status.ObservedGeneration != 2 || p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("status: %+v", p.Status)
		}
		// What the kernel cannot tell apart is a resize all the same.
		w.resizeTo("web", "2m/10m 20Mi/40Mi")
		w.resizeTo("web", "1m/5m 20Mi/40Mi")
		w.wantResources("web", "1m 20Mi", "1m/5m 20Mi/40Mi", &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuQuota: 1000, MemoryLimitInBytes: 40 << 20})
	})
}

func TestResizeByRestart(t *testing.T) {
	run(t, nil, func(w *world) {
		p := sized("web", "100m 10Mi/20Mi")
		p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
		w.create(p)
		w.resizeTo("web", "200m 10Mi/20Mi")
		if n := len(w.rt.Containers("a")); n != 1 {
			t.Errorf("%d containers after a resize of what wants no restart", n)
		}
		w.resizeTo("web", "200m 15Mi/20Mi")
		w.after(time.Minute)
		w.wantEvent("Killing: Container a resize requires restart")
		w.wantResources("web", "200m 15Mi", "200m 15Mi/20Mi", nil)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("status: %+v", s)
		}
	})
}

// A resize that the node has no room for waits until it has, over a restart too.
func TestResizeWaitsForRoom(t *testing.T) {
	setup := func(w *world) {
		w.deps = func(d *Deps) { d.NoNode = false }
		w.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: leaseNamespace}})
	}
	run(t, setup, func(w *world) {
		w.after(time.Second)
		capacity := w.node().Status.Allocatable.Cpu().MilliValue()
		of := func(milli int64) string { return fmt.Sprintf("%dm", milli) }
		w.create(sized("other", of(capacity/2)))
		w.create(sized("web", of(100)))
		w.resizeTo("web", of(capacity))
		pending := func() {
			t.Helper()
			w.wantResources("web", of(100), of(100), nil)
			want := fmt.Sprintf("True Deferred Node didn't have enough resource: cpu, requested: %d, used: %d, capacity: %d", capacity, capacity/2, capacity)
			if got := condIs(w.pod("web"), corev1.PodResizePending); got != want {
				t.Errorf("condition: %s, want %s", got, want)
			}
		}
		pending()
		w.wantEvent("ResizeDeferred: Pod resize Deferred: ")
		w.kill()
		w.start()
		w.after(2 * time.Second)
		pending()
		w.delete("other", 0)
		w.after(5 * time.Second)
		w.wantResources("web", of(capacity), of(capacity), nil)
		if got := condIs(w.pod("web"), corev1.PodResizePending); got != "missing" {
			t.Errorf("condition: %s", got)
		}
	})
}

// Memory that is in use is not taken away; what fails is told, and tried again.
func TestResizeFails(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(sized("web", "- 1Mi/20Mi"))
		w.resizeTo("web", "- 1Ki/2Ki")
		want := `True Error attempting to set container "a" memory limit (2048) below current usage (1048576)`
		if got := condIs(w.pod("web"), corev1.PodResizeInProgress); got != want {
			t.Errorf("condition: %s, want %s", got, want)
		}
		w.wantEvent("ResizeError: Pod resize error: ")
		w.wantResources("web", "- 1Ki", "- 1Ki/20Mi", nil)
		w.resizeTo("web", "- 1Ki/10Mi")
		w.wantResources("web", "- 1Ki", "- 1Ki/10Mi", nil)
		if got := condIs(w.pod("web"), corev1.PodResizeInProgress); got != "missing" {
			t.Errorf("condition: %s", got)
		}
	})
}

func TestLooser(t *testing.T) {
	p := newPod("web", "a", "b")
	p.Spec.Containers[0].Resources = asks("100m/200m 1Mi/2Mi")
	p.Spec.Containers[1].Resources = asks("-/100m -/10Mi")
	o := the(p, "ready: a=running b=running")
	o.containers[0].resources = &runtimeapi.LinuxContainerResources{CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 1 << 20}
	o.containers[1].resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 20}
	got := looser(p, o)
	for i, want := range []string{"100m/500m 1Mi/2Mi", "-/- -/10Mi"} {
		if r := got.Spec.Containers[i].Resources; !equality.Semantic.DeepEqual(r, asks(want)) {
			t.Errorf("container %d: %+v, want %s", i, r, want)
		}
	}
	if l := p.Spec.Containers[0].Resources.Limits.Cpu().String(); l != "200m" {
		t.Errorf("the pod itself has changed: %s", l)
	}
}
