package run

import (
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/runpod"
)

// TestStates: how pods look to who thinks of containers.
func TestStates(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) metav1.Time { return metav1.NewTime(now.Add(-d)) }
	ended := func(code int32) *corev1.ContainerStateTerminated {
		return &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: at(5 * time.Second), Reason: "Error"}
	}
	for _, tc := range []struct {
		name    string
		policy  corev1.RestartPolicy
		phase   corev1.PodPhase
		state   corev1.ContainerState
		last    *corev1.ContainerStateTerminated
		going   bool
		reason  string
		want    string
		code    int
		fatal   int
		unknown bool // no container status yet
		// unplaced is for how long no node has taken it.
		unplaced time.Duration
	}{
		{name: "new", phase: corev1.PodPending, unknown: true, want: "Created", code: -1},
		{name: "runs", phase: corev1.PodRunning, state: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(90 * time.Second)}}, want: "Up About a minute", code: -1},
		{name: "ended", phase: corev1.PodFailed, state: corev1.ContainerState{Terminated: ended(3)}, want: "Exited (3) 5 seconds ago", code: 3},
		{name: "about to restart", policy: corev1.RestartPolicyAlways, phase: corev1.PodRunning, state: corev1.ContainerState{Terminated: ended(0)}, want: "Restarting (0) 5 seconds ago", code: 0},
		{name: "done under OnFailure", policy: corev1.RestartPolicyOnFailure, phase: corev1.PodSucceeded, state: corev1.ContainerState{Terminated: ended(0)}, want: "Exited (0) 5 seconds ago", code: 0},
		{name: "backs off", policy: corev1.RestartPolicyAlways, phase: corev1.PodRunning, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}, last: ended(1), want: "Restarting (1) 5 seconds ago", code: 1},
		{name: "stopped", policy: corev1.RestartPolicyAlways, phase: corev1.PodFailed, reason: "DeadlineExceeded", state: corev1.ContainerState{Terminated: ended(143)}, want: "Exited (143) 5 seconds ago", code: 143},
		{name: "is being stopped", phase: corev1.PodFailed, reason: "DeadlineExceeded", state: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(9 * time.Second)}}, want: "Up 9 seconds", code: -1},
		{name: "goes", phase: corev1.PodRunning, going: true, state: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(time.Hour)}}, want: "Removal In Progress", code: -1},
		{name: "no image", phase: corev1.PodPending, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "gone"}}, want: "Created (ErrImagePull)", code: -1, fatal: 125},
		{name: "no program", phase: corev1.PodPending, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: `exec: "x": executable file not found in $PATH`}}, want: "Created (RunContainerError)", code: -1, fatal: 127},
		{name: "no right", phase: corev1.PodPending, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "RunContainerError", Message: `exec: "/etc": permission denied`}}, want: "Created (RunContainerError)", code: -1, fatal: 126},
		{name: "refused", phase: corev1.PodFailed, reason: "OutOfpods", unknown: true, want: "Exited (OutOfpods)", code: -1, fatal: 125},
		{name: "not placed yet", phase: corev1.PodPending, unknown: true, unplaced: time.Second, want: "Created (Unschedulable)", code: -1},
		{name: "not placed", phase: corev1.PodPending, unknown: true, unplaced: time.Minute, want: "Created (Unschedulable)", code: -1, fatal: 125},
		{name: "held", phase: corev1.PodPending, state: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: runpod.ReasonUnattached}}, want: "Created (WaitingForAttach)", code: -1},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", CreationTimestamp: at(2 * time.Hour)}}
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		if tc.policy != "" {
			p.Spec.RestartPolicy = tc.policy
		}
		p.Spec.Containers = []corev1.Container{{Name: "p", Image: "img"}}
		p.Status.Phase, p.Status.Reason = tc.phase, tc.reason
		if !tc.unknown {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "p", State: tc.state, LastTerminationState: corev1.ContainerState{Terminated: tc.last}}}
		}
		if tc.unplaced > 0 {
			p.CreationTimestamp = at(tc.unplaced)
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable}}
		}
		if tc.going {
			p.DeletionTimestamp = &p.CreationTimestamp
		}
		s := StateOf(p, "")
		code, why, fatal := Fatal(p, now)
		if got := s.Status(now); got != tc.want || s.Code != tc.code || code != tc.fatal || fatal != (tc.fatal > 0) {
			t.Errorf("%s: %q, code %d, fatal %d (%s); want %q, %d, %d", tc.name, got, s.Code, code, why, tc.want, tc.code, tc.fatal)
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "Less than a second", time.Second: "1 second", 59 * time.Second: "59 seconds", 100 * time.Second: "About a minute",
		5 * time.Minute: "5 minutes", 70 * time.Minute: "About an hour", 30 * time.Hour: "30 hours", 72 * time.Hour: "3 days",
		20 * 24 * time.Hour: "2 weeks", 100 * 24 * time.Hour: "3 months", 800 * 24 * time.Hour: "2 years",
	} {
		if got := Span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// TestAgain: a container starts anew with what its user gave it, and no more.
func TestAgain(t *testing.T) {
	made, err := Plan(Options{Image: "img", Name: "web", Restart: "always", Volumes: []string{"/data"}}, Machine{})
	if err != nil {
		t.Fatal(err)
	}
	old := made.Pod.DeepCopy()
	one := int64(1)
	old.UID, old.ResourceVersion, old.Spec.NodeName, old.Spec.ActiveDeadlineSeconds = "u", "5", "node", &one
	old.Status.Phase = corev1.PodFailed
	n := Again(old, "")
	if n.UID != "" || n.ResourceVersion != "" || n.Spec.NodeName != "" || n.Spec.ActiveDeadlineSeconds != nil || n.Status.Phase != "" {
		t.Errorf("it has what the old one had: %+v", n)
	}
	if n.Name != "web" || n.Spec.RestartPolicy != corev1.RestartPolicyAlways || len(n.Spec.Volumes) != 1 || n.Annotations[runpod.AnnotationStart] != "" || n.Labels[runpod.LabelName] != "web" {
		t.Errorf("it lacks what the old one had: %+v", n)
	}
	if n.Annotations[runpod.AnnotationRootfs] != "" || n.Spec.Affinity != nil {
		t.Errorf("it begins with what nobody holds: %+v", n)
	}
	// With the files of the old one, it is where they are.
	n = Again(old, "id")
	if n.Annotations[runpod.AnnotationRootfs] != "id" || !reflect.DeepEqual(n.Spec.Affinity, onNode("node")) {
		t.Errorf("it does not begin with what is held: %+v", n)
	}
	if Files(n) != "id" {
		t.Errorf("before it has a container its files are %q", Files(n))
	}
	n.Spec.NodeName = "node"
	n.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "web", ContainerID: "skiff://next"}}
	if Files(n) != "next" {
		t.Errorf("its files are %q", Files(n))
	}
	if n = Again(n, ""); n.Annotations[runpod.AnnotationRootfs] != "" || n.Spec.Affinity != nil {
		t.Errorf("it is held to what is gone: %+v", n)
	}
}
