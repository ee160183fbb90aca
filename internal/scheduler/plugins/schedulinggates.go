package plugins

import (
	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
)

// SchedulingGates keeps a pod from the queue while it has scheduling gates.
type SchedulingGates struct{}

// Name implements framework.Plugin.
func (SchedulingGates) Name() string { return "SchedulingGates" }

// PreEnqueue implements framework.PreEnqueuer.
func (SchedulingGates) PreEnqueue(p *corev1.Pod) *framework.Status {
	if len(p.Spec.SchedulingGates) == 0 {
		return nil
	}
	names := "["
	for i, g := range p.Spec.SchedulingGates {
		if i > 0 {
			names += " "
		}
		names += g.Name
	}
	return &framework.Status{
		Code: framework.Unresolvable, Plugin: "SchedulingGates",
		Reasons: []string{"waiting for scheduling gates: " + names + "]"},
	}
}

// Events implements framework.Hinter.
func (SchedulingGates) Events() framework.EventKind { return framework.PodGates }

// Hint implements framework.Hinter.
func (SchedulingGates) Hint(*framework.Pod, framework.Event) bool { return true }
