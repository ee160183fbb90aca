package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client"
	"skiff/internal/codec"
	"skiff/internal/store"
	"skiff/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type rig struct {
	t     *testing.T
	st    *mem.Store
	c     *Cache
	pods  *Collection
	maps  *Collection
	stop  func()
	ended chan error
}

func decode(fresh func() client.Object) func(string, []byte, int64) (client.Object, error) {
	return func(_ string, b []byte, rev int64) (client.Object, error) {
		o := fresh()
		return o, codec.FromStored(b, rev, o)
	}
}

func open(t *testing.T, st *mem.Store, cfg Config) *rig {
	t.Helper()
	return openOn(t, st, st, cfg)
}

// openOn is open on a store that behaves otherwise than st, where it has what it has.
func openOn(t *testing.T, on store.Store, st *mem.Store, cfg Config) *rig {
	t.Helper()
	cfg.Store, cfg.Verify = on, true
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	r := &rig{t: t, st: st, c: New(cfg), ended: make(chan error, 1)}
	r.pods = r.c.Add(CollectionConfig{
		Prefix: "/registry/pods/", Decode: decode(func() client.Object { return &corev1.Pod{} }),
		Node: func(o client.Object) string { return o.(*corev1.Pod).Spec.NodeName },
	})
	r.maps = r.c.Add(CollectionConfig{Prefix: "/registry/configmaps/", Decode: decode(func() client.Object { return &corev1.ConfigMap{} })})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.ended <- r.c.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-r.ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(r.stop)
	select {
	case <-r.c.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("cache is not ready")
	}
	return r
}

func start(t *testing.T) *rig {
	t.Helper()
	return startWith(t, Config{})
}

func startWith(t *testing.T, cfg Config) *rig {
	t.Helper()
	st := mem.New(mem.Config{})
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return open(t, st, cfg)
}

