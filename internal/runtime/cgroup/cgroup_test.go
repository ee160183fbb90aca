package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skiff/internal/runtime/cgroup"
)

// A process is put into a nested group, seen there, counted, killed, and the
// groups are gone.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	top := fmt.Sprintf("/skiff-rt-test-cgroup-%d", os.Getpid())
	group := top + "/a/b"
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(h.Kill(ctx, top), h.Remove(ctx, top)); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := h.Join(group, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids := h.Pids(top); !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("pids = %v, want %d", pids, cmd.Process.Pid)
	}
	if err := h.SetCPUs(top+"/a", 3); err != nil {
		t.Error(err)
	}
	file, want := "cpu.shares", "3072"
	if h.V2 {
		file, want = "cpu.weight", "300"
	}
	if b, err := os.ReadFile(filepath.Join(h.Path("cpu", top+"/a"), file)); strings.TrimSpace(string(b)) != want || err != nil {
		t.Errorf("%s = %q, %v", file, b, err)
	}
	if u, err := h.Usage(top + "/a"); err != nil || u.Processes != 1 {
		t.Errorf("usage = %+v, %v", u, err)
	}
	if b, err := os.ReadFile(h.ProcsFile(group)); err != nil || !strings.Contains(string(b), fmt.Sprint(cmd.Process.Pid)) {
		t.Errorf("procs = %q, %v", b, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if err := h.Kill(ctx, top); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the process ended well")
	}
	for range 2 {
		if err := h.Remove(ctx, top); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Usage(group); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("usage of a removed group: %v", err)
	}
	if err := h.Remove(ctx, "/"); err == nil {
		t.Error("the root was removed")
	}
}
