package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
)

func seeds(t *testing.T, f func(t *testing.T, seed uint64)) {
	n := 10
	if s := os.Getenv("SKIFF_SIM_SEEDS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	for seed := range n {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, uint64(seed)) })
		})
	}
}

// faults refuses rate percent of all writes but events, until rate is 0.
type faults struct {
	mu   sync.Mutex
	rate int
}

func (f *faults) set(n int) { f.mu.Lock(); f.rate = n; f.mu.Unlock() }

func (w *world) faults(seed uint64) *faults {
	f := &faults{}
	rng := rand.New(rand.NewPCG(seed, 7))
	w.api.refuse(func(_ string, ref client.Ref) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if ref.GVR.Resource == "events" || f.rate == 0 || rng.IntN(100) >= f.rate {
			return nil
		}
		switch rng.IntN(3) {
		case 0:
			return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, errors.New("injected"))
		case 1:
			return apierrors.NewInternalError(errors.New("injected"))
		}
		return errors.New("connection reset")
	})
	return f
}

func live(w *world) []*corev1.Pod {
	return slices.DeleteFunc(list[*corev1.Pod](w, "ns"), func(p *corev1.Pod) bool { return !podActive(p) })
}

func statefulSet(name string, replicas int32, image string) *appsv1.StatefulSet {
	labels := map[string]string{"app": name}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "s-uid", Generation: 1},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "svc", Selector: &metav1.LabelSelector{MatchLabels: labels}, RevisionHistoryLimit: ptr.To(int32(2)),
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy:      appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To(int32(0)), MaxUnavailable: ptr.To(intstr.FromInt32(1))}},
			Template:            corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}},
		},
	}
}

// Whatever happens to a StatefulSet: it ends with one pod for each ordinal, of the
// template that the partition gives it; in order, at most one was down for an update.
func TestSimulatedStatefulSets(t *testing.T) {
	seeds(t, func(t *testing.T, seed uint64) {
		rng := newRand(seed)
		set := statefulSet("db", 1+rng.Int32N(6), "v0")
		ordered := seed%2 == 0
		if !ordered {
			set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		}
		set.Spec.MinReadySeconds = rng.Int32N(2)
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newStatefulSet(d)} })
		defer w.stop()
		f := w.faults(seed)
		w.kubelet(2*time.Second, newRand(seed+100), nil)
		// The server would refuse two pods of a name. In order, a pod must not be made
		// before its predecessors are ready.
		pods := client.InformerFor[*corev1.Pod](w.deps.Informers)
		pods.OnChange(func(ch client.Change[*corev1.Pod]) {
			if ch.Old != nil || ch.Deleted() || !ordered {
				return
			}
			_, n := ordinalOf(ch.New.Name)
			first := 0
			if s, ok := client.InformerFor[*appsv1.StatefulSet](w.deps.Informers).Get("ns", "db"); ok {
				first = firstOrdinal(s)
			}
			for i := first; i < n; i++ {
				if p, ok := pods.Get("ns", "db-"+strconv.Itoa(i)); !ok || !podReady(p) {
					t.Errorf("pod %d was made before %d was ready", n, i)
				}
			}
		})
		w.api.Put(set)
		image := 0
		settled := func() bool {
			s := get[*appsv1.StatefulSet](w, "ns", "db")
			if s.Status.ObservedGeneration < s.Generation {
				return false
			}
			ready := int32(0)
			for _, p := range live(w) {
				_, n := ordinalOf(p.Name)
				if !wantsOrdinal(s, n) {
					return false
				}
				if p.Spec.Containers[0].Image != s.Spec.Template.Spec.Containers[0].Image && n-firstOrdinal(s) >= int(*s.Spec.UpdateStrategy.RollingUpdate.Partition) {
					return false
				}
				if p.Labels[appsv1.PodIndexLabel] != strconv.Itoa(n) || p.Labels[appsv1.StatefulSetPodNameLabel] != p.Name || p.Spec.Hostname != p.Name || p.Spec.Subdomain != "svc" {
					t.Errorf("pod %s is %+v", p.Name, p.ObjectMeta)
				}
				if podReady(p) {
					ready++
				}
			}
			return ready == *s.Spec.Replicas && s.Status.Replicas == ready && s.Status.AvailableReplicas == ready
		}
		w.until("first", settled)
		for range 6 {
			f.set(rng.IntN(3) * 10)
			for range 1 + rng.IntN(4) {
				switch rng.IntN(5) {
				case 0:
					n := rng.Int32N(7)
					edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n })
				case 1:
					image++
					edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", image) })
				case 2:
					if l := live(w); len(l) > 0 {
						_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), l[rng.IntN(len(l))].Name, metav1.DeleteOptions{})
					}
				case 3:
					if l := live(w); len(l) > 0 {
						edit(w, "ns", l[rng.IntN(len(l))].Name, "status", func(p *corev1.Pod) {
							p.Status.Phase = []corev1.PodPhase{corev1.PodFailed, corev1.PodSucceeded}[rng.IntN(2)]
						})
					}
				case 4:
					n := rng.Int32N(3)
					edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n })
				}
				time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
			}
			f.set(0)
			w.until("settled", settled)
		}
		edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To(int32(0)) })
		w.until("updated", settled)
		time.Sleep(time.Minute)
		s := get[*appsv1.StatefulSet](w, "ns", "db")
		if s.Status.CurrentRevision != s.Status.UpdateRevision {
			t.Errorf("update has not ended: %+v", s.Status)
		}
		if n := len(list[*appsv1.ControllerRevision](w, "ns")); n > 3 {
			t.Errorf("%d revisions, the limit is 2 beside the one in use", n)
		}
		before := len(w.api.Requests())
		time.Sleep(time.Hour)
		if after := len(w.api.Requests()); after != before {
			t.Errorf("%d writes while nothing happens, the first %+v", after-before, w.api.Requests()[before])
		}
	})
}

