// Package cgroup makes the control groups of pods: one per pod, below one per
// quality of service, below the instance's parent:
//
//	<parent>/kubepods/pod<UID>               guaranteed
//	<parent>/kubepods/burstable/pod<UID>
//	<parent>/kubepods/besteffort/pod<UID>
//
// The runtime makes those of sandboxes and containers below. Both versions of
// cgroups work: in version 1 a group is made in each hierarchy that limits pods
// (cpu, memory, pids); in a version 2 hierarchy beside version 1 ones none is made,
// but those that containers leave there go with their pod.
//
// All calls are idempotent and keep nothing in memory: a new process goes on with
// what is there.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/host"
)

// Limits are what a pod as a whole, or all pods together, may use. Zero Quota,
// Memory and PIDs mean no limit.
type Limits struct {
	Shares int64 // of the CPU, as in version 1
	Quota  int64 // microseconds in each 100 ms
	Memory int64 // bytes
	PIDs   int64 // processes and threads
}

// Deps is what Tree needs. Root defaults to /sys/fs/cgroup, Journal may be nil.
type Deps struct {
	Host    host.Instance
	Journal *host.Journal
	Log     *slog.Logger
	Root    string
	// Limits computes a pod's limits, Class its quality of service.
	Limits func(*corev1.Pod) Limits
	Class  func(*corev1.Pod) corev1.PodQOSClass
}

// Tree is the control groups of an instance's pods. It is safe for concurrent use.
type Tree struct {
	d           Deps
	v2          bool
	hierarchies []hierarchy
	// beside is where a version 2 hierarchy is mounted beside those; empty for none.
	beside string

	mu    sync.Mutex
	ready bool
}

// hierarchy is a mounted version 1 hierarchy, or the one of version 2.
type hierarchy struct {
	dir         string
	controllers []string
}

func (h hierarchy) has(c string) bool {
	for _, x := range h.controllers {
		if x == c {
			return true
		}
	}
	return false
}

// classes are the groups between kubepods and the pods'; guaranteed pods have none.
var classes = []string{"", "burstable", "besteffort"}

