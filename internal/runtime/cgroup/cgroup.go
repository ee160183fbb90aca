// Package cgroup finds, fills, empties and reads cgroups by their path, the same
// in every hierarchy of cgroup v1, or in v2's one. Limits are set by skiff-start;
// this is what must be done around it and without it.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is where this machine's hierarchies are mounted.
type Host struct {
	// V2 says that the controllers are in the unified hierarchy. On a hybrid
	// host they are not.
	V2 bool
	// roots are mount points by controller; "" is the unified hierarchy.
	roots map[string]string
}

// Detect reads the mount table.
func Detect() (*Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	h := &Host{roots: map[string]string{}}
	s := bufio.NewScanner(f)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch right[0] {
		case "cgroup2":
			if _, seen := h.roots[""]; !seen {
				h.roots[""] = left[4]
			}
		case "cgroup":
			for _, o := range strings.Split(right[2], ",") {
				if o != "rw" && o != "ro" && h.roots[o] == "" {
					h.roots[o] = left[4]
				}
			}
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		// What else the table has may lie below it, out of reach.
		h.V2, h.roots = true, map[string]string{"": "/sys/fs/cgroup"}
	}
	if len(h.roots) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted: containers need cgroup v1 or v2 at /sys/fs/cgroup")
	}
	return h, nil
}

// Path is a cgroup's directory where the controller is, "" when it is nowhere.
func (h *Host) Path(controller, group string) string {
	root, ok := h.roots[controller]
	if h.V2 {
		root, ok = h.roots[""]
	}
	if !ok {
		return ""
	}
	return filepath.Join(root, group)
}