func daemonSet(name, image string) *appsv1.DaemonSet {
	labels := map[string]string{"app": name}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "ds-uid", Generation: 1, Annotations: map[string]string{appsv1.DeprecatedTemplateGeneration: "1"}},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels}, RevisionHistoryLimit: ptr.To(int32(2)),
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0))}},
			Template:       corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}}},
		},
	}
}

// daemonKubelet binds each pod to the node that it is for, and runs it.
func (w *world) daemonKubelet(rng *rand.Rand) {
	var mu sync.Mutex
	pause := func() {
		mu.Lock()
		d := time.Duration(rng.Int64N(int64(2 * time.Second)))
		mu.Unlock()
		time.Sleep(d)
	}
	ending := map[string]bool{}
	client.InformerFor[*corev1.Pod](w.deps.Informers).OnChange(func(ch client.Change[*corev1.Pod]) {
		if ch.Deleted() {
			return
		}
		p := ch.New
		if ch.Old == nil {
			w.wg.Go(func() {
				pause()
				n, _ := daemonNode(p)
				for _, err := range w.c.Bind(w.ctx, []*corev1.Binding{{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Name: n}}}) {
					if err != nil {
						return
					}
				}
				pause()
				edit(w, p.Namespace, p.Name, "status", func(p *corev1.Pod) { setReady(p, true, time.Now()) })
			})
		}
		if p.DeletionTimestamp != nil && !ending[string(p.UID)] {
			ending[string(p.UID)] = true
			w.wg.Go(func() {
				pause()
				_ = client.For[*corev1.Pod](w.c).In(p.Namespace).Delete(w.ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
			})
		}
	})
}

