package controller

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func nodeControllers(d Deps) []*control.Controller {
	return []*control.Controller{newNodeLifecycle(d), newTaintEviction(d), newPodGC(d)}
}

// heart renews a node's lease until it is stopped, and again when started.
type heart struct {
	mu      sync.Mutex
	stopped map[string]bool
}

func (h *heart) stop(names ...string)  { h.set(true, names) }
func (h *heart) start(names ...string) { h.set(false, names) }
func (h *heart) set(v bool, names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		h.stopped[n] = v
	}
}

// beatingNodes puts ready nodes with leases that are renewed every ten seconds. A
// node whose heart beats again reports itself ready.
func beatingNodes(w *world, zone string, names ...string) *heart {
	h := &heart{stopped: map[string]bool{}}
	for _, name := range names {
		n := node(name, zone)
		n.UID = types.UID(name + "-uid")
		n.CreationTimestamp = metav1.Now()
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
		w.api.Put(n)
		now := metav1.NowMicro()
		w.api.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}})
		w.wg.Go(func() {
			for {
				select {
				case <-w.ctx.Done():
					return
				case <-time.After(10 * time.Second):
				}
				h.mu.Lock()
				stopped := h.stopped[name]
				h.mu.Unlock()
				if stopped {
					continue
				}
				l, err := client.For[*coordinationv1.Lease](w.c).In("kube-node-lease").Get(context.Background(), name)
				if err != nil {
					return
				}
				now := metav1.NowMicro()
				l = l.DeepCopy()
				l.Spec.RenewTime = &now
				if _, err := client.For[*coordinationv1.Lease](w.c).Update(context.Background(), l); err != nil {
					return
				}
				n, err := client.For[*corev1.Node](w.c).Get(context.Background(), name)
				if err != nil || nodeReady(n) == corev1.ConditionTrue {
					continue
				}
				edit(w, "", name, "status", func(n *corev1.Node) {
					n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()}}
				})
			}
		})
	}
	return h
}

func podOn(node, name string, tolerate *int64) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), Generation: 1},
		Spec:       corev1.PodSpec{NodeName: node},
	}
	if tolerate != nil {
		for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: tolerate})
		}
	}
	setReady(p, true, time.Now())
	return p
}

func taintNames(n *corev1.Node) []string {
	var out []string
	for _, t := range n.Spec.Taints {
		out = append(out, t.Key+":"+string(t.Effect))
	}
	slices.Sort(out)
	return out
}

func eventReasons(w *world) map[string]int {
	out := map[string]int{}
	for _, e := range list[*corev1.Event](w, "") {
		out[e.Reason+" "+e.InvolvedObject.Name]++
	}
	return out
}

func TestSilentNodeLosesItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nodeControllers)
		defer w.stop()
		h := beatingNodes(w, "z", "a", "b", "c")
		stays := podOn("a", "stays", nil)
		stays.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		for _, p := range []*corev1.Pod{podOn("a", "patient", ptr.To(int64(300))), podOn("a", "hasty", nil), stays, podOn("b", "elsewhere", nil)} {
			w.api.Put(p)
		}
		time.Sleep(10 * time.Minute)
		if n := get[*corev1.Node](w, "", "a"); len(n.Spec.Taints) != 0 {
			t.Fatalf("a node that beats has taints %v", taintNames(n))
		}
		if r := eventReasons(w); r["RegisteredNode a"] != 1 {
			t.Errorf("events are %v", r)
		}
		start := time.Now()
		h.stop("a")
		w.until("it is unknown", func() bool { return nodeReady(get[*corev1.Node](w, "", "a")) == corev1.ConditionUnknown })
		if d := time.Since(start); d < 40*time.Second || d > 66*time.Second {
			t.Errorf("noticed after %v", d)
		}
		c := nodeCondition(&get[*corev1.Node](w, "", "a").Status, corev1.NodeReady)
		if c.Reason != "NodeStatusUnknown" || c.Message != "Kubelet stopped posting node status." {
			t.Errorf("condition is %v", c)
		}
		if c := nodeCondition(&get[*corev1.Node](w, "", "a").Status, corev1.NodeDiskPressure); c == nil || c.Reason != "NodeStatusNeverUpdated" {
			t.Errorf("condition is %v", c)
		}
		w.until("tainted", func() bool {
			return slices.Equal(taintNames(get[*corev1.Node](w, "", "a")), []string{"node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/unreachable:NoSchedule"})
		})
		tainted := time.Now()
		w.until("the hasty pod terminates", func() bool { return get[*corev1.Pod](w, "ns", "hasty").DeletionTimestamp != nil })
		if d := time.Since(tainted); d > time.Second {
			t.Errorf("a pod that does not tolerate the taint stayed %v", d)
		}
		dt := podCondition(get[*corev1.Pod](w, "ns", "hasty"), corev1.DisruptionTarget)
		if dt == nil || dt.Reason != "DeletionByTaintManager" || dt.Message != "Taint manager: deleting due to NoExecute taint" {
			t.Errorf("condition is %v", dt)
		}
		time.Sleep(5 * time.Second)
		if podReady(get[*corev1.Pod](w, "ns", "patient")) || !podReady(get[*corev1.Pod](w, "ns", "elsewhere")) {
			t.Error("pods of the silent node, and those alone, are not ready")
		}
		w.until("the patient pod terminates", func() bool { return get[*corev1.Pod](w, "ns", "patient").DeletionTimestamp != nil })
		if d := time.Since(tainted); d < 299*time.Second || d > 302*time.Second {
			t.Errorf("a pod that tolerates it for 300 s stayed %v", d)
		}
		if get[*corev1.Pod](w, "ns", "stays").DeletionTimestamp != nil || get[*corev1.Pod](w, "ns", "elsewhere").DeletionTimestamp != nil {
			t.Error("a pod was evicted that should stay")
		}
		r := eventReasons(w)
		if r["NodeNotReady a"] != 1 || r["NodeNotReady patient"] != 1 || r["TaintManagerEviction hasty"] != 1 {
			t.Errorf("events are %v", r)
		}
		h.start("a")
		w.until("the taints go", func() bool { return len(get[*corev1.Node](w, "", "a").Spec.Taints) == 0 })
	})
}

func TestNodeThatComesBackKeepsItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nodeControllers)
		defer w.stop()
		h := beatingNodes(w, "z", "a", "b")
		w.api.Put(podOn("a", "patient", ptr.To(int64(300))))
		time.Sleep(time.Minute)
		h.stop("a")
		w.until("tainted", func() bool { return len(get[*corev1.Node](w, "", "a").Spec.Taints) == 2 })
		time.Sleep(time.Minute)
		h.start("a")
		w.until("the taints go", func() bool { return len(get[*corev1.Node](w, "", "a").Spec.Taints) == 0 })
		time.Sleep(time.Hour)
		if get[*corev1.Pod](w, "ns", "patient").DeletionTimestamp != nil {
			t.Error("its pod was evicted all the same")
		}
		cancelled := false
		for _, e := range list[*corev1.Event](w, "ns") {
			cancelled = cancelled || e.Message == "Cancelling deletion of Pod ns/patient"
		}
		if !cancelled {
			t.Error("no event tells that the eviction was cancelled")
		}
	})
}

func TestNobodyIsEvictedWhenAllNodesAreSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nodeControllers)
		defer w.stop()
		h := beatingNodes(w, "z", "a", "b")
		// Nodes fall silent one after the other; for that long a pod is patient.
		w.api.Put(podOn("a", "patient", ptr.To(int64(60))))
		time.Sleep(time.Minute)
		h.stop("a", "b")
		time.Sleep(time.Hour)
		for _, name := range []string{"a", "b"} {
			if got := taintNames(get[*corev1.Node](w, "", name)); !slices.Equal(got, []string{"node.kubernetes.io/unreachable:NoSchedule"}) {
				t.Errorf("%s has taints %v", name, got)
			}
		}
		if get[*corev1.Pod](w, "ns", "patient").DeletionTimestamp != nil {
			t.Error("a pod was evicted")
		}
		h.start("b")
		w.until("the one still silent is evicted", func() bool { return get[*corev1.Pod](w, "ns", "patient").DeletionTimestamp != nil })
	})
}

func TestOneNodeOfAZoneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nodeControllers)
		defer w.stop()
		var all []string
		for i := range 7 {
			all = append(all, fmt.Sprint("n", i))
		}
		h := beatingNodes(w, "z", all...)
		time.Sleep(time.Minute)
		h.stop("n0", "n1", "n2")
		evicting := func() (n int) {
			for _, name := range all {
				if hasTaint(get[*corev1.Node](w, "", name).Spec.Taints, corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute) {
					n++
				}
			}
			return n
		}
		w.until("the first", func() bool { return evicting() == 1 })
		start := time.Now()
		w.until("the third", func() bool { return evicting() == 3 })
		if d := time.Since(start); d < 19*time.Second {
			t.Errorf("three nodes within %v", d)
		}
		// With five of seven down, the zone is at fault: no more.
		h.stop("n3", "n4")
		w.until("five are silent", func() bool {
			return nodeReady(get[*corev1.Node](w, "", "n3")) == corev1.ConditionUnknown && nodeReady(get[*corev1.Node](w, "", "n4")) == corev1.ConditionUnknown
		})
		time.Sleep(time.Hour)
		if n := evicting(); n > 4 {
			t.Errorf("%d nodes are evicted", n)
		}
	})
}

func TestTaintsOfConditions(t *testing.T) {
	now := time.Unix(5000, 0)
	cond := func(t corev1.NodeConditionType, s corev1.ConditionStatus) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s}
	}
	ready := cond(corev1.NodeReady, corev1.ConditionTrue)
	for name, c := range map[string]struct {
		conditions    []corev1.NodeCondition
		unschedulable bool
		have          []corev1.Taint
		want          []string
	}{
		"new, not yet reported": {have: []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}, want: []string{"node.kubernetes.io/not-ready:NoSchedule"}},
		"ready":                 {conditions: []corev1.NodeCondition{ready}, have: []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}},
		"not ready":             {conditions: []corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionFalse)}, want: []string{"node.kubernetes.io/not-ready:NoSchedule"}},
		"pressures": {conditions: []corev1.NodeCondition{ready, cond(corev1.NodeMemoryPressure, "True"), cond(corev1.NodeDiskPressure, "True"), cond(corev1.NodePIDPressure, "True"), cond(corev1.NodeNetworkUnavailable, "True")},
			want: []string{"node.kubernetes.io/disk-pressure:NoSchedule", "node.kubernetes.io/memory-pressure:NoSchedule", "node.kubernetes.io/network-unavailable:NoSchedule", "node.kubernetes.io/pid-pressure:NoSchedule"}},
		"cordoned":   {conditions: []corev1.NodeCondition{ready}, unschedulable: true, want: []string{"node.kubernetes.io/unschedulable:NoSchedule"}},
		"uncordoned": {conditions: []corev1.NodeCondition{ready}, have: []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}},
		"another's are left alone": {conditions: []corev1.NodeCondition{ready}, have: []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}, {Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectPreferNoSchedule}},
			want: []string{"mine:NoSchedule", "node.kubernetes.io/not-ready:PreferNoSchedule"}},
		"NoExecute follows the reason": {conditions: []corev1.NodeCondition{cond(corev1.NodeReady, corev1.ConditionFalse)}, have: []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}},
			want: []string{"node.kubernetes.io/not-ready:NoExecute", "node.kubernetes.io/not-ready:NoSchedule"}},
	} {
		n := &corev1.Node{Spec: corev1.NodeSpec{Taints: c.have, Unschedulable: c.unschedulable}, Status: corev1.NodeStatus{Conditions: c.conditions}}
		n.Spec.Taints = noExecuteTaints(n, noScheduleTaints(n, now), false, now)
		if got := taintNames(n); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestTolerance(t *testing.T) {
	taint := func(key string) corev1.Taint {
		return corev1.Taint{Key: key, Value: "v", Effect: corev1.TaintEffectNoExecute}
	}
	sec := func(key string, s *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, TolerationSeconds: s}
	}
	for name, c := range map[string]struct {
		taints  []corev1.Taint
		tols    []corev1.Toleration
		d       time.Duration
		forever bool
	}{
		"no taint":              {forever: true},
		"not tolerated":         {taints: []corev1.Taint{taint("a")}},
		"for ever":              {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{sec("a", nil)}, forever: true},
		"for a time":            {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{sec("a", ptr.To(int64(7)))}, d: 7 * time.Second},
		"the shorter":           {taints: []corev1.Taint{taint("a"), taint("b")}, tols: []corev1.Toleration{sec("a", ptr.To(int64(7))), sec("b", ptr.To(int64(5)))}, d: 5 * time.Second},
		"zero and less is none": {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{sec("a", ptr.To(int64(-1)))}},
		"one of two":            {taints: []corev1.Taint{taint("a"), taint("b")}, tols: []corev1.Toleration{sec("a", nil)}},
		"everything":            {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, forever: true},
		"equal":                 {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{{Key: "a", Value: "v"}}, forever: true},
		"another value":         {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{{Key: "a", Value: "w"}}},
		"another effect":        {taints: []corev1.Taint{taint("a")}, tols: []corev1.Toleration{{Key: "a", Value: "v", Effect: corev1.TaintEffectNoSchedule}}},
	} {
		if d, forever := tolerance(c.taints, c.tols); d != c.d || forever != c.forever {
			t.Errorf("%s: %v, %v, want %v, %v", name, d, forever, c.d, c.forever)
		}
	}
}

