package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/eviction"
)

// tank is what a node has left, as a test says.
type tank struct {
	mu   sync.Mutex
	left eviction.Observations
}

func (m *tank) observe() eviction.Observations {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := eviction.Observations{}
	for s, o := range m.left {
		out[s] = o
	}
	return out
}

func (m *tank) set(s eviction.Signal, available, capacity string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == nil {
		m.left = eviction.Observations{}
	}
	m.left[s] = eviction.Observation{Available: resource.MustParse(available), Capacity: resource.MustParse(capacity)}
}

// withTank gives a kubelet thresholds and what is measured.
func withTank(m *tank, settings eviction.Settings, node bool) func(*world) {
	return func(w *world) {
		if node {
			withNode(w)
		}
		w.deps = func(d *Deps) {
			list, err := eviction.Parse(settings)
			if err != nil {
				w.t.Fatal(err)
			}
			d.Eviction = eviction.Config{Thresholds: list, Transition: 5 * time.Minute, MaxPodGrace: 20}
			d.Observe, d.NoNode = m.observe, !node
		}
	}
}

var oneGi = eviction.Settings{Hard: map[string]string{"memory.available": "1Gi"}}

func TestMemoryPressure(t *testing.T) {
	m := &tank{}
	m.set(eviction.MemoryAvailable, "4Gi", "8Gi")
	run(t, withTank(m, oneGi, true), func(w *world) {
		w.after(time.Second)
		high, critical := newPod("high", "a"), newPod("critical", "a")
		high.Spec.Priority, critical.Spec.Priority = new(int32), new(int32)
		*high.Spec.Priority, *critical.Spec.Priority = 1000, 2000001000
		asks := newPod("asks", "a")
		asks.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
		for _, p := range []*corev1.Pod{high, critical, asks, newPod("low", "a")} {
			w.create(p)
			w.wantPhase(p.Name, corev1.PodRunning)
		}
		m.set(eviction.MemoryAvailable, "1000Mi", "8Gi")
		w.after(11 * time.Second)
		low := w.pod("low")
		if low.Status.Phase != corev1.PodFailed || low.Status.Reason != "Evicted" ||
			low.Status.Message != "The node was low on resource: memory. Threshold quantity: 1Gi, available: 1000Mi. Container a was using 1Mi, request is 0, has larger consumption of memory. " {
			t.Errorf("status: %+v", low.Status)
		}
		if got := condIs(low, corev1.DisruptionTarget); got != "True TerminationByKubelet "+strings.TrimSpace(low.Status.Message) {
			t.Errorf("DisruptionTarget: %s", got)
		}
		if n := len(w.rt.Containers("a")); n < 3 {
			t.Errorf("%d containers are left", n)
		}
		w.wantEvent("EvictionThresholdMet: Attempting to reclaim memory")
		w.wantEvent("Evicted: The node was low on resource: memory. ")
		w.wantEvent("Evicted: offending_containers=a")
		if c := nodeCondition(w.node().Status.Conditions, corev1.NodeMemoryPressure); c.Status != corev1.ConditionTrue || c.Reason != "KubeletHasInsufficientMemory" {
			t.Errorf("condition: %+v", c)
		}
		w.wantEvent("NodeHasInsufficientMemory: Node node-1 status is now: NodeHasInsufficientMemory")

		// Another round takes the next one, and the critical pod stays in any case.
		w.after(time.Minute)
		for name, want := range map[string]corev1.PodPhase{"high": corev1.PodFailed, "asks": corev1.PodFailed, "critical": corev1.PodRunning} {
			w.wantPhase(name, want)
		}

		// Who asks for nothing is not let in; others are.
		w.create(newPod("besteffort", "a"))
		p := w.pod("besteffort")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" || p.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
			t.Errorf("status: %+v", p.Status)
		}

		m.set(eviction.MemoryAvailable, "4Gi", "8Gi")
		w.after(4 * time.Minute)
		if c := nodeCondition(w.node().Status.Conditions, corev1.NodeMemoryPressure); c.Status != corev1.ConditionTrue {
			t.Errorf("condition before the transition period is over: %+v", c)
		}
		w.after(2 * time.Minute)
		if c := nodeCondition(w.node().Status.Conditions, corev1.NodeMemoryPressure); c.Status != corev1.ConditionFalse {
			t.Errorf("condition after it: %+v", c)
		}
		w.create(newPod("later", "a"))
		w.wantPhase("later", corev1.PodRunning)
	})
}

