package plugins

import (
	"fmt"
	"slices"
	"strings"

	"skiff/internal/scheduler/framework"
)

// NodeDeclaredFeatures holds a pod to nodes that declare the features which it
// needs (KEP 5328).
type NodeDeclaredFeatures struct{}

var featureMissing = &framework.Status{
	Code: framework.Unresolvable, Plugin: "NodeDeclaredFeatures",
	Reasons: []string{"node(s) didn't match Pod's required features"},
}

// Name implements framework.Plugin.
func (NodeDeclaredFeatures) Name() string { return "NodeDeclaredFeatures" }

// PreFilter implements framework.PreFilterer.
func (NodeDeclaredFeatures) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	if len(c.Features) == 0 {
		return nil, nil, skip
	}
	return nil, nil, nil
}

func missingFeatures(c *framework.Class, n *framework.Node) []string {
	var out []string
	for _, f := range c.Features {
		if !slices.Contains(n.Obj.Status.DeclaredFeatures, f) {
			out = append(out, f)
		}
	}
	return out
}

// Filter implements framework.Filterer.
func (NodeDeclaredFeatures) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	if len(missingFeatures(c, n)) > 0 {
		return featureMissing
	}
	return nil
}

// Explain implements framework.Explainer.
func (NodeDeclaredFeatures) Explain(c *framework.Class, n *framework.Node) string {
	missing := missingFeatures(c, n)
	if len(missing) == 0 {
		return fmt.Sprintf("node %s declares the features that the pod needs", n.Name)
	}
	return fmt.Sprintf("the pod needs %s, which the kubelet of node %s does not declare", strings.Join(missing, ", "), n.Name)
}

// Events implements framework.Hinter.
func (NodeDeclaredFeatures) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeFeatures | framework.PodOther
}

// Hint implements framework.Hinter.
func (NodeDeclaredFeatures) Hint(p *framework.Pod, e framework.Event) bool {
	if e.Kind&framework.PodOther != 0 {
		return e.OldPod == nil || !slices.Equal(e.OldPod.Class.Features, p.Class.Features)
	}
	return true
}
