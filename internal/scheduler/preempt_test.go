package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

func withPriority(p *corev1.Pod, priority int32) *corev1.Pod {
	p.Spec.Priority = &priority
	return p
}

func on(p *corev1.Pod, node string) *corev1.Pod {
	p.Spec.NodeName = node
	return p
}

func (r *running) end(name string) {
	r.t.Helper()
	zero := int64(0)
	if err := client.For[*corev1.Pod](r.api.Client()).In("default").Delete(r.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		r.t.Fatal(err)
	}
}

func TestPreemption(t *testing.T) {
	r := run(t, clienttest.New(node("a"),
		on(withPriority(pod("least", "cpu", "2"), 1), "a"),
		on(withPriority(pod("more", "cpu", "2"), 5), "a"),
	))
	r.api.Put(withPriority(pod("high", "cpu", "2"), 100))
	r.until("the least important pod is asked to end", func() bool {
		p := r.get("least")
		return p.DeletionTimestamp != nil && len(p.Status.Conditions) == 1 &&
			p.Status.Conditions[0].Type == corev1.DisruptionTarget && p.Status.Conditions[0].Reason == "PreemptionByScheduler" &&
			p.Status.Conditions[0].Message == "default-scheduler: preempting to accommodate a higher priority pod"
	})
	r.until("high is nominated", func() bool { return r.get("high").Status.NominatedNodeName == "a" })
	want := "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: found a potential placement for pod on node a, preempting 1 victims"
	if got := r.message("high"); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	r.until("the event", func() bool {
		return r.events.has(recorded{"least", "Normal", "Preempted", "Preempting", "Preempted by pod pod-high on node a"})
	})

	// A pod of low priority does not take the place that is being made.
	r.api.Put(withPriority(pod("thief", "cpu", "2"), 2))
	r.until("thief waits", func() bool { return r.message("thief") != "" })
	r.end("least")
	r.until("high is bound", func() bool { return r.node("high") == "a" })
	if n := r.node("thief"); n != "" {
		t.Errorf("thief is on %q", n)
	}
	if r.get("more").DeletionTimestamp != nil {
		t.Errorf("more was evicted though one victim was enough")
	}
}

func TestPreemptionNever(t *testing.T) {
	r := run(t, clienttest.New(node("a"), on(pod("low", "cpu", "4"), "a")))
	p := withPriority(pod("meek", "cpu", "1"), 100)
	never := corev1.PreemptNever
	p.Spec.PreemptionPolicy = &never
	r.api.Put(p)
	want := "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
	r.until("it says so", func() bool { return r.message("meek") == want })
	if r.get("low").DeletionTimestamp != nil {
		t.Fatal("low was evicted")
	}
}

// A victim that cannot be evicted is not waited for in vain: the preemptor tries
// again.
func TestPreemptionFails(t *testing.T) {
	api := clienttest.New(node("a"), on(pod("low", "cpu", "4"), "a"))
	var mu sync.Mutex
	failures := 1
	api.Intercept = func(verb string, ref client.Ref, _ client.Object) error {
		mu.Lock()
		defer mu.Unlock()
		if verb == "delete" && ref.Name == "low" && failures > 0 {
			failures--
			return apierrors.NewInternalError(fmt.Errorf("disk full"))
		}
		return nil
	}
	r := run(t, api)
	api.Put(withPriority(pod("high", "cpu", "1"), 100))
	r.until("low is asked to end", func() bool { return r.get("low").DeletionTimestamp != nil })
	r.end("low")
	r.until("high is bound", func() bool { return r.node("high") == "a" })
}

// When a pod that a place was kept for goes away, those that it kept out are tried.
func TestNominatedPodGoes(t *testing.T) {
	r := run(t, clienttest.New(node("a"), on(withPriority(pod("low", "cpu", "4"), 1), "a")))
	r.api.Put(withPriority(pod("high", "cpu", "4"), 100))
	r.until("high is nominated", func() bool { return r.get("high").Status.NominatedNodeName == "a" })
	r.api.Put(withPriority(pod("middle", "cpu", "4"), 50))
	r.until("middle waits", func() bool { return r.message("middle") != "" })
	// low ends; before high is bound, high goes. Whichever comes first, middle runs.
	r.end("high")
	r.end("low")
	r.until("middle is bound", func() bool { return r.node("middle") == "a" })
}

