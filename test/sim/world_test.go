package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client"
	"skiff/internal/store"
	"skiff/internal/store/mem"
	"skiff/internal/testcluster"
)

// world is a simulated cluster.
type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand // of operations
	log  *slog.Logger

	jump   atomic.Int64 // how far the wall clock is ahead of the bubble's
	st     *mem.Store
	cl     *testcluster.Cluster
	faults *testcluster.Faults
	fleet  *testcluster.Fleet
	user   *client.Client // no faults
	hist   *history
	inv    *invariants

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	control [2]*candidate
	reqs    map[string]int // of the control processes, by kind
	ops     int
	made    int // names given
}

// candidate is a process of controllers and scheduler that runs or waits.
type candidate struct {
	proc   *testcluster.Process
	cancel context.CancelFunc
}

var errViolated = errors.New("an invariant is violated")

// newWorld starts a cluster, without controllers yet. It is for use inside a bubble.
func newWorld(t *testing.T, seed uint64) *world {
	utilrand.Seed(int64(seed)) //nolint:gosec // any number
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), faults: testcluster.NewFaults(seed), reqs: map[string]int{},
		log: slog.New(slog.DiscardHandler),
	}
	if *verbose {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	w.st = mem.New(mem.Config{Now: w.now})
	var err error
	if w.cl, err = testcluster.New(testcluster.Config{Store: w.st, Log: w.log, Now: w.now, Verify: seed%5 == 0}); err != nil {
		t.Fatal(err)
	}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	w.inv = newInvariants()
	w.hist = newHistory(w.st, w.inv.step)
	w.inv.h, w.inv.fail = w.hist, w.violated
	w.run("server", w.cl.Run)
	w.run("history", w.hist.run)
	w.user = w.cl.Client("user")
	if err := w.cl.Bootstrap(w.ctx); err != nil {
		t.Fatal(err)
	}
	nodes := w.faults.Process()
	informers := client.NewInformers(client.New(nodes.Transport("kubelets", w.cl.Transport("kubelets")), "kubelet"), w.log)
	w.fleet = testcluster.NewFleet(testcluster.FleetDeps{
		Client: client.New(nodes.Transport("kubelet", w.cl.Transport("kubelet")), "kubelet"), Informers: informers, Now: w.now,
		Roll: w.faults.Roll, Start: 4 * time.Second, Stop: 4 * time.Second,
	})
	w.run("informers", informers.Run)
	w.run("kubelets", w.fleet.Run)
	w.run("compaction", w.compact)
	return w
}

// begin starts the processes of controllers: one leads, the other waits.
func (w *world) begin() {
	for i := range w.control {
		w.run("control", func(ctx context.Context) error { return w.lead(ctx, i) })
	}
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.jump.Load())) }

