package plugins

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
)

// NodeUnschedulable refuses nodes that are cordoned (spec.unschedulable), unless
// the pod tolerates the taint that stands for it.
type NodeUnschedulable struct{}

var (
	cordoned = &framework.Status{
		Code: framework.Unresolvable, Plugin: "NodeUnschedulable",
		Reasons: []string{"node(s) were unschedulable"},
	}
	cordonTaint = &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
)

// Name implements framework.Plugin.
func (NodeUnschedulable) Name() string { return "NodeUnschedulable" }

// Filter implements framework.Filterer.
func (NodeUnschedulable) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	if n.Obj.Spec.Unschedulable && !tolerates(c.Template.Spec.Tolerations, cordonTaint) {
		return cordoned
	}
	return nil
}

// Explain implements framework.Explainer.
func (NodeUnschedulable) Explain(_ *framework.Class, n *framework.Node) string {
	return fmt.Sprintf("node %s is cordoned: kubectl uncordon %s, or a toleration for %s, would admit the pod", n.Name, n.Name, corev1.TaintNodeUnschedulable)
}

// Events implements framework.Hinter.
func (NodeUnschedulable) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeTaints | framework.PodTolerations
}

// Hint implements framework.Hinter.
func (NodeUnschedulable) Hint(_ *framework.Pod, e framework.Event) bool {
	if e.Kind&framework.PodTolerations != 0 {
		return tolerates(e.Pod.Spec.Tolerations, cordonTaint)
	}
	return !e.Node.Spec.Unschedulable && (e.OldNode == nil || e.OldNode.Spec.Unschedulable)
}
