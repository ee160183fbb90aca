package scheduler

import (
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
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
