package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

// typedWriter writes through a client.
type typedWriter struct{ c *client.Client }

func (w typedWriter) close() {}

func (w typedWriter) patchStatus(ctx context.Context, ns, name string, patch []byte) error {
	_, err := client.For[*corev1.Pod](w.c).In(ns).Patch(ctx, name, types.StrategicMergePatchType, patch, "status")
	return err
}

func (w typedWriter) remove(ctx context.Context, ns, name, uid string) error {
	zero, u := int64(0), types.UID(uid)
	err := client.For[*corev1.Pod](w.c).In(ns).Delete(ctx, name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &u},
	})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return err
}

func hollowOn(api *clienttest.API, nodes int, heartbeat time.Duration) *hollow {
	return newHollow(hollowDeps{
		Client: api.Client(), NewWriter: func() podWriter { return typedWriter{api.Client()} },
		Run: "t", Nodes: nodes, Namespace: "b", Writers: 3, Heartbeat: heartbeat, Now: time.Now,
	})
}

func TestHollowKubelets(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	api := clienttest.New()
	h := hollowOn(api, 3, 100*time.Millisecond)
	if err := h.register(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.schedulable(ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(ctx)
	done, open := make(chan error, 1), make(chan struct{})
	go func() { done <- h.run(rctx, func() { close(open) }) }()
	<-open
	pods := client.For[*corev1.Pod](api.Client()).In("b")
	const n = 20
	for i := range n + 1 {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Namespace: "b"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		if _, err := pods.Create(ctx, p); err != nil {
			t.Fatal(err)
		}
		// The last pod goes to a node that is not ours: nobody here reports it.
		target := h.node(i % 3)
		if i == n {
			target = "elsewhere"
		}
		errs := api.Client().Bind(ctx, []*corev1.Binding{{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: "b"}, Target: corev1.ObjectReference{Kind: "Node", Name: target},
		}})
		if errs[0] != nil {
			t.Fatal(errs[0])
		}
	}
	boundAt, readyAt, err := h.wait(ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	if readyAt.Before(boundAt) {
		t.Errorf("all Ready at %v, before all were bound at %v", readyAt, boundAt)
	}
	for i := range n + 1 {
		p, err := pods.Get(ctx, fmt.Sprintf("p%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if want := i < n; isReady(p) != want || (p.Status.Phase == corev1.PodRunning) != want {
			t.Errorf("pod %s on %s: phase %q, Ready %v, want %v", p.Name, p.Spec.NodeName, p.Status.Phase, isReady(p), want)
		}
		scheduled := false
		for _, c := range p.Status.Conditions {
			scheduled = scheduled || c.Type == corev1.PodScheduled
		}
		if !scheduled {
			t.Errorf("pod %s: its report took PodScheduled away", p.Name)
		}
	}
	// A pod that is deleted with grace is removed by its kubelet.
	if err := pods.Delete(ctx, "p0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, 20*time.Second, 5*time.Millisecond, func() (bool, error) {
		_, err := pods.Get(ctx, "p0")
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	}); err != nil {
		t.Errorf("the deleted pod stays: %v", err)
	}
	leases := client.For[*coordinationv1.Lease](api.Client()).In(corev1.NamespaceNodeLease)
	first, err := leases.Get(ctx, h.node(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := poll(ctx, 20*time.Second, 5*time.Millisecond, func() (bool, error) {
		l, err := leases.Get(ctx, h.node(1))
		return err == nil && l.Spec.RenewTime.After(first.Spec.RenewTime.Time), err
	}); err != nil {
		t.Errorf("the lease is not renewed: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if err := h.unregister(ctx); err != nil {
		t.Fatal(err)
	}
	nodes, _, err := client.For[*corev1.Node](api.Client()).List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes) != 0 {
		t.Errorf("%d nodes stay behind (%v)", len(nodes), err)
	}
}

// cutter is an API whose watches the test can end.
type cutter struct {
	*clienttest.API
	cut context.CancelFunc
}

func (c *cutter) Watch(ctx context.Context, ref client.Ref, o metav1.ListOptions) (client.Watch, error) {
	ctx, c.cut = context.WithCancel(ctx)
	return c.API.Watch(ctx, ref, o)
}

// A watch that the server ends is begun anew, and no pod is missed.
func TestHollowWatchEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	api := &cutter{API: clienttest.New()}
	h := hollowOn(api.API, 1, time.Second)
	h.d.Client = client.New(api, "test")
	if err := h.register(ctx); err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(ctx)
	done, open := make(chan error, 1), make(chan struct{})
	go func() { done <- h.run(rctx, func() { close(open) }) }()
	<-open
	api.cut()
	api.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "b", UID: "p"}, Spec: corev1.PodSpec{NodeName: h.node(0)}})
	if _, _, err := h.wait(ctx, 1); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestHollowObserve(t *testing.T) {
	h := hollowOn(clienttest.New(), 1, time.Second)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u"}}
	if got := h.observe(watch.Added, p); got != nil {
		t.Error("a pod that is not bound needs a write")
	}
	p = p.DeepCopy()
	p.Spec.NodeName = h.node(0)
	if got := h.observe(watch.Modified, p); got == nil || got.remove {
		t.Errorf("a pod newly bound: %+v", got)
	}
	if got := h.observe(watch.Modified, p); got != nil {
		t.Error("a pod is reported twice")
	}
	p = p.DeepCopy()
	p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	if got := h.observe(watch.Modified, p); got == nil || !got.remove {
		t.Errorf("a pod that ends: %+v", got)
	}
	if got := h.observe(watch.Modified, p); got != nil {
		t.Error("a pod is removed twice")
	}
	if got := h.observe(watch.Deleted, p); got != nil || len(h.pods) != 0 {
		t.Error("a pod that is gone is remembered")
	}
}

func TestHollowTellsWhatIsMissing(t *testing.T) {
	api := clienttest.New()
	h := hollowOn(api, 2, time.Second)
	if err := h.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := client.For[*corev1.Node](api.Client()).Get(t.Context(), h.node(0))
	if err != nil {
		t.Fatal(err)
	}
	n = n.DeepCopy()
	n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
	api.Put(n)
	if err := h.schedulable(t.Context(), 50*time.Millisecond); !errors.Is(err, errLate) {
		t.Errorf("a tainted node is schedulable: %v", err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errLate)
	defer cancel()
	if _, _, err := h.wait(ctx, 1); !errors.Is(err, errLate) {
		t.Errorf("wait for a pod that never comes: %v", err)
	}
	// A refused write ends the run with its reason.
	api.Intercept = func(verb string, _ client.Ref, _ client.Object) error {
		if verb == "patch" {
			return apierrors.NewInternalError(errors.New("no"))
		}
		return nil
	}
	h.d.Heartbeat = 10 * time.Millisecond
	rctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if err := h.run(rctx, func() {}); err == nil || rctx.Err() != nil {
		t.Errorf("run = %v although no lease can be renewed", err)
	}
}
