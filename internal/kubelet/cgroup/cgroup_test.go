package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/host"
)

func newTree(t *testing.T, root string) *Tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("control groups need root")
	}
	inst := host.Instance{Name: "x", CgroupParent: fmt.Sprintf("/skiff-kubelet-test-%d", os.Getpid())}
	tree, err := New(Deps{
		Host: inst, Root: root,
		Limits: func(*corev1.Pod) Limits { return Limits{Shares: 512, Quota: 50000, Memory: 64 << 20} },
		Class:  func(p *corev1.Pod) corev1.PodQOSClass { return p.Status.QOSClass },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range tree.hierarchies {
			dir := filepath.Join(h.dir, inst.CgroupParent)
			if _, err := os.Stat(dir); err == nil {
				if err := removeTree(dir); err != nil {
					t.Error(err)
				}
			}
		}
	})
	return tree
}

func read(t *testing.T, h *hierarchy, path, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, path, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestTree(t *testing.T) {
	tree := newTree(t, "")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "a"}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSBurstable}}
	q := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "b"}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSBurstable}}
	g := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "c"}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSGuaranteed}}
	parent := tree.d.Host.CgroupParent
	for _, c := range []struct {
		pod  *corev1.Pod
		want string
	}{{p, "/kubepods/burstable/poda"}, {q, "/kubepods/burstable/podb"}, {g, "/kubepods/podc"}, {p, "/kubepods/burstable/poda"}} {
		got, err := tree.Ensure(c.pod)
		if err != nil {
			t.Fatal(err)
		}
		if got != parent+c.want {
			t.Errorf("group %s, want %s", got, parent+c.want)
		}
	}
	cpu, mem := tree.with("cpu"), tree.with("memory")
	path := parent + "/kubepods/burstable/poda"
	if tree.v2 {
		if v := read(t, mem, path, "memory.max"); v != strconv.Itoa(64<<20) {
			t.Errorf("memory.max %s", v)
		}
		if v := read(t, cpu, path, "cpu.max"); v != "50000 100000" {
			t.Errorf("cpu.max %s", v)
		}
	} else {
		if v := read(t, mem, path, "memory.limit_in_bytes"); v != strconv.Itoa(64<<20) {
			t.Errorf("memory limit %s", v)
		}
		if v := read(t, cpu, path, "cpu.cfs_quota_us"); v != "50000" {
			t.Errorf("quota %s", v)
		}
		if v := read(t, cpu, parent+"/kubepods/burstable", "cpu.shares"); v != "1024" {
			t.Errorf("two pods of 512 shares have %s together", v)
		}
		if v := read(t, cpu, parent+"/kubepods/besteffort", "cpu.shares"); v != "2" {
			t.Errorf("best effort has %s shares", v)
		}
	}
	all := Limits{Shares: 1500, Memory: 2 << 30, PIDs: 5000}
	if err := tree.LimitAll(all); err != nil {
		t.Fatal(err)
	}
	file, want, pids := "memory.limit_in_bytes", strconv.FormatInt(all.Memory, 10), tree.with("pids")
	if tree.v2 {
		file = "memory.max"
	} else if v := read(t, cpu, parent+"/kubepods", "cpu.shares"); v != "1500" {
		t.Errorf("all pods have %s shares", v)
	}
	if v := read(t, mem, parent+"/kubepods", file); v != want {
		t.Errorf("all pods may have %s of memory, want %s", v, want)
	}
	if v := read(t, pids, parent+"/kubepods", "pids.max"); v != "5000" {
		t.Errorf("all pods may have %s processes", v)
	}
	if v := read(t, pids, path, "pids.max"); v != "max" {
		t.Errorf("a pod may have %s processes", v)
	}
	uids, err := tree.Pods()
	if err != nil || len(uids) != 3 {
		t.Errorf("Pods: %v, %v", uids, err)
	}
	for range 2 {
		if err := tree.Remove("b"); err != nil {
			t.Fatal(err)
		}
	}
	if !tree.v2 {
		if v := read(t, cpu, parent+"/kubepods/burstable", "cpu.shares"); v != "512" {
			t.Errorf("one pod of 512 shares has %s", v)
		}
	}
	for _, bad := range []types.UID{"", "..", "a/../../.."} {
		if err := tree.Remove(bad); err == nil {
			t.Errorf("UID %q was taken", bad)
		}
	}
}

// What still runs in a pod's groups, and in those of its containers, ends with it.
// What containers leave in a version 2 hierarchy beside version 1 ones goes with their
// pod.
func TestRemoveBeside(t *testing.T) {
	tree := newTree(t, "")
	if tree.beside == "" {
		t.Skip("this machine has no version 2 hierarchy beside version 1 ones")
	}
	for _, class := range classes {
		dir := filepath.Join(tree.beside, tree.path(class, "podbeside"))
		if err := os.MkdirAll(filepath.Join(dir, "container"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := tree.Remove("beside"); err != nil {
			t.Fatal(err)
		}
		if exists(dir) {
			t.Errorf("%s is left", dir)
		}
	}
	if err := removeTree(filepath.Join(tree.beside, tree.d.Host.CgroupParent)); err != nil {
		t.Error(err)
	}
}

func TestRemoveKills(t *testing.T) {
	tree := newTree(t, "")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "k"}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSBestEffort}}
	path, err := tree.Ensure(p)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tree.with("memory").dir, path, "container")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	if err := tree.Remove("k"); err != nil {
		_ = cmd.Process.Kill()
		t.Error(err)
	}
	<-waited
	if cmd.ProcessState.Success() {
		t.Error("the process ended by itself")
	}
	if _, err := os.Stat(filepath.Dir(dir)); err == nil {
		t.Error("the group is still there")
	}
}

// The machine's version 2 hierarchy, where one is mounted, with whatever
// controllers it has.
func TestVersion2(t *testing.T) {
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" {
		t.Skip("no version 2 hierarchy is mounted on this machine")
	}
	tree := newTree(t, root)
	if tree.Version() != 2 {
		t.Fatalf("version %d", tree.Version())
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "z"}, Status: corev1.PodStatus{QOSClass: corev1.PodQOSBurstable}}
	path, err := tree.Ensure(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, path, "cgroup.procs")); err != nil {
		t.Error(err)
	}
	if err := tree.Remove("z"); err != nil {
		t.Error(err)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[int64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}
