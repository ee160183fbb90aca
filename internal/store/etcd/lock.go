package etcd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockName is the file that the process using a data directory keeps locked.
const lockName = "skiff.lock"

// dirLock is the exclusive use of a data directory. The kernel drops it with
// the process, however that ends.
type dirLock struct{ f *os.File }

// lockDir makes dir, takes it for this process, and looks whether what lies in
// it is a store's.
func lockDir(dir string) (*dirLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %q cannot be made: %w", dir, err)
	}
	// Secrets lie in it, encrypted or not.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %q cannot be kept from others: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory %q cannot be read: %w", dir, err)
	}
	member, foreign := false, ""
	for _, e := range entries {
		switch e.Name() {
		case "member":
			member = e.IsDir()
		case lockName, "lost+found":
		default:
			foreign = e.Name()
		}
	}
	if !member && foreign != "" {
		return nil, fmt.Errorf("data directory %q is not a store's: it holds %q and no etcd member; name an empty directory", dir, foreign)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %q cannot be written: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %q cannot be locked: %w", dir, err)
		}
		owner := "another process"
		if b, err := io.ReadAll(io.LimitReader(f, 32)); err == nil && len(b) > 0 {
			owner = "process " + strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("data directory %q is in use by %s", dir, owner)
	}
	if err := dbFree(dir); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Truncate(0); err == nil {
		// For people and the message above only; the lock is what counts.
		_, _ = f.WriteAt([]byte(fmt.Sprintf("%d\n", os.Getpid())), 0)
	}
	return &dirLock{f: f}, nil
}

// dbFree tells an etcd proper on this directory, for which etcd would wait
// without an end.
func dbFree(dir string) error {
	f, err := os.Open(filepath.Join(dir, "member", "snap", "db"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory %q cannot be read: %w", dir, err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("data directory %q is in use by another etcd: %w", dir, err)
	}
	return nil
}

func (l *dirLock) release() error { return l.f.Close() }
