package plugins

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// NodeAffinity holds a pod to nodes that match its nodeSelector and required node
// affinity, and prefers those that match its preferred terms. To those of the pods
// come those that the scheduler's configuration adds.
type NodeAffinity struct {
	required  *nodeaffinity.NodeSelector
	preferred *nodeaffinity.PreferredSchedulingTerms
}

// NewNodeAffinity returns the plugin with arguments that were validated.
func NewNodeAffinity(args *config.NodeAffinityArgs) (NodeAffinity, error) {
	var out NodeAffinity
	a := args.AddedAffinity
	if a == nil {
		return out, nil
	}
	var err error
	if a.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		if out.required, err = nodeaffinity.NewNodeSelector(a.RequiredDuringSchedulingIgnoredDuringExecution); err != nil {
			return out, fmt.Errorf("parsing addedAffinity.requiredDuringSchedulingIgnoredDuringExecution: %w", err)
		}
	}
	if terms := a.PreferredDuringSchedulingIgnoredDuringExecution; len(terms) > 0 {
		if out.preferred, err = nodeaffinity.NewPreferredSchedulingTerms(terms); err != nil {
			return out, fmt.Errorf("parsing addedAffinity.preferredDuringSchedulingIgnoredDuringExecution: %w", err)
		}
	}
	return out, nil
}

var (
	affinityMismatch = &framework.Status{
		Code: framework.Unresolvable, Plugin: "NodeAffinity",
		Reasons: []string{"node(s) didn't match Pod's node affinity/selector"},
	}
	affinityEnforced = &framework.Status{
		Code: framework.Unresolvable, Plugin: "NodeAffinity",
		Reasons: []string{"node(s) didn't match scheduler-enforced node affinity"},
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
func (a NodeAffinity) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	required := requiredTerms(c)
	if required == nil && len(c.Template.Spec.NodeSelector) == 0 && a.required == nil {
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
func (a NodeAffinity) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	if a.required != nil && !a.required.Match(n.Obj) {
		return affinityEnforced
	}
	if ok, _ := state.(nodeaffinity.RequiredNodeAffinity).Match(n.Obj); !ok {
		return affinityMismatch
	}
	return nil
}

// PreScore implements framework.PreScorer.
func (a NodeAffinity) PreScore(c *framework.Class) (any, *framework.Status) {
	var terms *nodeaffinity.PreferredSchedulingTerms
	if own := c.Template.Spec.Affinity; own != nil && own.NodeAffinity != nil && len(own.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		// Validation lets some malformed preferences pass; they prefer nothing.
		terms, _ = nodeaffinity.NewPreferredSchedulingTerms(own.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if terms == nil && a.preferred == nil {
		return nil, skip
	}
	return terms, nil
}

// Score implements framework.Scorer: the weights of the terms that match.
func (a NodeAffinity) Score(state any, _ *framework.Class, n *framework.Node, _ *framework.Snapshot) (sum int64) {
	if a.preferred != nil {
		sum += a.preferred.Score(n.Obj)
	}
	if own := state.(*nodeaffinity.PreferredSchedulingTerms); own != nil {
		sum += own.Score(n.Obj)
	}
	return sum
}

// Normalize implements framework.Normalizer.
func (NodeAffinity) Normalize(raw, _, greatest int64) int64 { return toGreatest(raw, greatest) }

// Explain implements framework.Explainer.
func (a NodeAffinity) Explain(c *framework.Class, n *framework.Node) string {
	if a.required != nil && !a.required.Match(n.Obj) {
		return fmt.Sprintf("the scheduler's configuration (addedAffinity) keeps its pods from node %s", n.Name)
	}
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
func (a NodeAffinity) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	if a.required != nil && !a.required.Match(e.Node) {
		return false
	}
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
