package controller

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func replicaSet(name string, n int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), Generation: 1},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
		},
	}
}

func replicaSetAlone(d Deps) []*control.Controller { return []*control.Controller{newReplicaSet(d)} }

func TestClaim(t *testing.T) {
	now := metav1.Now()
	owner := replicaSet("web", 1)
	sel := labels.SelectorFromSet(labels.Set{"app": "web"})
	mine := *metav1.NewControllerRef(owner, replicaSetKind)
	other := mine
	other.UID = "other"
	for name, c := range map[string]struct {
		pod   func(*corev1.Pod)
		owner func(*appsv1.ReplicaSet)
		want  claim
	}{
		"an orphan that matches":        {want: adopt},
		"an orphan that does not":       {pod: func(p *corev1.Pod) { p.Labels = nil }, want: leaveAlone},
		"an orphan on its way out":      {pod: func(p *corev1.Pod) { p.DeletionTimestamp = &now }, want: leaveAlone},
		"an orphan of another place":    {pod: func(p *corev1.Pod) { p.Namespace = "x" }, want: leaveAlone},
		"mine":                          {pod: func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{mine} }, want: keep},
		"mine, no longer selected":      {pod: func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{mine}; p.Labels = nil }, want: release},
		"another's":                     {pod: func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{other} }, want: leaveAlone},
		"a dying owner adopts nothing":  {owner: func(rs *appsv1.ReplicaSet) { rs.DeletionTimestamp = &now }, want: leaveAlone},
		"a dying owner releases nobody": {owner: func(rs *appsv1.ReplicaSet) { rs.DeletionTimestamp = &now }, pod: func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{mine}; p.Labels = nil }, want: leaveAlone},
	} {
		p, rs := webPod(0, true), owner.DeepCopy()
		if c.pod != nil {
			c.pod(p)
		}
		if c.owner != nil {
			c.owner(rs)
		}
		if got := claimOf(rs, p, sel.Matches(labels.Set(p.Labels))); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestVictims(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	base := func() *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "m", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}, Spec: corev1.PodSpec{NodeName: "n"}}
		setReady(p, true, now.Add(-time.Hour))
		return p
	}
	for name, first := range map[string]func(*corev1.Pod){
		"not scheduled": func(p *corev1.Pod) { p.Spec.NodeName = "" },
		"pending":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending },
		"unknown":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodUnknown },
		"not ready":     func(p *corev1.Pod) { setReady(p, false, now) },
		"cheaper": func(p *corev1.Pod) {
			p.Annotations = map[string]string{"controller.kubernetes.io/pod-deletion-cost": "-1"}
		},
		"on a crowded node": func(p *corev1.Pod) { p.Spec.NodeName = "crowded" },
		"ready for a much shorter time": func(p *corev1.Pod) {
			p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
		},
		"restarted":    func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 1}} },
		"much younger": func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Second)) },
		"as young, by UID": func(p *corev1.Pod) {
			p.CreationTimestamp, p.UID = metav1.NewTime(now.Add(-time.Hour+time.Second)), "a"
		},
	} {
		a, b := base(), base()
		first(b)
		related := []*corev1.Pod{a, b}
		for range 3 {
			c := base()
			c.Spec.NodeName = "crowded"
			related = append(related, c)
		}
		for _, pods := range [][]*corev1.Pod{{a, b}, {b, a}} {
			if got := chooseVictims(pods, related, 1, now); got[0] != b {
				t.Errorf("%s is not deleted first", name)
			}
		}
	}
	dear := base()
	dear.Annotations = map[string]string{"controller.kubernetes.io/pod-deletion-cost": "007"}
	if deletionCost(dear) != 0 {
		t.Error("a cost that cannot be read counts")
	}
}

