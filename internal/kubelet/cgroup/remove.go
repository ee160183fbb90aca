package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// removeTries times removePause is how long a group may take to become empty after
// its processes were killed.
const (
	removeTries = 200
	removePause = 10 * time.Millisecond
)

// Remove kills what runs in the pod's groups and removes them.
func (t *Tree) Remove(uid types.UID) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	burstable := false
	for _, h := range t.hierarchies {
		for _, c := range classes {
			dir := filepath.Join(h.dir, t.path(c, podName(uid)))
			if !exists(dir) {
				continue
			}
			burstable = burstable || c == "burstable"
			if err := removeTree(dir); err != nil {
				return err
			}
		}
	}
	if t.beside != "" {
		for _, c := range classes {
			if dir := filepath.Join(t.beside, t.path(c, podName(uid))); exists(dir) {
				if err := removeTree(dir); err != nil {
					return err
				}
			}
		}
	}
	if !burstable {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.weighBurstable()
}

func exists(dir string) bool {
	_, err := os.Stat(dir)
	return !errors.Is(err, fs.ErrNotExist)
}

// removeTree removes a group and those below.
func removeTree(dir string) error {
	var last error
	for try := range removeTries {
		if try > 0 {
			time.Sleep(removePause)
		}
		dirs, err := groups(dir)
		if err != nil {
			return err
		}
		last = nil
		for _, d := range dirs {
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		if !errors.Is(last, unix.EBUSY) && !errors.Is(last, unix.ENOTEMPTY) {
			break
		}
		kill(dirs)
	}
	return fmt.Errorf("remove control group %s: %w", dir, last)
}

// groups lists a group and those below, the deepest first.
func groups(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list control groups: %w", err)
	}
	sort.Slice(out, func(i, j int) bool { return len(out[i]) > len(out[j]) })
	return out, nil
}

// kill kills every process in these groups.
func kill(dirs []string) {
	for _, d := range dirs {
		if os.WriteFile(filepath.Join(d, "cgroup.kill"), []byte("1"), 0) == nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 1 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}
