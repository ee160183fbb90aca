package kubelet

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/kubelet/eviction"
)

func amounts(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func TestReservedCheck(t *testing.T) {
	capacity := amounts("cpu", "2", "memory", "4Gi", "ephemeral-storage", "10Gi")
	for _, c := range []struct {
		r          Reserved
		thresholds corev1.ResourceList
		want       string
	}{
		{Reserved{}, nil, ""},
		{Reserved{System: amounts("cpu", "1", "memory", "1Gi"), Kube: amounts("cpu", "1", "memory", "3Gi", "pid", "100")}, nil, ""},
		{Reserved{System: amounts("cpu", "1"), Kube: amounts("cpu", "1500m")}, nil,
			`invalid Node Allocatable configuration. Resource "cpu" has a reservation of 2500m but capacity of 2. Expected capacity >= reservation.`},
		{Reserved{System: amounts("memory", "4Gi", "ephemeral-storage", "11Gi")}, amounts("memory", "100Mi"),
			`invalid Node Allocatable configuration. Resource "memory" has a reservation of 4196Mi but capacity of 4Gi. Expected capacity >= reservation.` +
				` Resource "ephemeral-storage" has a reservation of 11Gi but capacity of 10Gi. Expected capacity >= reservation.`},
	} {
		got := ""
		if err := c.r.check(capacity, c.thresholds); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.r, got, c.want)
		}
	}
}

// What is reserved is neither allocatable nor what all pods together may have; that
// is set as soon as they have no more.
func TestReserved(t *testing.T) {
	groups := &cgroups{}
	groups.memory.Store(1 << 60)
	run(t, func(w *world) {
		w.deps = func(d *Deps) {
			d.NoNode, d.Cgroups = false, groups
			d.Reserved = Reserved{System: amounts("cpu", "100m", "memory", "64Mi"), Kube: amounts("memory", "64Mi", "ephemeral-storage", "1Mi", "pid", "1000")}
			d.Eviction.Thresholds = []eviction.Threshold{{Signal: eviction.MemoryAvailable, Value: eviction.Value{Quantity: new(resource.MustParse("32Mi"))}}}
		}
	}, func(w *world) {
		s := w.node().Status
		less := func(name corev1.ResourceName, want string) {
			t.Helper()
			q := s.Capacity[name].DeepCopy()
			q.Sub(s.Allocatable[name])
			if w := resource.MustParse(want); q.Cmp(w) != 0 {
				t.Errorf("of %s %s are kept, want %s", name, q.String(), want)
			}
		}
		less(corev1.ResourceCPU, "100m")
		less(corev1.ResourceMemory, "160Mi")
		less(corev1.ResourceEphemeralStorage, "1Mi")
		w.wantEvent(`FailedNodeAllocatableEnforcement: Failed to update Node Allocatable Limits "kubepods": device or resource busy`)
		groups.memory.Store(0)
		w.after(enforcePeriod + time.Second)
		w.wantEvent("NodeAllocatableEnforced: Updated Node Allocatable limit across pods")
		l := groups.all.Load()
		memory := s.Capacity.Memory().Value() - 128<<20
		if _, most, ok := processes(); !ok || l.Memory != memory || l.Shares != shares(s.Allocatable.Cpu().MilliValue()) || l.PIDs != most-1000 || l.Quota != 0 {
			t.Errorf("limits of all pods: %+v", l)
		}
	})
}

// Pods that together have nearly what they may are a shortage of memory, whatever
// else the machine has.
func TestPodsShortOfMemory(t *testing.T) {
	groups := &cgroups{}
	run(t, func(w *world) {
		w.deps = func(d *Deps) {
			d.NoNode, d.Cgroups = false, groups
			d.Reserved = Reserved{System: amounts("memory", "64Mi")}
			thresholds, err := eviction.Parse(eviction.Settings{Hard: map[string]string{"memory.available": "16Mi"}})
			if err != nil {
				t.Fatal(err)
			}
			d.Eviction = eviction.Config{Thresholds: thresholds, Transition: 5 * time.Minute}
		}
	}, func(w *world) {
		groups.memory.Store(w.node().Status.Capacity.Memory().Value() - 70<<20)
		w.after(2 * pressurePeriod)
		if c := nodeCondition(w.node().Status.Conditions, corev1.NodeMemoryPressure); c == nil || c.Status != corev1.ConditionTrue {
			t.Errorf("condition: %+v", c)
		}
		w.wantEvent("EvictionThresholdMet: Attempting to reclaim memory")
	})
}

// Where all is reserved, what all pods together may have is as little as can be said, not
// without a limit.
func TestAllReserved(t *testing.T) {
	run(t, nil, func(w *world) {
		w.k.d.Reserved = Reserved{System: amounts("memory", "1Ei", "pid", "1Ei")}
		if l := w.k.podsLimits(); l.Memory != 1 || l.PIDs != 1 {
			t.Errorf("%+v", l)
		}
	})
}

func TestReservedTooMuch(t *testing.T) {
	run(t, nil, func(w *world) {
		d := w.k.d
		d.Reserved = Reserved{System: amounts("memory", "1Ei")}
		if _, err := New(d); err == nil || !strings.Contains(err.Error(), `kubelet: invalid Node Allocatable configuration. Resource "memory" has a reservation of 1Ei`) {
			t.Errorf("%v", err)
		}
	})
}
