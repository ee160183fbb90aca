package scheduler

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

func testQueue() (*queue, *framework.Classes) {
	qu := newQueue()
	qu.profile(plugins.ProfileOf(corev1.DefaultSchedulerName, plugins.All()))
	return qu, framework.NewClasses()
}

func names(qs []*queued) string {
	var out []string
	for _, q := range qs {
		out = append(out, q.pod.Name)
	}
	return strings.Join(out, " ")
}

func TestQueueOrder(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	for i, p := range []*corev1.Pod{withPriority(pod("low"), 1), withPriority(pod("first"), 5), withPriority(pod("second"), 5), withPriority(pod("high"), 9)} {
		qu.set(classes.Pod(p), now.Add(time.Duration(i/3)*time.Second))
	}
	// A change keeps a pod's turn, a new priority changes it.
	qu.set(classes.Pod(withPriority(pod("first"), 5)), now.Add(time.Minute))
	if got := names(qu.take(3)); got != "high first second" {
		t.Errorf("took %q", got)
	}
	if got := names(qu.take(3)); got != "low" {
		t.Errorf("then took %q", got)
	}
	if got := qu.take(3); got != nil {
		t.Errorf("then took %q", names(got))
	}
}

func TestQueueBackoff(t *testing.T) {
	want := []time.Duration{1, 2, 4, 8, 10, 10}
	for i, w := range want {
		if got := newQueue().backoffOf(i + 1); got != w*time.Second {
			t.Errorf("after %d tries %v, want %v", i+1, got, w*time.Second)
		}
	}
	if got := newQueue().backoffOf(1 << 30); got != lastBackoff {
		t.Errorf("after very many tries %v", got)
	}
}

func TestQueueHints(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	big, small := classes.Pod(pod("big", "cpu", "8")), classes.Pod(pod("small", "cpu", "1"))
	qu.set(big, now)
	qu.set(small, now)
	for _, q := range qu.take(9) {
		qu.failed(q, []string{"NodeResourcesFit"}, now)
	}
	qu.happened(framework.Event{Kind: framework.NodeLabels, Node: node("a"), OldNode: node("a")}, now)
	if got := qu.take(9); got != nil {
		t.Fatalf("a new label woke %q", names(got))
	}
	qu.happened(framework.Event{Kind: framework.NodeAdded, Node: node("a")}, now)
	got := qu.take(9)
	if names(got) != "small" || !got[0].early {
		t.Fatalf("a node of 4 cpu woke %q (early %t), want small, ahead of its back-off", names(got), len(got) > 0 && got[0].early)
	}
	qu.failed(got[0], []string{"NodeResourcesFit"}, now)
	if at := qu.pods[small.UID].until; at != now.Add(2*time.Second) {
		t.Errorf("back-off ends at %v, want 2 s from now", at)
	}

	// Nothing happens: five minutes later both are tried.
	for _, after := range []time.Duration{0, leftoverEvery, flushAfter - time.Second} {
		qu.flush(now.Add(after))
		if got := qu.take(9); got != nil {
			t.Fatalf("after %v took %q", after, names(got))
		}
	}
	if next := qu.next(); next.IsZero() || next.After(now.Add(flushAfter+leftoverEvery)) {
		t.Errorf("next look at %v", next)
	}
	qu.flush(now.Add(flushAfter + leftoverEvery))
	if got := names(qu.take(9)); got != "big small" {
		t.Errorf("after five minutes took %q", got)
	}
}

func TestQueueErrorsWait(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	qu.set(classes.Pod(pod("p")), now)
	qu.errored(qu.take(1)[0], now)
	if got := qu.take(1); got != nil {
		t.Fatal("tried again at once after an error")
	}
	if next := qu.next(); !next.Equal(now.Add(time.Second)) {
		t.Errorf("next %v, want in 1 s", next)
	}
	qu.flush(now.Add(time.Second))
	if got := names(qu.take(1)); got != "p" {
		t.Errorf("took %q", got)
	}
}

func TestQueueGates(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	closed := pod("p")
	closed.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}}
	if st := qu.set(classes.Pod(closed), now); !st.Refused() || qu.take(1) != nil {
		t.Fatal("a gated pod is queued")
	}
	if st := qu.set(classes.Pod(pod("p")), now); st != nil || names(qu.take(1)) != "p" {
		t.Fatal("a pod whose gates are gone is not queued")
	}
}

func TestQueueTolerationAdded(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	qu.set(classes.Pod(pod("p")), now)
	qu.failed(qu.take(1)[0], []string{"TaintToleration"}, now)
	labelled := pod("p")
	labelled.Labels = map[string]string{"a": "b"}
	qu.set(classes.Pod(labelled), now)
	if qu.take(1) != nil {
		t.Fatal("a label woke a pod that a taint refused")
	}
	tolerant := pod("p")
	tolerant.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	qu.set(classes.Pod(tolerant), now)
	got := qu.take(1)
	if len(got) != 1 || len(got[0].pod.Spec.Tolerations) != 1 {
		t.Fatal("a toleration does not wake a pod that a taint refused")
	}
	qu.remove(got[0].pod.UID)
	if len(qu.pods)+len(qu.waiting)+len(qu.active)+len(qu.backoff) != 0 {
		t.Errorf("a removed pod left something: %+v", qu)
	}
}