// Pods are evicted for a pod that must be apart from them, or that would be uneven
// beside them; the pod that waits for that is respected by those after it.
func TestPreemptsByTopology(t *testing.T) {
	web := map[string]string{"app": "web"}
	selector := &metav1.LabelSelector{MatchLabels: web}
	apart := &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
		{TopologyKey: "zone", LabelSelector: selector},
	}}}
	for name, change := range map[string]func(*corev1.Pod){
		"apart": func(p *corev1.Pod) { p.Spec.Affinity = apart },
		"even": func(p *corev1.Pod) {
			p.Labels = web
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{
				{TopologyKey: "zone", MaxSkew: 1, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector},
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), 1)
			for _, zone := range []string{"a", "b"} {
				n := node(zone)
				n.Labels["zone"] = zone
				// Of b the pods count, and none can go there.
				n.Spec.Unschedulable = zone == "b"
				s.SetNode(n)
			}
			low := on(pod("low"), "a")
			low.Labels = web
			s.SetPod(classes.Pod(low), "a")
			p := withPriority(pod("high"), 10)
			change(p)
			d := c.Schedule(s, []*framework.Pod{classes.Pod(p)})[0]
			if d.Failure == nil || d.Failure.Nominated != "a" || len(d.Failure.Victims) != 1 || d.Failure.Victims[0].Name != "low" {
				t.Fatalf("decision %+v, want low evicted from a", d.Failure)
			}
			if name != "apart" {
				return
			}
			s.RemovePod(low.UID)
			late := pod("late")
			late.Labels = web
			if d := c.Schedule(s, []*framework.Pod{classes.Pod(late)})[0]; d.Node != "" {
				t.Errorf("late is on %s, where a pod waits that must be apart from it", d.Node)
			}
		})
	}
}

func budget(name string, allowed int32, app string) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: allowed},
	}
}

func labeled(p *corev1.Pod, app string) *corev1.Pod {
	p.Labels = map[string]string{"app": app}
	return p
}

// Budgets are respected as far as that leaves a way.
func TestPreemptionBudgets(t *testing.T) {
	for _, tt := range []struct {
		name    string
		objects []client.Object
		victims string
	}{
		{"one that no budget guards is more important, and goes", []client.Object{
			budget("b", 0, "guarded"), on(labeled(withPriority(pod("low", "cpu", "2"), 1), "guarded"), "a"), on(withPriority(pod("mid", "cpu", "2"), 5), "a"),
		}, "mid"},
		{"another node has none that is guarded", []client.Object{
			node("b"), budget("b", 0, "guarded"),
			on(labeled(withPriority(pod("low", "cpu", "4"), 1), "guarded"), "a"), on(withPriority(pod("mid", "cpu", "4"), 5), "b"),
		}, "mid"},
		{"the budget allows one", []client.Object{
			budget("b", 1, "guarded"), on(labeled(withPriority(pod("low", "cpu", "2"), 1), "guarded"), "a"), on(withPriority(pod("mid", "cpu", "2"), 5), "a"),
		}, "low"},
		{"no other way", []client.Object{
			budget("b", 0, "guarded"), on(labeled(withPriority(pod("low", "cpu", "4"), 1), "guarded"), "a"),
		}, "low"},
		{"of two alike the one that runs for less long", []client.Object{
			on(since(withPriority(pod("young", "cpu", "2"), 1), 200), "a"), on(since(withPriority(pod("old", "cpu", "2"), 1), 100), "a"),
		}, "young"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := clienttest.New(node("a"))
			put(api, tt.objects...)
			r := run(t, api)
			api.Put(withPriority(pod("high", "cpu", "2"), 100))
			r.until("high is nominated", func() bool { return r.get("high").Status.NominatedNodeName != "" })
			r.until("a victim is told", func() bool { return len(r.ending()) > 0 })
			if got := strings.Join(r.ending(), " "); got != tt.victims {
				t.Errorf("%s end, want %s", got, tt.victims)
			}
		})
	}
}

