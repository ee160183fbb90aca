package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.uber.org/goleak"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQueueHoldsAKeyOnceAndNeverTwiceAtATime(t *testing.T) {
	q := NewQueue[string]()
	q.Add("a")
	q.Add("a")
	q.Add("b")
	k, _ := q.Get()
	if k != "a" {
		t.Fatalf("got %q, want a: first in, first out", k)
	}
	q.Add("a") // while it is worked on
	if k, _ = q.Get(); k != "b" {
		t.Fatalf("got %q, want b: a is being worked on", k)
	}
	if d := q.Stats().Depth; d != 0 {
		t.Fatalf("depth %d, want 0", d)
	}
	q.Done("a", 0)
	if k, _ = q.Get(); k != "a" {
		t.Fatalf("got %q, want a: it was added while worked on", k)
	}
	q.Done("a", 0)
	q.Close()
	if _, ok := q.Get(); ok {
		t.Fatal("a closed queue handed out a key")
	}
}

func TestQueueBackoffDoublesAndIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[string]()
		defer q.Close()
		for i, want := range []time.Duration{5, 10, 20, 40} {
			start := time.Now()
			q.Retry("a")
			q.Get()
			q.Done("a", 0)
			if got := time.Since(start); got != want*time.Millisecond {
				t.Fatalf("retry %d came after %v, want %v", i, got, want*time.Millisecond)
			}
		}
		for range 40 {
			q.Retry("a")
		}
		if got := backoff(q.Retries("a")); got != 1000*time.Second {
			t.Fatalf("longest back-off is %v", got)
		}
		q.Forget("a")
		if got := backoff(q.Retries("a")); got != 5*time.Millisecond {
			t.Fatalf("back-off after Forget is %v", got)
		}
	})
}

func TestQueueDelayKeepsTheEarliest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[string]()
		defer q.Close()
		start := time.Now()
		q.AddAfter("a", time.Minute)
		q.AddAfter("a", time.Second)
		q.AddAfter("a", time.Hour)
		q.Get()
		if got := time.Since(start); got != time.Second {
			t.Fatalf("came after %v, want 1s", got)
		}
		q.Done("a", 0)
		time.Sleep(2 * time.Hour)
		if d := q.Stats().Depth; d != 0 {
			t.Fatalf("a replaced delay still fired")
		}
	})
}

func TestQueueRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQueue[string]()
		defer q.Close()
		q.Add("a")
		q.Get()
		start := time.Now()
		q.Done("a", 20*time.Millisecond)
		q.Add("a")
		q.Get()
		if got := time.Since(start); got != 20*time.Millisecond {
			t.Fatalf("came after %v, want 20ms", got)
		}
	})
}

func deps(api *clienttest.API) Deps {
	c := api.Client()
	return Deps{Informers: client.NewInformers(c, slogDiscard()), ClientFor: func(string) *client.Client { return c }, Log: slogDiscard()}
}

// start runs informers and controllers until the test ends.
func start(t *testing.T, d Deps, cs ...*Controller) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Informers.Run(ctx) })
	wg.Go(func() {
		if err := Run(ctx, d, cs); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// A reconciliation that creates what is missing would create it twice if it ran
// before the informer shows the first.
func TestReconcileSeesItsOwnWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "owner"}})
		slow := &slowWatch{API: api, resource: "configmaps", delay: time.Second}
		cl := client.New(slow, "test")
		d := Deps{Informers: client.NewInformers(cl, slogDiscard()), ClientFor: func(string) *client.Client { return cl }, Log: slogDiscard()}
		c := New("maker", d)
		maps := Watch(c, func(ch client.Change[*corev1.ConfigMap]) { c.Queue.Add(Key{"a", "owner"}) })
		Watch(c, Enqueue[*corev1.ServiceAccount](c))
		var runs atomic.Int32
		c.Reconcile = func(ctx context.Context, k Key) (Result, error) {
			runs.Add(1)
			if maps.Len() < 3 {
				m, err := client.For[*corev1.ConfigMap](cl).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", GenerateName: "m-"}})
				if err != nil {
					return Result{}, err
				}
				Wrote(c.Pending, k, maps, m)
			} else if maps.Len() == 3 {
				for _, m := range maps.List("", nil)[:1] {
					if err := client.For[*corev1.ConfigMap](cl).In(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{}); err != nil {
						return Result{}, err
					}
					Removed(c.Pending, k, maps, m)
				}
			}
			return Result{After: 100 * time.Millisecond}, nil
		}
		stop := start(t, d, c)
		defer stop()
		time.Sleep(time.Minute)
		creates, deletes := 0, 0
		for _, r := range api.Requests() {
			switch {
			case r.Ref.GVR.Resource != "configmaps":
			case r.Verb == "create":
				creates++
			case r.Verb == "delete":
				deletes++
			}
		}
		// Each round of a create and a delete takes two delays of the watch: 3
		// creates, then one of each in turn.
		if creates-deletes < 2 || creates-deletes > 3 {
			t.Fatalf("%d creates, %d deletes: some were done twice", creates, deletes)
		}
		if max := 3 + 60/2 + 1; creates > max {
			t.Fatalf("%d creates within 60 delays of the watch, at most %d possible", creates, max)
		}
	})
}

