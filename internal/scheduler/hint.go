package scheduler

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
)

// nearest is the refused node that lacks least: of those that only have too little
// left, the one of which the pod asks least too much; where there is none, the first.
type nearest struct {
	node   *framework.Node
	plugin string
	lack   float64
}

// see looks at one more refused node.
func (h *nearest) see(c *framework.Class, n *framework.Node, st *framework.Status) {
	if n == nil {
		return
	}
	if lack, ok := lacks(c, n, st); ok && (h.node == nil || h.lack == 0 || lack < h.lack) {
		*h = nearest{n, st.Plugin, lack}
	} else if h.node == nil {
		*h = nearest{node: n, plugin: st.Plugin}
	}
}

// lacks sums up which part of what the pod asks for a node has not.
func lacks(c *framework.Class, n *framework.Node, st *framework.Status) (sum float64, ok bool) {
	if st.Plugin != "NodeResourcesFit" || st.Code != framework.Unschedulable {
		return 0, false
	}
	add := func(name corev1.ResourceName) {
		if want, have := c.Requests.Of(name), max(n.Allocatable.Of(name)-n.Requested.Of(name), 0); want > have {
			sum += 1 - float64(have)/float64(want)
		}
	}
	add(corev1.ResourceCPU)
	add(corev1.ResourceMemory)
	add(corev1.ResourceEphemeralStorage)
	for name := range c.Requests.Scalar {
		add(name)
	}
	return sum, sum > 0
}

// hint is what the plugin says of that node to a person; empty where it says nothing.
func (h *nearest) hint(cy *Cycle, c *framework.Class) string {
	if h.node == nil {
		return ""
	}
	for _, p := range cy.profile.Filter {
		if e, ok := p.Plugin.(framework.Explainer); ok && p.Name() == h.plugin {
			return strings.TrimSuffix(e.Explain(c, h.node), ".")
		}
	}
	return ""
}
