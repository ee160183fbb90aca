package kubelet

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// restarting is a pod of two regular containers, an init container and a sidecar,
// all of which begin anew when a ends with 42.
func restarting(policy corev1.RestartPolicy) *corev1.Pod {
	p := newPod("train", "a", "b")
	p.Spec.RestartPolicy = policy
	p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "busybox"}, {Name: "side", Image: "busybox", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways)}}
	p.Spec.Containers[0].RestartPolicy = ptr(corev1.ContainerRestartPolicyNever)
	p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	return p
}

func TestPlanReset(t *testing.T) {
	p := restarting(corev1.RestartPolicyNever)
	var got []string
	for _, r := range planReset(p, the(p, "ready: b=running a=42 a=7 side=running init=0")) {
		s := r.have.id
		if r.kill {
			s += " killed"
		}
		if r.log {
			s += " with its log"
		}
		got = append(got, s)
	}
	const want = "a2 with its log, b0 killed, init4, side3 killed, a1"
	if got := strings.Join(got, ", "); got != want {
		t.Errorf("reset is %q, want %q", got, want)
	}
}

func TestRestartAllContainers(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(restarting(corev1.RestartPolicyNever))
		w.exit("init", 0)
		if c := condIs(w.pod("train"), corev1.AllContainersRestarting); c != "False" {
			t.Errorf("AllContainersRestarting at first: %s", c)
		}
		sandbox := w.rt.Sandboxes()[0].Status.Id
		w.exit("a", 42)
		// The init container runs again before anything else does.
		s := w.pod("train").Status
		if s.Phase != corev1.PodPending || s.InitContainerStatuses[0].State.Running == nil || s.InitContainerStatuses[0].RestartCount != 1 {
			t.Errorf("phase %s, init: %+v", s.Phase, s.InitContainerStatuses[0])
		}
		if l := s.ContainerStatuses[1].LastTerminationState.Terminated; l == nil || l.Reason != "RestartingAllContainers" || l.ExitCode != 137 {
			t.Errorf("b's last state: %+v", s.ContainerStatuses[1].LastTerminationState)
		}
		if st := s.ContainerStatuses[1].State.Waiting; st == nil {
			t.Errorf("b's state: %+v", s.ContainerStatuses[1].State)
		}
		if c := condIs(w.pod("train"), corev1.PodInitialized); c != "True" {
			t.Errorf("Initialized: %s", c)
		}
		w.wantEvent("spec.containers{b} Killing: killing")
		w.exit("init", 0)
		s = w.pod("train").Status
		for _, c := range append(s.InitContainerStatuses[1:], s.ContainerStatuses...) {
			if c.State.Running == nil || c.RestartCount != 1 {
				t.Errorf("%s: %d restarts, %+v", c.Name, c.RestartCount, c.State)
			}
		}
		w.wantPhase("train", corev1.PodRunning)
		if now := w.rt.Sandboxes(); len(now) != 1 || now[0].Status.Id != sandbox {
			t.Errorf("the sandbox is another")
		}
		// No back-off holds it up, however often it happens.
		for range 3 {
			w.exit("a", 42)
			w.exit("init", 0)
		}
		w.after(time.Second)
		if s := w.pod("train").Status.ContainerStatuses[0]; s.RestartCount != 4 || s.State.Running == nil {
			t.Errorf("after four times: %+v", s)
		}
		w.wantPhase("train", corev1.PodRunning)
		w.exit("a", 7)
		w.exit("b", 0)
		w.wantPhase("train", corev1.PodFailed)
		if c := condIs(w.pod("train"), corev1.AllContainersRestarting); c != "False PodFailed" {
			t.Errorf("AllContainersRestarting in the end: %s", c)
		}
	})
}

// TestRestartAllContainersGoesOn: a kubelet that ends between the removals carries on
// with them.
func TestRestartAllContainersGoesOn(t *testing.T) {
	p := restarting(corev1.RestartPolicyNever)
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.AllContainersRestarting, Status: corev1.ConditionTrue}}
	if o := the(p, "ready: a=0"); !restartsAll(p, o, p.Status.Conditions) {
		t.Error("the condition is forgotten")
	}
	p.Status.Conditions = nil
	for have, want := range map[string]bool{"ready: b=running a=42": true, "ready: b=running a=41": false, "ready: b=running a=running a=42": false, "ready:": false} {
		if got := restartsAll(p, the(p, have), nil); got != want {
			t.Errorf("%q: %v", have, got)
		}
	}
	run(t, nil, func(w *world) {
		w.create(restarting(corev1.RestartPolicyNever))
		w.exit("init", 0)
		w.kill()
		w.rt.Exit(w.container("a").Status.Id, 42, "")
		w.start()
		w.after(time.Second)
		w.exit("init", 0)
		w.after(time.Second)
		if s := w.pod("train").Status.ContainerStatuses[1]; s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("b: %+v", s)
		}
	})
}
