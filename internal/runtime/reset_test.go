package runtime_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
	"skiff/internal/runtime"
	"skiff/internal/runtime/keeper"
)

// Reset ends what runs, with no runtime beside it, and a second time.
func TestReset(t *testing.T) {
	b := newBench(t)
	r, stop := b.start(t, nil)
	s := cri.InProcess(r)
	config := b.config(t, "p")
	if _, _, err := pod(t.Context(), s, config, containerConfig("c", "sleep", "1000")); err != nil {
		t.Fatal(err)
	}
	k, err := keeper.Open(t.Context(), b.set.Pod, keeper.Dir(b.inst))
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	stop()
	before := hostState(t, b.inst)
	if before == "" {
		t.Fatal("nothing on the host to reset")
	}
	ctx, cancel := context.WithTimeout(t.Context(), critest.Wait)
	defer cancel()
	for range 2 {
		if err := runtime.Reset(ctx, b.inst); err != nil {
			t.Fatal(err)
		}
	}
	critest.Until(t, "the host is clean", func() bool { return hostState(t, b.inst) == "" })
	if _, err := os.Stat(b.inst.Run("runtime")); !os.IsNotExist(err) {
		t.Errorf("run directory: %v", err)
	}
	// The instance can start anew.
	r, _ = b.start(t, nil)
	if l, err := cri.InProcess(r).Runtime.ListPodSandbox(t.Context(), nil); err != nil || len(l) != 0 {
		t.Errorf("sandboxes = %v, %v", l, err)
	}
}

// A keeper that ends already, and can no longer be reached, is waited for.
func TestResetWhileKeeperEnds(t *testing.T) {
	b := newBench(t)
	dir := keeper.Dir(b.inst)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	time.AfterFunc(100*time.Millisecond, func() {
		ended.Store(true)
		lock.Close()
	})
	if err := runtime.Reset(t.Context(), b.inst); err != nil || !ended.Load() {
		t.Errorf("reset: %v; ended before: %v", err, ended.Load())
	}
}