// slowWatch delivers the events of one resource late.
type slowWatch struct {
	*clienttest.API
	resource string
	delay    time.Duration
}

type lateWatch struct{ c chan client.Event }

func (w lateWatch) Events() <-chan client.Event { return w.c }

func (s *slowWatch) Watch(ctx context.Context, ref client.Ref, o metav1.ListOptions) (client.Watch, error) {
	w, err := s.API.Watch(ctx, ref, o)
	if err != nil || ref.GVR.Resource != s.resource {
		return w, err
	}
	late := lateWatch{make(chan client.Event)}
	go func() {
		defer close(late.c)
		for e := range w.Events() {
			if !sleep(ctx, s.delay) {
				return
			}
			select {
			case late.c <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return late, nil
}

func TestFailedKeyComesBackAndPanicIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "x"}})
		d := deps(api)
		c := New("failing", d)
		Watch(c, Enqueue[*corev1.ConfigMap](c))
		var at []time.Time
		c.Reconcile = func(context.Context, Key) (Result, error) {
			at = append(at, time.Now())
			switch len(at) {
			case 1:
				return Result{}, errors.New("no")
			case 2:
				panic("bad object")
			}
			return Result{}, nil
		}
		stop := start(t, d, c)
		time.Sleep(time.Hour)
		stop()
		if len(at) != 3 || at[1].Sub(at[0]) != 5*time.Millisecond || at[2].Sub(at[1]) != 10*time.Millisecond {
			t.Fatalf("reconciled at %v", at)
		}
	})
}

func TestRulesFollowFromTheDeclaration(t *testing.T) {
	d := deps(clienttest.New())
	c := New("some-controller", d)
	Watch[*corev1.Pod](c, nil)
	Watch[*corev1.Node](c, nil)
	Watch[*coordinationv1.Lease](c, nil)
	Watch[*corev1.Pod](c, nil)
	c.Writes = append(c.Writes, Rule("", []string{"pods"}, "create", "delete"))
	got := fmt.Sprint(c.Rules())
	want := fmt.Sprint([]any{
		Rule("", []string{"nodes", "pods"}, "get", "list", "watch"),
		Rule("coordination.k8s.io", []string{"leases"}, "get", "list", "watch"),
		Rule("", []string{"pods"}, "create", "delete"),
	})
	if got[:len(want)-1] != want[:len(want)-1] {
		t.Fatalf("rules are\n%s, want first\n%s", got, want)
	}
}