func TestSlowStart(t *testing.T) {
	for _, c := range []struct{ n, failAt, calls, ok int }{
		{100, 0, 100, 100},
		{100, 1, 1, 0},    // the first fails: no more
		{100, 5, 7, 6},    // within the batch of four
		{100, 50, 63, 62}, // 1+2+4+8+16+32
		{0, 0, 0, 0},
	} {
		var mu sync.Mutex
		calls := 0
		ok, err := slowStart(c.n, func() bool { return true }, func(int) error {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if calls == c.failAt {
				return errors.New("no")
			}
			return nil
		})
		if calls != c.calls || ok != c.ok || (err != nil) != (c.failAt > 0) {
			t.Errorf("%+v: %d calls, %d ok, %v", c, calls, ok, err)
		}
	}
}

func TestSlowStartStopsWhenNoLongerWanted(t *testing.T) {
	left := 3
	ok, err := slowStart(100, func() bool { left--; return left > 0 }, func(int) error { return nil })
	if ok != 7 || err != nil {
		t.Errorf("%d calls, %v, want those of three batches", ok, err)
	}
}

func TestReplicaSetAdoptsReleasesAndReplaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		orphan := webPod(0, true)
		taken := webPod(1, true)
		taken.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Thing", Name: "x", UID: "x", Controller: new(bool)}}
		*taken.OwnerReferences[0].Controller = true
		w := newWorld(t, replicaSetAlone, orphan, taken)
		defer w.stop()
		w.kubelet(time.Second, newRand(1), nil)
		rs := replicaSet("web", 3)
		w.api.Put(rs)
		mine := func() []string {
			var out []string
			for _, p := range list[*corev1.Pod](w, "ns") {
				if ref := metav1.GetControllerOf(p); ref != nil && ref.UID == rs.UID && p.DeletionTimestamp == nil {
					out = append(out, p.Name)
				}
			}
			return out
		}
		status := func() appsv1.ReplicaSetStatus { return get[*appsv1.ReplicaSet](w, "ns", "web").Status }
		w.until("three available", func() bool { return status().AvailableReplicas == 3 })
		if m := mine(); len(m) != 3 || !slices.Contains(m, orphan.Name) || slices.Contains(m, taken.Name) {
			t.Errorf("its pods are %v", m)
		}
		ref := metav1.GetControllerOf(get[*corev1.Pod](w, "ns", orphan.Name))
		if ref.Kind != "ReplicaSet" || ref.APIVersion != "apps/v1" || ref.Name != "web" || !*ref.BlockOwnerDeletion {
			t.Errorf("reference is %v", ref)
		}
		edit(w, "ns", orphan.Name, "", func(p *corev1.Pod) { p.Labels["app"] = "debug" })
		w.until("released and replaced", func() bool {
			return metav1.GetControllerOf(get[*corev1.Pod](w, "ns", orphan.Name)) == nil && len(mine()) == 3 && status().AvailableReplicas == 3
		})
		edit(w, "ns", mine()[0], "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
		w.until("a failed pod is replaced", func() bool { return len(mine()) == 4 && status().AvailableReplicas == 3 })
		// A terminating pod is counted apart, and replaced before it is gone.
		p := get[*corev1.Pod](w, "ns", mine()[0])
		for _, name := range mine() {
			if q := get[*corev1.Pod](w, "ns", name); podActive(q) {
				p = q
			}
		}
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("settled", func() bool {
			return len(mine()) == 4 && status().AvailableReplicas == 3 && *status().TerminatingReplicas == 0
		})
		edit(w, "ns", "web", "", func(rs *appsv1.ReplicaSet) { *rs.Spec.Replicas = 1 })
		w.until("one left", func() bool { s := status(); return s.Replicas == 1 && s.ObservedGeneration == 2 })
		created, deleted := 0, 0
		for _, e := range list[*corev1.Event](w, "ns") {
			switch e.Reason {
			case "SuccessfulCreate":
				created += int(e.Count)
			case "SuccessfulDelete":
				deleted += int(e.Count)
			}
		}
		if created != 5 || deleted != 2 {
			t.Errorf("events tell of %d creations and %d deletions, want 5 and 2", created, deleted)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, replicaSetAlone)
		defer w.stop()
		w.kubelet(0, newRand(1), nil)
		rs := replicaSet("web", 2)
		rs.Spec.MinReadySeconds = 30
		w.api.Put(rs)
		w.until("ready", func() bool { return get[*appsv1.ReplicaSet](w, "ns", "web").Status.ReadyReplicas == 2 })
		if n := get[*appsv1.ReplicaSet](w, "ns", "web").Status.AvailableReplicas; n != 0 {
			t.Fatalf("%d available at once", n)
		}
		start := time.Now()
		w.until("available", func() bool { return get[*appsv1.ReplicaSet](w, "ns", "web").Status.AvailableReplicas == 2 })
		if d := time.Since(start); d < 29*time.Second || d > 31*time.Second {
			t.Errorf("available after %v", d)
		}
	})
}

