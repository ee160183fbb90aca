package kubelet

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
)

// view is a probeView by container ID.
type view struct {
	bad     map[string]killReason
	waiting map[string]bool
}

func (v view) failed(id string) (killReason, bool) { r, ok := v.bad[id]; return r, ok }
func (v view) started(id string) bool              { return !v.waiting[id] }

// the is what the runtime has, written as "sandbox: name=state name=state ...";
// newer containers come first; a state is running, created, unknown or an exit
// code, with "xN" after N restarts; "name~" has another image than the pod's.
func the(pod *corev1.Pod, s string) *observed {
	o := &observed{}
	head, rest, _ := strings.Cut(s, ":")
	for i, h := range strings.Fields(head) {
		o.sandboxes = append(o.sandboxes, sandbox{id: fmt.Sprint("s", len(strings.Fields(head))-i), attempt: uint32(len(strings.Fields(head)) - i - 1), ready: h == "ready", networked: true, ips: []string{"10.0.0.1"}})
	}
	sb := ""
	if len(o.sandboxes) > 0 {
		sb = o.sandboxes[0].id
	}
	for i, f := range strings.Fields(rest) {
		name, state, _ := strings.Cut(f, "=")
		c := container{id: fmt.Sprint(name, i), sandboxID: sb}
		if n, ok := strings.CutPrefix(name, "old/"); ok {
			name, c.sandboxID = n, "s0"
		}
		changed := strings.HasSuffix(name, "~")
		c.name = strings.TrimSuffix(name, "~")
		if spec := findContainer(pod, c.name); spec != nil {
			c.hash = containerHash(spec)
		}
		if changed {
			c.hash++
		}
		switch state {
		case "running":
			c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
		case "created":
			c.state = runtimeapi.ContainerState_CONTAINER_CREATED
		case "unknown":
			c.state = runtimeapi.ContainerState_CONTAINER_UNKNOWN
		default:
			c.state = runtimeapi.ContainerState_CONTAINER_EXITED
			code, restarts, _ := strings.Cut(state, "x")
			if _, err := fmt.Sscan(code+" 0"+restarts, &c.exitCode, &c.restarts); err != nil {
				panic(err)
			}
		}
		o.containers = append(o.containers, c)
	}
	return o
}

// text writes actions down.
func text(a actions) string {
	var out []string
	for _, k := range a.kill {
		out = append(out, "kill "+k.id)
	}
	if a.newSandbox {
		out = append(out, fmt.Sprint("sandbox ", a.attempt))
	} else if a.killPod {
		out = append(out, "end")
	}
	for _, s := range a.start {
		if s.id != "" {
			out = append(out, "resume "+s.id)
		} else {
			out = append(out, "start "+s.container.Name)
		}
	}
	return strings.Join(out, ", ")
}

