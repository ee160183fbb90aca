package cache

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"skiff/internal/store"
	"skiff/internal/store/mem"
)

// slowPast is a store that tells of its past when it is let: for what happens at
// once at a start, and what later.
type slowPast struct {
	store.Store
	let chan struct{}
}

func (s *slowPast) Compacted(ctx context.Context) (int64, error) {
	select {
	case <-s.let:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return s.Store.Compacted(ctx)
}

// TestReadyBeforeThePastIsKnown: reads, writes and new watches do not wait for the
// window; one that resumes from before the start does, and misses nothing.
func TestReadyBeforeThePastIsKnown(t *testing.T) {
	r := start(t)
	r1 := r.create("a", "kept", "n1")
	r2 := r.create("a", "gone", "n1")
	r3 := r.update("a", "kept", "n2", r1)
	r4 := r.remove("a", "gone", r2)
	r5 := r.create("a", "new", "")
	r.fresh()
	r.stop()

	slow := &slowPast{Store: r.st, let: make(chan struct{})}
	again := openOn(t, slow, r.st, Config{}) // returns when it is ready
	if got := keys(again.pods.Snapshot(), "", ""); got != "a/kept a/new" {
		t.Errorf("the state is %q", got)
	}
	_, live := again.pods.WatchFrom(Scope{})
	defer live.Stop()
	at5, err := again.pods.Watch(Scope{}, r5)
	if err != nil {
		t.Fatal(err)
	}
	defer at5.Stop()
	r6 := again.update("a", "new", "n3", r5)
	for _, w := range []*Watcher{live, at5} {
		if got, want := fmt.Sprint(again.collect(w, 1)), fmt.Sprintf("[put a/new@%d]", r6); got != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}

	type result struct {
		w   *Watcher
		err error
	}
	resumed := make(chan result)
	go func() {
		w, err := again.pods.Watch(Scope{}, r2)
		resumed <- result{w, err}
	}()
	select {
	case got := <-resumed:
		t.Fatalf("a watch from before the start did not wait: %v", got.err)
	case <-time.After(20 * time.Millisecond): // it waits: nothing to be awaited tells so
	}
	close(slow.let)
	got := <-resumed
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.w.Stop()
	want := fmt.Sprintf("[put a/kept@%d del a/gone@%d new a/new@%d put a/new@%d]", r3, r4, r5, r6)
	if all := fmt.Sprint(again.collect(got.w, 4)); all != want {
		t.Errorf("got %s, want %s", all, want)
	}
	// Watchers of a node see what left it before the start.
	node, err := again.pods.Watch(Scope{Node: "n1"}, r2)
	if err != nil {
		t.Fatal(err)
	}
	defer node.Stop()
	if all, want := fmt.Sprint(again.collect(node, 2)), fmt.Sprintf("[put a/kept@%d del a/gone@%d]", r3, r4); all != want {
		t.Errorf("the node's watcher got %s, want %s", all, want)
	}
}

// A past that was compacted is not invented.
func TestCompactedPastIsExpired(t *testing.T) {
	r := start(t)
	r1 := r.create("a", "x", "")
	r2 := r.update("a", "x", "n1", r1)
	r3 := r.update("a", "x", "n2", r2)
	r.fresh()
	r.stop()
	if err := r.st.Compact(t.Context(), r2); err != nil {
		t.Fatal(err)
	}
	again := open(t, r.st, Config{})
	if _, err := again.pods.Watch(Scope{}, r1-1); !errors.Is(err, ErrExpired) {
		t.Errorf("a watch from a compacted revision: %v", err)
	}
	w, err := again.pods.Watch(Scope{}, r2)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got, want := fmt.Sprint(again.collect(w, 1)), fmt.Sprintf("[put a/x@%d]", r3); got != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// The window keeps its bound when the past comes back: the newest stay.
func TestRecalledWindowIsBounded(t *testing.T) {
	st := mem.New(mem.Config{})
	defer st.Close()
	r := open(t, st, Config{})
	first := r.create("a", "x", "")
	rev := first
	for i := range 300 {
		rev = r.update("a", "x", fmt.Sprint("n", i), rev)
	}
	r.fresh()
	r.stop()
	again := open(t, st, Config{WindowBytes: 1})
	if _, err := again.pods.Watch(Scope{}, first); !errors.Is(err, ErrExpired) {
		t.Errorf("a watch from before the window: %v", err)
	}
	w, err := again.pods.Watch(Scope{}, rev-50)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if got := again.collect(w, 50); len(got) != 50 {
		t.Errorf("%d events", len(got))
	}
}
