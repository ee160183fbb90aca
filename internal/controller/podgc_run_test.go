package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/runpod"
)

func TestRunRemoval(t *testing.T) {
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := made.Add(time.Hour)
	for _, tc := range []struct {
		name, label string
		phase       corev1.PodPhase
		ran, going  bool
		wanted      bool
		at          time.Time
	}{
		{name: "runs", label: runpod.RemoveAtEnd, phase: corev1.PodRunning, ran: true},
		{name: "ended", label: runpod.RemoveAtEnd, phase: corev1.PodSucceeded, ran: true, wanted: true},
		{name: "failed", label: runpod.RemoveAtEnd, phase: corev1.PodFailed, ran: true, wanted: true},
		{name: "is being removed", label: runpod.RemoveAtEnd, phase: corev1.PodFailed, ran: true, going: true},
		{name: "a client waits", label: runpod.RemoveByClient, phase: corev1.PodSucceeded, ran: true, wanted: true, at: end.Add(clientGrace)},
		{name: "a client waits, nothing ran", label: runpod.RemoveByClient, phase: corev1.PodFailed, wanted: true, at: made.Add(clientGrace)},
		{name: "stays", phase: corev1.PodSucceeded, ran: true},
		{name: "another word", label: "perhaps", phase: corev1.PodSucceeded, ran: true},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made), Labels: map[string]string{runpod.LabelRemove: tc.label}}}
		p.Status.Phase = tc.phase
		if tc.ran {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(end)},
			}}}
		}
		if tc.going {
			p.DeletionTimestamp = &p.CreationTimestamp
		}
		if at, wanted := runRemoval(p); wanted != tc.wanted || !at.Equal(tc.at) {
			t.Errorf("%s: %v, %v; want %v, %v", tc.name, at, wanted, tc.at, tc.wanted)
		}
	}
}
