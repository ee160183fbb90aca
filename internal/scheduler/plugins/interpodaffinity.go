package plugins

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// InterPodAffinity keeps pods near to others, or apart from them, as their terms
// and those of the pods that run already ask, and prefers what they prefer.
// matchLabelKeys and mismatchLabelKeys need nothing here: the API server writes
// them into the terms' selectors.
type InterPodAffinity struct {
	// hardWeight is what a required affinity term of a pod that runs counts for when
	// a pod that it selects is scored; ownAlone leaves the preferred terms of others
	// out where the pod has none itself.
	hardWeight int64
	ownAlone   bool
}

// NewInterPodAffinity returns the plugin with arguments that were defaulted and
// validated.
func NewInterPodAffinity(args *config.InterPodAffinityArgs) InterPodAffinity {
	out := InterPodAffinity{hardWeight: 1, ownAlone: args.IgnorePreferredTermsOfExistingPods}
	if args.HardPodAffinityWeight != nil {
		out.hardWeight = int64(*args.HardPodAffinityWeight)
	}
	return out
}

var (
	notNear = &framework.Status{
		Code: framework.Unresolvable, Plugin: "InterPodAffinity",
		Reasons: []string{"node(s) didn't match pod affinity rules"},
	}
	notApart = &framework.Status{
		Code: framework.Unschedulable, Plugin: "InterPodAffinity",
		Reasons: []string{"node(s) didn't match pod anti-affinity rules"},
	}
	notWanted = &framework.Status{
		Code: framework.Unschedulable, Plugin: "InterPodAffinity",
		Reasons: []string{"node(s) didn't satisfy existing pods anti-affinity rules"},
	}
)

// podAffinity is the state for a subject: ranges of the counts.
type podAffinity struct {
	near, apart, unwanted, scores [2]int
	self                          bool // the pod matches its own required terms
}

// Name implements framework.Plugin.
func (InterPodAffinity) Name() string { return "InterPodAffinity" }

// remembered makes a match remember its answers, which are of few different keys.
func remembered[K comparable](match func(K) bool) func(K) bool {
	known := map[K]bool{}
	return func(k K) bool {
		v, ok := known[k]
		if !ok {
			if len(known) >= 10_000 {
				clear(known)
			}
			v = match(k)
			known[k] = v
		}
		return v
	}
}