// Nothing that runs is said to have failed, and the grace period is the soft one's.
func TestSoftEviction(t *testing.T) {
	m := &tank{}
	m.set(eviction.MemoryAvailable, "4Gi", "8Gi")
	soft := eviction.Settings{Hard: map[string]string{}, Soft: map[string]string{"memory.available": "1Gi"}, SoftGrace: map[string]string{"memory.available": "1m"}}
	run(t, func(w *world) {
		withTank(m, soft, false)(w)
		w.rt.IgnoreTerm["a"] = true
	}, func(w *world) {
		w.create(newPod("web", "a"))
		m.set(eviction.MemoryAvailable, "1000Mi", "8Gi")
		w.after(50 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
		w.after(25 * time.Second)
		p := w.pod("web")
		if p.Status.Phase != corev1.PodRunning || !strings.HasPrefix(condIs(p, corev1.DisruptionTarget), "True TerminationByKubelet") {
			t.Errorf("on its way: %s, %s", p.Status.Phase, condIs(p, corev1.DisruptionTarget))
		}
		w.after(20 * time.Second) // MaxPodGrace
		w.wantPhase("web", corev1.PodFailed)
	})
}

// Limits of the pod itself need no pressure, and no condition is set.
func TestLocalStorage(t *testing.T) {
	m := &tank{}
	run(t, withTank(m, eviction.Settings{Hard: map[string]string{}}, false), func(w *world) {
		dir := t.TempDir()
		w.volumes.local = map[string]string{"scratch": dir}
		size := resource.MustParse("1Mi")
		p := newPod("web", "a")
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}}}
		w.create(p)
		w.after(30 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
		if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		w.after(2 * time.Minute)
		got := w.pod("web")
		if got.Status.Phase != corev1.PodFailed || got.Status.Reason != "Evicted" || got.Status.Message != `Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". ` {
			t.Errorf("status: %+v", got.Status)
		}
		if c := condIs(got, corev1.DisruptionTarget); c != "missing" {
			t.Errorf("DisruptionTarget: %s", c)
		}
	})
}

// freeing is an image service of which every removal frees room.
type freeing struct {
	Images
	then func()
}

func (f *freeing) RemoveImage(ctx context.Context, i *runtimeapi.ImageSpec) error {
	err := f.Images.RemoveImage(ctx, i)
	f.then()
	return err
}

// images are the names of the images there are.
func (w *world) images() []string {
	list, err := w.rt.ListImages(context.Background(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, i := range list {
		out = append(out, i.RepoTags...)
	}
	slices.Sort(out)
	return out
}

// Before a pod goes for the disk, images that nothing uses go.
func TestImagesGoFirst(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "50Gi", "100Gi")
	images := &freeing{then: func() { m.set(eviction.ImageFsAvailable, "20Gi", "100Gi") }}
	run(t, func(w *world) {
		withTank(m, eviction.Settings{Hard: map[string]string{"imagefs.available": "10%"}}, false)(w)
		w.rt.AddImage("unused")
		deps := w.deps
		w.deps = func(d *Deps) {
			deps(d)
			d.Images = images
			images.Images = w.rt
		}
	}, func(w *world) {
		w.create(newPod("web", "a"))
		m.set(eviction.ImageFsAvailable, "5Gi", "100Gi")
		w.after(11 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
		w.wantEvent("EvictionThresholdMet: Attempting to reclaim ephemeral-storage")
		if left := w.images(); !slices.Equal(left, []string{"nginx"}) {
			t.Errorf("images left: %v", left)
		}
		// Nothing is left to free.
		m.set(eviction.ImageFsAvailable, "5Gi", "100Gi")
		w.after(11 * time.Second)
		w.wantPhase("web", corev1.PodFailed)
	})
}

// After the images, and before a pod, as much of the build cache goes as must.
func TestCacheGoesBeforePods(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "50Gi", "100Gi")
	left, frees := int64(3), 0 // steps of the cache
	run(t, func(w *world) {
		withTank(m, eviction.Settings{Hard: map[string]string{"imagefs.available": "10%"}}, false)(w)
		deps := w.deps
		w.deps = func(d *Deps) {
			deps(d)
			d.FreeCache = func(_ context.Context, bytes int64) (int64, error) {
				if frees++; left == 0 {
					return 0, nil
				}
				if left--; left == 1 {
					m.set(eviction.ImageFsAvailable, "20Gi", "100Gi")
				}
				return bytes, nil
			}
		}
	}, func(w *world) {
		w.create(newPod("web", "a"))
		m.set(eviction.ImageFsAvailable, "5Gi", "100Gi")
		w.after(11 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
		if frees != 2 {
			t.Errorf("the cache was freed %d times", frees)
		}
		// With nothing left of it the pod goes.
		m.set(eviction.ImageFsAvailable, "5Gi", "100Gi")
		w.after(11 * time.Second)
		w.wantPhase("web", corev1.PodFailed)
		if left != 0 {
			t.Errorf("%d steps of the cache are left", left)
		}
	})
}