func (w *world) run(name string, f func(context.Context) error) {
	w.wg.Go(func() {
		if err := f(w.ctx); err != nil && w.ctx.Err() == nil {
			w.cancel(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// lead keeps the i-th process of controllers running, or waiting to.
func (w *world) lead(ctx context.Context, i int) error {
	for life := 0; ctx.Err() == nil; life++ {
		ctx, cancel := context.WithCancel(ctx)
		c := &candidate{proc: w.faults.Process(), cancel: cancel}
		w.mu.Lock()
		w.control[i] = c
		w.mu.Unlock()
		name := fmt.Sprintf("control-%d-%d", i, life)
		err := w.cl.RunControl(ctx, testcluster.Control{
			Identity: name, Seed: w.seed + uint64(life), //nolint:gosec // any number
			Transport: func(part string) client.Transport {
				if part == "informers" { // the first thing that a leader needs
					w.hist.op("%s leads", name)
					w.inv.tookOver()
				}
				return &counting{Transport: c.proc.Transport(part, w.cl.Transport("system:"+part)), w: w, part: part}
			},
		})
		c.proc.Kill()
		cancel()
		if err != nil {
			w.hist.op("%s ended: %v", name, err)
		}
		select {
		case <-time.After(time.Second):
		case <-w.ctx.Done():
			return nil
		}
	}
	return nil
}

// kill ends a process of controllers without a goodbye.
func (w *world) kill(i int) {
	w.mu.Lock()
	c := w.control[i]
	w.mu.Unlock()
	if c != nil {
		c.proc.Kill()
		c.cancel()
	}
}

func (w *world) compact(ctx context.Context) error {
	for {
		select {
		case <-time.After(5 * time.Minute):
		case <-ctx.Done():
			return nil
		}
		rev, err := w.st.Revision(ctx)
		if err != nil {
			return nil
		}
		w.hist.mu.Lock()
		at := min(rev-1000, w.hist.rev)
		w.hist.mu.Unlock()
		if at > 0 {
			if err := w.st.Compact(ctx, at); err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrClosed) {
				return err
			}
		}
	}
}

// violated reports a violation, once, and ends the simulation. It is called by the
// history, under its lock.
func (w *world) violated(format string, args ...any) {
	if w.ctx.Err() != nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	w.t.Errorf("seed %d, step %d: %s\n\n%s\nthe last steps:\n%s\ngo test ./test/sim -run '%s' -seed %d -steps %d",
		w.seed, w.hist.steps, text, w.hist.livesIn(text), w.hist.tail(), "TestSimulation", w.seed, w.hist.steps+1000)
	w.cancel(errViolated)
}

// failed is violated for what the test's own goroutine finds.
func (w *world) failed(format string, args ...any) {
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	w.violated(format, args...)
}

func (w *world) stop() {
	w.mu.Lock()
	for _, c := range w.control {
		if c != nil {
			c.cancel()
		}
	}
	w.mu.Unlock()
	if err := context.Cause(w.ctx); err != nil && !errors.Is(err, errViolated) {
		w.t.Errorf("seed %d: %v", w.seed, err)
	}
	w.cancel(nil)
	w.wg.Wait()
	w.faults.Wait()
	if err := w.st.Close(); err != nil {
		w.t.Error(err)
	}
	synctest.Wait()
}

// sleep lets simulated time pass; false when the simulation is over.
func (w *world) sleep(d time.Duration) bool {
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
	}
	synctest.Wait()
	return w.ctx.Err() == nil
}

// counting counts what a process of controllers asks of the API.
type counting struct {
	client.Transport
	w    *world
	part string
}

func (c *counting) count(verb string, ref client.Ref) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.reqs[c.part+" "+verb+" "+ref.GVR.Resource]++
}

func (c *counting) Create(ctx context.Context, ref client.Ref, o client.Object, opts metav1.CreateOptions) (client.Object, error) {
	c.count("create", ref)
	return c.Transport.Create(ctx, ref, o, opts)
}

func (c *counting) Update(ctx context.Context, ref client.Ref, o client.Object, opts metav1.UpdateOptions) (client.Object, error) {
	c.count("update", ref)
	return c.Transport.Update(ctx, ref, o, opts)
}

func (c *counting) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (client.Object, error) {
	c.count("get", ref)
	return c.Transport.Get(ctx, ref, o)
}

func (c *counting) List(ctx context.Context, ref client.Ref, o metav1.ListOptions) (*client.List, error) {
	c.count("list", ref)
	return c.Transport.List(ctx, ref, o)
}

func (c *counting) Delete(ctx context.Context, ref client.Ref, o metav1.DeleteOptions) (client.Object, error) {
	c.count("delete", ref)
	return c.Transport.Delete(ctx, ref, o)
}

// lost: what a request may end in because of others, or because the store loses
// answers.
func lost(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInternalError(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}

// The rest of the user's part of the API, without faults.

func get[T client.Object](w *world, ns, name string) (T, bool) {
	o, err := client.For[T](w.user).In(ns).Get(w.ctx, name)
	if err != nil && !apierrors.IsNotFound(err) && w.ctx.Err() == nil {
		w.failed("get %s/%s: %v", ns, name, err)
	}
	return o, err == nil
}

func list[T client.Object](w *world, ns string) []T {
	l, _, err := client.For[T](w.user).In(ns).List(w.ctx, metav1.ListOptions{})
	if err != nil && w.ctx.Err() == nil {
		w.failed("list: %v", err)
	}
	return l
}

// put creates an object; it may be refused for a good reason.
func put[T client.Object](w *world, o T) bool {
	_, err := client.For[T](w.user).Create(w.ctx, o)
	switch {
	case err == nil:
		return true
	case apierrors.IsAlreadyExists(err) || apierrors.IsForbidden(err) || lost(err) || w.ctx.Err() != nil:
	default:
		w.failed("create %T %s: %v", o, o.GetName(), err)
	}
	return false
}

// edit changes an object, whatever its version.
func edit[T client.Object](w *world, ns, name string, f func(T)) bool {
	for w.ctx.Err() == nil {
		o, ok := get[T](w, ns, name)
		if !ok {
			return false
		}
		o = o.DeepCopyObject().(T)
		f(o)
		_, err := client.For[T](w.user).In(ns).Update(w.ctx, o)
		switch {
		case err == nil:
			return true
		case apierrors.IsConflict(err) || apierrors.IsInternalError(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err):
		case apierrors.IsNotFound(err) || apierrors.IsForbidden(err):
			return false
		case w.ctx.Err() == nil:
			w.failed("update %T %s: %v", o, name, err)
		}
	}
	return false
}

func remove[T client.Object](w *world, ns, name string, policy metav1.DeletionPropagation) {
	err := client.For[T](w.user).In(ns).Delete(w.ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy})
	for err != nil && lost(err) && !apierrors.IsNotFound(err) && w.ctx.Err() == nil {
		err = client.For[T](w.user).In(ns).Delete(w.ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy})
	}
	if err != nil && !lost(err) && w.ctx.Err() == nil {
		w.failed("delete %s/%s: %v", ns, name, err)
	}
}

func pick[T any](w *world, from []T) T { return from[w.rng.IntN(len(from))] }

// pods of a namespace in the order of their names: no operation depends on a map.
func (w *world) pods(ns string) []*corev1.Pod { return list[*corev1.Pod](w, ns) }
