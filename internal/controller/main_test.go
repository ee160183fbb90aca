package controller

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/goleak"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is the API as controllers see it: the one in memory, with errors where
// the test wants some. A write of a Deployment's status keeps its annotations, as
// upstream's does.
type server struct {
	*clienttest.API
	mu   sync.Mutex
	fail func(verb string, ref client.Ref) error
}

// refuse makes f answer controllers' writes, where it returns an error, before
// they are done. f is called one at a time.
func (s *server) refuse(f func(verb string, ref client.Ref) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

func (s *server) check(verb string, ref client.Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		return nil
	}
	return s.fail(verb, ref)
}

func (s *server) Create(ctx context.Context, ref client.Ref, o client.Object, opts metav1.CreateOptions) (client.Object, error) {
	if err := s.check("create", ref); err != nil {
		return nil, err
	}
	return s.API.Create(ctx, ref, o, opts)
}

func (s *server) Patch(ctx context.Context, ref client.Ref, t types.PatchType, p []byte, opts metav1.PatchOptions) (client.Object, error) {
	if err := s.check("patch", ref); err != nil {
		return nil, err
	}
	return s.API.Patch(ctx, ref, t, p, opts)
}

func (s *server) Delete(ctx context.Context, ref client.Ref, opts metav1.DeleteOptions) (client.Object, error) {
	if err := s.check("delete", ref); err != nil {
		return nil, err
	}
	return s.API.Delete(ctx, ref, opts)
}

func (s *server) Update(ctx context.Context, ref client.Ref, o client.Object, opts metav1.UpdateOptions) (client.Object, error) {
	if err := s.check("update", ref); err != nil {
		return nil, err
	}
	if d, ok := o.(*appsv1.Deployment); ok && ref.Subresource == "status" {
		p, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": d.ResourceVersion, "annotations": d.Annotations}})
		if err != nil {
			return nil, err
		}
		main := ref
		main.Subresource = ""
		got, err := s.API.Patch(ctx, main, types.MergePatchType, p, metav1.PatchOptions{})
		if err != nil {
			return nil, err
		}
		d = d.DeepCopy()
		d.ResourceVersion = got.GetResourceVersion()
		o = d
	}
	return s.API.Update(ctx, ref, o, opts)
}

// guarded holds a controller to the rules that follow from its declaration.
type guarded struct {
	*server
	t     *testing.T
	name  string
	rules map[string][]rbacv1.PolicyRule
}

func (g *guarded) allow(verb string, ref client.Ref) {
	resource, ofAll := ref.GVR.Resource, ref.GVR.Resource
	if ref.Subresource != "" {
		resource += "/" + ref.Subresource
		ofAll = "*/" + ref.Subresource
	}
	has := func(list []string, s string) bool { return slices.Contains(list, s) || slices.Contains(list, "*") }
	for _, r := range g.rules[g.name] {
		if has(r.APIGroups, ref.GVR.Group) && (has(r.Resources, resource) || has(r.Resources, ofAll)) && has(r.Verbs, verb) {
			return
		}
	}
	g.t.Errorf("%s may not %s %s", g.name, verb, resource)
}

func (g *guarded) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (client.Object, error) {
	g.allow("get", ref)
	return g.server.Get(ctx, ref, o)
}

func (g *guarded) List(ctx context.Context, ref client.Ref, o metav1.ListOptions) (*client.List, error) {
	g.allow("list", ref)
	return g.server.List(ctx, ref, o)
}

func (g *guarded) Create(ctx context.Context, ref client.Ref, obj client.Object, o metav1.CreateOptions) (client.Object, error) {
	g.allow("create", ref)
	return g.server.Create(ctx, ref, obj, o)
}

func (g *guarded) Update(ctx context.Context, ref client.Ref, obj client.Object, o metav1.UpdateOptions) (client.Object, error) {
	g.allow("update", ref)
	return g.server.Update(ctx, ref, obj, o)
}

func (g *guarded) Patch(ctx context.Context, ref client.Ref, t types.PatchType, p []byte, o metav1.PatchOptions) (client.Object, error) {
	g.allow("patch", ref)
	return g.server.Patch(ctx, ref, t, p, o)
}

func (g *guarded) Delete(ctx context.Context, ref client.Ref, o metav1.DeleteOptions) (client.Object, error) {
	g.allow("delete", ref)
	return g.server.Delete(ctx, ref, o)
}

func (g *guarded) DeleteCollection(ctx context.Context, ref client.Ref, o metav1.DeleteOptions, lo metav1.ListOptions) error {
	g.allow("deletecollection", ref)
	return g.server.DeleteCollection(ctx, ref, o, lo)
}

// world is a running set of controllers.
type world struct {
	t      *testing.T
	api    *server
	deps   Deps
	c      *client.Client // of the test, never refused
	cancel context.CancelFunc
	wg     sync.WaitGroup
	ctx    context.Context
}