// Many pods cost as many creations and few other writes.
func TestLargeReplicaSetWritesLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, replicaSetAlone)
		defer w.stop()
		w.kubelet(2*time.Second, newRand(1), nil)
		w.api.Put(replicaSet("web", 1200))
		w.until("all are available", func() bool { return get[*appsv1.ReplicaSet](w, "ns", "web").Status.AvailableReplicas == 1200 })
		creates, status, events := 0, 0, 0
		for _, r := range w.api.Requests() {
			switch {
			case r.Ref.GVR.Resource == "events":
				events++
			case r.Verb == "create" && r.Ref.GVR.Resource == "pods" && r.Ref.Subresource == "":
				creates++
			case r.Ref.Subresource == "status" && r.Ref.GVR.Resource == "replicasets":
				status++
			}
		}
		// A generated name that is taken costs one more try.
		if n := len(list[*corev1.Pod](w, "ns")); n != 1200 || creates > 1205 {
			t.Errorf("%d pods by %d creations", n, creates)
		}
		// Four seconds of changes, one write in 20 ms at most.
		if status > 210 || events > 30 {
			t.Errorf("%d writes of status, %d of events", status, events)
		}
	})
}

// An owner that the informer still shows, but that is being deleted, adopts
// nothing: its orphans would go with it.
func TestDeletedOwnerAdoptsNothing(t *testing.T) {
	now := metav1.Now()
	for name, c := range map[string]struct {
		live func(*appsv1.ReplicaSet)
		want string
	}{
		"being deleted": {func(rs *appsv1.ReplicaSet) { rs.DeletionTimestamp = &now }, "has just been deleted at"},
		"made anew":     {func(rs *appsv1.ReplicaSet) { rs.UID = "another" }, "is gone: got uid another, wanted web-uid"},
		"as it was":     {func(*appsv1.ReplicaSet) {}, ""},
	} {
		orphan := webPod(0, true)
		api := clienttest.New(orphan)
		cl := api.Client()
		d := control.Deps{Informers: client.NewInformers(cl, slog.New(slog.DiscardHandler)), ClientFor: func(string) *client.Client { return cl }}
		rs := replicaSet("web", 1)
		ctl := control.New("replicaset-controller", d)
		m := &claimer[*corev1.Pod]{
			c: ctl, key: control.KeyOf(rs), inf: control.Watch[*corev1.Pod](ctl, nil), owner: rs, gvk: replicaSetKind,
			fresh: func(context.Context) (metav1.Object, error) {
				live := rs.DeepCopy()
				c.live(live)
				return live, nil
			},
		}
		got, err := m.claim(t.Context(), []*corev1.Pod{orphan}, labels.SelectorFromSet(labels.Set{"app": "web"}))
		if c.want == "" {
			if err != nil || len(got) != 1 {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || len(got) != 0 || len(api.Requests()) != 0 {
			t.Errorf("%s: %v, %v, %d writes", name, got, err, len(api.Requests()))
		}
	}
}
