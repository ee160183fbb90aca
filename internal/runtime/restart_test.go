package runtime_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
	"skiff/internal/host"
	"skiff/internal/runtime"
	"skiff/internal/runtime/programs"
)

// childEnv makes the test binary a runtime: its value says which.
const childEnv = "SKIFF_TEST_CHILD"

type childSpec struct {
	Instance host.Instance
	Programs programs.Set
	// KillAt is the step at which it kills itself.
	KillAt string
	// Unified shows it a host with cgroup v2 alone.
	Unified bool
	// Shared gives it a mount namespace whose mounts are shared, as systemd does.
	Shared bool
}

func childMain() {
	var spec childSpec
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &spec); err != nil {
		panic(err)
	}
	if spec.Unified {
		for _, err := range []error{
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""),
		} {
			if err != nil {
				panic(err)
			}
		}
	}
	if spec.Shared {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			panic(err)
		}
	}
	b := bench{inst: spec.Instance, set: spec.Programs, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	d, err := b.deps()
	if err == nil {
		d.Step = func(name string) {
			if name == spec.KillAt {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // no instruction after this one
			}
		}
		var r *runtime.Runtime
		if r, err = runtime.New(context.Background(), d); err == nil {
			fmt.Println("up")
			err = r.Run(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is a runtime in a process of its own.
type child struct {
	cri.Services
	cmd  *exec.Cmd
	kill func() // and waits for its end
}

func (b bench) child(t *testing.T, killAt string) *child {
	t.Helper()
	return b.childOf(t, childSpec{Instance: b.inst, Programs: b.set, KillAt: killAt})
}

func (b bench) childOf(t *testing.T, cs childSpec) *child {
	t.Helper()
	spec, err := json.Marshal(cs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	if cs.Unified || cs.Shared {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd}
	c.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(c.kill)
	buf := make([]byte, 3)
	if n, err := out.Read(buf); !bytes.HasPrefix(buf[:n], []byte("up")) {
		t.Fatalf("child: %q, %v", buf[:n], err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), critest.Wait)
	defer cancel()
	if c.Services, err = cri.Dial(ctx, "unix://"+filepath.Join(b.inst.RunDir, "cri.sock"), critest.Wait); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Services.Close(context.Background()) })
	return c
}

// config of a pod whose sandbox outlives the runtime that makes it.
func (b bench) config(t testing.TB, name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "restart", Uid: name + "-uid"}, LogDirectory: t.TempDir(),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    filepath.Join(b.inst.CgroupParent, "kubepods", name),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

func containerConfig(name string, args ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: testImage},
		Command: args, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

// pod runs one container in a new sandbox as far as it gets.
func pod(ctx context.Context, s cri.Services, config *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (sb, id string, err error) {
	if sb, err = s.Runtime.RunPodSandbox(ctx, config, ""); err != nil {
		return
	}
	if id, err = s.Runtime.CreateContainer(ctx, sb, c, config); err != nil {
		return
	}
	return sb, id, s.Runtime.StartContainer(ctx, id)
}

func status(t *testing.T, s cri.Services, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := s.Runtime.ContainerStatus(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStatus()
}

// The runtime is killed again and again while a container logs: the container
// does not notice, no line is lost or doubled, its exit code arrives.
func TestKillWhileLogging(t *testing.T) {
	b := newBench(t)
	c := b.child(t, "")
	ctx := t.Context()
	config := b.config(t, "logger")
	const lines = 600
	_, id, err := pod(ctx, c.Services, config, containerConfig("c", "sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; usleep 2000; done; exit 23", lines)))
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(config.LogDirectory, "c.log")
	first := status(t, c.Services, id)
	for range 3 {
		n := len(critest.ReadLog(t, log, "stdout"))
		critest.Until(t, "it logs on", func() bool { return len(critest.ReadLog(t, log, "stdout")) > n })
		c.kill()
		c = b.child(t, "")
		if st := status(t, c.Services, id); st.GetStartedAt() != first.GetStartedAt() || st.GetExitCode() != 0 && st.GetExitCode() != 23 {
			t.Fatalf("after a restart: %v", st)
		}
	}
	critest.Until(t, "it ends", func() bool {
		return status(t, c.Services, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if st := status(t, c.Services, id); st.GetExitCode() != 23 || st.GetReason() != "Error" || st.GetStartedAt() != first.GetStartedAt() {
		t.Errorf("status = %v", st)
	}
	got := strings.Fields(critest.ReadLog(t, log, "stdout"))
	if len(got) != lines {
		t.Errorf("%d lines, want %d", len(got), lines)
	}
	for i, l := range got {
		if l != strconv.Itoa(i+1) {
			t.Fatalf("line %d is %s", i+1, l)
		}
	}
}

// Containers end while no runtime runs.
func TestKillWhileExiting(t *testing.T) {
	b := newBench(t)
	c := b.child(t, "")
	ctx := t.Context()
	config := b.config(t, "ender")
	gate := filepath.Join(config.LogDirectory, "gate")
	cc := containerConfig("c", "sh", "-c", "until [ -e /gate/go ]; do usleep 5000; done; echo last words; exit 9")
	cc.Mounts = []*runtimeapi.Mount{{HostPath: gate, ContainerPath: "/gate"}}
	sb, id, err := pod(ctx, c.Services, config, cc)
	if err != nil {
		t.Fatal(err)
	}
	c.kill()
	if err := os.WriteFile(filepath.Join(gate, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(config.LogDirectory, "c.log")
	critest.Until(t, "it has ended", func() bool { return critest.ReadLog(t, log, "stdout") == "last words\n" })
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	critest.Until(t, "its end is known", func() bool {
		return status(t, s, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if st := status(t, s, id); st.GetExitCode() != 9 || st.GetFinishedAt() < st.GetStartedAt() {
		t.Errorf("status = %v", st)
	}
	// The sandbox goes on: another container starts in it.
	id2, err := s.Runtime.CreateContainer(ctx, sb, containerConfig("d", "true"), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Runtime.StartContainer(ctx, id2); err != nil {
		t.Fatal(err)
	}
}

// The pod process itself is killed: the pod is over, and nothing of it goes on.
func TestPodProcessKilled(t *testing.T) {
	for _, alive := range []bool{true, false} {
		t.Run(fmt.Sprint("runtime alive ", alive), func(t *testing.T) {
			b := newBench(t)
			r, stop := b.start(t, nil)
			s := cri.InProcess(r)
			ctx := t.Context()
			config := b.config(t, "victim")
			sb, id, err := pod(ctx, s, config, containerConfig("c", "sleep", "1000"))
			if err != nil {
				t.Fatal(err)
			}
			var rec struct{ PID int }
			raw, err := os.ReadFile(filepath.Join(b.inst.RunDir, "runtime/pods", sb, "sandbox.json"))
			if err != nil || json.Unmarshal(raw, &rec) != nil || rec.PID == 0 {
				t.Fatalf("record %s, %v", raw, err)
			}
			if !alive {
				stop()
			}
			if err := syscall.Kill(rec.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if !alive {
				r, _ = b.start(t, nil)
				s = cri.InProcess(r)
			}
			critest.Until(t, "the end is noticed", func() bool {
				return status(t, s, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
			})
			if st := status(t, s, id); st.GetExitCode() != 255 || st.GetReason() != "Unknown" {
				t.Errorf("status = %v", st)
			}
			ps, err := s.Runtime.PodSandboxStatus(ctx, sb, false)
			if err != nil || ps.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("sandbox = %v, %v", ps, err)
			}
			if err := s.Runtime.RemovePodSandbox(ctx, sb); err != nil {
				t.Error(err)
			}
		})
	}
}

// both runs a test for an ordinary pod and for one in a user namespace.
func both(t *testing.T, name string, f func(*testing.T, func(bench, testing.TB, string) *runtimeapi.PodSandboxConfig)) {
	t.Run(name, func(t *testing.T) { f(t, bench.config) })
	t.Run(name+" of a pod in a user namespace", func(t *testing.T) { f(t, bench.usersConfig) })
}

// Each step of the recovery table: the runtime is killed there, and the next one
// is whole.
func TestRecoveryTable(t *testing.T) {
	for _, tc := range []struct {
		step string
		// what the next runtime shows: sandboxes, containers, and the state of
		// the container
		sandboxes, containers int
		state                 runtimeapi.ContainerState
	}{
		{"sandbox-recorded", 0, 0, 0},
		{"sandbox-mounted", 0, 0, 0},
		{"sandbox-spawned", 0, 0, 0},
		{"sandbox-attached", 0, 0, 0},
		{"sandbox-ready", 1, 0, 0},
		{"container-prepared", 1, 0, 0},
		{"container-recorded", 1, 1, runtimeapi.ContainerState_CONTAINER_CREATED},
		{"container-starting", 1, 1, runtimeapi.ContainerState_CONTAINER_CREATED},
		{"container-started", 1, 1, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{"stop-recorded", 1, 1, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{"stop-killed", 1, 1, runtimeapi.ContainerState_CONTAINER_EXITED},
		{"stop-detached", 1, 1, runtimeapi.ContainerState_CONTAINER_EXITED},
		{"stop-ended", 1, 1, runtimeapi.ContainerState_CONTAINER_EXITED},
		{"remove-forgotten", 1, 1, runtimeapi.ContainerState_CONTAINER_EXITED},
		{"remove-removed", 1, 0, 0},
		{"remove-emptied", 1, 0, 0},
	} {
		both(t, tc.step, func(t *testing.T, configOf func(bench, testing.TB, string) *runtimeapi.PodSandboxConfig) {
			b := newBench(t)
			c := b.child(t, tc.step)
			ctx, cancel := context.WithTimeout(t.Context(), critest.Wait)
			defer cancel()
			config := configOf(b, t, "p")
			sb, _, err := pod(ctx, c.Services, config, containerConfig("c", "sleep", "1000"))
			if err == nil {
				err = c.Runtime.StopPodSandbox(ctx, sb)
			}
			if err == nil {
				err = c.Runtime.RemovePodSandbox(ctx, sb)
			}
			if err == nil {
				t.Fatal("it was not killed")
			}
			if werr := c.cmd.Wait(); werr == nil || !strings.Contains(werr.Error(), "killed") {
				t.Fatalf("it ended with %v (%v)", werr, err)
			}
			r, _ := b.start(t, nil)
			s := cri.InProcess(r)
			sandboxes, err := s.Runtime.ListPodSandbox(ctx, nil)
			if err != nil || len(sandboxes) != tc.sandboxes {
				t.Fatalf("sandboxes = %v, %v; want %d", sandboxes, err, tc.sandboxes)
			}
			containers, err := s.Runtime.ListContainers(ctx, nil)
			if err != nil || len(containers) != tc.containers {
				t.Fatalf("containers = %v, %v; want %d", containers, err, tc.containers)
			}
			if len(containers) == 1 {
				if containers[0].GetState() != tc.state {
					t.Errorf("container is %v, want %v", containers[0].GetState(), tc.state)
				}
				if containers[0].GetState() == runtimeapi.ContainerState_CONTAINER_CREATED {
					if err := s.Runtime.StartContainer(ctx, containers[0].GetId()); err != nil {
						t.Errorf("start what was created: %v", err)
					}
				}
			}
			for _, x := range sandboxes {
				if err := s.Runtime.StopPodSandbox(ctx, x.GetId()); err != nil {
					t.Error(err)
				}
				if err := s.Runtime.RemovePodSandbox(ctx, x.GetId()); err != nil {
					t.Error(err)
				}
			}
			// Nothing is left of it, and the same pod can be made.
			for _, dir := range []string{b.inst.Run("runtime", "pods"), b.inst.Run("runtime", "mnt"), b.inst.Data("net"), b.inst.Data("snapshots", "keys")} {
				if e, err := os.ReadDir(dir); err == nil && len(e) > 0 {
					t.Errorf("left in %s: %v", dir, e)
				}
			}
			if sb, _, err = pod(ctx, s, config, containerConfig("c", "true")); err != nil {
				t.Fatal(err)
			}
			if err := s.Runtime.RemovePodSandbox(ctx, sb); err != nil {
				t.Error(err)
			}
		})
	}
}

// A command that was running in a container when the runtime died is ended: its
// caller is gone.
func TestKillDuringExec(t *testing.T) {
	b := newBench(t)
	c := b.child(t, "")
	config := b.config(t, "p")
	_, id, err := pod(t.Context(), c.Services, config, containerConfig("c", "sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		_, _, err := c.Runtime.ExecSync(context.Background(), id, []string{"sleep", "4321"}, 0)
		return err
	})
	ps := func(s cri.Services) string {
		out, _, err := s.Runtime.ExecSync(t.Context(), id, []string{"ps"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	critest.Until(t, "the command runs", func() bool { return strings.Contains(ps(c.Services), "sleep 4321") })
	c.kill()
	if err := g.Wait(); err == nil {
		t.Error("the caller was not told")
	}
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	critest.Until(t, "the command has ended", func() bool { return !strings.Contains(ps(s), "sleep 4321") })
	if st := status(t, s, id); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status = %v", st)
	}
}

// A runtime that is stopped in good order does not wait for clients that stay
// connected to a stream.
func TestStopWithOpenStreams(t *testing.T) {
	b := newBench(t)
	r, stop := b.start(t, nil)
	s := cri.InProcess(r)
	config := b.config(t, "p")
	cc := containerConfig("c", "sh", "-c", "read l; sleep 1000")
	cc.Stdin = true
	_, id, err := pod(t.Context(), s, config, cc)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{e.GetUrl(), a.GetUrl()} {
		d := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
		ws, _, err := d.DialContext(t.Context(), strings.Replace(u, "http", "ws", 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
	}
	start := time.Now()
	stop()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("stopping took %v", d)
	}
	r, _ = b.start(t, nil)
	if st := status(t, cri.InProcess(r), id); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status = %v", st)
	}
}
