package plugins

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// PodTopologySpread keeps the pods that a constraint selects evenly spread over
// the domains of its topology key; pods without constraints are spread, as a
// preference, among those of their services and owner (framework.Group).
type PodTopologySpread struct {
	// defaults are for pods without constraints; anyKey tells that of those a node
	// needs not have all keys to be scored.
	defaults []framework.Spread
	anyKey   bool
}

// NewPodTopologySpread returns the plugin with arguments that were defaulted and
// validated.
func NewPodTopologySpread(args *config.PodTopologySpreadArgs) PodTopologySpread {
	if args.DefaultingType != config.ListDefaulting {
		return PodTopologySpread{defaults: defaultSpreads, anyKey: true}
	}
	out := PodTopologySpread{defaults: framework.SpreadsOf(args.DefaultConstraints)}
	for i := range out.defaults {
		// Whom to count follows from the pod's owner.
		out.defaults[i].Selector, out.defaults[i].SameAs = nil, nil
	}
	return out
}

var (
	uneven = &framework.Status{
		Code: framework.Unschedulable, Plugin: "PodTopologySpread",
		Reasons: []string{"node(s) didn't match pod topology spread constraints"},
	}
	unlabeled = &framework.Status{
		Code: framework.Unresolvable, Plugin: "PodTopologySpread",
		Reasons: []string{"node(s) didn't match pod topology spread constraints (missing required label)"},
	}
)

// defaultSpreads are upstream's system default constraints.
var defaultSpreads = []framework.Spread{
	{Key: corev1.LabelHostname, MaxSkew: 3, MinDomains: 1, SkipTaints: true},
	{Key: corev1.LabelTopologyZone, MaxSkew: 5, MinDomains: 1, SkipTaints: true},
}

// spreading is the state for a subject. The counts are those of required and then
// those of preferred.
type spreading struct {
	required, preferred []framework.Spread
	self                []bool // the pod counts for required[i] itself
	// everyKey tells that only nodes with all keys of preferred are scored.
	everyKey bool
}

// Name implements framework.Plugin.
func (PodTopologySpread) Name() string { return "PodTopologySpread" }

// Topology implements framework.Topological.
func (s PodTopologySpread) Topology(sub framework.Subject, _ *framework.Snapshot) framework.Topology {
	st := &spreading{everyKey: true}
	of := sub.Spreads
	if len(of) == 0 && sub.Group != nil {
		of, st.everyKey = s.defaults, !s.anyKey
	}
	if len(of) == 0 || sub.Kin == nil {
		return framework.Topology{}
	}
	var shape strings.Builder
	var hard, soft []framework.Count
	required := requiredAffinity(sub.Class)
	for _, c := range of {
		sel := c.Selector
		if sel == nil {
			sel = sub.Group.Selector
		}
		sel = withOwn(sel, c.SameAs, sub.Kin.Labels)
		namespace := sub.Kin.Namespace
		counts := remembered(func(k *framework.Kin) bool {
			return k.Namespace == namespace && !sel.Empty() && sel.Matches(k.Labels)
		})
		count := framework.Count{
			Key: c.Key, Eligible: eligible(sub.Class, c, required),
			Weigh: func(p *framework.Pod) int64 { return one(p.DeletionTimestamp == nil && counts(p.Kin)) },
		}
		if c.Required {
			count.Least = true
			st.required, hard = append(st.required, c), append(hard, count)
			st.self = append(st.self, sel.Matches(sub.Kin.Labels))
			continue
		}
		count.PerNode, count.Distinct = c.Key == corev1.LabelHostname, c.Key != corev1.LabelHostname
		st.preferred, soft = append(st.preferred, c), append(soft, count)
	}
	onlyWithAll(hard)
	if st.everyKey {
		onlyWithAll(soft)
	}
	for _, c := range slices.Concat(hard, soft) {
		fmt.Fprintf(&shape, "%s\n", c.Key)
	}
	return framework.Topology{
		Counts: append(hard, soft...), State: st, Filters: len(hard) > 0, Scores: len(soft) > 0, Shape: shape.String(),
	}
}