func podBytes(t *testing.T, ns, name, node string) []byte {
	t.Helper()
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.Spec.NodeName = ns, name, node
	b, err := codec.Stored(corev1.SchemeGroupVersion.WithKind("Pod"), p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (r *rig) create(ns, name, node string) int64 {
	r.t.Helper()
	rev, err := r.st.Create(r.t.Context(), "/registry/pods/"+ns+"/"+name, podBytes(r.t, ns, name, node), store.WriteOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return rev
}

func (r *rig) update(ns, name, node string, expect int64) int64 {
	r.t.Helper()
	rev, err := r.st.Update(r.t.Context(), "/registry/pods/"+ns+"/"+name, podBytes(r.t, ns, name, node), expect, store.WriteOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return rev
}

func (r *rig) remove(ns, name string, expect int64) int64 {
	r.t.Helper()
	rev, err := r.st.Delete(r.t.Context(), "/registry/pods/"+ns+"/"+name, expect)
	if err != nil {
		r.t.Fatal(err)
	}
	return rev
}

func (r *rig) fresh() int64 {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	rev, err := r.c.Fresh(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return rev
}

func keys(s *Snapshot, prefix, after string) string {
	var out []string
	s.Ascend(prefix, after, func(it *Item) bool { out = append(out, it.Key); return true })
	return strings.Join(out, " ")
}

// collect reads n events from a watcher.
func (r *rig) collect(w *Watcher, n int) []string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	var out []string
	for len(out) < n {
		q, err := w.Next(ctx)
		if err != nil {
			r.t.Fatalf("after %v: %v", out, err)
		}
		for _, e := range q {
			kind := "put"
			if e.New == nil {
				kind = "del"
			} else if e.Old == nil {
				kind = "new"
			}
			out = append(out, fmt.Sprintf("%s %s@%d", kind, e.Key, e.Rev))
		}
	}
	return out
}

func TestFreshSeesAcknowledgedWrites(t *testing.T) {
	r := start(t)
	release := r.st.Faults.HoldWatches()
	rev := r.create("a", "one", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.c.Fresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Fresh did not wait for a watch that lags: %v", err)
	}
	release()
	if got := r.fresh(); got < rev {
		t.Fatalf("fresh at %d, want at least %d", got, rev)
	}
	if it := r.pods.Get("a/one"); it == nil || it.Object().GetResourceVersion() != strconv.FormatInt(rev, 10) {
		t.Fatalf("item is %v", it)
	}
}

// A cache that has ended reaches nothing any more: nobody waits for it.
func TestNobodyWaitsForAnEndedCache(t *testing.T) {
	r := start(t)
	r.stop()
	rev := r.create("a", "one", "")
	if err := r.c.WaitFor(t.Context(), rev); !errors.Is(err, store.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestSnapshotsStay(t *testing.T) {
	r := start(t)
	one := r.create("a", "one", "")
	r.create("b", "two", "")
	r.fresh()
	s := r.pods.Snapshot()
	r.remove("a", "one", one)
	r.create("c", "three", "")
	r.fresh()
	if got := keys(s, "", ""); got != "a/one b/two" {
		t.Errorf("the snapshot became %q", got)
	}
	if got := keys(r.pods.Snapshot(), "", ""); got != "b/two c/three" {
		t.Errorf("the newest state is %q", got)
	}
	if got := keys(s, "b/", ""); got != "b/two" {
		t.Errorf("namespace b has %q", got)
	}
	if got := keys(s, "", "a/one"); got != "b/two" {
		t.Errorf("after a/one comes %q", got)
	}
	// The state at a past revision, whether kept or read from the store.
	at, err := r.pods.At(t.Context(), s.Rev)
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(at, "", ""); got != "a/one b/two" {
		t.Errorf("at %d: %q", s.Rev, got)
	}
}

func TestWatchScopes(t *testing.T) {
	r := start(t)
	_, all := r.pods.WatchFrom(Scope{})
	_, ns := r.pods.WatchFrom(Scope{Namespace: "a"})
	_, one := r.pods.WatchFrom(Scope{Namespace: "b", Name: "x"})
	_, node := r.pods.WatchFrom(Scope{Node: "n1"})
	for _, w := range []*Watcher{all, ns, one, node} {
		defer w.Stop()
	}
	r1 := r.create("a", "x", "")
	r2 := r.create("b", "x", "")
	r3 := r.update("b", "x", "n1", r2)
	r4 := r.update("b", "x", "n2", r3)
	r5 := r.remove("a", "x", r1)
	check := func(w *Watcher, want ...string) {
		t.Helper()
		if got := r.collect(w, len(want)); strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	ev := func(kind, key string, rev int64) string { return fmt.Sprintf("%s %s@%d", kind, key, rev) }
	check(all, ev("new", "a/x", r1), ev("new", "b/x", r2), ev("put", "b/x", r3), ev("put", "b/x", r4), ev("del", "a/x", r5))
	check(ns, ev("new", "a/x", r1), ev("del", "a/x", r5))
	check(one, ev("new", "b/x", r2), ev("put", "b/x", r3), ev("put", "b/x", r4))
	// A pod that leaves a node is that node's to see.
	check(node, ev("put", "b/x", r3), ev("put", "b/x", r4))
	r.fresh()
	if p := all.Progress(); p < r5 {
		t.Errorf("progress is %d, want at least %d", p, r5)
	}
}

func TestWatchResumesOverRestart(t *testing.T) {
	r := start(t)
	r1 := r.create("a", "x", "")
	r2 := r.update("a", "x", "n1", r1)
	r.fresh()
	r.stop()
	r3 := r.update("a", "x", "n2", r2)
	again := open(t, r.st, Config{})
	w, err := again.pods.Watch(Scope{}, r1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	got := again.collect(w, 2)
	if want := fmt.Sprintf("[put a/x@%d put a/x@%d]", r2, r3); fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestWindowIsBounded(t *testing.T) {
	st := mem.New(mem.Config{})
	defer st.Close()
	r := open(t, st, Config{WindowBytes: 1})
	first := r.create("a", "x", "")
	rev := first
	for i := range 300 {
		rev = r.update("a", "x", fmt.Sprint("n", i), rev)
	}
	r.fresh()
	if _, err := r.pods.Watch(Scope{}, first); !errors.Is(err, ErrExpired) {
		t.Errorf("a watch from before the window: %v", err)
	}
	w, err := r.pods.Watch(Scope{}, rev-50)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got := r.collect(w, 50); len(got) != 50 {
		t.Errorf("%d events", len(got))
	}
}

func TestBrokenWatchResumes(t *testing.T) {
	r := start(t)
	_, w := r.pods.WatchFrom(Scope{})
	defer w.Stop()
	r1 := r.create("a", "x", "")
	r.fresh()
	r.st.BreakWatches(errors.New("connection lost"))
	r2 := r.update("a", "x", "n", r1)
	got := r.collect(w, 2)
	if want := fmt.Sprintf("[new a/x@%d put a/x@%d]", r1, r2); fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestMissedChanges: when the revision to resume from is compacted, the state is
// read anew and watchers are told to list.
func TestMissedChanges(t *testing.T) {
	r := start(t)
	_, w := r.pods.WatchFrom(Scope{})
	defer w.Stop()
	r1 := r.create("a", "x", "")
	r.fresh()
	r.collect(w, 1)
	release := r.st.Faults.HoldWatches()
	r2 := r.remove("a", "x", r1)
	r3 := r.create("a", "y", "")
	if err := r.st.Compact(t.Context(), r3); err != nil {
		t.Fatal(err)
	}
	r.st.BreakWatches(errors.New("connection lost"))
	release()
	r.fresh()
	if got := keys(r.pods.Snapshot(), "", ""); got != "a/y" {
		t.Errorf("state is %q", got)
	}
	_ = r2
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		q, err := w.Next(ctx)
		if errors.Is(err, ErrExpired) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		// The mem store may have delivered what it held before it broke.
		if len(q) == 2 {
			return
		}
	}
}

func TestEncodingsAreMadeOnceAndBounded(t *testing.T) {
	st := mem.New(mem.Config{})
	defer st.Close()
	r := open(t, st, Config{EncodingBytes: 100})
	r.create("a", "x", "")
	r.create("a", "y", "")
	r.fresh()
	made := 0
	enc := func(client.Object) ([]byte, error) { made++; return make([]byte, 80), nil }
	x, y := r.pods.Get("a/x"), r.pods.Get("a/y")
	for range 3 {
		if _, err := x.Encoded(JSON, enc); err != nil {
			t.Fatal(err)
		}
	}
	if made != 1 {
		t.Errorf("encoded %d times, want 1", made)
	}
	if _, err := y.Encoded(JSON, enc); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Encoded(JSON, enc); err != nil {
		t.Fatal(err)
	}
	if made != 3 {
		t.Errorf("encoded %d times, want 3: the oldest must have been dropped", made)
	}
}

func TestModifiedObjectIsNoticed(t *testing.T) {
	r := start(t)
	r1 := r.create("a", "x", "")
	r.fresh()
	it := r.pods.Get("a/x")
	it.obj.SetLabels(map[string]string{"changed": "yes"})
	defer func() {
		if recover() == nil {
			t.Error("nobody noticed")
		}
		it.obj.SetLabels(nil)
	}()
	_ = r1
	it.verify()
}

func TestUndecodableIsLeftOut(t *testing.T) {
	r := start(t)
	if _, err := r.st.Create(t.Context(), "/registry/pods/a/bad", []byte("nonsense"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.create("a", "good", "")
	r.fresh()
	if got := keys(r.pods.Snapshot(), "", ""); got != "a/good" {
		t.Errorf("state is %q", got)
	}
}
