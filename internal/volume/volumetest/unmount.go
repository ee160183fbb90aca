package volumetest

import (
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skiff/internal/host"
)

// unmount removes the file system in memory of a test's instance.
func unmount(t *testing.T, i host.Instance) {
	t.Helper()
	if err := unix.Unmount(i.Run("volumes"), unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		t.Errorf("unmount: %v", err)
	}
}

// Unmount does the same for tests outside of Run.
func Unmount(t *testing.T, i host.Instance) { unmount(t, i) }

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}