func TestPodsWithoutANodeAreCollected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := metav1.Now()
		unscheduled := podOn("", "unscheduled", nil)
		unscheduled.DeletionTimestamp = &now
		unscheduled.Finalizers = nil
		w := newWorld(t, nodeControllers, podOn("gone", "orphan", nil), podOn("a", "fine", nil), unscheduled)
		defer w.stop()
		beatingNodes(w, "z", "a")
		there := func(name string) bool {
			_, err := client.For[*corev1.Pod](w.c).In("ns").Get(context.Background(), name)
			return !apierrors.IsNotFound(err)
		}
		start := time.Now()
		w.until("the unscheduled one goes", func() bool { return !there("unscheduled") })
		w.until("the orphan goes", func() bool { return !there("orphan") })
		if d := time.Since(start); d < 39*time.Second || d > 90*time.Second {
			t.Errorf("the orphan went after %v", d)
		}
		if !there("fine") {
			t.Error("a pod on a node was collected")
		}
		failed := false
		for _, r := range w.api.Requests() {
			failed = failed || r.Verb == "patch" && r.Ref.Name == "orphan" && r.Ref.Subresource == "status"
		}
		if !failed {
			t.Error("the orphan was not marked failed first")
		}
	})
}

func TestEndedPodsBeyondTheLimitAreCollected(t *testing.T) {
	var pods []*corev1.Pod
	for i := range 5 {
		p := podOn("a", fmt.Sprint("p", i), nil)
		p.CreationTimestamp = metav1.NewTime(time.Unix(int64(100-i), 0))
		p.Status.Phase = corev1.PodSucceeded
		pods = append(pods, p)
	}
	pods[0].Status.Phase, pods[0].Status.Reason = corev1.PodFailed, "Evicted"
	pods = append(pods, podOn("a", "running", nil))
	n := node("a", "")
	got := planPodGC(pods, func(string) *corev1.Node { return n }, nil, 3)
	if len(got) != 2 || got[0].pod.Name != "p0" || got[1].pod.Name != "p4" {
		t.Errorf("collected are %v", got)
	}
	if got = planPodGC(pods, func(string) *corev1.Node { return n }, nil, -1); len(got) != 0 {
		t.Errorf("%d collected although all are to be kept", len(got))
	}
}
