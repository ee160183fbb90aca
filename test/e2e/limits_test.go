package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// cgroups are where limits stand: one directory of all controllers in version 2,
// one for each in version 1.
type cgroups struct {
	v2       bool
	cpu, mem string
}

func findCgroups(t *testing.T) cgroups {
	t.Helper()
	const cgroup2 = 0x63677270
	var st syscall.Statfs_t
	if err := syscall.Statfs("/sys/fs/cgroup", &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == cgroup2 {
		return cgroups{true, "/sys/fs/cgroup", "/sys/fs/cgroup"}
	}
	return cgroups{false, "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory"}
}

// has compares files of a group with what they shall say: those of version 1 and
// of version 2, "FILE VALUE".
func (g cgroups) has(t *testing.T, group string, v1, v2 []string) {
	t.Helper()
	want := v1
	if g.v2 {
		want = v2
	}
	for _, w := range want {
		file, value, _ := strings.Cut(w, " ")
		dir := g.cpu
		if strings.HasPrefix(file, "memory.") {
			dir = g.mem
		}
		b, err := os.ReadFile(filepath.Join(dir, group, file))
		if got := strings.TrimSpace(string(b)); got != value || err != nil {
			t.Errorf("%s of %s is %q (%v), want %q", file, group, got, err, value)
		}
	}
}

// TestLimits runs pods with requests and limits, with either version of cgroups:
// what the kernel was told, what it does to one that takes too much, and that
// nothing is left in the end.
func TestLimits(t *testing.T) {
	g := findCgroups(t)
	c := start(t, "limits")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: sure}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo begun; exec sleep 100000']
    resources: {limits: {cpu: 500m, memory: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: some}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sleep, "100000"]
    resources: {requests: {cpu: 250m, memory: 16Mi}, limits: {memory: 32Mi}}
  - name: other
    image: busybox:1
    command: [sleep, "100000"]
    resources: {requests: {cpu: 1250m}}
---
apiVersion: v1
kind: Pod
metadata: {name: least}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo begun; x=$(seq 1 20000000); echo survived']
    resources: {limits: {memory: 24Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: child}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'sh -c "x=0123456789; while :; do x=\$x\$x; done"; echo survived']
    resources: {limits: {memory: 24Mi}}
`)
	for _, p := range []string{"sure", "some", "least"} {
		c.waitPod(p, `.status.conditions[?(@.type=="Ready")].status`, "True")
	}
	parent := "/skiff-" + c.name
	of := func(pod, class string, container int) (podGroup, group string) {
		o := c.get("pod", pod)
		podGroup = filepath.Join(parent, "kubepods", class, "pod"+field(o, "metadata", "uid").(string))
		for i := range 2 {
			id, _ := field(o, "status", "containerStatuses", i, "containerID").(string)
			if i == container {
				_, id, _ = strings.Cut(id, "://")
				return podGroup, filepath.Join(podGroup, id)
			}
		}
		return
	}
	pod, main := of("sure", "", 0)
	sure1 := []string{"cpu.shares 512", "cpu.cfs_quota_us 50000", "cpu.cfs_period_us 100000", "memory.limit_in_bytes 67108864"}
	sure2 := []string{"cpu.weight 59", "cpu.max 50000 100000", "memory.max 67108864"}
	g.has(t, pod, sure1, sure2)
	g.has(t, main, sure1, append(sure2, "memory.oom.group 1"))
	pod, main = of("some", "burstable", 0)
	g.has(t, pod, []string{"cpu.shares 1536", "cpu.cfs_quota_us -1"}, []string{"cpu.weight 138", "cpu.max max 100000", "memory.max max"})
	g.has(t, main, []string{"cpu.shares 256", "memory.limit_in_bytes 33554432"}, []string{"cpu.weight 35", "cpu.max max 100000", "memory.max 33554432"})
	pod, main = of("least", "besteffort", 0)
	g.has(t, pod, []string{"cpu.shares 2"}, []string{"cpu.weight 1", "memory.max max"})
	g.has(t, main, []string{"cpu.shares 2"}, []string{"cpu.weight 1", "cpu.max max 100000", "memory.max max"})
	g.has(t, filepath.Join(parent, "kubepods/besteffort"), []string{"cpu.shares 2"}, []string{"cpu.weight 1"})

	// In version 2 a container is killed as a whole, in version 1 a process of it: the
	// child, which takes the memory alone. Beside another one that asks for memory
	// while the child is torn down, the kernel may kill the first process too.
	for _, p := range []string{"greedy", "child"} {
		phase, code, log := "Failed", float64(137), ""
		if p == "greedy" {
			log = "begun\n"
		} else if !g.v2 {
			phase, log = "Succeeded", "Killed\nsurvived\n"
		}
		c.waitPod(p, ".status.phase", phase)
		end := field(c.get("pod", p), "status", "containerStatuses", 0, "state", "terminated")
		if phase == "Succeeded" {
			code = 0 // a process of it was killed, and it ended well
		}
		if r, e := field(end, "reason"), field(end, "exitCode"); r != "OOMKilled" || e != code {
			t.Errorf("%s ended as %v with exit code %v, want OOMKilled, %v", p, r, e, code)
		}
		if out := c.kubectl("logs", p); out != log {
			t.Errorf("%s logs %q, want %q", p, out, log)
		}
	}
	if out := c.kubectl("exec", "sure", "--", "cat", "/proc/self/cgroup"); g.v2 && out != "0::/\n" {
		t.Errorf("in its container a process is in the cgroup %q", out)
	}
	if out := c.kubectl("logs", "sure"); out != "begun\n" {
		t.Errorf("logs are %q", out)
	}
	pod, _ = of("sure", "", 0)
	c.kubectl("delete", "pod", "sure")
	c.eventually("the pod's cgroup is gone", func() (bool, string) {
		_, err := os.Stat(filepath.Join(g.mem, pod))
		return errors.Is(err, fs.ErrNotExist), fmt.Sprint(err)
	})
	if out, err := c.skiff("reset", "--yes"); err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, c.name) {
			t.Errorf("reset left the cgroup %s", p)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), c.name) {
		t.Errorf("reset left mounts: %v\n%s", err, mounts)
	}
	for _, dir := range []string{"/run/skiff/" + c.name, c.data} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("reset left %s: %v", dir, err)
		}
	}
}
