package runtime_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

// A host with cgroup v2 alone. Where a v1 hierarchy holds the controllers, v2
// has none of them, so no limits are asked for here: what is tested is that
// containers start, are counted, and end.
func TestUnified(t *testing.T) { both(t, "v2", testUnified) }

func testUnified(t *testing.T, configOf func(bench, testing.TB, string) *runtimeapi.PodSandboxConfig) {
	b := newBench(t)
	c := b.childOf(t, childSpec{Instance: b.inst, Programs: b.set, Unified: true})
	ctx := t.Context()
	config := configOf(b, t, "v2")
	sb, id, err := pod(ctx, c.Services, config, containerConfig("c", "sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; mknod /tmp/d b 7 0; cat /tmp/d 2>/dev/null || echo denied; sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(config.LogDirectory, "c.log")
	want := "0::/\n/sys/fs/cgroup/cgroup.procs\ndenied\n"
	critest.Until(t, "it runs", func() bool { return strings.HasSuffix(critest.ReadLog(t, log, "stdout"), "denied\n") })
	got := critest.ReadLog(t, log, "stdout")
	for l := range strings.Lines(want) {
		if !slices.Contains(slices.Collect(strings.Lines(got)), l) {
			t.Errorf("no %q in %q", l, got)
		}
	}
	out, _, err := c.Runtime.ExecSync(ctx, id, []string{"echo", "in"}, 0)
	if string(out) != "in\n" || err != nil {
		t.Errorf("exec: %q, %v", out, err)
	}
	if err := c.Runtime.StopPodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
	if st := status(t, c.Services, id); st.GetExitCode() != 137 || st.GetReason() != "Error" {
		t.Errorf("status = %v", st)
	}
	if err := c.Runtime.RemovePodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
}

// Many pods at once, made and removed.
func TestBurst(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	var g errgroup.Group
	for i := range 24 {
		config := b.config(t, fmt.Sprint("p", i))
		g.Go(func() error {
			sb, id, err := pod(t.Context(), s, config, containerConfig("c", "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)))
			if err != nil {
				return fmt.Errorf("pod %d: %w", i, err)
			}
			critest.Until(t, "it has ended", func() bool {
				return status(t, s, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
			})
			if st := status(t, s, id); st.GetExitCode() != int32(i) {
				return fmt.Errorf("pod %d: exit code %d", i, st.GetExitCode())
			}
			if got := critest.ReadLog(t, filepath.Join(config.LogDirectory, "c.log"), "stdout"); got != fmt.Sprintln(i) {
				return fmt.Errorf("pod %d: log %q", i, got)
			}
			return s.Runtime.RemovePodSandbox(t.Context(), sb)
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