// Topology implements framework.Topological.
func (a InterPodAffinity) Topology(sub framework.Subject, s *framework.Snapshot) framework.Topology {
	if sub.Kin == nil {
		return framework.Topology{}
	}
	own := sub.Terms
	if own == nil {
		own = &framework.PodTerms{}
	}
	st := &podAffinity{}
	var counts []framework.Count
	var shape strings.Builder
	add := func(r *[2]int, what, key string, weigh func(p *framework.Pod) int64) {
		counts = append(counts, framework.Count{Key: key, Weigh: weigh})
		r[1] = len(counts)
		fmt.Fprintf(&shape, "%s %s\n", what, key)
	}
	selects := func(t *framework.PodTerm) func(*framework.Kin) bool {
		return remembered(func(k *framework.Kin) bool { return t.Matches(k, s.Namespace(k.Namespace)) })
	}
	ours := s.Namespace(sub.Kin.Namespace)
	selected := remembered(func(t *framework.PodTerm) bool { return t.Matches(sub.Kin, ours) })

	// A pod counts for all required terms only where it matches all of them.
	if len(own.Near) > 0 {
		all := remembered(func(k *framework.Kin) bool { return matchesAll(own.Near, k, s.Namespace(k.Namespace)) })
		st.self = matchesAll(own.Near, sub.Kin, ours)
		for _, key := range keysOf(own.Near) {
			add(&st.near, "near", key, func(p *framework.Pod) int64 { return one(all(p.Kin)) })
		}
	}
	st.apart[0], st.apart[1] = len(counts), len(counts)
	for _, t := range own.Apart {
		match := selects(t)
		add(&st.apart, "apart", t.Key, func(p *framework.Pod) int64 { return one(match(p.Kin)) })
	}
	st.unwanted[0], st.unwanted[1] = len(counts), len(counts)
	for _, key := range heldKeys(s, selected, func(t *framework.PodTerms) []*framework.PodTerm { return t.Apart }) {
		add(&st.unwanted, "unwanted", key, func(p *framework.Pod) (n int64) {
			if p.Terms == nil {
				return 0
			}
			for _, t := range p.Terms.Apart {
				if t.Key == key && selected(t) {
					n++
				}
			}
			return n
		})
	}
	st.scores[0], st.scores[1] = len(counts), len(counts)
	keys := keysOf(own.Preferred)
	others := !a.ownAlone || len(own.Preferred) > 0
	if others && a.hardWeight > 0 {
		keys = append(keys, heldKeys(s, selected, func(t *framework.PodTerms) []*framework.PodTerm { return t.Near })...)
	}
	if others {
		keys = append(keys, heldKeys(s, selected, func(t *framework.PodTerms) []*framework.PodTerm { return t.Preferred })...)
	}
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		type preference struct {
			weight int64
			match  func(*framework.Kin) bool
		}
		var prefer []preference
		for _, t := range own.Preferred {
			if t.Key == key {
				prefer = append(prefer, preference{t.Weight, selects(t)})
			}
		}
		add(&st.scores, "score", key, func(p *framework.Pod) (n int64) {
			for _, f := range prefer {
				if f.match(p.Kin) {
					n += f.weight
				}
			}
			if p.Terms == nil {
				return n
			}
			for _, t := range p.Terms.Near {
				if t.Key == key && selected(t) {
					n += a.hardWeight
				}
			}
			for _, t := range p.Terms.Preferred {
				if t.Key == key && selected(t) {
					n += t.Weight
				}
			}
			return n
		})
	}
	return framework.Topology{
		Counts: counts, State: st, Filters: st.scores[0] > 0, Scores: st.scores[1] > st.scores[0], Shape: shape.String(),
	}
}

