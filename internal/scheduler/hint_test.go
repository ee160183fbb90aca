package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// A hint is about the node that lacks least, whatever the order of nodes.
func TestHint(t *testing.T) {
	tainted := node("a")
	tainted.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	full := func(name, used string) func(*framework.Snapshot, *framework.Classes) {
		return func(s *framework.Snapshot, classes *framework.Classes) {
			s.SetNode(node(name))
			s.SetPod(classes.Pod(pod("old-"+name, "cpu", used)), name)
		}
	}
	taint := func(s *framework.Snapshot, _ *framework.Classes) { s.SetNode(tainted) }
	for name, c := range map[string]struct {
		world []func(*framework.Snapshot, *framework.Classes)
		want  string
	}{
		"least first":   {[]func(*framework.Snapshot, *framework.Classes){full("b", "2250m"), full("c", "3")}, "the pod requests 2 of cpu and node b has 1750m of 4 left: 250m less would fit"},
		"least last":    {[]func(*framework.Snapshot, *framework.Classes){full("c", "3"), full("b", "2250m")}, "the pod requests 2 of cpu and node b has 1750m of 4 left: 250m less would fit"},
		"after a taint": {[]func(*framework.Snapshot, *framework.Classes){taint, full("b", "2250m")}, "the pod requests 2 of cpu and node b has 1750m of 4 left: 250m less would fit"},
		"taint alone":   {[]func(*framework.Snapshot, *framework.Classes){taint}, "node a has the taint dedicated=gpu:NoSchedule: the pod needs a toleration for it"},
	} {
		s, classes := framework.NewSnapshot(), framework.NewClasses()
		for _, f := range c.world {
			f(s, classes)
		}
		d := NewCycle(plugins.All(), 1).Schedule(s, []*framework.Pod{classes.Pod(pod("new", "cpu", "2"))})[0]
		if d.Failure == nil || d.Failure.Hint != c.want {
			t.Errorf("%s: %+v", name, d.Failure)
		}
	}
}
