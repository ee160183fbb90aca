package plugins

import (
	"fmt"

	"skiff/internal/scheduler/framework"
)

// NodePorts refuses nodes on which a host port that the pod asks for is taken.
type NodePorts struct{}

var portsTaken = &framework.Status{
	Code: framework.Unschedulable, Plugin: "NodePorts",
	Reasons: []string{"node(s) didn't have free ports for the requested pod ports"},
}

// Name implements framework.Plugin.
func (NodePorts) Name() string { return "NodePorts" }

// PreFilter implements framework.PreFilterer.
func (NodePorts) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	if len(c.HostPorts) == 0 {
		return nil, nil, skip
	}
	return nil, nil, nil
}

// Filter implements framework.Filterer.
func (NodePorts) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	for _, h := range c.HostPorts {
		if n.PortTaken(h) {
			return portsTaken
		}
	}
	return nil
}

// Explain implements framework.Explainer.
func (NodePorts) Explain(c *framework.Class, n *framework.Node) string {
	for _, h := range c.HostPorts {
		if n.PortTaken(h) {
			return fmt.Sprintf("host port %d/%s is taken by another pod on node %s", h.Port, h.Protocol, n.Name)
		}
	}
	return fmt.Sprintf("no host port of the pod is taken on node %s", n.Name)
}

// Events implements framework.Hinter.
func (NodePorts) Events() framework.EventKind {
	return framework.NodeAdded | framework.PodDeleted
}

// Hint implements framework.Hinter.
func (NodePorts) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	if e.Kind&framework.NodeAdded != 0 {
		return true
	}
	for _, a := range c.HostPorts {
		for _, b := range e.Pod.Class.HostPorts {
			if a.Port == b.Port && a.Protocol == b.Protocol && (a.IP == b.IP || a.IP == "0.0.0.0" || b.IP == "0.0.0.0") {
				return true
			}
		}
	}
	return false
}