// withOwn adds to a selector that the labels named have the pod's own values.
func withOwn(sel labels.Selector, names []string, own labels.Set) labels.Selector {
	same := labels.Set{}
	for _, k := range names {
		if v, ok := own[k]; ok {
			same[k] = v
		}
	}
	if len(same) == 0 {
		return sel
	}
	requirements, selectable := sel.Requirements()
	if !selectable {
		return sel
	}
	return same.AsSelector().Add(requirements...)
}

// eligible says of which nodes the pods count for a constraint, by its policies.
func eligible(c *framework.Class, s framework.Spread, required *nodeaffinity.RequiredNodeAffinity) func(*framework.Node) bool {
	if (s.SkipAffinity || required == nil) && s.SkipTaints {
		return nil
	}
	return func(n *framework.Node) bool {
		if !s.SkipAffinity && required != nil {
			if ok, _ := required.Match(n.Obj); !ok {
				return false
			}
		}
		return s.SkipTaints || firstUntolerated(c, n.Obj.Spec.Taints) == nil
	}
}

// requiredAffinity is nil where a class has none.
func requiredAffinity(c *framework.Class) *nodeaffinity.RequiredNodeAffinity {
	if requiredTerms(c) == nil && len(c.Template.Spec.NodeSelector) == 0 {
		return nil
	}
	r := nodeaffinity.GetRequiredNodeAffinity(c.Template)
	return &r
}

// onlyWithAll makes only nodes count that have the keys of all counts.
func onlyWithAll(counts []framework.Count) {
	if len(counts) < 2 {
		return
	}
	keys := make([]string, len(counts))
	for i := range counts {
		keys[i] = counts[i].Key
	}
	for i := range counts {
		policies := counts[i].Eligible
		counts[i].Eligible = func(n *framework.Node) bool {
			for _, k := range keys {
				if _, ok := n.Obj.Labels[k]; !ok {
					return false
				}
			}
			return policies == nil || policies(n)
		}
	}
}

// FilterDomains implements framework.Topological.
func (PodTopologySpread) FilterDomains(state any, d framework.Domains) *framework.Status {
	st := state.(*spreading)
	for i := range st.required {
		c := &st.required[i]
		if !d.Has(i) {
			return unlabeled
		}
		var least int64
		if d.Number(i) >= c.MinDomains {
			least = d.Least(i)
		}
		if d.Of(i)+one(st.self[i])-least > c.MaxSkew {
			return uneven
		}
	}
	return nil
}

// Scored implements framework.Topological.
func (PodTopologySpread) Scored(state any, d framework.Domains) bool {
	st := state.(*spreading)
	if !st.everyKey {
		return true
	}
	for i := range st.preferred {
		if !d.Has(len(st.required) + i) {
			return false
		}
	}
	return true
}

// ScoreDomains implements framework.Topological: the pods in the domains, those
// of keys with many domains weighing more; less is better.
func (PodTopologySpread) ScoreDomains(state any, d framework.Domains) int64 {
	st := state.(*spreading)
	var sum float64
	for i := range st.preferred {
		at := len(st.required) + i
		if d.Has(at) {
			sum += float64(d.Of(at))*math.Log(float64(d.Candidates(at)+2)) + float64(st.preferred[i].MaxSkew-1)
		}
	}
	return int64(math.Round(sum))
}

// NormalizeDomains implements framework.Topological.
func (PodTopologySpread) NormalizeDomains(raw, least, greatest int64) int64 {
	if greatest <= 0 {
		return framework.MaxScore
	}
	return framework.MaxScore * (greatest + least - raw) / greatest
}

