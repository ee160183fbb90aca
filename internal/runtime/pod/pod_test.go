package pod_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/programs"
	"skiff/internal/runtime/runtimetest"
	"skiff/internal/runtime/startspec"
)

func TestMain(m *testing.M) {
	code := runtimetest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// rig is a pod process and the means to start containers in it.
type rig struct {
	t      *testing.T
	set    programs.Set
	dir    string
	c      *pod.Client
	info   pod.Info
	events chan pod.Process
	seen   []pod.Process
	n      int
}

func newRig(t *testing.T, o pod.Options) *rig {
	t.Helper()
	r := &rig{t: t, set: runtimetest.Programs(t), dir: t.TempDir(), events: make(chan pod.Process, 1000)}
	ctx := t.Context()
	o.Dir = r.dir
	pid, _, err := pod.Spawn(ctx, r.set.Pod, o)
	if err != nil {
		t.Fatal(err)
	}
	r.connect()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := r.c.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		r.c.Close()
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			waitGone(t, pid)
		}
		for _, h := range []string{"memory", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio", "pids", "systemd", "unified", ""} {
			for i := 1; i <= r.n; i++ {
				removeCgroup(t, filepath.Join("/sys/fs/cgroup", h, r.cgroup(i)))
			}
			os.Remove(filepath.Join("/sys/fs/cgroup", h, r.cgroupParent()))
		}
	})
	r.info, err = r.c.Hello(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.info.PID != pid || r.info.Proto != 1 {
		t.Fatalf("hello = %+v, want pid %d", r.info, pid)
	}
	return r
}

func waitGone(t *testing.T, pid int) {
	deadline := time.Now().Add(10 * time.Second)
	for syscall.Kill(pid, 0) == nil {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if strings.Contains(string(b), ") Z ") {
			return // init has not reaped it yet
		}
		if time.Now().After(deadline) {
			t.Errorf("process %d is still there", pid)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func removeCgroup(t *testing.T, dir string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := os.Remove(dir)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("cgroup: %v", err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *rig) connect() {
	r.t.Helper()
	c, err := pod.Connect(r.dir, func(p pod.Process) { r.events <- p })
	if err != nil {
		r.t.Fatal(err)
	}
	if err := c.Subscribe(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.c = c
}

func (r *rig) cgroupParent() string { return fmt.Sprintf("skiff-pod-test-%d", os.Getpid()) }
func (r *rig) cgroup(i int) string {
	return fmt.Sprintf("%s/%d-%s", r.cgroupParent(), i, filepath.Base(r.dir))
}

// start runs args and returns the container and its log's path.
func (r *rig) start(change func(*startspec.Spec, *pod.Start), args ...string) (pod.Process, string, error) {
	r.t.Helper()
	r.n++
	id := fmt.Sprintf("c%d", r.n)
	bundle := filepath.Join(r.dir, "bundle-"+id)
	for _, d := range []string{"rootfs", "upper", "work", "lower"} {
		if err := os.MkdirAll(filepath.Join(bundle, d), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	runtimetest.Busybox(r.t, filepath.Join(bundle, "lower"))
	s := startspec.Spec{
		OCI: &specs.Spec{
			Version: specs.Version,
			Root:    &specs.Root{Path: filepath.Join(bundle, "rootfs")},
			Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
			Linux: &specs.Linux{
				CgroupsPath: "/" + r.cgroup(r.n),
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.MountNamespace}, {Type: specs.PIDNamespace},
					{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", r.info.PID)},
				},
			},
		},
		Overlay:        &startspec.Overlay{Lower: []string{filepath.Join(bundle, "lower")}, Upper: filepath.Join(bundle, "upper"), Work: filepath.Join(bundle, "work")},
		DefaultSeccomp: true,
	}
	st := pod.Start{ID: id, Starter: r.set.Start, Root: filepath.Join(r.dir, "state"), Bundle: bundle, LogPath: filepath.Join(r.dir, id+".log")}
	if change != nil {
		change(&s, &st)
	}
	if err := startspec.Write(filepath.Join(bundle, startspec.File), s); err != nil {
		r.t.Fatal(err)
	}
	p, err := r.c.Start(r.t.Context(), st)
	return p, st.LogPath, err
}

// exit waits for the end of a process.
func (r *rig) exit(id string) pod.Process {
	r.t.Helper()
	match := func(p pod.Process) bool { return p.ID == id && (p.State == pod.Exited || p.State == pod.Failed) }
	for _, p := range r.seen {
		if match(p) {
			return p
		}
	}
	timeout := time.After(30 * time.Second)
	for {
		select {
		case p := <-r.events:
			r.seen = append(r.seen, p)
			if match(p) {
				return p
			}
		case <-timeout:
			r.t.Fatalf("no exit of %s", id)
		}
	}
}

var record = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) `)

// content joins the records of one stream.
func content(t *testing.T, path, stream string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, l := range strings.SplitAfter(string(b), "\n") {
		if l == "" {
			continue
		}
		m := record.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("not a CRI log record: %.200q", l)
		}
		if m[1] != stream {
			continue
		}
		l = l[len(m[0]):]
		if m[2] == "P" {
			l = strings.TrimSuffix(l, "\n")
		}
		out.WriteString(l)
	}
	return out.String()
}

func TestRun(t *testing.T) {
	r := newRig(t, pod.Options{Net: true, IPC: true, UTS: true, Hostname: "web-0"})
	start := time.Now()
	p, log, err := r.start(nil, "sh", "-c", "echo out; echo err >&2; printf tail; exit 7")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("start took %v", time.Since(start))
	e := r.exit(p.ID)
	if e.ExitCode != 7 || e.Signal != 0 || e.OOMKilled || e.State != pod.Exited || e.Finished.Before(e.Started) {
		t.Errorf("exit = %+v", e)
	}
	if got := content(t, log, "stdout"); got != "out\ntail" {
		t.Errorf("stdout = %q", got)
	}
	if got := content(t, log, "stderr"); got != "err\n" {
		t.Errorf("stderr = %q", got)
	}
	d, err := pod.ReadExit(r.dir, p.ID)
	if err != nil || d != e {
		t.Errorf("record = %+v, %v; want %+v", d, err, e)
	}
}
