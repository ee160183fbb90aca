package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/goleak"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func node(name string, resources ...string) *corev1.Node {
	if len(resources) == 0 {
		resources = []string{"cpu", "4", "memory", "8Gi", "pods", "110"}
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("node-" + name), Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status:     corev1.NodeStatus{Allocatable: list(resources...), Capacity: list(resources...)},
	}
}

func pod(name string, requests ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("pod-" + name)},
		Spec: corev1.PodSpec{
			SchedulerName: corev1.DefaultSchedulerName,
			Containers:    []corev1.Container{{Name: "c", Image: "app", Resources: corev1.ResourceRequirements{Requests: list(requests...)}}},
		},
	}
}

type recorded struct{ pod, eventType, reason, action, note string }

type recorder struct {
	mu   sync.Mutex
	list []recorded
}

func (r *recorder) Event(p, _ *corev1.Pod, eventType, reason, action, note string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, recorded{p.Name, eventType, reason, action, note})
}

func (r *recorder) has(want recorded) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.list {
		if e == want {
			return true
		}
	}
	return false
}

// running is a scheduler at work against an API in memory.
type running struct {
	t      *testing.T
	api    *clienttest.API
	pods   *client.Informer[*corev1.Pod]
	events *recorder
	sched  *Scheduler
	ctx    context.Context
}

func run(t *testing.T, api *clienttest.API) *running {
	t.Helper()
	return runWith(t, api, func(*Deps) {})
}

func runWith(t *testing.T, api *clienttest.API, change func(*Deps)) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := api.Client()
	infs := client.NewInformers(c, slog.New(slog.DiscardHandler))
	r := &running{t: t, api: api, events: &recorder{}, ctx: ctx, pods: client.InformerFor[*corev1.Pod](infs)}
	d := Deps{Client: c, Informers: infs, Events: r.events, Log: slog.New(slog.DiscardHandler), Seed: 1}
	change(&d)
	s, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	r.sched = s
	var wg sync.WaitGroup
	wg.Go(func() { _ = infs.Run(ctx) })
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	if err := infs.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	return r
}