// Explain implements framework.Explainer.
func (PodTopologySpread) Explain(c *framework.Class, n *framework.Node) string {
	for i := range c.Spreads {
		s := &c.Spreads[i]
		if !s.Required {
			continue
		}
		if _, ok := n.Obj.Labels[s.Key]; !ok {
			return fmt.Sprintf("the pod is spread by the label %s, which node %s lacks", s.Key, n.Name)
		}
	}
	for i := range c.Spreads {
		if s := &c.Spreads[i]; s.Required {
			return fmt.Sprintf("one more pod in %s=%s, where node %s is, would be more than %d ahead of the emptiest: a node elsewhere, or a larger maxSkew, would help",
				s.Key, n.Obj.Labels[s.Key], n.Name, s.MaxSkew)
		}
	}
	return fmt.Sprintf("node %s satisfies the pod's spread constraints", n.Name)
}

// Events implements framework.Hinter.
func (PodTopologySpread) Events() framework.EventKind {
	return framework.PodAdded | framework.PodDeleted | framework.PodRelabeled | framework.PodLabels | framework.PodTolerations |
		framework.NodeAdded | framework.NodeRemoved | framework.NodeLabels | framework.NodeTaints
}

// Hint implements framework.Hinter.
func (s PodTopologySpread) Hint(p *framework.Pod, e framework.Event) bool {
	cs := s.required(p)
	if e.Kind&framework.PodTolerations != 0 && slices.ContainsFunc(cs, func(c framework.Spread) bool { return !c.SkipTaints }) {
		return true
	}
	if e.Kind&framework.PodLabels != 0 {
		return e.OldPod == nil || selectedOtherwise(cs, e.OldPod.Labels, p.Labels)
	}
	if e.Kind&(framework.NodeAdded|framework.NodeRemoved|framework.NodeLabels|framework.NodeTaints) != 0 {
		return nodeMatters(cs, e.OldNode, e.Node)
	}
	if e.Pod == nil || e.Pod.Kin.Namespace != p.Kin.Namespace {
		return false
	}
	if e.OldPod != nil && e.Kind&framework.PodRelabeled != 0 {
		begins := (e.OldPod.DeletionTimestamp == nil) != (e.Pod.DeletionTimestamp == nil)
		return begins && selectedByAny(cs, e.Pod.Kin.Labels) || selectedOtherwise(cs, e.OldPod.Kin.Labels, e.Pod.Kin.Labels)
	}
	return e.Kind&(framework.PodAdded|framework.PodDeleted) != 0 && selectedByAny(cs, e.Pod.Kin.Labels)
}

// required are the constraints that may keep a pod waiting, with their selectors.
func (s PodTopologySpread) required(p *framework.Pod) []framework.Spread {
	of := p.Class.Spreads
	if len(of) == 0 && p.Group != nil {
		of = s.defaults
	}
	var out []framework.Spread
	for _, c := range of {
		if !c.Required {
			continue
		}
		if c.Selector == nil {
			c.Selector = p.Group.Selector
		}
		c.Selector = withOwn(c.Selector, c.SameAs, p.Kin.Labels)
		out = append(out, c)
	}
	return out
}

func selectedByAny(cs []framework.Spread, set labels.Set) bool {
	return slices.ContainsFunc(cs, func(c framework.Spread) bool { return c.Selector.Matches(set) })
}

func selectedOtherwise(cs []framework.Spread, old, now labels.Set) bool {
	return slices.ContainsFunc(cs, func(c framework.Spread) bool { return c.Selector.Matches(old) != c.Selector.Matches(now) })
}

// nodeMatters tells whether a node that came, went or changed may change what the
// constraints say.
func nodeMatters(cs []framework.Spread, old, now *corev1.Node) bool {
	was, is := hasEveryKey(cs, old), hasEveryKey(cs, now)
	if old == nil || now == nil || was != is {
		return was || is
	}
	return is && (!equality.Semantic.DeepEqual(old.Spec.Taints, now.Spec.Taints) ||
		slices.ContainsFunc(cs, func(c framework.Spread) bool { return old.Labels[c.Key] != now.Labels[c.Key] }))
}

func hasEveryKey(cs []framework.Spread, n *corev1.Node) bool {
	if n == nil {
		return false
	}
	for i := range cs {
		if _, ok := n.Labels[cs[i].Key]; !ok {
			return false
		}
	}
	return true
}
