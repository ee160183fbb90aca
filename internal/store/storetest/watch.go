package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"skiff/internal/store"
)

// watching collects a watch's events and checks what holds for every batch.
type watching struct {
	t    *testing.T
	w    store.Watch
	evs  []store.Event
	rev  int64 // of the last batch
	last int64 // revision of the last event
}

func startWatch(t *testing.T, s store.Store, prefix string, after int64) *watching {
	t.Helper()
	w, err := s.Watch(within(t), prefix, after)
	if err != nil {
		t.Fatalf("watch %q after %d: %v", prefix, after, err)
	}
	return &watching{t: t, w: w, rev: after, last: after}
}

// next takes one batch.
func (w *watching) next() store.Batch {
	w.t.Helper()
	select {
	case b, ok := <-w.w.Batches():
		if !ok {
			w.t.Fatalf("watch closed: %v", w.w.Err())
		}
		w.check(b)
		return b
	case <-time.After(deadline):
		w.t.Fatalf("no batch came; %d events, at revision %d so far", len(w.evs), w.rev)
	}
	panic("unreachable")
}

func (w *watching) check(b store.Batch) {
	w.t.Helper()
	if b.Revision < w.rev {
		w.t.Fatalf("batch of revision %d follows one of %d", b.Revision, w.rev)
	}
	first := true
	for _, e := range b.Events {
		if e.KV.ModRev < w.last || (first && e.KV.ModRev <= w.rev && e.KV.ModRev <= w.last) {
			w.t.Fatalf("event of revision %d follows %d (batch before reached %d)", e.KV.ModRev, w.last, w.rev)
		}
		if first && e.KV.ModRev <= w.rev {
			w.t.Fatalf("event of revision %d comes after a batch that reached %d", e.KV.ModRev, w.rev)
		}
		first = false
		w.last = e.KV.ModRev
	}
	if w.last > b.Revision {
		w.t.Fatalf("batch of revision %d has an event of %d", b.Revision, w.last)
	}
	w.rev = b.Revision
	w.evs = append(w.evs, b.Events...)
}

// until collects until the watch has reached rev.
func (w *watching) until(rev int64) []store.Event {
	w.t.Helper()
	for w.rev < rev {
		w.next()
	}
	return w.evs
}

func drainClosed(t *testing.T, w store.Watch) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		select {
		case _, ok := <-w.Batches():
			if !ok {
				return
			}
		case <-timeout:
			t.Fatal("watch is not closed")
		}
	}
}

func describe(evs []store.Event) string {
	s := ""
	for _, e := range evs {
		op := "put"
		if e.Type == store.Delete {
			op = "del"
		}
		s += fmt.Sprintf("%s %s=%q c%d m%d; ", op, e.KV.Key, e.KV.Value, e.KV.CreateRev, e.KV.ModRev)
	}
	return s
}