// Whatever happens to a DaemonSet and its nodes: it ends with one pod on every node
// that should have one, of the current template.
func TestSimulatedDaemonSets(t *testing.T) {
	seeds(t, func(t *testing.T, seed uint64) {
		rng := newRand(seed)
		var objects []client.Object
		for i := range 5 {
			objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"i": fmt.Sprint(i)}}})
		}
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newDaemonSet(d)} }, objects...)
		defer w.stop()
		f := w.faults(seed)
		w.daemonKubelet(newRand(seed + 100))
		surging := seed%2 == 1
		ds := daemonSet("agent", "v0")
		if surging {
			ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromString("40%"))}
		}
		most := 1
		if surging {
			most = 2
		}
		pods := client.InformerFor[*corev1.Pod](w.deps.Informers)
		pods.OnChange(func(ch client.Change[*corev1.Pod]) {
			if ch.Old != nil || ch.Deleted() {
				return
			}
			node, _ := daemonNode(ch.New)
			n := 0
			for _, p := range pods.List("ns", nil) {
				if on, _ := daemonNode(p); on == node && podActive(p) {
					n++
				}
			}
			if n > most {
				t.Errorf("%d pods on %s", n, node)
			}
		})
		w.api.Put(ds)
		settled := func() bool {
			d := get[*appsv1.DaemonSet](w, "ns", "agent")
			v := newDaemonView(d, "", list[*corev1.Node](w, ""), live(w), time.Now())
			want := 0
			for _, n := range v.nodes {
				start, stay := v.fit.on(n)
				pods := v.pods[n.Name]
				if start {
					want++
				}
				if start && len(pods) != 1 || !stay && len(pods) != 0 || len(pods) > 1 {
					return false
				}
				if start && (!podReady(pods[0]) || pods[0].Spec.Containers[0].Image != d.Spec.Template.Spec.Containers[0].Image) {
					return false
				}
			}
			s := d.Status
			return s.ObservedGeneration == d.Generation && int(s.DesiredNumberScheduled) == want && int(s.NumberAvailable) == want && int(s.UpdatedNumberScheduled) == want && s.NumberUnavailable == 0
		}
		w.until("first", settled)
		image := 0
		for range 6 {
			f.set(rng.IntN(3) * 10)
			for range 1 + rng.IntN(3) {
				node := fmt.Sprint("n", rng.IntN(5))
				switch rng.IntN(5) {
				case 0:
					image++
					edit(w, "ns", "agent", "", func(d *appsv1.DaemonSet) {
						d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", image)
						d.Annotations[appsv1.DeprecatedTemplateGeneration] = fmt.Sprint(image + 1)
					})
				case 1:
					edit(w, "", node, "", func(n *corev1.Node) {
						n.Spec.Taints = []corev1.Taint{{Key: "x", Effect: []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule}[rng.IntN(3)]}}
					})
				case 2:
					edit(w, "", node, "", func(n *corev1.Node) { n.Spec.Taints = nil })
				case 3:
					if l := live(w); len(l) > 0 {
						_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), l[rng.IntN(len(l))].Name, metav1.DeleteOptions{})
					}
				case 4:
					if l := live(w); len(l) > 0 {
						edit(w, "ns", l[rng.IntN(len(l))].Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
					}
				}
				time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
			}
			f.set(0)
			for i := range 5 {
				edit(w, "", fmt.Sprint("n", i), "", func(n *corev1.Node) {
					// A taint that a running pod may outlast leaves two right answers.
					n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Effect == corev1.TaintEffectNoSchedule })
				})
			}
			w.until("settled", settled)
		}
		time.Sleep(time.Minute)
		if n := len(list[*appsv1.ControllerRevision](w, "ns")); n > 3 {
			t.Errorf("%d revisions", n)
		}
		before := len(w.api.Requests())
		time.Sleep(time.Hour)
		if after := len(w.api.Requests()); after != before {
			t.Errorf("%d writes while nothing happens, the first %+v", after-before, w.api.Requests()[before])
		}
	})
}

// jobKubelet runs pods to their end: it fails one in failEvery.
func (w *world) jobKubelet(rng *rand.Rand, failEvery int) (succeeded func() int) {
	var mu sync.Mutex
	n := 0
	roll := func(max int64) int64 { mu.Lock(); defer mu.Unlock(); return rng.Int64N(max) }
	api := client.For[*corev1.Pod](w.c)
	ending := map[string]bool{}
	client.InformerFor[*corev1.Pod](w.deps.Informers).OnChange(func(ch client.Change[*corev1.Pod]) {
		if ch.Deleted() {
			return
		}
		p := ch.New
		if ch.Old == nil {
			w.wg.Go(func() {
				time.Sleep(time.Duration(roll(int64(time.Second))))
				for _, err := range w.c.Bind(w.ctx, []*corev1.Binding{{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Name: "node"}}}) {
					if err != nil {
						return
					}
				}
				edit(w, p.Namespace, p.Name, "status", func(p *corev1.Pod) { setReady(p, true, time.Now()) })
				time.Sleep(time.Duration(roll(int64(5 * time.Second))))
				phase := corev1.PodSucceeded
				if failEvery > 0 && roll(int64(failEvery)) == 0 {
					phase = corev1.PodFailed
				}
				edit(w, p.Namespace, p.Name, "status", func(p *corev1.Pod) {
					if p.DeletionTimestamp != nil || podTerminal(p) {
						return
					}
					setReady(p, false, time.Now())
					p.Status.Phase = phase
					if phase == corev1.PodSucceeded && tracked(p) {
						mu.Lock()
						n++
						mu.Unlock()
					}
				})
			})
		}
		if p.DeletionTimestamp != nil && !ending[string(p.UID)] {
			ending[string(p.UID)] = true
			w.wg.Go(func() {
				time.Sleep(time.Duration(roll(int64(time.Second))))
				_ = api.In(p.Namespace).Delete(w.ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))})
			})
		}
	})
	return func() int { mu.Lock(); defer mu.Unlock(); return n }
}

