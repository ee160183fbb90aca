package critest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"

	"skiff/internal/cri"
)

// Test runs the contract.
func Test(t *testing.T, f Fixture) {
	t.Run("Sandbox", f.testSandbox)
	t.Run("Handlers", f.testHandlers)
	t.Run("Lifecycle", f.testLifecycle)
	t.Run("Ends", f.testEnds)
	t.Run("Stop", f.testStop)
	t.Run("ExecSync", f.testExecSync)
	t.Run("Events", f.testEvents)
	t.Run("Logs", f.testLogs)
	t.Run("Process", f.testProcess)
	t.Run("Users", f.testUsers)
	t.Run("Security", f.testSecurity)
	t.Run("Mounts", f.testMounts)
	t.Run("Namespaces", f.testNamespaces)
	t.Run("Resources", f.testResources)
	t.Run("Stats", f.testStats)
	t.Run("Images", f.testImages)
	t.Run("Streams", f.testStreams)
	t.Run("BadInput", f.testBadInput)
}

func (f Fixture) testSandbox(t *testing.T) {
	ctx := t.Context()
	p := f.Run(t, nil)
	r, err := f.Runtime.PodSandboxStatus(ctx, p.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	st := r.GetStatus()
	if st.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || st.GetMetadata().GetName() != p.Config.GetMetadata().GetName() || st.GetCreatedAt() == 0 {
		t.Errorf("status = %v", st)
	}
	if st.GetNetwork().GetIp() == "" {
		t.Error("no address")
	}
	if _, err := f.Runtime.RunPodSandbox(ctx, p.Config, ""); err == nil {
		t.Error("the same pod twice")
	}
	l, err := f.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: p.Config.GetLabels(), Id: p.ID[:10]})
	if err != nil || len(l) != 1 || l[0].GetId() != p.ID {
		t.Errorf("list = %v, %v", l, err)
	}
	if err := f.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		t.Errorf("second stop: %v", err)
	}
	if r, err = f.Runtime.PodSandboxStatus(ctx, p.ID, false); err != nil || r.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped: %v, %v", r, err)
	}
	if _, err := p.Create(nil, "true"); err == nil {
		t.Error("a container in a stopped sandbox")
	}
	if err := f.Runtime.RemovePodSandbox(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.Runtime.RemovePodSandbox(ctx, p.ID); err != nil {
		t.Errorf("second remove: %v", err)
	}
	if _, err = f.Runtime.PodSandboxStatus(ctx, p.ID, false); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed one: %v", err)
	}
	again, err := f.Runtime.RunPodSandbox(ctx, p.Config, "")
	if err != nil {
		t.Fatalf("the name is free again: %v", err)
	}
	p.ID = again
}

// testHandlers runs a sandbox by each handler that Status names.
func (f Fixture) testHandlers(t *testing.T) {
	ctx := t.Context()
	st, err := f.Runtime.Status(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(st.GetRuntimeHandlers()) == 0 {
		t.Fatal("Status names no handlers")
	}
	for _, h := range st.GetRuntimeHandlers() {
		p := f.RunBy(t, h.GetName(), nil)
		r, err := f.Runtime.PodSandboxStatus(ctx, p.ID, false)
		if err != nil || r.GetStatus().GetRuntimeHandler() != h.GetName() {
			t.Errorf("handler %q: status %v, %v", h.GetName(), r.GetStatus(), err)
		}
	}
}

func (f Fixture) testLifecycle(t *testing.T) {
	ctx := t.Context()
	p := f.Run(t, nil)
	c, err := p.Create(nil, "sh", "-c", "trap 'exit 0' TERM; echo up; while :; do usleep 10000; done")
	if err != nil {
		t.Fatal(err)
	}
	if st := c.Status(); st.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || st.GetStartedAt() != 0 {
		t.Errorf("created: %v", st)
	}
	if err := f.Runtime.StartContainer(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	if st := c.Status(); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || st.GetStartedAt() == 0 || st.GetFinishedAt() != 0 {
		t.Errorf("running: %v", st)
	}
	if err := f.Runtime.StartContainer(ctx, c.ID); err == nil {
		t.Error("started twice")
	}
	Until(t, "the trap is set", func() bool { return strings.Contains(c.Log("stdout"), "up") })
	start := time.Now()
	if err := f.Runtime.StopContainer(ctx, c.ID, 60); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("stop took %v", d)
	}
	st := c.Status()
	if st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 0 || st.GetReason() != "Completed" || st.GetFinishedAt() < st.GetStartedAt() {
		t.Errorf("exited: %v", st)
	}
	l, err := f.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: p.ID, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}})
	if err != nil || len(l) != 1 || l[0].GetId() != c.ID {
		t.Errorf("list = %v, %v", l, err)
	}
	for range 2 {
		if err := f.Runtime.RemoveContainer(ctx, c.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Runtime.ContainerStatus(ctx, c.ID, false); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed one: %v", err)
	}
	if _, err := os.Stat(c.LogPath); err != nil {
		t.Errorf("the log is gone: %v", err)
	}
}