// newWorld runs the controllers that make returns until the test ends. It is for
// use inside a synctest bubble.
func newWorld(t *testing.T, make func(Deps) []*control.Controller, objects ...client.Object) *world {
	return newWorldOn(t, func(*server) {}, make, objects...)
}

// newWorldOn is newWorld with an API that prepare has changed.
func newWorldOn(t *testing.T, prepare func(*server), make func(Deps) []*control.Controller, objects ...client.Object) *world {
	s := &server{API: clienttest.New(objects...)}
	prepare(s)
	w := &world{t: t, api: s, c: s.API.Client()}
	log := slog.New(slog.DiscardHandler)
	rules := map[string][]rbacv1.PolicyRule{}
	w.deps = Deps{Deps: control.Deps{
		Informers: client.NewInformers(w.c, log),
		ClientFor: func(name string) *client.Client {
			return client.New(&guarded{s, t, name, rules}, "kube-controller-manager")
		},
		Log: log,
	}}
	w.ctx, w.cancel = context.WithCancel(t.Context())
	cs := make(w.deps)
	for _, c := range cs {
		rules[c.Name] = append(rules[c.Name], c.Rules()...)
	}
	w.wg.Go(func() { _ = w.deps.Informers.Run(w.ctx) })
	w.wg.Go(func() {
		if err := control.Run(w.ctx, w.deps.Deps, cs); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) stop() { w.cancel(); w.wg.Wait(); synctest.Wait() }

func list[T client.Object](w *world, ns string) []T {
	w.t.Helper()
	l, _, err := client.For[T](w.c).In(ns).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

func get[T client.Object](w *world, ns, name string) T {
	w.t.Helper()
	o, err := client.For[T](w.c).In(ns).Get(context.Background(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// edit changes an object, whatever its version.
func edit[T client.Object](w *world, ns, name, sub string, f func(T)) {
	w.t.Helper()
	r := client.For[T](w.c).In(ns)
	for {
		o, err := r.Get(context.Background(), name)
		if apierrors.IsNotFound(err) && sub == "status" {
			return
		}
		if err != nil {
			w.t.Fatal(err)
		}
		o = o.DeepCopyObject().(T)
		f(o)
		if sub == "status" {
			_, err = r.UpdateStatus(context.Background(), o)
		} else {
			_, err = r.Update(context.Background(), o)
		}
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil && !apierrors.IsNotFound(err) {
			w.t.Fatal(err)
		}
		return
	}
}

func setReady(p *corev1.Pod, ready bool, now time.Time) {
	p.Status.Phase = corev1.PodRunning
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	if c := podCondition(p, corev1.PodReady); c != nil {
		if c.Status != status {
			c.Status, c.LastTransitionTime = status, metav1.NewTime(now)
		}
		return
	}
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(now)})
}

// kubelet runs pods: each is scheduled, and ready within most; a deleted one is
// gone within most. never says which pods never become ready.
func (w *world) kubelet(most time.Duration, rng *rand.Rand, never func(*corev1.Pod) bool) {
	var mu sync.Mutex
	delay := func() time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(rng.Int64N(int64(most) + 1))
	}
	ending := map[types.UID]bool{}
	pods := client.InformerFor[*corev1.Pod](w.deps.Informers)
	api := client.For[*corev1.Pod](w.c)
	pods.OnChange(func(ch client.Change[*corev1.Pod]) {
		if ch.Deleted() {
			return
		}
		p := ch.New
		if any(ch.Old) == any((*corev1.Pod)(nil)) {
			w.wg.Go(func() {
				time.Sleep(delay())
				for _, err := range w.c.Bind(context.Background(), []*corev1.Binding{{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Name: "node"}}}) {
					if err != nil {
						return // deleted meanwhile
					}
				}
				time.Sleep(delay())
				if never == nil || !never(p) {
					edit(w, p.Namespace, p.Name, "status", func(p *corev1.Pod) { setReady(p, true, time.Now()) })
				}
			})
		}
		mu.Lock()
		first := p.DeletionTimestamp != nil && !ending[p.UID]
		if first {
			ending[p.UID] = true
		}
		mu.Unlock()
		if first {
			w.wg.Go(func() {
				time.Sleep(delay())
				zero := int64(0)
				_ = api.In(p.Namespace).Delete(context.Background(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
			})
		}
	})
}

// until waits, in the bubble's time, for f.
func (w *world) until(what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Hour); ; time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		if f() {
			return
		}
		if time.Now().After(deadline) {
			for _, d := range list[*appsv1.Deployment](w, "") {
				w.t.Logf("deployment %s: paused %v spec %d %v status %+v annotations %v", d.Name, d.Spec.Paused, *d.Spec.Replicas, d.Spec.Template.Spec.Containers[0].Image, d.Status, d.Annotations)
			}
			for _, d := range list[*appsv1.ReplicaSet](w, "") {
				w.t.Logf("replicaset %s: spec %d %v status %+v annotations %v", d.Name, *d.Spec.Replicas, d.Spec.Template.Spec.Containers[0].Image, d.Status, d.Annotations)
			}
			w.t.Fatalf("never: %s", what)
		}
	}
}
