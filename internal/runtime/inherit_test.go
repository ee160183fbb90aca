package runtime_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
	"skiff/internal/runtime"
)

// keeping is a container that keeps what it writes for the next one, and begins with
// what another one wrote.
func keeping(attempt uint32, from string, args ...string) *runtimeapi.ContainerConfig {
	c := containerConfig("c", args...)
	c.Metadata.Attempt, c.LogPath = attempt, fmt.Sprintf("c%d.log", attempt)
	c.Annotations = map[string]string{cri.AnnotationKeep: "true"}
	if from != "" {
		c.Annotations[cri.AnnotationRootfs] = from
	}
	return c
}

// lives is a pod of a test.
type lives struct {
	t      *testing.T
	s      cri.Services
	config *runtimeapi.PodSandboxConfig
	sb     string
}

func (b bench) lives(t *testing.T, s cri.Services, config *runtimeapi.PodSandboxConfig) *lives {
	t.Helper()
	sb, err := s.Runtime.RunPodSandbox(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	return &lives{t, s, config, sb}
}

// ends runs a container to its end, and returns what it said.
func (l *lives) ends(c *runtimeapi.ContainerConfig) (id, out string) {
	l.t.Helper()
	id = l.begins(c)
	return id, l.said(id, c)
}

// begins makes a container and starts it.
func (l *lives) begins(c *runtimeapi.ContainerConfig) (id string) {
	l.t.Helper()
	id, err := l.s.Runtime.CreateContainer(l.t.Context(), l.sb, c, l.config)
	if err == nil {
		err = l.s.Runtime.StartContainer(l.t.Context(), id)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// said waits for the end, and returns what was said until then.
func (l *lives) said(id string, c *runtimeapi.ContainerConfig) string {
	l.t.Helper()
	critest.Until(l.t, "it ends", func() bool {
		return status(l.t, l.s, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return critest.ReadLog(l.t, filepath.Join(l.config.LogDirectory, c.LogPath), "stdout")
}

// refused tells that a container is not made, and with which code.
func (l *lives) refused(what string, c *runtimeapi.ContainerConfig, want string) {
	l.t.Helper()
	id, err := l.s.Runtime.CreateContainer(l.t.Context(), l.sb, c, l.config)
	if grpcstatus.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
		l.t.Errorf("%s: %q, %v; want %s with %q", what, id, err, codes.FailedPrecondition, want)
	}
}

func (l *lives) remove() {
	l.t.Helper()
	if err := l.s.Runtime.RemovePodSandbox(l.t.Context(), l.sb); err != nil {
		l.t.Error(err)
	}
}

// keys are those of snapshots.
func (b bench) keys(t testing.TB) string {
	t.Helper()
	keys, err := snapshots{b.inst.Data("snapshots")}.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(keys, " ")
}

// nothingKept fails where what is to outlive containers has outlived all of them.
func (b bench) nothingKept(t testing.TB) {
	t.Helper()
	for _, dir := range []string{b.inst.Run("runtime", "pods"), b.inst.Run("runtime", "mnt"), b.inst.Data("snapshots", "keys"), b.inst.Data("runtime", "kept"), b.inst.Data("runtime", "held")} {
		if e, err := os.ReadDir(dir); err == nil && len(e) > 0 {
			t.Errorf("left in %s: %v", dir, e)
		}
	}
}

const reads = "cat /kept 2>/dev/null; echo more >> /kept"

// TestInherit: who begins with what another container wrote.
func TestInherit(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	ctx := t.Context()
	p := b.lives(t, s, b.config(t, "p"))
	first, _ := p.ends(keeping(0, "", "sh", "-c", "echo one > /kept; rm /bin/tail; grep ' / ' /proc/mounts"))
	second, out := p.ends(keeping(1, first, "sh", "-c", reads+"; ls /bin/tail 2>&1; grep -c ' / .*volatile' /proc/mounts"))
	if !strings.HasPrefix(out, "one\n") || !strings.Contains(out, "No such file") || !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("the second finds %q", out)
	}
	if got := b.keys(t); got != second {
		t.Errorf("there are %q, want %q", got, second)
	}
	if st := status(t, s, first); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("the first is %v", st)
	}
	if st, err := s.Runtime.ContainerStats(ctx, first); err != nil || st.GetWritableLayer().GetUsedBytes().GetValue() != 0 {
		t.Errorf("the first has %v, %v", st, err)
	}
	// What the first lost is not there a second time.
	third, out := p.ends(keeping(2, first, "sh", "-c", reads))
	if out != "" {
		t.Errorf("after what was taken: %q", out)
	}
	if _, out = p.ends(keeping(3, "nobody", "sh", "-c", reads)); out != "" {
		t.Errorf("after nobody: %q", out)
	}
	other := keeping(4, second, "sh", "-c", reads)
	other.Image.Image = otherImage
	if _, out = p.ends(other); out != "" {
		t.Errorf("of another image: %q", out)
	}
	// Ordinary ones keep nothing, but lose what they wrote all the same.
	plain := containerConfig("d", "sh", "-c", "echo plain > /kept; grep -c ' / .*volatile' /proc/mounts")
	fourth, out := p.ends(plain)
	if out != "1\n" {
		t.Errorf("an ordinary container is mounted %q", out)
	}
	if _, out = p.ends(keeping(5, fourth, "sh", "-c", reads+"; grep -c ' / .*volatile' /proc/mounts")); out != "plain\n0\n" {
		t.Errorf("after an ordinary one: %q", out)
	}

	run := p.begins(keeping(6, second, "sleep", "1000"))
	p.refused("of one that runs", keeping(7, run, "true"), "is running")
	q := b.lives(t, s, b.config(t, "q"))
	q.refused("of another pod", keeping(0, third, "true"), "belongs to another pod")
	twin := b.config(t, "p")
	twin.Metadata.Uid = "another"
	p2 := b.lives(t, s, twin)
	p2.refused("of a pod of the same name", keeping(0, third, "true"), "belongs to another pod")
	// A sandbox is not the pod.
	again := b.config(t, "p")
	again.Metadata.Attempt = 1
	p3 := b.lives(t, s, again)
	if _, out := p3.ends(keeping(8, third, "sh", "-c", reads)); out != "more\n" {
		t.Errorf("in another sandbox: %q", out)
	}
	for _, l := range []*lives{p, q, p2, p3} {
		l.remove()
	}
	b.nothingKept(t)
}

// TestInheritUsers: what belongs to the IDs of a pod's user namespace is no other's.
func TestInheritUsers(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	p := b.lives(t, s, b.usersConfig(t, "p"))
	first, _ := p.ends(keeping(0, "", "sh", "-c", "echo one > /kept"))
	if _, out := p.ends(keeping(1, first, "sh", "-c", reads)); out != "" {
		t.Errorf("it finds %q", out)
	}
	if err := r.Hold(t.Context(), first, time.Minute); grpcstatus.Code(err) != codes.FailedPrecondition {
		t.Errorf("it is held: %v", err)
	}
	p.remove()
	b.nothingKept(t)
}

// TestHold: what is held is there for the next pod of the name, and for no other.
func TestHold(t *testing.T) {
	b := newBench(t)
	r, stop := b.start(t, nil)
	s := cri.InProcess(r)
	ctx := t.Context()
	p := b.lives(t, s, b.config(t, "p"))
	first, _ := p.ends(keeping(0, "", "sh", "-c", "echo one > /kept"))
	run := p.begins(keeping(1, "", "sleep", "1000"))
	for id, want := range map[string]codes.Code{"nobody": codes.NotFound, run: codes.FailedPrecondition, first: codes.OK} {
		if err := r.Hold(ctx, id, time.Minute); grpcstatus.Code(err) != want {
			t.Errorf("hold %s: %v, want %s", id, err, want)
		}
	}
	p.remove()
	if got := b.keys(t); got != first {
		t.Errorf("there are %q, want %q", got, first)
	}
	// It is held still when another runtime comes, and can be held for longer.
	stop()
	r, stop = b.start(t, nil)
	s = cri.InProcess(r)
	if err := r.Hold(ctx, first, 2*time.Minute); err != nil {
		t.Errorf("held for longer: %v", err)
	}
	next := b.config(t, "p")
	next.Metadata.Uid = "next"
	for _, change := range []func(*runtimeapi.PodSandboxMetadata){
		func(m *runtimeapi.PodSandboxMetadata) { m.Name = "thief" },
		func(m *runtimeapi.PodSandboxMetadata) { m.Namespace = "thief" },
	} {
		config := b.config(t, "p")
		config.Metadata.Uid = "thief"
		change(config.Metadata)
		thief := b.lives(t, s, config)
		thief.refused("stolen", keeping(0, first, "sh", "-c", reads), "belongs to another pod")
		thief.remove()
	}
	n := b.lives(t, s, next)
	_, out := n.ends(keeping(0, first, "sh", "-c", reads))
	if out != "one\n" {
		t.Errorf("the next pod finds %q", out)
	}
	if err := r.Hold(ctx, first, time.Minute); grpcstatus.Code(err) != codes.NotFound {
		t.Errorf("what was taken is held: %v", err)
	}
	n.remove()
	b.nothingKept(t)

	// Nobody comes: it goes, unless its container is there.
	p = b.lives(t, s, b.config(t, "p"))
	first, _ = p.ends(keeping(0, "", "sh", "-c", "echo one > /kept"))
	if err := r.Hold(ctx, first, time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	critest.Until(t, "the hold is over", func() bool { e, err := os.ReadDir(b.inst.Data("runtime", "held")); return err == nil && len(e) == 0 })
	second, out := p.ends(keeping(1, first, "sh", "-c", reads))
	if out != "one\n" {
		t.Errorf("after a hold that is over: %q", out)
	}
	if err := r.Hold(ctx, second, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	p.remove()
	critest.Until(t, "what was held is gone", func() bool { return b.keys(t) == "" })
	b.nothingKept(t)

	// Its time is over while no runtime is there.
	p = b.lives(t, s, b.config(t, "p"))
	first, _ = p.ends(keeping(0, "", "true"))
	if err := r.Hold(ctx, first, time.Minute); err != nil {
		t.Fatal(err)
	}
	p.remove()
	stop()
	if got := b.keys(t); got != first {
		t.Errorf("there are %q, want %q", got, first)
	}
	b.start(t, func(d *runtime.Deps) { d.Now = func() time.Time { return time.Now().Add(time.Hour) } })
	b.nothingKept(t)
}

// TestInheritKilled: the runtime is killed at each step of a container that begins with
// what another wrote: one of the two has it.
func TestInheritKilled(t *testing.T) {
	for _, step := range []string{"container-prepared", "container-recorded", "container-inherited"} {
		for _, held := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s held %v", step, held), func(t *testing.T) {
				b := newBench(t)
				ctx := t.Context()
				r, stop := b.start(t, nil)
				p := b.lives(t, cri.InProcess(r), b.config(t, "p"))
				first, _ := p.ends(keeping(0, "", "sh", "-c", "echo one > /kept"))
				if held {
					if err := r.Hold(ctx, first, time.Minute); err != nil {
						t.Fatal(err)
					}
					p.remove()
					config := b.config(t, "p")
					config.Metadata.Uid = "next"
					p = b.lives(t, cri.InProcess(r), config)
				}
				stop()
				second := keeping(1, first, "sh", "-c", reads)
				c := b.child(t, step)
				if _, err := c.Runtime.CreateContainer(ctx, p.sb, second, p.config); err == nil {
					t.Fatal("it was not killed")
				}
				_ = c.cmd.Wait() // by its signal
				r, _ = b.start(t, nil)
				p.s = cri.InProcess(r)
				list, err := p.s.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_CREATED}})
				if err != nil || (len(list) == 1) != (step != "container-prepared") {
					t.Fatalf("created: %v, %v", list, err)
				}
				var id, out string
				if len(list) == 1 {
					id = list[0].GetId()
					if err := p.s.Runtime.StartContainer(ctx, id); err != nil {
						t.Fatal(err)
					}
					out = p.said(id, second)
				} else {
					id, out = p.ends(second)
				}
				if out != "one\n" || b.keys(t) != id {
					t.Errorf("it finds %q; there are %q, want %q", out, b.keys(t), id)
				}
				p.remove()
				b.nothingKept(t)
			})
		}
	}
}