// Jobs end with exactly the completions that pods brought, through refused writes,
// failing pods, suspension, and the death of the controllers between any two writes.
func TestSimulatedJobs(t *testing.T) {
	seeds(t, func(t *testing.T, seed uint64) {
		rng := newRand(seed)
		completions := 5 + rng.Int32N(20)
		j := aJob("work", 1+rng.Int32N(6), completions)
		if seed%2 == 0 {
			j = indexedJob("work", 1+rng.Int32N(6), completions)
		}
		j.Spec.BackoffLimit = ptr.To(int32(1000))
		j.Spec.Suspend = ptr.To(false)
		j.Status = batchv1.JobStatus{}
		var shared *clienttest.API
		w := newWorldOn(t, func(s *server) { shared = s.API }, func(Deps) []*control.Controller { return nil })
		defer w.stop()
		succeeded := w.jobKubelet(newRand(seed+100), 6)
		// The controllers, in a process that dies.
		var c *world
		start := func() {
			c = newWorldOn(t, func(s *server) { s.API = shared }, func(d Deps) []*control.Controller { return []*control.Controller{newJob(d)} })
			c.faults(seed + uint64(rng.IntN(1000))).set(rng.IntN(3) * 10)
		}
		start()
		w.api.Put(j)
		ended := func() bool { return jobFinished(get[*batchv1.Job](w, "ns", "work")) }
		for range 12 {
			time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
			switch rng.IntN(4) {
			case 0:
				on := rng.IntN(2) == 0
				edit(w, "ns", "work", "", func(j *batchv1.Job) { j.Spec.Suspend = &on })
			case 1:
				n := 1 + rng.Int32N(6)
				edit(w, "ns", "work", "", func(j *batchv1.Job) { j.Spec.Parallelism = &n })
			default:
				c.stop()
				start()
			}
		}
		edit(w, "ns", "work", "", func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(false) })
		w.until("the end", ended)
		time.Sleep(time.Minute)
		c.stop()
		got := get[*batchv1.Job](w, "ns", "work")
		s := got.Status
		if jobConditionTrue(&s, batchv1.JobComplete) == nil || jobConditionTrue(&s, batchv1.JobSuccessCriteriaMet) == nil || s.CompletionTime == nil {
			t.Errorf("ended as %+v", s.Conditions)
		}
		if s.Active != 0 || *s.Ready != 0 || *s.Terminating != 0 || len(s.UncountedTerminatedPods.Succeeded)+len(s.UncountedTerminatedPods.Failed) != 0 {
			t.Errorf("status is %+v", s)
		}
		if jobIndexed(got) {
			if s.Succeeded != completions || s.CompletedIndexes != (indexSet{{0, int(completions) - 1}}).String() {
				t.Errorf("%d of %d, %q", s.Succeeded, completions, s.CompletedIndexes)
			}
		} else if s.Succeeded < completions || int(s.Succeeded) > succeeded() {
			t.Errorf("%d counted, %d wanted, %d pods succeeded", s.Succeeded, completions, succeeded())
		}
		for _, p := range list[*corev1.Pod](w, "ns") {
			if tracked(p) {
				t.Errorf("%s keeps its finalizer", p.Name)
			}
		}
	})
}

// A pod that succeeds while its job lets it go, because it wants fewer, is counted.
func TestSurplusPodSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := aJob("work", 3, 5)
		j.Status = batchv1.JobStatus{}
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newJob(d)} })
		defer w.stop()
		w.api.Put(j)
		w.until("three pods", func() bool { return len(live(w)) == 3 })
		ended := ""
		w.api.refuse(func(verb string, ref client.Ref) error {
			if verb == "patch" && ref.GVR.Resource == "pods" && ended == "" {
				ended = ref.Name
				edit(w, "ns", ref.Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
			}
			return nil
		})
		edit(w, "ns", "work", "", func(j *batchv1.Job) { j.Spec.Parallelism = ptr.To(int32(1)) })
		w.until("one pod", func() bool { return len(live(w)) == 1 })
		time.Sleep(time.Minute)
		if s := get[*batchv1.Job](w, "ns", "work").Status; ended == "" || s.Succeeded != 1 {
			t.Errorf("%q succeeded, status %+v", ended, s)
		}
	})
}