func (f Fixture) testEnds(t *testing.T) {
	p := f.Run(t, nil)
	for _, tc := range []struct {
		name, reason string
		args         []string
		code         int32
		change       func(*runtimeapi.ContainerConfig)
	}{
		{"zero", "Completed", []string{"true"}, 0, nil},
		{"code", "Error", []string{"sh", "-c", "exit 42"}, 42, nil},
		{"signal", "Error", []string{"sh", "-c", "kill -9 $$; sleep 1000"}, 137, func(c *runtimeapi.ContainerConfig) {
			// PID 1 cannot signal itself to death: share the pod's processes instead.
			c.Command = []string{"sh", "-c", "ulimit -t 1; while :; do :; done"}
		}},
		{"memory", "OOMKilled", []string{"sh", "-c", "x=a; while :; do x=$x$x; done"}, 137, func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes = 16 << 20
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := p.Start(tc.change, tc.args...)
			if st := c.Exited(); st.GetExitCode() != tc.code || st.GetReason() != tc.reason {
				t.Errorf("exit code %d, reason %q (%s); want %d, %q", st.GetExitCode(), st.GetReason(), st.GetMessage(), tc.code, tc.reason)
			}
		})
	}
	t.Run("bad command", func(t *testing.T) {
		c, err := p.Create(nil, "nope")
		if err != nil {
			t.Fatal(err)
		}
		const want = `exec: "nope": executable file not found in $PATH`
		if err := f.Runtime.StartContainer(t.Context(), c.ID); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start: %v", err)
		}
		st := c.Exited()
		if st.GetExitCode() != 128 || st.GetReason() != "StartError" || !strings.Contains(st.GetMessage(), want) || st.GetFinishedAt() == 0 {
			t.Errorf("status = %v", st)
		}
	})
}

func (f Fixture) testStop(t *testing.T) {
	p := f.Run(t, nil)
	t.Run("grace then kill", func(t *testing.T) {
		c := p.Start(nil, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
		Until(t, "the trap is set", func() bool { return strings.Contains(c.Log("stdout"), "up") })
		start := time.Now()
		if err := f.Runtime.StopContainer(t.Context(), c.ID, 1); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < time.Second {
			t.Errorf("killed after %v", d)
		}
		if st := c.Status(); st.GetExitCode() != 137 || st.GetReason() != "Error" {
			t.Errorf("status = %v", st)
		}
		if err := f.Runtime.StopContainer(t.Context(), c.ID, 1); err != nil {
			t.Errorf("stop of a stopped one: %v", err)
		}
	})
	t.Run("signal of the config", func(t *testing.T) {
		c := p.Start(func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1 },
			"sh", "-c", "trap 'exit 7' USR1; echo up; while :; do usleep 10000; done")
		Until(t, "the trap is set", func() bool { return strings.Contains(c.Log("stdout"), "up") })
		if err := f.Runtime.StopContainer(t.Context(), c.ID, 60); err != nil {
			t.Fatal(err)
		}
		if st := c.Status(); st.GetExitCode() != 7 || st.GetStopSignal() != runtimeapi.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("status = %v", st)
		}
	})
	t.Run("with its sandbox", func(t *testing.T) {
		c := p.Start(nil, "sleep", "1000")
		if err := f.Runtime.StopPodSandbox(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
		if st := c.Status(); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 137 {
			t.Errorf("status = %v", st)
		}
	})
}