// until waits for a condition that changes of pods bring about.
func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	changed := make(chan struct{}, 1)
	r.pods.OnChange(func(client.Change[*corev1.Pod]) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-changed:
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// get returns a pod as the informer has it; an empty one where it has none.
func (r *running) get(name string) *corev1.Pod {
	if p, ok := r.pods.Get("default", name); ok {
		return p
	}
	return &corev1.Pod{}
}

func (r *running) node(name string) string {
	return r.get(name).Spec.NodeName
}

func (r *running) message(name string) string {
	for _, c := range r.get(name).Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}

func TestBindsAndExplains(t *testing.T) {
	r := run(t, clienttest.New(node("a")))
	r.api.Put(pod("fits", "cpu", "1"))
	r.until("fits is bound", func() bool { return r.node("fits") == "a" })
	want := recorded{"fits", "Normal", "Scheduled", "Binding", "Successfully assigned default/fits to a"}
	r.until("its event", func() bool { return r.events.has(want) })

	r.api.Put(pod("large", "cpu", "100"))
	const why = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
	r.until("large says why", func() bool { return r.message("large") == "Unschedulable: "+why })
	want = recorded{"large", "Warning", "FailedScheduling", "Scheduling", why + " Nearest: the pod requests 100 of cpu and node a has 3 of 4 left: 97 less would fit."}
	r.until("its event", func() bool { return r.events.has(want) })
	if n := r.node("large"); n != "" {
		t.Fatalf("large is on %q", n)
	}

	r.api.Put(node("b", "cpu", "128", "memory", "8Gi", "pods", "110"))
	r.until("large is bound to the new node", func() bool { return r.node("large") == "b" })
}

func TestNoNodes(t *testing.T) {
	r := run(t, clienttest.New())
	r.api.Put(pod("p"))
	r.until("it says that there is no node", func() bool {
		return r.message("p") == "Unschedulable: no nodes available to schedule pods"
	})
	r.api.Put(node("a"))
	r.until("it is bound", func() bool { return r.node("p") == "a" })
}

func TestRetriedWhenAPodLeaves(t *testing.T) {
	r := run(t, clienttest.New(node("a")))
	r.api.Put(pod("first", "cpu", "3"))
	r.until("first is bound", func() bool { return r.node("first") == "a" })
	r.api.Put(pod("second", "cpu", "3"))
	r.until("second waits", func() bool { return r.message("second") != "" })
	zero := int64(0)
	if err := client.For[*corev1.Pod](r.api.Client()).In("default").Delete(r.ctx, "first", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	r.until("second is bound", func() bool { return r.node("second") == "a" })
}

func TestOtherSchedulersPods(t *testing.T) {
	r := run(t, clienttest.New(node("a")))
	other := pod("other", "cpu", "1")
	other.Spec.SchedulerName = "elsewhere"
	r.api.Put(other)
	taken := pod("taken", "cpu", "3500m")
	taken.Spec.SchedulerName, taken.Spec.NodeName = "elsewhere", "a"
	r.api.Put(taken)
	r.api.Put(pod("mine", "cpu", "1"))
	r.until("mine waits, since what others bound counts", func() bool { return r.message("mine") != "" })
	r.api.Put(node("b"))
	r.until("mine is bound", func() bool { return r.node("mine") == "b" })
	if n := r.node("other"); n != "" {
		t.Fatalf("a pod of another scheduler was bound to %q", n)
	}
}

func TestGates(t *testing.T) {
	r := run(t, clienttest.New(node("a")))
	p := pod("p")
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	r.api.Put(p)
	r.until("it is gated", func() bool {
		return r.message("p") == "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"
	})
	open := pod("p")
	r.api.Put(open)
	r.until("it is bound", func() bool { return r.node("p") == "a" })
}

// A binding that fails gives its place back and is tried again.
func TestBindingFails(t *testing.T) {
	api := clienttest.New(node("a", "cpu", "1", "memory", "1Gi", "pods", "10"))
	var mu sync.Mutex
	failures := 1
	api.Intercept = func(verb string, ref client.Ref, _ client.Object) error {
		mu.Lock()
		defer mu.Unlock()
		if ref.Subresource == "binding" && failures > 0 {
			failures--
			return apierrors.NewInternalError(fmt.Errorf("disk full"))
		}
		return nil
	}
	r := run(t, api)
	api.Put(pod("p", "cpu", "1"))
	r.until("the error is told", func() bool {
		return r.message("p") == `SchedulerError: running Bind plugin "DefaultBinder": Internal error occurred: disk full`
	})
	r.until("p is bound after its back-off", func() bool { return r.node("p") == "a" })
}

func TestNoOvercommitOfABatch(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), node("c"))
	for i := range 30 {
		api.Put(pod(fmt.Sprintf("p%d", i), "cpu", "1"))
	}
	r := run(t, api)
	r.until("all are decided", func() bool {
		for i := range 30 {
			if n := fmt.Sprintf("p%d", i); r.node(n) == "" && r.message(n) == "" {
				return false
			}
		}
		return true
	})
	per := map[string]int{}
	for i := range 30 {
		per[r.node(fmt.Sprintf("p%d", i))]++
	}
	if per["a"] != 4 || per["b"] != 4 || per["c"] != 4 || per[""] != 18 {
		t.Fatalf("placed %v, want 4 on each node and 18 pending", per)
	}
}

// A pod that another scheduler binds first is left where it is, and told nothing.
func TestBoundByAnother(t *testing.T) {
	api := clienttest.New(node("a"), node("b", "cpu", "1", "memory", "1Gi", "pods", "10"))
	var once sync.Once
	api.Intercept = func(_ string, ref client.Ref, _ client.Object) error {
		if ref.Subresource == "binding" && ref.Name == "p" {
			once.Do(func() { api.Put(on(pod("p", "cpu", "4"), "b")) })
		}
		return nil
	}
	r := run(t, api)
	api.Put(pod("p", "cpu", "4"))
	r.until("it is on b", func() bool { return r.node("p") == "b" })
	api.Put(pod("q", "cpu", "4"))
	r.until("its place on a is free", func() bool { return r.node("q") == "a" })
	if m := r.message("p"); m != "" {
		t.Errorf("p says %q", m)
	}
}