func since(p *corev1.Pod, at int64) *corev1.Pod {
	p.Status.StartTime = &metav1.Time{Time: time.Unix(at, 0)}
	return p
}

func (r *running) ending() (names []string) {
	for _, p := range r.pods.List("default", nil) {
		if p.DeletionTimestamp != nil {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// A nomination of lower priority gives way: in what is kept and in the API.
func TestNominationGivesWay(t *testing.T) {
	r := run(t, clienttest.New(node("a"), on(withPriority(pod("low", "cpu", "4"), 1), "a")))
	r.api.Put(withPriority(pod("mid", "cpu", "4"), 10))
	r.until("mid is nominated", func() bool { return r.get("mid").Status.NominatedNodeName == "a" })
	r.api.Put(withPriority(pod("high", "cpu", "4"), 20))
	r.until("high is nominated", func() bool { return r.get("high").Status.NominatedNodeName == "a" })
	r.until("mid is not any more", func() bool { return r.get("mid").Status.NominatedNodeName == "" })
	r.end("low")
	r.until("high runs", func() bool { return r.node("high") == "a" })
	r.until("mid has nobody to preempt", func() bool {
		return r.message("mid") == "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
	})
}

// What is found for one pod serves the next of its class, and what changes is found
// anew: every decision is the one that a cycle without memory takes.
func TestPreemptionMemory(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		s, classes := framework.NewSnapshot(), framework.NewClasses()
		for i := range 12 {
			s.SetNode(node(fmt.Sprintf("n%d", i), "cpu", fmt.Sprint(2+r.IntN(6)), "memory", "64Gi", "pods", "110"))
		}
		made := 0
		next := func(priority int32, cpu int) *framework.Pod {
			made++
			return classes.Pod(withPriority(pod(fmt.Sprintf("p%d", made), "cpu", fmt.Sprint(cpu)), priority))
		}
		for range 60 {
			if p := next(int32(r.IntN(3)), 1); r.IntN(4) > 0 {
				s.SetPod(p, fmt.Sprintf("n%d", r.IntN(12)))
			}
		}
		c := NewCycle(plugins.All(), seed)
		for step := range 40 {
			p := next(int32(5+r.IntN(2)), 1+r.IntN(2))
			fresh := s.Fork()
			want := NewCycle(plugins.All(), seed).Schedule(fresh, []*framework.Pod{p})[0]
			got := c.Schedule(s, []*framework.Pod{p})[0]
			switch {
			case got.Failure == nil != (want.Failure == nil):
				t.Fatalf("seed %d step %d: %+v, want %+v", seed, step, got.Failure, want.Failure)
			case got.Failure == nil:
			case got.Failure.Message != want.Failure.Message || !slices.Equal(got.Failure.Victims, want.Failure.Victims):
				t.Fatalf("seed %d step %d: %s %v, want %s %v", seed, step, got.Failure.Message, got.Failure.Victims, want.Failure.Message, want.Failure.Victims)
			}
			if got.Failure != nil && r.IntN(2) == 0 {
				for _, v := range got.Failure.Victims {
					s.RemovePod(v.UID)
				}
			}
		}
	}
}

// Where it costs the same to make room on several nodes, the pods that do so spread over
// them as they would if there were room.
func TestPreemptionSpreads(t *testing.T) {
	s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), 1)
	var high []*framework.Pod
	for i := range 5 {
		name := fmt.Sprintf("n%d", i)
		s.SetNode(node(name, "cpu", "4", "memory", "32Gi", "pods", "110"))
		for j := range 4 {
			s.SetPod(classes.Pod(withPriority(pod(fmt.Sprintf("low-%d-%d", i, j), "cpu", "1", "memory", "1Gi"), 1)), name)
		}
		high = append(high, classes.Pod(withPriority(pod(fmt.Sprintf("high-%d", i), "cpu", "1", "memory", "4Gi"), 10)))
	}
	on := map[string]int{}
	for _, d := range c.Schedule(s, high) {
		if d.Failure == nil || len(d.Failure.Victims) != 1 {
			t.Fatalf("%s: %+v", d.Pod.Name, d.Failure)
		}
		on[d.Failure.Nominated]++
	}
	if len(on) != 5 {
		t.Errorf("pods make room on %v, want one on each node", on)
	}
}
