package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// faulty is an API that loses some bindings and some status patches, before or
// after they were done, and takes its time.
type faulty struct {
	*clienttest.API
	mu      sync.Mutex
	rand    *rand.Rand
	calm    bool
	refused []string // bindings of pods that were bound by this scheduler before
	bound   map[types.UID]bool
}

func (f *faulty) roll(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calm {
		return n
	}
	return f.rand.IntN(n)
}

func (f *faulty) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	errs := make([]error, len(bindings))
	for i, b := range bindings {
		time.Sleep(time.Duration(f.roll(20)) * time.Millisecond)
		fault := f.roll(12)
		if fault == 0 {
			errs[i] = apierrors.NewInternalError(errors.New("lost before"))
			continue
		}
		f.mu.Lock()
		if f.bound[b.UID] {
			f.refused = append(f.refused, b.Name)
		}
		f.mu.Unlock()
		errs[i] = f.API.Bind(ctx, []*corev1.Binding{b})[0]
		if errs[i] == nil {
			f.mu.Lock()
			f.bound[b.UID] = true
			f.mu.Unlock()
			if fault == 1 {
				errs[i] = apierrors.NewTimeoutError("lost after", 1)
			}
		}
	}
	return errs
}

func (f *faulty) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (client.Object, error) {
	if f.roll(8) == 0 {
		return nil, apierrors.NewInternalError(errors.New("not now"))
	}
	return f.API.Get(ctx, ref, o)
}

func (f *faulty) Patch(ctx context.Context, ref client.Ref, t types.PatchType, patch []byte, o metav1.PatchOptions) (client.Object, error) {
	time.Sleep(time.Duration(f.roll(10)) * time.Millisecond)
	return f.API.Patch(ctx, ref, t, patch, o)
}

// TestSimulation does random things to a cluster and checks what the package
// promises: no pod is bound twice, no node over-committed; when things are calm
// no pod waits that could run, and each that waits says why.
func TestSimulation(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

func simulate(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	f := &faulty{API: clienttest.New(), rand: rand.New(rand.NewPCG(seed, 2)), bound: map[types.UID]bool{}}
	c := client.New(f, "test")
	ctx, cancel := context.WithCancel(t.Context())
	infs := client.NewInformers(c, slog.New(slog.DiscardHandler))
	s, err := New(Deps{Client: c, Informers: infs, Log: slog.New(slog.DiscardHandler), Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = infs.Run(ctx) })
	wg.Go(func() { _ = s.Run(ctx) })
	defer wg.Wait()
	defer cancel()

	pods, nodes := client.For[*corev1.Pod](c), client.For[*corev1.Node](c)
	zero := int64(0)
	made := 0
	for range 250 {
		switch r.IntN(7) {
		case 0:
			i := r.IntN(8)
			// A node of one name always has the same size.
			n := randomNode(rand.New(rand.NewPCG(uint64(i), 3)), i)
			n.Spec.Unschedulable = r.IntN(4) == 0
			f.Put(n)
		case 1:
			if r.IntN(3) == 0 {
				_ = nodes.Delete(ctx, fmt.Sprintf("n%d", r.IntN(8)), metav1.DeleteOptions{})
			}
		case 2:
			if made > 0 {
				_ = pods.In("default").Delete(ctx, fmt.Sprintf("p%d", r.IntN(made)), metav1.DeleteOptions{GracePeriodSeconds: &zero})
			}
		case 3:
			if made == 0 {
				continue
			}
			if p, err := pods.In("default").Get(ctx, fmt.Sprintf("p%d", r.IntN(made))); err == nil && p.Spec.NodeName != "" {
				p = p.DeepCopy()
				p.Status.Phase = corev1.PodSucceeded
				f.Put(p)
			}
		default:
			for range 1 + r.IntN(4) {
				p := randomPod(rand.New(rand.NewPCG(uint64(r.IntN(10)), 4)), made)
				p.UID = types.UID(fmt.Sprintf("uid-%d-%d", seed, made))
				f.Put(p)
				made++
			}
		}
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		notOvercommitted(t, ctx, c)
		endEvicted(ctx, pods)
	}
	f.mu.Lock()
	f.calm = true
	f.mu.Unlock()
	for range 30 {
		time.Sleep(20 * time.Second)
		synctest.Wait()
		endEvicted(ctx, pods)
	}
	notOvercommitted(t, ctx, c)
	if len(f.refused) > 0 {
		t.Errorf("bound a second time: %v", f.refused)
	}

	// A fresh view of the cluster: who waits must not fit anywhere.
	snapshot, classes := framework.NewSnapshot(), framework.NewClasses()
	all, _, err := nodes.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		snapshot.SetNode(n)
	}
	list, _, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, p := range list {
		if p.Spec.NodeName != "" && !finished(p) {
			running++
			snapshot.SetPod(classes.Pod(p), p.Spec.NodeName)
		}
	}
	cycle := NewCycle(plugins.All(), 0)
	waiting := 0
	for _, p := range list {
		if p.Spec.NodeName != "" {
			continue
		}
		waiting++
		if d := cycle.Schedule(snapshot, []*framework.Pod{classes.Pod(p)})[0]; d.Failure == nil {
			t.Errorf("%s waits and fits on %s", p.Name, d.Node)
			snapshot.Forget(p.UID)
		}
		explained := false
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse && cond.Reason == corev1.PodReasonUnschedulable && cond.Message != "" {
				explained = true
			}
		}
		if !explained {
			t.Errorf("%s waits and does not say why: %+v", p.Name, p.Status.Conditions)
		}
	}
	if running == 0 || made < 100 {
		t.Errorf("the simulation did little: %d pods made, %d run, %d wait", made, running, waiting)
	}
}

// endEvicted is the kubelet's part: what was asked to end, ends.
func endEvicted(ctx context.Context, pods client.Resource[*corev1.Pod]) {
	zero := int64(0)
	list, _, _ := pods.List(ctx, metav1.ListOptions{})
	for _, p := range list {
		if p.DeletionTimestamp != nil {
			_ = pods.In(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
		}
	}
}

func notOvercommitted(t *testing.T, ctx context.Context, c *client.Client) {
	t.Helper()
	nodes, _, err := client.For[*corev1.Node](c).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods, _, err := client.For[*corev1.Pod](c).List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	classes := framework.NewClasses()
	for _, n := range nodes {
		var cpu, memory, count int64
		ports := map[framework.HostPort]bool{}
		for _, p := range pods {
			if p.Spec.NodeName != n.Name || finished(p) {
				continue
			}
			cl := classes.Pod(p).Class
			cpu, memory, count = cpu+cl.Requests.MilliCPU, memory+cl.Requests.Memory, count+1
			for _, h := range cl.HostPorts {
				if ports[h] {
					t.Fatalf("port %d is taken twice on %s", h.Port, n.Name)
				}
				ports[h] = true
			}
		}
		have := framework.ResourceOf(n.Status.Allocatable)
		if cpu > have.MilliCPU || memory > have.Memory || count > have.Pods {
			t.Fatalf("node %s is over-committed: %dm of %dm, %d of %d, %d of %d pods", n.Name, cpu, have.MilliCPU, memory, have.Memory, count, have.Pods)
		}
	}
}
