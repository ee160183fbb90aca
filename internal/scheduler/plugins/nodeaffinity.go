package plugins

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"skiff/internal/scheduler/framework"
)

// NodeAffinity holds a pod to nodes that match its nodeSelector and required node
// affinity, and prefers those that match its preferred terms.
type NodeAffinity struct{}

var (
	affinityMismatch = &framework.Status{
		Code: framework.Unresolvable, Plugin: "NodeAffinity",
		Reasons: []string{"node(s) didn't match Pod's node affinity/selector"},
	}
	affinityConflict = &framework.Status{
		Code: framework.Unresolvable, Plugin: "NodeAffinity",
		Reasons: []string{"pod affinity terms conflict"},
	}
)

// Name implements framework.Plugin.
func (NodeAffinity) Name() string { return "NodeAffinity" }

func requiredTerms(c *framework.Class) *corev1.NodeSelector {
	if a := c.Template.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

// PreFilter implements framework.PreFilterer. Where every term names its node (a
// DaemonSet's pods), no other node is looked at.
func (NodeAffinity) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	required := requiredTerms(c)
	if required == nil && len(c.Template.Spec.NodeSelector) == 0 {
		return nil, nil, skip
	}
	state := nodeaffinity.GetRequiredNodeAffinity(c.Template)
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		return state, nil, nil
	}
	names := []string{}
	for i := range required.NodeSelectorTerms {
		of, named := namedNodes(&required.NodeSelectorTerms[i])
		if !named {
			return state, nil, nil
		}
		names = append(names, of...)
	}
	if len(names) == 0 {
		return state, nil, affinityConflict
	}
	slices.Sort(names)
	return state, slices.Compact(names), nil
}

// namedNodes returns the nodes that a term can match by name.
func namedNodes(t *corev1.NodeSelectorTerm) (names []string, named bool) {
	for _, f := range t.MatchFields {
		if f.Key != metav1.ObjectNameField || f.Operator != corev1.NodeSelectorOpIn {
			continue
		}
		if !named {
			names, named = slices.Clone(f.Values), true
			continue
		}
		names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(f.Values, n) })
	}
	return names, named
}

// Filter implements framework.Filterer. A term that cannot be parsed matches
// nothing.
func (NodeAffinity) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	if ok, _ := state.(nodeaffinity.RequiredNodeAffinity).Match(n.Obj); !ok {
		return affinityMismatch
	}
	return nil
}

// PreScore implements framework.PreScorer.
func (NodeAffinity) PreScore(c *framework.Class) (any, *framework.Status) {
	a := c.Template.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return nil, skip
	}
	terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		// Validation lets some malformed preferences pass; they prefer nothing.
		return nil, skip
	}
	return terms, nil
}

// Score implements framework.Scorer: the weights of the terms that match.
func (NodeAffinity) Score(state any, _ *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	return state.(*nodeaffinity.PreferredSchedulingTerms).Score(n.Obj)
}

// Normalize implements framework.Normalizer.
func (NodeAffinity) Normalize(raw, _, greatest int64) int64 { return toGreatest(raw, greatest) }

// Explain implements framework.Explainer.
func (NodeAffinity) Explain(c *framework.Class, n *framework.Node) string {
	keys := make([]string, 0, len(c.Template.Spec.NodeSelector))
	for k := range c.Template.Spec.NodeSelector {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		want := c.Template.Spec.NodeSelector[k]
		if got, ok := n.Obj.Labels[k]; !ok {
			return fmt.Sprintf("the pod's nodeSelector asks for the label %s=%s, which node %s lacks", k, want, n.Name)
		} else if got != want {
			return fmt.Sprintf("the pod's nodeSelector asks for the label %s=%s, and node %s has %s=%s", k, want, n.Name, k, got)
		}
	}
	return fmt.Sprintf("node %s matches no term of the pod's required node affinity", n.Name)
}

// Events implements framework.Hinter.
func (NodeAffinity) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeLabels
}

// Hint implements framework.Hinter.
func (NodeAffinity) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	required := nodeaffinity.GetRequiredNodeAffinity(c.Template)
	if ok, _ := required.Match(e.Node); !ok {
		return false
	}
	if e.OldNode == nil {
		return true
	}
	was, _ := required.Match(e.OldNode)
	return !was
}