func events(t *testing.T, api *clienttest.API) []*corev1.Event {
	t.Helper()
	l, _, err := client.For[*corev1.Event](api.Client()).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestRecorderCountsCombinesAndFilters(t *testing.T) {
	pod := func(n string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: n, UID: "1", ResourceVersion: "7"}}
	}
	run := func(t *testing.T, f func(r *Recorder)) []*corev1.Event {
		api := clienttest.New()
		r := NewRecorder(RecorderDeps{Client: api.Client(), Component: "me", Host: "here", Log: slogDiscard()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.Run(ctx) }()
		f(r)
		synctest.Wait()
		cancel()
		<-done
		return events(t, api)
	}
	synctest.Test(t, func(t *testing.T) {
		l := run(t, func(r *Recorder) {
			for range 3 {
				r.Event(pod("p"), corev1.EventTypeNormal, "Pulled", "it %d%%", 7)
				synctest.Wait()
				time.Sleep(time.Minute)
			}
		})
		if len(l) != 1 || l[0].Count != 3 || l[0].LastTimestamp.Sub(l[0].FirstTimestamp.Time) != 2*time.Minute {
			t.Fatalf("the same event three times gave %v", l)
		}
		e := l[0]
		if e.Message != "it 7%" || e.Source.Component != "me" || e.Source.Host != "here" || e.ReportingController != "me" || e.ReportingInstance != "here" {
			t.Fatalf("event is %v", e)
		}
		if o := e.InvolvedObject; o.Kind != "Pod" || o.APIVersion != "v1" || o.UID != "1" || o.ResourceVersion != "7" || o.Name != "p" || o.Namespace != "a" {
			t.Fatalf("involved object is %v", o)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := run(t, func(r *Recorder) {
			r.Event(pod("p"), corev1.EventTypeNormal, "Pulled", "it")
			time.Sleep(11 * time.Minute)
			r.Event(pod("p"), corev1.EventTypeNormal, "Pulled", "it")
		})
		if len(l) != 2 {
			t.Fatalf("the same event after eleven minutes: %d events, want 2", len(l))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := run(t, func(r *Recorder) {
			for i := range 15 {
				r.Event(pod("p"), corev1.EventTypeNormal, "Pulled", "it %d", i)
				synctest.Wait()
			}
		})
		if len(l) != 10 {
			t.Fatalf("15 similar events gave %d, want 9 and one combined", len(l))
		}
		combined := 0
		for _, e := range l {
			if e.Message == "(combined from similar events): it 14" && e.Count == 6 {
				combined++
			}
		}
		if combined != 1 {
			t.Fatalf("no combined event in %v", l)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := run(t, func(r *Recorder) {
			for i := range 100 {
				r.Event(pod("p"), corev1.EventTypeWarning, fmt.Sprint("R", i), "it")
				synctest.Wait()
			}
			time.Sleep(6 * time.Minute)
			r.Event(pod("p"), corev1.EventTypeWarning, "Late", "it")
		})
		if len(l) != 26 {
			t.Fatalf("100 events at once and one later gave %d, want 25 and 1", len(l))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New()
		r := NewRecorder(RecorderDeps{Client: api.Client(), Component: "me", Log: slogDiscard()})
		for i := range eventQueue + 5 {
			r.Event(pod(fmt.Sprint(i)), corev1.EventTypeNormal, "X", "it")
		}
		if r.Dropped() != 5 {
			t.Fatalf("%d dropped, want 5", r.Dropped())
		}
	})
}

func TestRecorderWritesAnewWhenTheEventHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New()
		r := NewRecorder(RecorderDeps{Client: api.Client(), Component: "me", Log: slogDiscard()})
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
		emit := func() {
			r.Event(p, corev1.EventTypeNormal, "X", "it")
			r.write(t.Context(), <-r.in)
		}
		emit()
		if err := client.For[*corev1.Event](api.Client()).In("a").Delete(t.Context(), events(t, api)[0].Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		emit()
		emit()
		l := events(t, api)
		if len(l) != 1 || l[0].Count != 3 {
			t.Fatalf("events are %v, want one with count 3", l)
		}
	})
}

func TestLeaseIsHeldByOneAndPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New()
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		leading := map[string]bool{}
		var wg sync.WaitGroup
		stop := map[string]context.CancelFunc{}
		begin := func(id string) {
			ctx, cancel := context.WithCancel(ctx)
			stop[id] = cancel
			l := NewLease(LeaseDeps{Client: api.Client(), Namespace: "kube-system", Name: "kube-controller-manager", Identity: id, Log: slogDiscard()})
			wg.Go(func() {
				_ = l.Lead(ctx, func(ctx context.Context) error {
					mu.Lock()
					if len(leading) != 0 {
						t.Errorf("%s leads beside %v", id, leading)
					}
					leading[id] = true
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					delete(leading, id)
					mu.Unlock()
					return nil
				})
			})
		}
		begin("one")
		time.Sleep(time.Second)
		begin("two")
		time.Sleep(time.Hour)
		leads := func(id string) bool { mu.Lock(); defer mu.Unlock(); return leading[id] }
		if !leads("one") || leads("two") {
			t.Fatal("not the first leads")
		}
		stop["one"]()
		time.Sleep(4 * time.Second)
		if !leads("two") {
			t.Fatal("a released lease was not taken within two tries")
		}
		l, err := client.For[*coordinationv1.Lease](api.Client()).In("kube-system").Get(ctx, "kube-controller-manager")
		if err != nil {
			t.Fatal(err)
		}
		if *l.Spec.HolderIdentity != "two" || *l.Spec.LeaseDurationSeconds != 15 || *l.Spec.LeaseTransitions != 1 {
			t.Fatalf("lease is %v", l.Spec)
		}
		cancel()
		wg.Wait()
	})
}

func TestLeaseIsLostWhenItCannotBeRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := clienttest.New()
		l := NewLease(LeaseDeps{Client: api.Client(), Namespace: "n", Name: "l", Identity: "one", Log: slogDiscard()})
		var down atomic.Bool
		api.Intercept = func(string, client.Ref, client.Object) error {
			if down.Load() {
				return errors.New("no connection")
			}
			return nil
		}
		start := time.Now()
		err := l.Lead(t.Context(), func(ctx context.Context) error {
			time.Sleep(time.Minute)
			down.Store(true)
			<-ctx.Done()
			return nil
		})
		if !errors.Is(err, ErrLost) {
			t.Fatalf("err is %v", err)
		}
		// Before another may take it: 15 s after the last renewal.
		if got := time.Since(start); got < 68*time.Second || got > 73*time.Second {
			t.Fatalf("gave up after %v", got)
		}
	})
}

func slogDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }
