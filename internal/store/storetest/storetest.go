// Package storetest is the contract of package store as tests. Every
// implementation runs Run; what one kind alone can show (kill -9, a full disk)
// is tested beside it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"skiff/internal/store"
)

// deadline is for what happens within milliseconds on a machine at rest.
const deadline = 30 * time.Second

// Harness makes stores for the suite.
type Harness struct {
	// New returns an empty store; it closes it by t.Cleanup.
	New func(t *testing.T) store.Store
	// Expire lets d pass for the store and returns once keys whose time to live
	// ended before may be expected to be gone soon. Nil: the suite waits.
	Expire func(t *testing.T, s store.Store, d time.Duration)
	// MaxValue is the largest value a write may have; 0 is no limit.
	MaxValue int
}

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, tt := range suite() {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, h, h.New(t)) })
	}
}

// Each calls f with every test of the suite, for a caller that makes the stores
// itself; they must have the limits of a zero Harness.
func Each(f func(name string, test func(*testing.T, store.Store))) {
	for _, tt := range suite() {
		f(tt.name, func(t *testing.T, s store.Store) { tt.test(t, Harness{}, s) })
	}
}

type contractTest struct {
	name string
	test func(*testing.T, Harness, store.Store)
}

func suite() []contractTest {
	return []contractTest{
		{"Empty", testEmpty},
		{"CreateGet", testCreateGet},
		{"UpdateConflict", testUpdateConflict},
		{"DeleteConflict", testDeleteConflict},
		{"ReadsAtRevision", testReadsAtRevision},
		{"ListPages", testListPages},
		{"ListMany", testListMany},
		{"PrefixBounds", testPrefixBounds},
		{"Compact", testCompact},
		{"CounterIsLinearizable", testCounter},
		{"WatchOrder", testWatchOrder},
		{"WatchThenRead", testWatchThenRead},
		{"WatchFromPast", testWatchFromPast},
		{"WatchFromFuture", testWatchFromFuture},
		{"WatchPrefix", testWatchPrefix},
		{"WatchCompacted", testWatchCompacted},
		{"WatchSurvivesCompaction", testWatchSurvivesCompaction},
		{"WatchSlowReceiver", testWatchSlowReceiver},
		{"WatchProgress", testWatchProgress},
		{"WatchProgressBehind", testWatchProgressBehind},
		{"WatchEnd", testWatchEnd},
		{"WatchRandom", testWatchRandom},
		{"TTL", testTTL},
		{"TTLShared", testTTLShared},
		{"Batch", testBatch},
		{"BatchRevisions", testBatchRevisions},
		{"TooLarge", testTooLarge},
		{"ContextEnded", testContextEnded},
		{"Closed", testClosed},
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func create(t *testing.T, s store.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Create(within(t), key, []byte(value), store.WriteOptions{})
	if err != nil {
		t.Fatalf("create %q: %v", key, err)
	}
	return rev
}

func update(t *testing.T, s store.Store, key, value string, rev int64) int64 {
	t.Helper()
	rev, err := s.Update(within(t), key, []byte(value), rev, store.WriteOptions{})
	if err != nil {
		t.Fatalf("update %q: %v", key, err)
	}
	return rev
}

func remove(t *testing.T, s store.Store, key string, rev int64) int64 {
	t.Helper()
	rev, err := s.Delete(within(t), key, rev)
	if err != nil {
		t.Fatalf("delete %q: %v", key, err)
	}
	return rev
}

func compact(t *testing.T, s store.Store, rev int64) {
	t.Helper()
	if err := s.Compact(within(t), rev); err != nil {
		t.Fatalf("compact to %d: %v", rev, err)
	}
}

func revision(t *testing.T, s store.Store) int64 {
	t.Helper()
	rev, err := s.Revision(within(t))
	if err != nil {
		t.Fatalf("revision: %v", err)
	}
	return rev
}

func wantKV(t *testing.T, got store.KV, key, value string, createRev, modRev int64) {
	t.Helper()
	if got.Key != key || string(got.Value) != value || got.CreateRev != createRev || got.ModRev != modRev {
		t.Fatalf("got %q=%q created %d modified %d, want %q=%q created %d modified %d",
			got.Key, got.Value, got.CreateRev, got.ModRev, key, value, createRev, modRev)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func wantConflict(t *testing.T, err error, key, value string, rev int64) {
	t.Helper()
	var c *store.ConflictError
	if !errors.As(err, &c) {
		t.Fatalf("got error %v, want a conflict", err)
	}
	if c.Current.Key != key || string(c.Current.Value) != value || c.Current.ModRev != rev {
		t.Fatalf("conflict names %q=%q at %d, want %q=%q at %d", c.Current.Key, c.Current.Value, c.Current.ModRev, key, value, rev)
	}
}

func list(t *testing.T, s store.Store, prefix string, o store.ListOptions) store.Page {
	t.Helper()
	p, err := s.List(within(t), prefix, o)
	if err != nil {
		t.Fatalf("list %q %+v: %v", prefix, o, err)
	}
	return p
}

func keys(p store.Page) string {
	var b strings.Builder
	for i, kv := range p.KVs {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(kv.Key)
	}
	return b.String()
}

func testEmpty(t *testing.T, _ Harness, s store.Store) {
	_, err := s.Get(within(t), "/registry/a", 0)
	wantErr(t, err, store.ErrNotFound)
	p := list(t, s, "/registry/", store.ListOptions{})
	if len(p.KVs) != 0 || p.More || p.Count != 0 || p.Revision != revision(t, s) {
		t.Fatalf("empty list is %+v at store revision %d", p, revision(t, s))
	}
	if revision(t, s) < 1 {
		t.Fatal("a new store's revision is below 1")
	}
	c, err := s.Compacted(within(t))
	if err != nil || c != 0 {
		t.Fatalf("new store is compacted to %d, %v", c, err)
	}
	_, err = s.Update(within(t), "/registry/a", []byte("v"), 1, store.WriteOptions{})
	wantErr(t, err, store.ErrNotFound)
	_, err = s.Update(within(t), "/registry/a", []byte("v"), 0, store.WriteOptions{})
	wantErr(t, err, store.ErrNotFound)
	_, err = s.Delete(within(t), "/registry/a", 1)
	wantErr(t, err, store.ErrNotFound)
	_, err = s.Delete(within(t), "/registry/a", 0)
	wantErr(t, err, store.ErrNotFound)
}

func testCreateGet(t *testing.T, _ Harness, s store.Store) {
	before := revision(t, s)
	r1 := create(t, s, "/registry/a", "one")
	if r1 != before+1 {
		t.Fatalf("first write has revision %d after %d", r1, before)
	}
	kv, err := s.Get(within(t), "/registry/a", 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/a", "one", r1, r1)
	_, err = s.Create(within(t), "/registry/a", []byte("two"), store.WriteOptions{})
	var exists *store.ExistsError
	if !errors.As(err, &exists) {
		t.Fatalf("second creation: %v, want ExistsError", err)
	}
	wantKV(t, exists.Current, "/registry/a", "one", r1, r1)
	if got := revision(t, s); got != r1 {
		t.Fatalf("a refused write moved the revision to %d from %d", got, r1)
	}
	r2 := create(t, s, "/registry/empty", "")
	kv, err = s.Get(within(t), "/registry/empty", 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/empty", "", r2, r2)
	// A key made anew has a new creation.
	r3 := remove(t, s, "/registry/a", r1)
	r4 := create(t, s, "/registry/a", "again")
	if r3 != r2+1 || r4 != r3+1 {
		t.Fatalf("revisions %d %d %d are not consecutive", r2, r3, r4)
	}
	kv, err = s.Get(within(t), "/registry/a", 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/a", "again", r4, r4)
}

func testUpdateConflict(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "one")
	r2 := update(t, s, "/registry/a", "two", r1)
	for _, rev := range []int64{r1, r2 + 1, 0} {
		_, err := s.Update(within(t), "/registry/a", []byte("x"), rev, store.WriteOptions{})
		wantConflict(t, err, "/registry/a", "two", r2)
	}
	kv, err := s.Get(within(t), "/registry/a", 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/a", "two", r1, r2)
}

func testDeleteConflict(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "one")
	r2 := update(t, s, "/registry/a", "two", r1)
	for _, rev := range []int64{r1, r2 + 1, 0} {
		_, err := s.Delete(within(t), "/registry/a", rev)
		wantConflict(t, err, "/registry/a", "two", r2)
	}
	r3 := remove(t, s, "/registry/a", r2)
	if r3 != r2+1 {
		t.Fatalf("deletion has revision %d after %d", r3, r2)
	}
	_, err := s.Get(within(t), "/registry/a", 0)
	wantErr(t, err, store.ErrNotFound)
	_, err = s.Delete(within(t), "/registry/a", r2)
	wantErr(t, err, store.ErrNotFound)
}

func testReadsAtRevision(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "one")
	r2 := create(t, s, "/registry/b", "one")
	r3 := update(t, s, "/registry/a", "two", r1)
	r4 := remove(t, s, "/registry/b", r2)
	kv, err := s.Get(within(t), "/registry/a", r2)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/a", "one", r1, r1)
	_, err = s.Get(within(t), "/registry/b", r1)
	wantErr(t, err, store.ErrNotFound)
	for rev, want := range map[int64]string{
		r1: "/registry/a", r2: "/registry/a /registry/b", r3: "/registry/a /registry/b", r4: "/registry/a",
	} {
		p := list(t, s, "/registry/", store.ListOptions{Revision: rev})
		if keys(p) != want || p.Revision != rev || p.Count != int64(len(p.KVs)) {
			t.Fatalf("at %d: %q, revision %d, count %d; want %q", rev, keys(p), p.Revision, p.Count, want)
		}
	}
	_, err = s.Get(within(t), "/registry/a", r4+1)
	wantErr(t, err, store.ErrFutureRev)
	_, err = s.List(within(t), "/registry/", store.ListOptions{Revision: r4 + 1})
	wantErr(t, err, store.ErrFutureRev)
}

func testListPages(t *testing.T, _ Harness, s store.Store) {
	for _, k := range []string{"c", "a", "e", "b", "d"} {
		create(t, s, "/registry/x/"+k, k)
	}
	last := create(t, s, "/registry/y/z", "z")
	first := list(t, s, "/registry/x/", store.ListOptions{Limit: 2})
	if keys(first) != "/registry/x/a /registry/x/b" || !first.More || first.Count != 5 || first.Revision != last {
		t.Fatalf("first page %q more=%t count=%d revision=%d", keys(first), first.More, first.Count, first.Revision)
	}
	// Changes after the first page do not show in the next ones at its revision.
	create(t, s, "/registry/x/bb", "late")
	p := list(t, s, "/registry/x/", store.ListOptions{Limit: 2, After: "/registry/x/b", Revision: first.Revision})
	if keys(p) != "/registry/x/c /registry/x/d" || !p.More || p.Count != 3 || p.Revision != first.Revision {
		t.Fatalf("second page %q more=%t count=%d revision=%d", keys(p), p.More, p.Count, p.Revision)
	}
	p = list(t, s, "/registry/x/", store.ListOptions{Limit: 2, After: "/registry/x/d", Revision: first.Revision})
	if keys(p) != "/registry/x/e" || p.More || p.Count != 1 {
		t.Fatalf("third page %q more=%t count=%d", keys(p), p.More, p.Count)
	}
	p = list(t, s, "/registry/x/", store.ListOptions{After: "/registry/x/b"})
	if keys(p) != "/registry/x/bb /registry/x/c /registry/x/d /registry/x/e" || p.Count != 4 {
		t.Fatalf("newest page %q count=%d", keys(p), p.Count)
	}
	// After may name a key that does not exist, before the prefix or behind it.
	for after, want := range map[string]string{
		"/a": "/registry/y/z", "/registry/y/": "/registry/y/z", "/registry/y/y": "/registry/y/z",
		"/registry/y/z": "", "/registry/z": "", "/registry/y0": "",
	} {
		p = list(t, s, "/registry/y/", store.ListOptions{After: after})
		if keys(p) != want || p.More || p.Count != int64(len(p.KVs)) {
			t.Fatalf("after %q: %q more=%t count=%d, want %q", after, keys(p), p.More, p.Count, want)
		}
	}
	p = list(t, s, "/registry/x/", store.ListOptions{CountOnly: true})
	if p.Count != 6 || len(p.KVs) != 0 || p.Revision != last+1 {
		t.Fatalf("count only: %+v", p)
	}
	p = list(t, s, "/registry/x/", store.ListOptions{Limit: 6})
	if len(p.KVs) != 6 || p.More {
		t.Fatalf("limit of the exact number: %d keys, more=%t", len(p.KVs), p.More)
	}
}

func testListMany(t *testing.T, _ Harness, s store.Store) {
	const n = 10_500 // more than any implementation reads at once
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/m/%06d", i), Value: []byte("v")}
	}
	res, err := s.Batch(within(t), ops)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range res {
		if r.Err != nil {
			t.Fatalf("op %d: %v", i, r.Err)
		}
	}
	p := list(t, s, "/registry/m/", store.ListOptions{})
	if len(p.KVs) != n || p.Count != n || p.More || p.Revision != revision(t, s) {
		t.Fatalf("%d keys, count %d, more %t", len(p.KVs), p.Count, p.More)
	}
	if !slices.IsSortedFunc(p.KVs, func(a, b store.KV) int { return strings.Compare(a.Key, b.Key) }) {
		t.Fatal("keys are not in order")
	}
	p = list(t, s, "/registry/m/", store.ListOptions{Limit: 10_200})
	if len(p.KVs) != 10_200 || p.Count != n || !p.More {
		t.Fatalf("limited: %d keys, count %d, more %t", len(p.KVs), p.Count, p.More)
	}
}

func testPrefixBounds(t *testing.T, _ Harness, s store.Store) {
	for _, k := range []string{"/registry/pods", "/registry/pods/a", "/registry/pods\xff", "/registry/pods\xff\xff", "/registry/podsx", "/registry/q", "\xff\xff"} {
		create(t, s, k, "v")
	}
	for prefix, want := range map[string]int{
		"/registry/pods/": 1, "/registry/pods": 5, "/registry/pods\xff": 2, "/registry/": 6, "": 7, "\xff": 1, "\xff\xff": 1, "/none": 0,
	} {
		if p := list(t, s, prefix, store.ListOptions{}); len(p.KVs) != want {
			t.Errorf("prefix %q has %d keys (%q), want %d", prefix, len(p.KVs), keys(p), want)
		}
	}
}

func testCompact(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "one")
	r2 := update(t, s, "/registry/a", "two", r1)
	r3 := update(t, s, "/registry/a", "three", r2)
	compact(t, s, r2)
	_, err := s.Get(within(t), "/registry/a", r1)
	wantErr(t, err, store.ErrCompacted)
	_, err = s.List(within(t), "/registry/", store.ListOptions{Revision: r1})
	wantErr(t, err, store.ErrCompacted)
	kv, err := s.Get(within(t), "/registry/a", r2)
	if err != nil {
		t.Fatalf("the revision compacted to cannot be read: %v", err)
	}
	wantKV(t, kv, "/registry/a", "two", r1, r2)
	if c, err := s.Compacted(within(t)); err != nil || c != r2 {
		t.Fatalf("compacted is %d, %v; want %d", c, err, r2)
	}
	compact(t, s, r2) // again
	compact(t, s, r1) // before
	wantErr(t, s.Compact(within(t), r3+1), store.ErrFutureRev)
	if got := revision(t, s); got != r3 {
		t.Fatalf("compaction moved the revision from %d to %d", r3, got)
	}
	compact(t, s, r3)
	if c, err := s.Compacted(within(t)); err != nil || c != r3 {
		t.Fatalf("compacted is %d, %v; want %d", c, err, r3)
	}
	kv, err = s.Get(within(t), "/registry/a", 0)
	if err != nil {
		t.Fatal(err)
	}
	wantKV(t, kv, "/registry/a", "three", r1, r3)
}

// testCounter: increments by compare and swap from many goroutines are not lost,
// and a reader that starts after an acknowledged write sees it.
func testCounter(t *testing.T, _ Harness, s store.Store) {
	const workers, each = 16, 25
	create(t, s, "/registry/counter", "0")
	ctx := within(t)
	errs := make(chan error, workers)
	for range workers {
		go func() {
			errs <- func() error {
				for range each {
					for {
						kv, err := s.Get(ctx, "/registry/counter", 0)
						if err != nil {
							return err
						}
						var n int
						if _, err := fmt.Sscan(string(kv.Value), &n); err != nil {
							return err
						}
						next := fmt.Sprint(n + 1)
						rev, err := s.Update(ctx, kv.Key, []byte(next), kv.ModRev, store.WriteOptions{})
						var c *store.ConflictError
						if errors.As(err, &c) {
							if c.Current.ModRev <= kv.ModRev {
								return fmt.Errorf("conflict names revision %d after %d was read", c.Current.ModRev, kv.ModRev)
							}
							continue
						}
						if err != nil {
							return err
						}
						kv, err = s.Get(ctx, "/registry/counter", 0)
						if err != nil {
							return err
						}
						if kv.ModRev < rev {
							return fmt.Errorf("read revision %d after writing %d", kv.ModRev, rev)
						}
						if now, err := s.Revision(ctx); err != nil || now < rev {
							return fmt.Errorf("store revision %d, %v after writing %d", now, err, rev)
						}
						break
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	kv, err := s.Get(ctx, "/registry/counter", 0)
	if err != nil {
		t.Fatal(err)
	}
	if string(kv.Value) != fmt.Sprint(workers*each) {
		t.Fatalf("counter is %s, want %d", kv.Value, workers*each)
	}
}

func testTooLarge(t *testing.T, h Harness, s store.Store) {
	if h.MaxValue == 0 {
		t.Skip("this store has no limit of size")
	}
	before := revision(t, s)
	_, err := s.Create(within(t), "/registry/big", make([]byte, h.MaxValue+1024), store.WriteOptions{})
	wantErr(t, err, store.ErrTooLarge)
	if errors.Is(err, store.ErrUnknown) {
		t.Fatalf("refusal has an unknown outcome: %v", err)
	}
	if got := revision(t, s); got != before {
		t.Fatalf("refused write moved the revision from %d to %d", before, got)
	}
	create(t, s, "/registry/big", string(make([]byte, h.MaxValue-4096)))
}

func testContextEnded(t *testing.T, _ Harness, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(ctx, "/registry/a", []byte("v"), store.WriteOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("create with an ended context: %v", err)
	}
	if _, err := s.Get(ctx, "/registry/a", 0); !errors.Is(err, context.Canceled) {
		t.Fatalf("get with an ended context: %v", err)
	}
}

func testClosed(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "v")
	w, err := s.Watch(within(t), "/registry/", r1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	drainClosed(t, w)
	wantErr(t, w.Err(), store.ErrClosed)
	_, err = s.Get(within(t), "/registry/a", 0)
	wantErr(t, err, store.ErrClosed)
	_, err = s.Create(within(t), "/registry/b", []byte("v"), store.WriteOptions{})
	wantErr(t, err, store.ErrClosed)
	_, err = s.Watch(within(t), "/registry/", 0)
	wantErr(t, err, store.ErrClosed)
	if err := s.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
}

func shuffled(n int) []int { return rand.Perm(n) }