func (f Fixture) testExecSync(t *testing.T) {
	p := f.Run(t, nil)
	c := p.Start(func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("hello")}}
		c.WorkingDir = "/data"
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}, "sleep", "1000")
	ctx := t.Context()
	out, errOut, err := f.Runtime.ExecSync(ctx, c.ID, []string{"sh", "-c", "echo $GREETING; pwd; id -u; echo oops >&2"}, 0)
	if string(out) != "hello\n/data\n1000\n" || string(errOut) != "oops\n" || err != nil {
		t.Errorf("out %q, err %q, %v", out, errOut, err)
	}
	var exit utilexec.ExitError
	if _, _, err = f.Runtime.ExecSync(ctx, c.ID, []string{"sh", "-c", "exit 3"}, 0); !errors.As(err, &exit) || exit.ExitStatus() != 3 {
		t.Errorf("exit 3: %v", err)
	}
	start := time.Now()
	if _, _, err = f.Runtime.ExecSync(ctx, c.ID, []string{"sleep", "1000"}, time.Second); !errors.Is(err, cri.ErrCommandTimedOut) {
		t.Errorf("timeout: %v", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("timeout after %v", d)
	}
	if out, _ := c.Exec("ps"); strings.Count(out, "sleep 1000") != 1 {
		t.Errorf("the command that timed out is still there:\n%s", out)
	}
	if _, err := c.Exec("nope"); err == nil || !strings.Contains(err.Error(), `exec: "nope": executable file not found in $PATH`) {
		t.Errorf("bad command: %v", err)
	}
	// A process that stays behind holds the pipes; the answer comes all the same.
	if out, err := c.Exec("sh", "-c", "sleep 1000 & echo done"); out != "done\n" || err != nil {
		t.Errorf("background: %q, %v", out, err)
	}
	if out, err := c.Exec("head", "-c", "1000000", "/dev/zero"); len(out) != 1000000 || err != nil {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func (f Fixture) testEvents(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ch, up, done := make(chan *runtimeapi.ContainerEventResponse, 1000), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- f.Runtime.GetContainerEvents(ctx, ch, func(runtimeapi.RuntimeService_GetContainerEventsClient) { close(up) })
	}()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case <-up:
	case <-time.After(Wait):
		t.Fatal("no subscription")
	}
	// Over a socket, the stream may be open before the server has subscribed.
	if st, err := f.Runtime.Status(ctx, false); err != nil {
		t.Fatal(st, err)
	}
	time.Sleep(100 * time.Millisecond)
	p := f.Run(t, nil)
	c := p.Start(nil, "sh", "-c", "exit 5")
	var got []runtimeapi.ContainerEventType
	for len(got) < 3 {
		select {
		case e := <-ch:
			if e.GetContainerId() != c.ID {
				continue
			}
			got = append(got, e.GetContainerEventType())
			if e.GetPodSandboxStatus().GetId() != p.ID || len(e.GetContainersStatuses()) != 1 {
				t.Errorf("event without its pod: %v", e)
			}
			if e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && e.GetContainersStatuses()[0].GetExitCode() != 5 {
				t.Errorf("the stop event says %v", e.GetContainersStatuses())
			}
		case <-time.After(Wait):
			t.Fatalf("events: %v", got)
		}
	}
	for i, want := range []runtimeapi.ContainerEventType{0, 1, 2} {
		if got[i] != want {
			t.Errorf("event %d = %v, want %v", i, got[i], want)
		}
	}
}

func (f Fixture) testLogs(t *testing.T) {
	p := f.Run(t, nil)
	c := p.Start(nil, "sh", "-c", "echo out; echo err >&2; printf 'no end'")
	c.Exited()
	if out, errOut := c.Log("stdout"), c.Log("stderr"); out != "out\nno end" || errOut != "err\n" {
		t.Errorf("stdout %q, stderr %q", out, errOut)
	}
	c = p.Start(nil, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 1000; done")
	Until(t, "it logs", func() bool { return c.Log("stdout") != "" })
	if err := os.Rename(c.LogPath, c.LogPath+".1"); err != nil {
		t.Fatal(err)
	}
	if err := f.Runtime.ReopenContainerLog(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	Until(t, "it logs again", func() bool { return c.Log("stdout") != "" })
	if err := f.Runtime.StopContainer(t.Context(), c.ID, 0); err != nil {
		t.Fatal(err)
	}
	all := strings.Fields(ReadLog(t, c.LogPath+".1", "stdout") + c.Log("stdout"))
	for i, n := range all {
		if n != itoa(i+1) {
			t.Fatalf("line %d is %s", i+1, n)
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}
