package storetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"skiff/internal/store"
)

// isRefusal tells an error that a conditional write may meet in a race.
func isRefusal(err error) bool {
	var exists *store.ExistsError
	var conflict *store.ConflictError
	return errors.As(err, &exists) || errors.As(err, &conflict) || errors.Is(err, store.ErrNotFound)
}

func testTTL(t *testing.T, h Harness, s store.Store) {
	w := startWatch(t, s, "/registry/", revision(t, s))
	ctx := within(t)
	begin := time.Now()
	r1, err := s.Create(ctx, "/registry/short", []byte("v"), store.WriteOptions{TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r2 := create(t, s, "/registry/kept", "v")
	// An update without a time to live keeps the key.
	r3, err := s.Create(ctx, "/registry/rescued", []byte("v"), store.WriteOptions{TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	r4 := update(t, s, "/registry/rescued", "v2", r3)
	if h.Expire != nil {
		h.Expire(t, s, 2*time.Second)
	}
	evs := w.until(r4 + 1)
	gone := evs[len(evs)-1]
	if len(evs) != 5 || gone.Type != store.Delete || gone.KV.Key != "/registry/short" {
		t.Fatalf("got %s", describe(evs))
	}
	if took := time.Since(begin); h.Expire == nil && took < 1900*time.Millisecond {
		t.Fatalf("key is gone after %s, before its time", took)
	}
	if _, err := s.Get(ctx, "/registry/short", 0); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get of the expired key: %v", err)
	}
	for key, rev := range map[string]int64{"/registry/kept": r2, "/registry/rescued": r4} {
		if kv, err := s.Get(ctx, key, 0); err != nil || kv.ModRev != rev {
			t.Fatalf("%s is at %d, %v; want %d", key, kv.ModRev, err, rev)
		}
	}
	if r1 >= r2 {
		t.Fatalf("revisions %d and %d are out of order", r1, r2)
	}
}

// testTTLShared: many keys of one time to live, all of which end.
func testTTLShared(t *testing.T, h Harness, s store.Store) {
	const n = 50
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/events/%03d", i), Value: []byte("v"), TTL: 2 * time.Second}
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
	w := startWatch(t, s, "/registry/events/", revision(t, s))
	if h.Expire != nil {
		h.Expire(t, s, 2*time.Second)
	}
	gone := map[string]bool{}
	for len(gone) < n {
		for _, e := range w.next().Events {
			if e.Type != store.Delete {
				t.Fatalf("got %s", describe([]store.Event{e}))
			}
			gone[e.KV.Key] = true
		}
	}
}

func testBatch(t *testing.T, _ Harness, s store.Store) {
	r1 := create(t, s, "/registry/a", "a")
	r2 := create(t, s, "/registry/b", "b")
	r3 := create(t, s, "/registry/c", "c")
	start := r3
	w := startWatch(t, s, "/registry/", start)
	res, err := s.Batch(within(t), []store.Op{
		{Key: "/registry/new", Value: []byte("n")},
		{Key: "/registry/a", Value: []byte("exists")},
		{Key: "/registry/a2", Value: []byte("x"), ExpectRev: r1},
		{Key: "/registry/b", Value: []byte("b2"), ExpectRev: r2},
		{Key: "/registry/c", ExpectRev: r2},
		{Key: "/registry/none", ExpectRev: r2},
		{Key: "/registry/zero", Value: []byte{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(res) != 7 {
		t.Fatalf("%d results", len(res))
	}
	var exists *store.ExistsError
	if !errors.As(res[1].Err, &exists) || exists.Current.ModRev != r1 || string(exists.Current.Value) != "a" {
		t.Fatalf("creation of an existing key: %v", res[1].Err)
	}
	wantErr(t, res[2].Err, store.ErrNotFound)
	wantConflict(t, res[4].Err, "/registry/c", "c", r3)
	wantErr(t, res[5].Err, store.ErrNotFound)
	for _, i := range []int{0, 3, 6} {
		if res[i].Err != nil || res[i].Revision <= start {
			t.Fatalf("result %d is %+v", i, res[i])
		}
	}
	for key, want := range map[string]string{"/registry/new": "n", "/registry/a": "a", "/registry/b": "b2", "/registry/c": "c", "/registry/zero": ""} {
		kv, err := s.Get(within(t), key, 0)
		if err != nil || string(kv.Value) != want {
			t.Fatalf("%s is %q, %v; want %q", key, kv.Value, err, want)
		}
	}
	if evs := w.until(revision(t, s)); len(evs) != 3 {
		t.Fatalf("got %s", describe(evs))
	}
	if res, err := s.Batch(within(t), nil); err != nil || len(res) != 0 {
		t.Fatalf("empty batch: %v, %v", res, err)
	}
	if _, err := s.Batch(within(t), []store.Op{{Key: "/d", Value: []byte("1")}, {Key: "/d", Value: []byte("2")}}); err == nil {
		t.Fatal("a batch that names a key twice is taken")
	}
}

// testBatchRevisions: every write has a revision of its own, so that a client
// that resumes after one change misses no other.
func testBatchRevisions(t *testing.T, _ Harness, s store.Store) {
	start := revision(t, s)
	const n = 300
	ops := make([]store.Op, n)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/%05d", i), Value: []byte("v")}
	}
	res, err := s.Batch(within(t), ops)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]bool{}
	for i, r := range res {
		if r.Err != nil {
			t.Fatalf("op %d: %v", i, r.Err)
		}
		if seen[r.Revision] || r.Revision <= start || r.Revision > start+n {
			t.Fatalf("op %d has revision %d, after start %d", i, r.Revision, start)
		}
		seen[r.Revision] = true
		kv, err := s.Get(within(t), ops[i].Key, 0)
		if err != nil || kv.ModRev != r.Revision {
			t.Fatalf("%s is at %d, %v; want %d", ops[i].Key, kv.ModRev, err, r.Revision)
		}
	}
}