func testWatchOrder(t *testing.T, _ Harness, s store.Store) {
	start := revision(t, s)
	w := startWatch(t, s, "/registry/", start)
	r1 := create(t, s, "/registry/a", "one")
	r2 := update(t, s, "/registry/a", "two", r1)
	r3 := remove(t, s, "/registry/a", r2)
	r4 := create(t, s, "/registry/b", "new")
	got := describe(w.until(r4))
	want := describe([]store.Event{
		{Type: store.Put, KV: store.KV{Key: "/registry/a", Value: []byte("one"), CreateRev: r1, ModRev: r1}},
		{Type: store.Put, KV: store.KV{Key: "/registry/a", Value: []byte("two"), CreateRev: r1, ModRev: r2}},
		{Type: store.Delete, KV: store.KV{Key: "/registry/a", ModRev: r3}},
		{Type: store.Put, KV: store.KV{Key: "/registry/b", Value: []byte("new"), CreateRev: r4, ModRev: r4}},
	})
	if got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// testWatchThenRead: who has seen a change reads that state or a newer one.
func testWatchThenRead(t *testing.T, _ Harness, s store.Store) {
	const writers, each, n = 4, 500, 4 * 500
	w := startWatch(t, s, "/registry/", revision(t, s))
	ctx := within(t)
	errs := make(chan error, writers)
	for k := range writers {
		go func() {
			errs <- func() error {
				for i := range each {
					if _, err := s.Create(ctx, fmt.Sprintf("/registry/%d-%04d", k, i), []byte("v"), store.WriteOptions{}); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for len(w.evs) < n {
		b := w.next()
		now, err := s.Revision(ctx)
		if err != nil || now < b.Revision {
			t.Fatalf("revision is %d, %v, after a batch of %d", now, err, b.Revision)
		}
		for _, e := range b.Events {
			if kv, err := s.Get(ctx, e.KV.Key, 0); err != nil || kv.ModRev < e.KV.ModRev {
				t.Fatalf("%s reads as %d, %v, after its change of %d", e.KV.Key, kv.ModRev, err, e.KV.ModRev)
			}
		}
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

func testWatchFromPast(t *testing.T, _ Harness, s store.Store) {
	var revs []int64
	for i := range 30 {
		revs = append(revs, create(t, s, fmt.Sprintf("/registry/%02d", i), "v"))
	}
	for _, from := range []int{0, 10, 28} {
		w := startWatch(t, s, "/registry/", revs[from])
		evs := w.until(revs[29])
		if len(evs) != 29-from || (len(evs) > 0 && evs[0].KV.ModRev != revs[from]+1) {
			t.Fatalf("after %d: %s", revs[from], describe(evs))
		}
	}
	w := startWatch(t, s, "/registry/", 0)
	if evs := w.until(revs[29]); len(evs) != 30 {
		t.Fatalf("from the beginning: %d events", len(evs))
	}
}

func testWatchFromFuture(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "1")
	w := startWatch(t, s, "/registry/", r1+1)
	r2 := update(t, s, "/registry/a", "2", r1)
	r3 := update(t, s, "/registry/a", "3", r2)
	if evs := w.until(r3); len(evs) != 1 || evs[0].KV.ModRev != r3 {
		t.Fatalf("after %d: %s", r2, describe(evs))
	}
}

func testWatchPrefix(t *testing.T, _ Harness, s store.Store) {
	w := startWatch(t, s, "/registry/pods/", revision(t, s))
	all := startWatch(t, s, "", revision(t, s))
	create(t, s, "/registry/podsx", "v")
	create(t, s, "/registry/pods", "v")
	create(t, s, "/registry/pods0", "v")
	r := create(t, s, "/registry/pods/a", "v")
	if evs := w.until(r); len(evs) != 1 || evs[0].KV.Key != "/registry/pods/a" {
		t.Fatalf("got %s", describe(evs))
	}
	if evs := all.until(r); len(evs) != 4 {
		t.Fatalf("the watch of everything got %s", describe(evs))
	}
}

func testWatchCompacted(t *testing.T, _ Harness, s store.Store) {
	r := create(t, s, "/registry/a", "0")
	first := r
	for i := range 10 {
		r = update(t, s, "/registry/a", fmt.Sprint(i), r)
	}
	d := remove(t, s, "/registry/a", r)
	compact(t, s, d)
	w, err := s.Watch(within(t), "/registry/", first)
	if err == nil {
		drainClosed(t, w)
		err = w.Err()
	}
	wantErr(t, err, store.ErrCompacted)
	// The revision compacted to itself is kept, a deletion too.
	ok := startWatch(t, s, "/registry/", d-1)
	if evs := ok.until(d); len(evs) != 1 || evs[0].Type != store.Delete || evs[0].KV.ModRev != d {
		t.Fatalf("after %d: %s", d-1, describe(evs))
	}
	ok = startWatch(t, s, "/registry/", d)
	n := create(t, s, "/registry/b", "v")
	if evs := ok.until(n); len(evs) != 1 || evs[0].KV.ModRev != n {
		t.Fatalf("after %d: %s", d, describe(evs))
	}
}

func testWatchSurvivesCompaction(t *testing.T, _ Harness, s store.Store) {
	w := startWatch(t, s, "/registry/", revision(t, s))
	r := create(t, s, "/registry/a", "0")
	w.until(r)
	for i := range 20 {
		r = update(t, s, "/registry/a", fmt.Sprint(i), r)
	}
	// What is delivered or on its way is not lost to a compaction.
	w.until(r)
	compact(t, s, r)
	r = update(t, s, "/registry/a", "end", r)
	if evs := w.until(r); len(evs) != 22 {
		t.Fatalf("%d events, want 22: %s", len(evs), describe(evs))
	}
}

func testWatchSlowReceiver(t *testing.T, _ Harness, s store.Store) {
	const n = 3000
	w := startWatch(t, s, "/registry/", revision(t, s))
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/%05d", i), Value: []byte("v")}
	}
	if _, err := s.Batch(within(t), ops); err != nil {
		t.Fatal(err)
	}
	end := revision(t, s)
	seen := map[string]bool{}
	for _, e := range w.until(end) {
		if seen[e.KV.Key] {
			t.Fatalf("key %q came twice", e.KV.Key)
		}
		seen[e.KV.Key] = true
	}
	if len(seen) != n {
		t.Fatalf("%d of %d changes came", len(seen), n)
	}
}

func testWatchProgress(t *testing.T, _ Harness, s store.Store) {
	w := startWatch(t, s, "/registry/pods/", revision(t, s))
	for i := range 5 {
		r := create(t, s, fmt.Sprintf("/registry/other/%d", i), "v")
		if err := w.w.RequestProgress(within(t)); err != nil {
			t.Fatal(err)
		}
		if evs := w.until(r); len(evs) != 0 {
			t.Fatalf("got %s", describe(evs))
		}
	}
	// A request on a quiet store is answered too.
	now := revision(t, s)
	w2 := startWatch(t, s, "/registry/pods/", now)
	if err := w2.w.RequestProgress(within(t)); err != nil {
		t.Fatal(err)
	}
	if b := w2.next(); b.Revision < now || len(b.Events) != 0 {
		t.Fatalf("got %+v, want progress to %d", b, now)
	}
	// And once more at the same revision.
	if err := w2.w.RequestProgress(within(t)); err != nil {
		t.Fatal(err)
	}
	if b := w2.next(); b.Revision < now || len(b.Events) != 0 {
		t.Fatalf("got %+v, want progress to %d", b, now)
	}
}

// testWatchProgressBehind: progress asked for while a watch still catches up does
// not overtake the changes before it.
func testWatchProgressBehind(t *testing.T, _ Harness, s store.Store) {
	start := revision(t, s)
	ops := make([]store.Op, 1500)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/%05d", i), Value: []byte("v")}
	}
	if _, err := s.Batch(within(t), ops); err != nil {
		t.Fatal(err)
	}
	end := create(t, s, "/other", "v")
	w := startWatch(t, s, "/registry/", start)
	if err := w.w.RequestProgress(within(t)); err != nil {
		t.Fatal(err)
	}
	if evs := w.until(end); len(evs) != len(ops) {
		t.Fatalf("%d events before the progress, want %d", len(evs), len(ops))
	}
}

func testWatchEnd(t *testing.T, _ Harness, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Watch(ctx, "/registry/", 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	drainClosed(t, w)
	if err := w.Err(); err != nil {
		t.Fatalf("a watch whose context ended has the error %v", err)
	}
	create(t, s, "/registry/a", "v") // nobody waits for the ended watch
}

// testWatchRandom: random writes by several writers; watches started at random
// moments rebuild the state that a list shows.
func testWatchRandom(t *testing.T, _ Harness, s store.Store) {
	const writers, each, keyCount = 6, 60, 12
	ctx := within(t)
	start := revision(t, s)
	errs := make(chan error, writers)
	for n := range writers {
		go func() {
			errs <- func() error {
				for i, k := range slices.Repeat(shuffled(keyCount), each/keyCount) {
					key := fmt.Sprintf("/registry/r/%02d", k)
					kv, err := s.Get(ctx, key, 0)
					switch {
					case err != nil:
						_, err = s.Create(ctx, key, fmt.Appendf(nil, "%d-%d", n, i), store.WriteOptions{})
					case i%5 == 4:
						_, err = s.Delete(ctx, key, kv.ModRev)
					default:
						_, err = s.Update(ctx, key, fmt.Appendf(nil, "%d-%d", n, i), kv.ModRev, store.WriteOptions{})
					}
					if err != nil && !isRefusal(err) {
						return err
					}
				}
				return nil
			}()
		}()
	}
	type begun struct {
		w    *watching
		page store.Page
	}
	var watches []begun
	for range 8 {
		p := list(t, s, "/registry/r/", store.ListOptions{})
		watches = append(watches, begun{startWatch(t, s, "/registry/r/", p.Revision), p})
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	end := revision(t, s)
	want := list(t, s, "/registry/r/", store.ListOptions{Revision: end})
	watches = append(watches, begun{startWatch(t, s, "/registry/r/", start), store.Page{}})
	for i, b := range watches {
		state := map[string]store.KV{}
		for _, kv := range b.page.KVs {
			state[kv.Key] = kv
		}
		if err := b.w.w.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		for _, e := range b.w.until(end) {
			old, had := state[e.KV.Key]
			switch {
			case e.Type == store.Delete && !had:
				t.Fatalf("watch %d: deletion of unknown %s", i, e.KV.Key)
			case e.Type == store.Delete:
				delete(state, e.KV.Key)
				continue
			case had && old.CreateRev != e.KV.CreateRev, !had && e.KV.CreateRev != e.KV.ModRev:
				t.Fatalf("watch %d: %s follows %+v (had=%t)", i, describe([]store.Event{e}), old, had)
			}
			state[e.KV.Key] = e.KV
		}
		if len(state) != len(want.KVs) {
			t.Fatalf("watch %d rebuilt %d keys, list has %d", i, len(state), len(want.KVs))
		}
		for _, kv := range want.KVs {
			got := state[kv.Key]
			wantKV(t, got, kv.Key, string(kv.Value), kv.CreateRev, kv.ModRev)
		}
	}
}
