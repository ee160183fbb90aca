package mem

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"skiff/internal/store"
	"skiff/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		New: func(t *testing.T) store.Store {
			s := New(Config{})
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
		MaxValue: 1.5 * 1024 * 1024,
	})
}

// TestContractInBubble runs the suite in bubbles of fake time, which fail if a
// goroutine stays behind or waits for something other than a channel or a timer.
func TestContractInBubble(t *testing.T) {
	storetest.Each(func(name string, test func(*testing.T, store.Store)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Config{})
				defer s.Close()
				test(t, s)
			})
		})
	})
}

func TestFailWrites(t *testing.T) {
	for _, applied := range []bool{false, true} {
		s := New(Config{})
		defer s.Close()
		s.Faults.FailWrites(1, applied)
		if _, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{}); !errors.Is(err, store.ErrUnknown) {
			t.Fatalf("applied=%t: create: %v", applied, err)
		}
		_, err := s.Get(t.Context(), "/a", 0)
		if applied != (err == nil) {
			t.Fatalf("applied=%t: get: %v", applied, err)
		}
		if _, err := s.Create(t.Context(), "/b", []byte("v"), store.WriteOptions{}); err != nil {
			t.Fatalf("the write after: %v", err)
		}
	}
}

func TestFull(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	rev, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Faults.Full(true)
	if _, err := s.Update(t.Context(), "/a", []byte("w"), rev, store.WriteOptions{}); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("update of a full store: %v", err)
	}
	if _, err := s.Delete(t.Context(), "/a", rev); err != nil {
		t.Fatalf("deletion from a full store: %v", err)
	}
	s.Faults.Full(false)
	if _, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestBeforeCompactsUnderReader(t *testing.T) {
	s := New(Config{})
	defer s.Close()
	r1, err := s.Create(t.Context(), "/a", []byte("v"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r2, err := s.Update(t.Context(), "/a", []byte("w"), r1, store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Faults.Before(func(ctx context.Context, c Call) error {
		if c.Op == "list" {
			return s.Compact(ctx, r2)
		}
		return nil
	})
	if _, err := s.List(t.Context(), "/", store.ListOptions{Revision: r1}); !errors.Is(err, store.ErrCompacted) {
		t.Fatalf("list: %v", err)
	}
	refused := errors.New("refused")
	s.Faults.Before(func(context.Context, Call) error { return refused })
	if _, err := s.Get(t.Context(), "/a", 0); !errors.Is(err, refused) {
		t.Fatalf("get: %v", err)
	}
}

func TestWatchFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		defer s.Close()
		w, err := s.Watch(t.Context(), "/", 0)
		if err != nil {
			t.Fatal(err)
		}
		put := func(key string) {
			if _, err := s.Create(t.Context(), key, nil, store.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		s.Faults.DelayWatches(time.Minute)
		begin := time.Now()
		put("/a")
		<-w.Batches()
		if d := time.Since(begin); d != time.Minute {
			t.Fatalf("batch came after %s", d)
		}
		s.Faults.DelayWatches(0)
		release := s.Faults.HoldWatches()
		put("/b")
		synctest.Wait()
		select {
		case b := <-w.Batches():
			t.Fatalf("held watch delivers %+v", b)
		default:
		}
		release()
		if b := <-w.Batches(); len(b.Events) != 1 || b.Events[0].KV.Key != "/b" {
			t.Fatalf("got %+v", b)
		}
		broken := errors.New("broken")
		s.BreakWatches(broken)
		if _, ok := <-w.Batches(); ok || w.Err() != broken {
			t.Fatalf("broken watch: open=%t, %v", ok, w.Err())
		}
	})
}

func TestExpireByClock(t *testing.T) {
	now := time.Unix(1000, 0)
	s := New(Config{
		Now:       func() time.Time { return now },
		AfterFunc: func(time.Duration, func()) func() bool { return func() bool { return true } },
	})
	defer s.Close()
	if _, err := s.Create(t.Context(), "/a", nil, store.WriteOptions{TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Hour - 1)
	s.Expire()
	if _, err := s.Get(t.Context(), "/a", 0); err != nil {
		t.Fatalf("before its time: %v", err)
	}
	now = now.Add(1)
	s.Expire()
	if _, err := s.Get(t.Context(), "/a", 0); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("after its time: %v", err)
	}
}

// TestNoProgressOfABrokenWatch: a watch that starts before a compaction reports no
// progress: it would claim changes that it never delivered.
func TestNoProgressOfABrokenWatch(t *testing.T) {
	for range 200 {
		s := New(Config{})
		var rev int64
		for i := range 4 {
			var err error
			if rev, err = s.Create(t.Context(), fmt.Sprint("/k", i), nil, store.WriteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Compact(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		w, err := s.Watch(t.Context(), "/", 1)
		if err == nil {
			if err := w.RequestProgress(t.Context()); err != nil && !errors.Is(err, store.ErrCompacted) {
				t.Fatal(err)
			}
			for b := range w.Batches() {
				t.Fatalf("a broken watch delivered %+v", b)
			}
			err = w.Err()
		}
		if !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("the watch ended with %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