// dirs are the directories of group in every hierarchy.
func (h *Host) dirs(group string) []string {
	var out []string
	for _, root := range h.roots {
		if d := filepath.Join(root, group); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	slices.Sort(out)
	return out
}

// Join moves a process to group, made where it is not there.
func (h *Host) Join(group string, pid int) error {
	for _, d := range h.dirs(group) {
		if err := h.make(d); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// Procs makes group and returns the files by which a process joins it: one that
// writes "0" to each has moved itself.
func (h *Host) Procs(group string) ([]string, error) {
	dirs := h.dirs(group)
	for i, d := range dirs {
		if err := h.make(d); err != nil {
			return nil, fmt.Errorf("cgroup: %w", err)
		}
		dirs[i] = filepath.Join(d, "cgroup.procs")
	}
	return dirs, nil
}

// RemoveEmpty removes group, and those above it, where nothing is in them.
func (h *Host) RemoveEmpty(group string) {
	for g := filepath.Clean(group); g != "/" && g != "."; g = filepath.Dir(g) {
		for _, d := range h.dirs(g) {
			_ = os.Remove(d)
		}
	}
}

// make creates a directory and its parents; in a cpuset, where nothing can run
// before it has processors, each gets its parent's.
func (h *Host) make(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := h.make(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if h.V2 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
		if err != nil {
			continue // not a cpuset hierarchy
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0); err != nil {
			return err
		}
	}
	return nil
}

// SetCPUs gives group, made where it is not there, the weight of so many
// processors against its siblings: 1,024 shares each, as a pod's request counts.
// A group is one sibling, however much runs in it; without this, all pods of a
// node together weigh as much as one process beside them. Where the hierarchy
// has no CPU controller there is nothing to set.
func (h *Host) SetCPUs(group string, n int) error {
	dir := h.Path("cpu", group)
	if dir == "" {
		return nil
	}
	if err := h.make(dir); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if h.V2 {
		h.handDown(group)
	}
	file, value := "cpu.shares", 1024*n
	if h.V2 {
		file, value = "cpu.weight", min(100*n, 10000)
	}
	err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(value)), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// handDown lets the groups above group hand it what controllers they have. One
// that may not (it has processes of its own) hands down none: then there is
// nothing to set here, and a container's own limits fail with an error.
func (h *Host) handDown(group string) {
	at := h.Path("", "/")
	for _, e := range strings.Split(strings.Trim(group, "/"), "/") {
		b, _ := os.ReadFile(filepath.Join(at, "cgroup.controllers"))
		for _, c := range strings.Fields(string(b)) {
			if slices.Contains([]string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}, c) {
				_ = os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		at = filepath.Join(at, e)
	}
}

// Pids lists the processes in group and below.
func (h *Host) Pids(group string) []int {
	seen := map[int]bool{}
	for _, top := range h.dirs(group) {
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it goes away while we look
			}
			b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// Kill ends every process in group and below, and returns when none is left.
func (h *Host) Kill(ctx context.Context, group string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids := h.Pids(group)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		// A frozen process dies when it is thawed.
		if p := h.Path("freezer", group); p != "" {
			_ = os.WriteFile(filepath.Join(p, "freezer.state"), []byte("THAWED"), 0)
			_ = os.WriteFile(filepath.Join(p, "cgroup.freeze"), []byte("0"), 0)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: processes %v do not end: %w", group, pids, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Remove removes group and what is below it in every hierarchy; the kernel may
// need a moment after the last process. A group that is not there is no error.
func (h *Host) Remove(ctx context.Context, group string) error {
	if group == "" || group == "/" {
		return errors.New("cgroup: the root is not removed")
	}
	for _, top := range h.dirs(group) {
		for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
			err := removeTree(top)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("cgroup: %w", err)
			case <-time.After(wait):
			}
		}
	}
	return nil
}

func removeTree(dir string) error {
	if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Usage is what a cgroup uses now.
type Usage struct {
	CPU                           time.Duration
	Memory, WorkingSet, RSS, Swap uint64
	PageFaults, MajorFaults       uint64
	// MemoryLimit is 0 without a limit.
	MemoryLimit uint64
	Processes   uint64
}

// Usage reads the usage of group; fs.ErrNotExist when it is not there.
func (h *Host) Usage(group string) (Usage, error) {
	var u Usage
	mem := h.Path("memory", group)
	if _, err := os.Stat(mem); err != nil {
		return u, fmt.Errorf("cgroup: %w", err)
	}
	cpu, pids := h.Path("cpuacct", group), h.Path("pids", group)
	st := counters(filepath.Join(mem, "memory.stat"))
	var inactive uint64
	if h.V2 {
		u.CPU = time.Duration(counters(filepath.Join(cpu, "cpu.stat"))["usage_usec"]) * time.Microsecond
		u.Memory, u.Swap = number(filepath.Join(mem, "memory.current")), number(filepath.Join(mem, "memory.swap.current"))
		u.MemoryLimit = number(filepath.Join(mem, "memory.max"))
		u.RSS, inactive = st["anon"], st["inactive_file"]
		u.PageFaults, u.MajorFaults = st["pgfault"], st["pgmajfault"]
	} else {
		u.CPU = time.Duration(number(filepath.Join(cpu, "cpuacct.usage")))
		u.Memory = number(filepath.Join(mem, "memory.usage_in_bytes"))
		if l := number(filepath.Join(mem, "memory.limit_in_bytes")); l < 1<<62 {
			u.MemoryLimit = l
		}
		u.RSS, inactive, u.Swap = st["total_rss"], st["total_inactive_file"], st["total_swap"]
		u.PageFaults, u.MajorFaults = st["total_pgfault"], st["total_pgmajfault"]
	}
	u.WorkingSet = u.Memory - min(u.Memory, inactive)
	u.Processes = number(filepath.Join(pids, "pids.current"))
	return u, nil
}

func counters(path string) map[string]uint64 {
	out := map[string]uint64{}
	b, _ := os.ReadFile(path)
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(l), " "); ok {
			out[k], _ = strconv.ParseUint(v, 10, 64)
		}
	}
	return out
}

func number(path string) uint64 {
	b, _ := os.ReadFile(path)
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// OOMFile is the file of group with the line "oom_kill N".
func (h *Host) OOMFile(group string) string {
	if h.V2 {
		return filepath.Join(h.Path("", group), "memory.events")
	}
	return filepath.Join(h.Path("memory", group), "memory.oom_control")
}

// ProcsFile is a file that lists the processes of group.
func (h *Host) ProcsFile(group string) string {
	for _, c := range []string{"pids", "memory", "cpu", ""} {
		if p := h.Path(c, group); p != "" {
			return filepath.Join(p, "cgroup.procs")
		}
	}
	return ""
}
