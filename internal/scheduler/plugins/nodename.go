package plugins

import (
	"fmt"

	"skiff/internal/scheduler/framework"
)

// NodeName holds a pod to the node that its spec names. Such a pod is bound
// already and never pending; the plugin answers for those who ask what if.
type NodeName struct{}

var nodeNameMismatch = &framework.Status{
	Code: framework.Unresolvable, Plugin: "NodeName",
	Reasons: []string{"node(s) didn't match the requested node name"},
}

// Name implements framework.Plugin.
func (NodeName) Name() string { return "NodeName" }

// PreFilter implements framework.PreFilterer.
func (NodeName) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	if c.NodeName == "" {
		return nil, nil, skip
	}
	return nil, nil, nil
}

// Filter implements framework.Filterer.
func (NodeName) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	if c.NodeName != n.Name {
		return nodeNameMismatch
	}
	return nil
}

// Explain implements framework.Explainer.
func (NodeName) Explain(c *framework.Class, n *framework.Node) string {
	return fmt.Sprintf("the pod's spec.nodeName asks for node %q and this is %q", c.NodeName, n.Name)
}

// Events implements framework.Hinter.
func (NodeName) Events() framework.EventKind { return framework.NodeAdded }

// Hint implements framework.Hinter.
func (NodeName) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	return e.Node != nil && e.Node.Name == c.NodeName
}

var skip = &framework.Status{Code: framework.Skip}