func one(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func matchesAll(terms []*framework.PodTerm, k *framework.Kin, ns labels.Set) bool {
	for _, t := range terms {
		if !t.Matches(k, ns) {
			return false
		}
	}
	return true
}

func keysOf(terms []*framework.PodTerm) []string {
	var keys []string
	for _, t := range terms {
		keys = append(keys, t.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// heldKeys are the topology keys of those terms of pods on nodes that select the
// subject.
func heldKeys(s *framework.Snapshot, selected func(*framework.PodTerm) bool, of func(*framework.PodTerms) []*framework.PodTerm) []string {
	var keys []string
	for ts := range s.Terms() {
		for _, t := range of(ts) {
			if !slices.Contains(keys, t.Key) && selected(t) {
				keys = append(keys, t.Key)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

// FilterDomains implements framework.Topological.
func (InterPodAffinity) FilterDomains(state any, d framework.Domains) *framework.Status {
	st := state.(*podAffinity)
	near, all, any := true, true, false
	for i := st.near[0]; i < st.near[1]; i++ {
		all = all && d.Has(i)
		near = near && d.Of(i) > 0
		any = any || d.Total(i) != 0
	}
	// The first of a group that wants to be near itself may go anywhere.
	if !all || !near && (any || !st.self) {
		return notNear
	}
	for i := st.apart[0]; i < st.apart[1]; i++ {
		if d.Of(i) > 0 {
			return notApart
		}
	}
	for i := st.unwanted[0]; i < st.unwanted[1]; i++ {
		if d.Of(i) > 0 {
			return notWanted
		}
	}
	return nil
}

// Scored implements framework.Topological.
func (InterPodAffinity) Scored(any, framework.Domains) bool { return true }

// ScoreDomains implements framework.Topological.
func (InterPodAffinity) ScoreDomains(state any, d framework.Domains) (sum int64) {
	st := state.(*podAffinity)
	for i := st.scores[0]; i < st.scores[1]; i++ {
		sum += d.Of(i)
	}
	return sum
}

// NormalizeDomains implements framework.Topological.
func (InterPodAffinity) NormalizeDomains(raw, least, greatest int64) int64 {
	if greatest == least {
		return 0
	}
	return int64(framework.MaxScore * (float64(raw-least) / float64(greatest-least)))
}

// Explain implements framework.Explainer.
func (InterPodAffinity) Explain(c *framework.Class, n *framework.Node) string {
	var near, apart []corev1.PodAffinityTerm
	if a := c.Template.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			near = a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
		if a.PodAntiAffinity != nil {
			apart = a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
	}
	for i := range near {
		key := near[i].TopologyKey
		v, ok := n.Obj.Labels[key]
		if !ok {
			return fmt.Sprintf("the pod must be near others by the label %s, which node %s lacks", key, n.Name)
		}
		if len(apart) == 0 {
			return fmt.Sprintf("the pod must be near pods that its affinity selects, and none runs in %s=%s, where node %s is", key, v, n.Name)
		}
	}
	switch {
	case len(near) > 0:
		return fmt.Sprintf("near node %s runs no pod that the pod must be near, or one that it must be apart from", n.Name)
	case len(apart) > 0:
		return fmt.Sprintf("near node %s runs a pod that the pod must be apart from, by its own anti-affinity or by the other's", n.Name)
	}
	return fmt.Sprintf("near node %s runs a pod whose anti-affinity keeps this pod away", n.Name)
}

// Events implements framework.Hinter.
func (InterPodAffinity) Events() framework.EventKind {
	return framework.PodAdded | framework.PodDeleted | framework.PodRelabeled | framework.PodLabels | framework.NodeAdded | framework.NodeLabels
}

// Hint implements framework.Hinter.
func (InterPodAffinity) Hint(p *framework.Pod, e framework.Event) bool {
	if e.Kind&framework.PodLabels != 0 {
		return true
	}
	own := p.Terms
	if own == nil {
		own = &framework.PodTerms{}
	}
	if e.Kind&(framework.NodeAdded|framework.NodeLabels) != 0 {
		return nodeHint(own, e.OldNode, e.Node)
	}
	// The labels of namespaces are not known here: a selector of namespaces may
	// select any.
	selects := func(t *framework.PodTerm, k *framework.Kin) bool { return t.MaySelect(k) }
	if e.Kind&(framework.PodAdded|framework.PodRelabeled) != 0 && len(own.Near) > 0 {
		if !slices.ContainsFunc(own.Near, func(t *framework.PodTerm) bool { return !selects(t, e.Pod.Kin) }) {
			return true
		}
	}
	gone := e.Pod
	if e.Kind&framework.PodRelabeled != 0 {
		gone = e.OldPod
	}
	if e.Kind&(framework.PodDeleted|framework.PodRelabeled) == 0 || gone == nil {
		return false
	}
	if slices.ContainsFunc(own.Apart, func(t *framework.PodTerm) bool { return selects(t, gone.Kin) }) {
		return true
	}
	return gone.Terms != nil && slices.ContainsFunc(gone.Terms.Apart, func(t *framework.PodTerm) bool { return selects(t, p.Kin) })
}

func nodeHint(own *framework.PodTerms, old, now *corev1.Node) bool {
	if old == nil && (len(own.Apart) > 0 || len(own.Near) == 0) {
		return true
	}
	for _, t := range slices.Concat(own.Near, own.Apart) {
		v, ok := now.Labels[t.Key]
		if old == nil {
			if ok {
				return true
			}
			continue
		}
		if was, had := old.Labels[t.Key]; had != ok || was != v {
			return true
		}
	}
	// A term of another pod keeps this one away: by which label is not known.
	return len(own.Near)+len(own.Apart) == 0
}