// reboot ends all that runs, and the records of it, as a restart of the machine does.
func (b bench) reboot(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), critest.Wait)
	defer cancel()
	if err := runtime.Reset(ctx, b.inst); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(b.inst.Data("runtime", "kept", "*", "sandbox.json"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := filepath.Glob(b.inst.Data("runtime", "held", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, held...) {
		otherBoot(t, f)
	}
}

// otherBoot makes a record one of another boot, where it has one.
func otherBoot(t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(raw, &rec); err != nil {
		t.Fatal(err)
	}
	if rec["boot"] == nil {
		return
	}
	rec["boot"] = "another"
	if raw, err = json.Marshal(rec); err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReboot: of the containers that keep what they wrote, that and how they ended are
// there after a restart of the machine; of others, nothing is.
func TestReboot(t *testing.T) {
	b := newBench(t)
	r, stop := b.start(t, nil)
	s := cri.InProcess(r)
	ctx := t.Context()
	p := b.lives(t, s, b.config(t, "p"))
	ended, _ := p.ends(keeping(0, "", "sh", "-c", "echo one > /kept; exit 3"))
	ended, _ = p.ends(keeping(1, ended, "sh", "-c", reads+"; exit 4"))
	q := b.lives(t, s, b.config(t, "q"))
	running := q.begins(keeping(0, "", "sh", "-c", "echo two > /kept; touch /done; sleep 1000"))
	critest.Until(t, "it has written", func() bool {
		_, _, err := s.Runtime.ExecSync(ctx, running, []string{"cat", "/done"}, 0)
		return err == nil
	})
	o := b.lives(t, s, b.config(t, "ordinary"))
	o.ends(containerConfig("c", "true"))
	// One is held, and its pod gone.
	h := b.lives(t, s, b.config(t, "h"))
	held, _ := h.ends(keeping(0, "", "sh", "-c", "echo three > /kept"))
	// What was not synced is not held on.
	u := b.lives(t, s, b.config(t, "u"))
	unsynced, _ := u.ends(containerConfig("c", "sh", "-c", "echo four > /kept"))
	for _, id := range []string{held, unsynced} {
		if err := r.Hold(ctx, id, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	h.remove()
	u.remove()
	critest.Until(t, "the ends are kept", func() bool {
		_, err := os.Stat(b.inst.Data("runtime", "kept", p.sb, ended+".exit"))
		return err == nil
	})
	stop()
	b.reboot(t)

	r, stop = b.start(t, nil)
	s = cri.InProcess(r)
	list, err := s.Runtime.ListPodSandbox(ctx, nil)
	if err != nil || len(list) != 2 || list[0].GetState()+list[1].GetState() != 2*runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandboxes: %v, %v", list, err)
	}
	if st := status(t, s, ended); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 4 {
		t.Errorf("what had ended: %v", st)
	}
	if st := status(t, s, running); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 255 || st.GetReason() != "Unknown" {
		t.Errorf("what ran: %v", st)
	}
	again := func(name, uid string, attempt uint32) *lives {
		config := b.config(t, name)
		config.Metadata.Attempt = attempt
		if uid != "" {
			config.Metadata.Uid = uid
		}
		return b.lives(t, s, config)
	}
	p2, q2, h2, u2 := again("p", "", 1), again("q", "", 1), again("h", "next", 0), again("u", "next", 0)
	for _, tc := range []struct {
		l    *lives
		from string
		want string
	}{{p2, ended, "one\nmore\n"}, {q2, running, "two\n"}, {h2, held, "three\n"}, {u2, unsynced, ""}} {
		if _, out := tc.l.ends(keeping(9, tc.from, "sh", "-c", reads)); out != tc.want {
			t.Errorf("%s finds %q, want %q", tc.l.config.Metadata.Name, out, tc.want)
		}
	}
	for _, l := range []*lives{p, q, p2, q2, h2, u2} {
		l.s = s
		l.remove()
	}
	b.nothingKept(t)

	// Where the records outlive the machine, what was not synced is not believed.
	v := b.lives(t, s, b.config(t, "v"))
	plain, _ := v.ends(containerConfig("c", "sh", "-c", "echo four > /kept"))
	if err := s.Runtime.StopPodSandbox(ctx, v.sb); err != nil {
		t.Fatal(err)
	}
	stop()
	otherBoot(t, b.inst.Run("runtime", "pods", v.sb, "sandbox.json"))
	r, _ = b.start(t, nil)
	s = cri.InProcess(r)
	v2 := again("v", "", 1)
	if _, out := v2.ends(keeping(9, plain, "sh", "-c", reads)); out != "" {
		t.Errorf("what was not synced is there: %q", out)
	}
	v.s = s
	v.remove()
	v2.remove()
	b.nothingKept(t)
}
