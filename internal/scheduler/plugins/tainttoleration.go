package plugins

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"skiff/internal/scheduler/framework"
)

// TaintToleration refuses nodes with a NoSchedule or NoExecute taint that the pod
// does not tolerate, and prefers nodes with few untolerated PreferNoSchedule taints.
type TaintToleration struct{}

var untolerated = &framework.Status{
	Code: framework.Unresolvable, Plugin: "TaintToleration",
	Reasons: []string{"node(s) had untolerated taint(s)"},
}

// tolerates leaves out the comparison operators Lt and Gt: their gate is alpha.
func tolerates(ts []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range ts {
		if ts[i].ToleratesTaint(klog.Logger{}, taint, false) {
			return true
		}
	}
	return false
}

func firstUntolerated(c *framework.Class, taints []corev1.Taint) *corev1.Taint {
	for i := range taints {
		t := &taints[i]
		if (t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute) && !tolerates(c.Template.Spec.Tolerations, t) {
			return t
		}
	}
	return nil
}

// Name implements framework.Plugin.
func (TaintToleration) Name() string { return "TaintToleration" }

// Filter implements framework.Filterer.
func (TaintToleration) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	if firstUntolerated(c, n.Obj.Spec.Taints) != nil {
		return untolerated
	}
	return nil
}

// Score implements framework.Scorer: the number of taints that speak against.
func (TaintToleration) Score(_ any, c *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	var against int64
	for i := range n.Obj.Spec.Taints {
		t := &n.Obj.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(c.Template.Spec.Tolerations, t) {
			against++
		}
	}
	return against
}

// Normalize implements framework.Normalizer.
func (TaintToleration) Normalize(raw, _, greatest int64) int64 {
	return framework.MaxScore - toGreatest(raw, greatest)
}

// Explain implements framework.Explainer.
func (TaintToleration) Explain(c *framework.Class, n *framework.Node) string {
	t := firstUntolerated(c, n.Obj.Spec.Taints)
	if t == nil {
		return fmt.Sprintf("node %s has no taint that the pod does not tolerate", n.Name)
	}
	return fmt.Sprintf("node %s has the taint %s: the pod needs a toleration for it", n.Name, t.ToString())
}

// Events implements framework.Hinter.
func (TaintToleration) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeTaints | framework.PodTolerations
}

// Hint implements framework.Hinter.
func (TaintToleration) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	if e.Kind&framework.PodTolerations != 0 {
		return true
	}
	return firstUntolerated(c, e.Node.Spec.Taints) == nil &&
		(e.OldNode == nil || firstUntolerated(c, e.OldNode.Spec.Taints) != nil)
}
