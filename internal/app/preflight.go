package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"skiff/internal/host"
)

// StartError is why a start is impossible, with what to do about it.
type StartError struct{ Problem, Remedy string }

func (e *StartError) Error() string { return e.Problem + "; " + e.Remedy }

// preflight finds what would make the start fail half-way.
func preflight(s *Settings, withNode bool) error {
	if withNode && os.Geteuid() != 0 {
		return &StartError{"skiff needs root to run containers", "run it with sudo"}
	}
	if withNode {
		if err := kernelFeatures(); err != nil {
			return err
		}
	}
	dir := s.DataDir
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	const need = 300 << 20
	if free := fs.Bavail * uint64(fs.Bsize); free < need {
		return &StartError{
			fmt.Sprintf("the disk of %s has %d MiB left, skiff needs %d", dir, free>>20, need>>20),
			"free some space or choose another --data-dir",
		}
	}
	return foreignDir(s.Instance)
}

// foreignDir refuses a data directory that holds something else.
func foreignDir(i host.Instance) error {
	entries, err := os.ReadDir(i.DataDir)
	if errors.Is(err, os.ErrNotExist) || len(entries) == 0 {
		return nil
	}
	if err != nil {
		return &StartError{fmt.Sprintf("data directory %s: %v", i.DataDir, err), "choose another --data-dir"}
	}
	for _, e := range entries {
		switch e.Name() {
		case "config.yaml", "journal", "etcd", "pki", "images":
			return nil
		}
	}
	return &StartError{fmt.Sprintf("%s is not empty and not a data directory of skiff", i.DataDir), "choose another --data-dir"}
}

// kernelFeatures checks what containers and their network need.
func kernelFeatures() error {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return fmt.Errorf("read /proc/filesystems: %w", err)
	}
	if !strings.Contains(string(b), "\toverlay\n") {
		return &StartError{"this kernel has no overlayfs", "load it (modprobe overlay) or use a kernel that has it"}
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return &StartError{fmt.Sprintf("this kernel has no %s namespaces", ns), "use a kernel that has them"}
		}
	}
	return nil
}

// lockInstance makes this process the only one of its instance.
func lockInstance(i host.Instance) (func(), error) {
	f, err := os.OpenFile(i.Data("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.ReadAt(pid, 0)
		f.Close()
		return nil, &StartError{fmt.Sprintf("skiff %q is running already (pid %s)", i.Name, strings.TrimSpace(string(pid[:n]))), "`skiff status` tells more, `skiff down` ends it"}
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
	}
	return func() { f.Close() }, nil
}