func TestPlan(t *testing.T) {
	always, onFailure, never := corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	for _, c := range []struct {
		about  string
		policy corev1.RestartPolicy
		init   string // "name" or "name!" for a sidecar
		have   string
		probes view
		limit  string // the pod's word of skiff run --restart
		want   string
	}{
		{about: "nothing yet", policy: always, have: ":", want: "sandbox 0, start a, start b"},
		{about: "a sandbox", policy: always, have: "ready:", want: "start a, start b"},
		{about: "all runs", policy: always, have: "ready: b=running a=running", want: ""},
		{about: "one ended", policy: always, have: "ready: b=0 a=running", want: "start b"},
		{about: "one ended well", policy: onFailure, have: "ready: b=0 a=running", want: ""},
		{about: "one ended badly", policy: onFailure, have: "ready: b=1 a=running", want: "start b"},
		{about: "one ended badly, and may again", policy: onFailure, limit: "on-failure:2", have: "ready: b=1x1 a=running", want: "start b"},
		{about: "one ended badly too often", policy: onFailure, limit: "on-failure:2", have: "ready: b=1x2 a=running", want: ""},
		{about: "all ended badly too often", policy: onFailure, limit: "on-failure:2", have: "ready: b=1x2 a=1x3", want: "end"},
		{about: "no limit", policy: onFailure, limit: "on-failure:0", have: "ready: b=1x9 a=running", want: "start b"},
		{about: "the limit is of another policy", policy: always, limit: "on-failure:2", have: "ready: b=1x9 a=running", want: "start b"},
		{about: "the sandbox died, one had ended too often", policy: onFailure, limit: "on-failure:2", have: "dead: b=137 a=1x2", want: "sandbox 1, start b"},
		{about: "one ended for good", policy: never, have: "ready: b=1 a=running", want: ""},
		{about: "all ended", policy: never, have: "ready: b=1 a=0", want: "end"},
		{about: "all ended well", policy: onFailure, have: "ready: b=0 a=0", want: "end"},
		{about: "made and not started", policy: always, have: "ready: b=created a=running", want: "resume b0"},
		{about: "made and not started, of a Job", policy: never, have: "ready: a=created", want: "resume a0, start b"},
		{about: "made for a former sandbox", policy: always, have: "ready: b=running old/a=created", want: "start a"},
		{about: "not known", policy: always, have: "ready: b=running a=unknown", want: "kill a1, start a"},
		{about: "image changed", policy: never, have: "ready: b=running a~=running", want: "kill a~1, start a"},
		{about: "not alive", policy: always, have: "ready: b=running a=running", probes: view{bad: map[string]killReason{"a1": killLiveness}}, want: "kill a1, start a"},
		{about: "not alive, for good", policy: never, have: "ready: b=running a=running", probes: view{bad: map[string]killReason{"a1": killLiveness}}, want: "kill a1"},
		{about: "the sandbox died", policy: always, have: "dead: b=137 a=137", want: "sandbox 1, start a, start b"},
		{about: "the sandbox of a Job died", policy: never, have: "dead: b=137 a=137", want: "end"},
		{about: "the sandbox died before anything ran", policy: never, have: "dead:", want: "sandbox 1, start a, start b"},
		{about: "the sandbox died, one had ended well", policy: onFailure, have: "dead: b=137 a=0", want: "sandbox 1, start b"},
		{about: "two sandboxes", policy: always, have: "ready ready: b=running a=running", want: "sandbox 2, start a, start b"},

		{about: "init: nothing yet", policy: always, init: "i j", have: ":", want: "sandbox 0, start i"},
		{about: "init: first", policy: always, init: "i j", have: "ready:", want: "start i"},
		{about: "init: first runs", policy: always, init: "i j", have: "ready: i=running", want: ""},
		{about: "init: first done", policy: always, init: "i j", have: "ready: i=0", want: "start j"},
		{about: "init: first failed", policy: always, init: "i j", have: "ready: i=1", want: "start i"},
		{about: "init: first failed for good", policy: never, init: "i j", have: "ready: i=1", want: "end"},
		{about: "init: made and not started", policy: always, init: "i j", have: "ready: i=created", want: "resume i0"},
		{about: "init: first's record is gone", policy: always, init: "i j", have: "ready: j=0", want: "start a, start b"},
		{about: "init: all done", policy: always, init: "i j", have: "ready: j=0 i=0", want: "start a, start b"},
		{about: "init: records gone, pod runs", policy: always, init: "i j", have: "ready: b=running a=running", want: ""},
		{about: "init: again in a new sandbox", policy: always, init: "i", have: "ready dead: old/b=137 old/a=137 old/i=0", want: "start i"},

		{about: "sidecar: first", policy: always, init: "s! i", have: "ready:", want: "start s"},
		{about: "sidecar: not started yet", policy: always, init: "s! i", have: "ready: s=running", probes: view{waiting: map[string]bool{"s0": true}}, want: ""},
		{about: "sidecar: started", policy: always, init: "s! i", have: "ready: s=running", want: "start i"},
		{about: "sidecar: ended while the next runs", policy: always, init: "s! i", have: "ready: i=running s=1", want: "start s"},
		{about: "sidecar: ended while the pod runs", policy: never, init: "s!", have: "ready: b=running a=running s=0", want: "start s"},
		{about: "sidecar: the pod is done", policy: never, init: "s!", have: "ready: b=0 a=0 s=running", want: "end"},
		{about: "sidecar: ended, the pod is done", policy: never, init: "s!", have: "ready: b=0 a=0 s=0", want: "end"},
		{about: "sidecar: not alive", policy: always, init: "s!", have: "ready: b=running a=running s=running", probes: view{bad: map[string]killReason{"s2": killLiveness}}, want: "kill s2, start s"},
	} {
		p := newPod("p", "a", "b")
		p.Spec.RestartPolicy = c.policy
		p.Annotations = map[string]string{runpod.AnnotationRestart: c.limit}
		for _, n := range strings.Fields(c.init) {
			ic := corev1.Container{Name: strings.TrimSuffix(n, "!"), Image: "x"}
			if strings.HasSuffix(n, "!") {
				ic.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, ic)
		}
		o := the(p, c.have)
		a := plan(p, o, c.probes)
		if got := text(a); got != c.want {
			t.Errorf("%s (%s, %q): %q, want %q", c.about, c.policy, c.have, got, c.want)
		}
		if b := plan(p, o, c.probes); !reflect.DeepEqual(a, b) {
			t.Errorf("%s: the same view gave other actions", c.about)
		}
	}
}