// A pod that is made anew under its name while it is being bound is another pod.
func TestRecreatedWhileBinding(t *testing.T) {
	api := clienttest.New(node("a"))
	var once sync.Once
	api.Intercept = func(_ string, ref client.Ref, _ client.Object) error {
		if ref.Subresource == "binding" {
			var err error
			once.Do(func() {
				p := pod("p", "cpu", "3")
				p.UID = "another"
				api.Put(p)
				err = apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("uid"))
			})
			return err
		}
		return nil
	}
	r := run(t, api)
	api.Put(pod("p", "cpu", "3"))
	r.until("the new one is bound", func() bool { p := r.get("p"); return p.UID == "another" && p.Spec.NodeName == "a" })
}

// What a PreBind plugin cannot do keeps the pod pending.
func TestPreBind(t *testing.T) {
	s, err := New(Deps{Client: clienttest.New().Client(), Informers: client.NewInformers(clienttest.New().Client(), slog.Default()),
		Plugins: append(plugins.All(), plugins.Enabled{Plugin: noDisk{}})})
	if err != nil {
		t.Fatal(err)
	}
	classes := framework.NewClasses()
	s.bind(t.Context(), []binding{{pod: classes.Pod(pod("p")), node: "a"}})
	in := s.in.take()
	if len(in) != 1 || in[0].bound == nil || in[0].bound.err == nil || in[0].bound.err.Error() != `running PreBind plugin "NoDisk": no disk` {
		t.Fatalf("outcome %+v", in)
	}
	if n := len(s.d.Client.Transport().(*clienttest.API).Requests()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

type noDisk struct{}

func (noDisk) Name() string { return "NoDisk" }

func (noDisk) PreBind(context.Context, *framework.Pod, string) error { return errors.New("no disk") }

func TestExplain(t *testing.T) {
	r := run(t, clienttest.New(node("a"), node("b")))
	p := on(pod("p", "cpu", "5"), "b")
	r.until("both nodes are known", func() bool {
		got, err := r.sched.Explain(r.ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		return len(got) == 2 && got[0].Plugin == "NodeName" && got[0].Node == "a" &&
			got[1].Sentence == "the pod requests 5 of cpu and node b has 4 of 4 left: 1 less would fit"
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Deps{}); err == nil {
		t.Error("no client")
	}
	c := clienttest.New().Client()
	_, err := New(Deps{Client: c, Informers: client.NewInformers(c, slog.Default()), Plugins: append(plugins.All(), plugins.All()...)})
	if err == nil || err.Error() != `scheduler: plugin "SchedulingGates" is given twice` {
		t.Errorf("error %v", err)
	}
}

// A state of a pod from before its binding, seen late, does not queue it again.
func TestLateUpdateOfABoundPod(t *testing.T) {
	api := clienttest.New()
	s, err := New(Deps{Client: api.Client(), Informers: client.NewInformers(api.Client(), slog.Default())})
	if err != nil {
		t.Fatal(err)
	}
	see := func(p *corev1.Pod) { s.apply(input{pod: &client.Change[*corev1.Pod]{New: p}}) }
	s.apply(input{node: &client.Change[*corev1.Node]{New: node("a")}})
	see(pod("p", "cpu", "1"))
	s.try(s.queue.take(1))
	see(pod("p", "cpu", "1"))
	todo := s.binder.take()
	if len(todo) != 1 {
		t.Fatalf("%d bindings, want 1", len(todo))
	}
	s.apply(input{bound: &bound{binding: todo[0]}})
	see(pod("p", "cpu", "1"))
	if got := s.queue.take(9); got != nil {
		t.Fatalf("queued again: %q", names(got))
	}
	see(on(pod("p", "cpu", "1"), "a"))
	if s.snapshot.NumPods() != 1 || s.snapshot.Assumed("pod-p") || len(s.queue.pods) != 0 {
		t.Errorf("%d pods, assumed %t, %d queued", s.snapshot.NumPods(), s.snapshot.Assumed("pod-p"), len(s.queue.pods))
	}
}