// New finds the hierarchies of this machine.
func New(d Deps) (*Tree, error) {
	if d.Root == "" {
		d.Root = "/sys/fs/cgroup"
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Host.CgroupParent == "" || d.Host.CgroupParent == "/" {
		return nil, fmt.Errorf("cgroup parent %q: must be a group of the instance's own", d.Host.CgroupParent)
	}
	t := &Tree{d: d}
	var st unix.Statfs_t
	if err := unix.Statfs(d.Root, &st); err != nil {
		return nil, fmt.Errorf("control groups at %s: %w", d.Root, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		t.v2 = true
		b, err := os.ReadFile(filepath.Join(d.Root, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("control groups at %s: %w", d.Root, err)
		}
		t.hierarchies = []hierarchy{{d.Root, strings.Fields(string(b))}}
		return t, nil
	}
	if err := t.findV1(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Tree) findV1() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("find control groups: %w", err)
	}
	seen := map[string]bool{}
	for _, line := range strings.Split(string(b), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 3 || !strings.HasPrefix(f[4], t.d.Root+"/") {
			continue
		}
		if g[0] == "cgroup2" && t.beside == "" {
			t.beside = f[4]
		}
		if g[0] != "cgroup" {
			continue
		}
		controllers := strings.Split(g[2], ",")
		if key := g[2]; !seen[key] {
			seen[key] = true
			t.hierarchies = append(t.hierarchies, hierarchy{f[4], controllers})
		}
	}
	if t.with("memory") == nil || t.with("cpu") == nil {
		return errors.New("find control groups: the controllers cpu and memory are not mounted below " + t.d.Root)
	}
	return nil
}

// with returns the hierarchy that has a controller, nil where none has.
func (t *Tree) with(controller string) *hierarchy {
	for i := range t.hierarchies {
		if t.hierarchies[i].has(controller) {
			return &t.hierarchies[i]
		}
	}
	return nil
}

// Version is 1 or 2.
func (t *Tree) Version() int {
	if t.v2 {
		return 2
	}
	return 1
}

func (t *Tree) path(class string, elem ...string) string {
	return filepath.Join(append([]string{t.d.Host.CgroupParent, "kubepods", class}, elem...)...)
}

func podName(uid types.UID) string { return "pod" + string(uid) }

func className(c corev1.PodQOSClass) string {
	switch c {
	case corev1.PodQOSBestEffort:
		return "besteffort"
	case corev1.PodQOSBurstable:
		return "burstable"
	}
	return ""
}

// limiting are the controllers by which pods are limited.
var limiting = []string{"cpu", "memory", "pids"}

// Ensure makes the pod's group with its limits and returns its path.
func (t *Tree) Ensure(pod *corev1.Pod) (string, error) {
	if err := checkUID(pod.UID); err != nil {
		return "", err
	}
	if err := t.prepare(); err != nil {
		return "", err
	}
	class := className(t.d.Class(pod))
	path := t.path(class, podName(pod.UID))
	if err := t.make(path); err != nil {
		return "", err
	}
	if err := t.limit(path, t.d.Limits(pod)); err != nil {
		return "", err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return path, t.weighBurstable()
}

// prepare makes the groups above the pods', once.
func (t *Tree) prepare() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ready {
		return nil
	}
	if t.d.Journal != nil {
		if err := t.d.Journal.Record(host.Entry{Kind: host.KindCgroup, Name: t.d.Host.CgroupParent}); err != nil {
			return err
		}
	}
	for _, c := range classes {
		if err := t.make(t.path(c)); err != nil {
			return err
		}
	}
	if err := t.limit(t.path("besteffort"), Limits{Shares: 2}); err != nil {
		return err
	}
	t.ready = true
	return nil
}

// make makes a group in every hierarchy that limits; in version 2 it lets the
// groups above hand the controllers down.
func (t *Tree) make(path string) error {
	if !t.v2 {
		for _, c := range limiting {
			if h := t.with(c); h != nil {
				if err := os.MkdirAll(filepath.Join(h.dir, path), 0o755); err != nil {
					return fmt.Errorf("make control group: %w", err)
				}
			}
		}
		return nil
	}
	at := t.hierarchies[0].dir
	for _, e := range strings.Split(strings.Trim(path, "/"), "/") {
		t.handDown(at)
		at = filepath.Join(at, e)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make control group: %w", err)
		}
	}
	// The runtime's groups below the pod's are limited too.
	t.handDown(at)
	return nil
}

// handDown lets a version 2 group hand its controllers to those below. What it
// does not have, or may not hand down, stays away: limits then fail where they
// are set, with a clear error.
func (t *Tree) handDown(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(b)) {
		switch c {
		case "cpu", "memory", "pids", "cpuset", "io", "hugetlb":
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				t.d.Log.Debug("hand down controller", "cgroup", dir, "controller", c, "err", err)
			}
		}
	}
}

func checkUID(uid types.UID) error {
	if s := string(uid); s == "" || s != filepath.Base(s) || s == "." || s == ".." {
		return fmt.Errorf("pod UID %q: must be a plain name", uid)
	}
	return nil
}

// Pods lists the pods that have a group in any hierarchy.
func (t *Tree) Pods() ([]types.UID, error) {
	seen := map[types.UID]bool{}
	var out []types.UID
	for _, h := range t.hierarchies {
		for _, c := range classes {
			entries, err := os.ReadDir(filepath.Join(h.dir, t.path(c)))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("list control groups: %w", err)
			}
			for _, e := range entries {
				uid, ok := strings.CutPrefix(e.Name(), "pod")
				if ok && e.IsDir() && !seen[types.UID(uid)] {
					seen[types.UID(uid)] = true
					out = append(out, types.UID(uid))
				}
			}
		}
	}
	return out, nil
}
