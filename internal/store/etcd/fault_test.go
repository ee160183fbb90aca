package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/sys/unix"

	"skiff/internal/store"
)

// fill creates keys of 1 MiB until the store refuses one, and returns them.
func fill(t *testing.T, s store.Store) map[string]int64 {
	t.Helper()
	made := map[string]int64{}
	for i := range 1000 {
		key := fmt.Sprintf("/registry/fill/%04d", i)
		rev, err := s.Create(t.Context(), key, make([]byte, 1<<20), store.WriteOptions{})
		if errors.Is(err, store.ErrNoSpace) {
			if len(made) == 0 {
				t.Fatal("the first write finds no space")
			}
			return made
		}
		if err != nil {
			t.Fatal(err)
		}
		made[key] = rev
	}
	t.Fatal("the store is never full")
	return nil
}

// fullStore: reads and deletions work, growing writes do not, and once something
// is deleted and compacted all works again.
func fullStore(t *testing.T, s store.Store, relieve func()) {
	t.Helper()
	ctx := t.Context()
	made := fill(t, s)
	for key, rev := range made {
		kv, err := s.Get(ctx, key, 0)
		if err != nil || kv.ModRev != rev {
			t.Fatalf("read of %s from a full store: %v", key, err)
		}
		if _, err := s.Update(ctx, key, make([]byte, 1<<20), rev, store.WriteOptions{}); !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("update of a full store: %v", err)
		}
		if _, err := s.Create(ctx, key+"x", []byte("v"), store.WriteOptions{TTL: time.Hour}); !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("creation with a lease in a full store: %v", err)
		}
		break
	}
	for key, rev := range made {
		if _, err := s.Delete(ctx, key, rev); err != nil {
			t.Fatalf("deletion from a full store: %v", err)
		}
	}
	now, err := s.Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(ctx, now); err != nil {
		t.Fatalf("compaction of a full store: %v", err)
	}
	if relieve != nil {
		relieve()
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := s.Create(ctx, "/registry/after", make([]byte, 1<<20), store.WriteOptions{})
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrNoSpace) || time.Now().After(end) {
			t.Fatalf("creation once there is room: %v", err)
		}
	}
}

func TestQuota(t *testing.T) {
	fullStore(t, open(t, Config{Quota: 24 << 20}), nil)
}

// TestDiskFull fills a small file system. What takes the last of it is a file of
// somebody else's, since the store leaves MinFree alone.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("skiff-store-test", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Skipf("a small file system needs the right to mount one: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	s, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "etcd"), MinFree: 100 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	other := filepath.Join(dir, "other")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	f, err := os.Create(other)
	if err != nil {
		t.Fatal(err)
	}
	// What stays is above the limit, even if etcd takes a segment of its log ahead.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, free-190<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	fullStore(t, s, func() {
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	})
	if err := s.Err(); err != nil {
		t.Fatalf("etcd failed: %v", err)
	}
}

// TestAlarmOfOtherEtcd: a data directory that comes with etcd's alarm can be
// written again, and the external etcd that raised it says the same as a full
// store of ours.
func TestAlarmOfOtherEtcd(t *testing.T) {
	var dir string
	at := "unix://" + t.TempDir() + "/client"
	_, stop := serve(t, at, func(c *embed.Config) { dir, c.QuotaBackendBytes = c.Dir, 8<<20 })
	made := fill(t, dial(t, DialConfig{Endpoints: []string{at}}))
	stop()
	s := open(t, Config{Dir: dir})
	for key := range made {
		if _, err := s.Get(t.Context(), key, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Create(t.Context(), "/registry/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestTimeout: a write whose context ends on the way has an unknown outcome, and
// what a read then shows is one of the two.
func TestTimeout(t *testing.T) {
	s := open(t, Config{})
	unknown := 0
	for i := 0; unknown < 5; i++ {
		if i == 20000 {
			t.Fatal("no write was overtaken by its context")
		}
		key := fmt.Sprintf("/registry/%d", i)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%20)*10*time.Microsecond)
		rev, err := s.Create(ctx, key, []byte("v"), store.WriteOptions{})
		cancel()
		switch {
		case err == nil:
			if kv, err := s.Get(t.Context(), key, 0); err != nil || kv.ModRev != rev {
				t.Fatalf("acknowledged write: %+v, %v", kv, err)
			}
		case errors.Is(err, store.ErrUnknown):
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got error %v", err)
			}
			unknown++
		case errors.Is(err, context.DeadlineExceeded):
			// Refused before it was begun: it must never appear.
			if _, err := s.Get(t.Context(), key, 0); !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("a write refused at once: %v", err)
			}
		default:
			t.Fatalf("got error %v", err)
		}
	}
}

// TestFault: when a part of etcd ends, calls and watches end with an error soon,
// and Close does.
func TestFault(t *testing.T) {
	if os.Getenv(faultEnv) == "" {
		t.Skip("it leaves parts of etcd behind: TestFaultInChild runs it in a process of its own")
	}
	s, err := Open(t.Context(), Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), "/registry/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(t.Context(), "/registry/", 0)
	if err != nil {
		t.Fatal(err)
	}
	// What etcd does when its log cannot be written, in a goroutine of its own.
	e := s.b.(*embedded)
	go e.srv.Logger().Fatal("failed to save Raft hard state and entries")
	begin := time.Now()
	select {
	case <-s.Failed():
	case <-time.After(10 * time.Second):
		t.Fatal("the fault is not told")
	}
	for range w.Batches() {
	}
	if err := w.Err(); !errors.Is(err, store.ErrClosed) {
		t.Errorf("watch: %v", err)
	}
	if _, err := s.Create(t.Context(), "/registry/b", []byte("v"), store.WriteOptions{}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if err := s.Err(); err == nil || err.Error() != "failed to save Raft hard state and entries" {
		t.Errorf("cause: %v", err)
	}
	_ = s.Close()
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s to end", took)
	}
}