func TestContainerRestartRules(t *testing.T) {
	p := newPod("p", "a")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	c := &p.Spec.Containers[0]
	c.RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
	c.RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
	for code, want := range map[int32]bool{0: false, 1: false, 42: true} {
		if got := shouldRestart(p, c, false, 0, code); got != want {
			t.Errorf("exit code %d: %v", code, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	now := time.Unix(1e9, 0)
	var b backoff
	for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		if b = b.next(now, now, backoffMax); b.delay != want*time.Second {
			t.Errorf("delay %s, want %ds", b.delay, want)
		}
		until, on := b.active(now, now)
		if !on || !until.Equal(now.Add(want*time.Second)) {
			t.Errorf("until %v, %v", until, on)
		}
		now = now.Add(b.delay)
	}
	later := now.Add(10*time.Minute + time.Second)
	if _, on := b.active(later, later); on {
		t.Error("the back-off outlived ten quiet minutes")
	}
	if b = b.next(later, later, backoffMax); b.delay != 10*time.Second {
		t.Errorf("delay %s after ten quiet minutes", b.delay)
	}
	b = backoff{}
	for range 3 {
		if b = b.next(now, now, time.Second); b.delay != time.Second {
			t.Errorf("delay %s, want at most a second", b.delay)
		}
	}
}

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "1", "a$(A)b": "a1b", "$$(A)": "$(A)", "$(NO)": "$(NO)", "$(A": "$(A", "$A": "$A", "$": "$", "$(B)": "$(A)", "$$$(A)": "$1", "$()": "$()",
	} {
		if got := expand(in, vars); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
	if _, err := expandStrict("x/$(NO)", vars); err == nil {
		t.Error("an undefined variable was taken")
	}
}

func TestImageNames(t *testing.T) {
	for in, want := range map[string]string{
		"nginx": "nginx:latest", "nginx:1": "nginx:1", "localhost:5000/a/b": "localhost:5000/a/b:latest", "a.b/c:d": "a.b/c:d",
		"x@sha256:" + strings.Repeat("a", 64): "x@sha256:" + strings.Repeat("a", 64), "docker.io/library/x": "docker.io/library/x:latest",
	} {
		if got, err := withTag(in); err != nil || got != want {
			t.Errorf("withTag(%q) = %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "A", "a b", "a:", "/a", "a//b", "a@sha256:x", "-a"} {
		if got, err := withTag(bad); err == nil {
			t.Errorf("withTag(%q) = %q", bad, got)
		}
	}
}

// A pod that failed for its deadline has failed for it, although its container
// ends well when it is told to.
func TestReasonStays(t *testing.T) {
	p := newPod("web", "a")
	p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "DeadlineExceeded", "late"
	s := podStatus(statusInput{
		pod: p, old: p.Status, o: the(p, "ready: a=0"), terminal: true, verdict: &verdict{reason: "DeadlineExceeded", message: "late"},
		started: func(*container, *corev1.ContainerStatus) bool { return true },
		ready:   func(*container, *corev1.ContainerStatus) bool { return true },
	})
	if s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || s.Message != "late" {
		t.Errorf("%s %s %s", s.Phase, s.Reason, s.Message)
	}
}
