package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"skiff/internal/api/explanation"
	"skiff/internal/scheduler"
)

// solution is a set of changes after which the pod is placed.
type solution struct {
	changes []change
	node    string
}

// Bounds of the search: how many sets of changes are tried, and how many shown.
const (
	maxTried  = 200
	maxBroken = 40 // sets of one that are gone on from
	maxShown  = 5
)

// explainPending says why a pod has no node.
func (w *World) explainPending(p *corev1.Pod, out *explanation.Explanation) {
	m := newSim(w, p)
	gates := each(p.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) string { return g.Name })
	var first []change
	if len(gates) > 0 {
		out.State = explanation.Waiting
		out.Summary = fmt.Sprintf("it is held back by %s", some("scheduling gate", gates, ""))
		cause(out, "SchedulingGates", "%s: whoever set them is to take them off", some("scheduling gate", gates, ""))
		first = []change{{
			key: "gates", message: "without " + some("scheduling gate", gates, ""),
			edit: func(s *corev1.PodSpec) { s.SchedulingGates = nil },
		}}
	}
	nodes := len(all[*corev1.Node](w))
	if nodes == 0 {
		out.State = explanation.Failing
		if reason, unread := w.Unread["nodes"]; unread {
			w.fromCondition(p, out, reason)
			return
		}
		out.Summary = "the cluster has no nodes"
		cause(out, "NoNodes", "no nodes available to schedule pods")
		advise(out, "a node: skiff node --kubeconfig FILE, with a file made by skiff kubeconfig --node NAME", nil)
		return
	}
	if name := p.Spec.SchedulerName; name != corev1.DefaultSchedulerName {
		note(out, "It asks for the scheduler %q: what is said here is what skiff's own scheduler would do.", name)
	}
	if node, ok := m.place(p, first); ok {
		w.placeable(p, out, first, node, m)
		return
	}
	if len(gates) == 0 {
		if w.preempting(p, out) {
			return
		}
		out.State = explanation.Failing
		out.Summary = fmt.Sprintf("none of the %d nodes can take it", nodes)
		if nodes == 1 {
			out.Summary = "the only node cannot take it"
		}
		if pin := pinnedTo(p); pin != "" {
			out.Summary = fmt.Sprintf("node %s, for which it is made, cannot take it", pin)
		}
	} else {
		out.Summary += ", and no node could take it without that"
	}
	refusals := m.refusals(p, first)
	m.grouped(out, changed(p, first), refusals)
	found := m.search(p, first, refusals)
	of := w.template(p)
	for _, s := range found[:min(len(found), maxShown)] {
		r := explanation.Remedy{Proven: true, Node: named(s.node)}
		for i := range s.changes {
			r.Changes = append(r.Changes, s.changes[i].shown(of))
		}
		out.Remedies = append(out.Remedies, r)
	}
	m.price(p, out, first, of)
	w.claimsBehind(p, out)
	if slices.ContainsFunc(out.Remedies, func(r explanation.Remedy) bool {
		return slices.ContainsFunc(r.Changes, func(c explanation.Change) bool { return c.Target != nil && c.Target.Kind == "Pod" && len(c.Patch) > 0 })
	}) && len(gates) == 0 {
		note(out, "The spec of a pod cannot be changed, but for more tolerations: create it anew.")
	}
}

// placeable says why a pod for which there is a node has none.
func (w *World) placeable(p *corev1.Pod, out *explanation.Explanation, first []change, node string, m *sim) {
	if len(first) > 0 {
		out.Remedies = append(out.Remedies, explanation.Remedy{Proven: true, Node: node, Changes: []explanation.Change{first[0].shown(w.template(p))}})
		return
	}
	out.State = explanation.Waiting
	if name := p.Spec.SchedulerName; name != corev1.DefaultSchedulerName {
		out.State = explanation.Failing
		out.Summary = fmt.Sprintf("it waits for the scheduler %q", name)
		cause(out, "SchedulerName", "only a scheduler that is called %q may place it, and none has", name)
		ch := change{
			message: "schedulerName " + corev1.DefaultSchedulerName,
			edit:    func(s *corev1.PodSpec) { s.SchedulerName = corev1.DefaultSchedulerName },
		}
		out.Remedies = append(out.Remedies, explanation.Remedy{Proven: true, Node: node, Changes: []explanation.Change{ch.shown(w.template(p))}})
		return
	}
	out.Summary = fmt.Sprintf("node %s can take it: the scheduler is about to place it", node)
	if len(m.ahead) > 0 {
		note(out, "%s.", capital(before(len(m.ahead))))
	}
}

// preempting tells of the pods that the scheduler evicts for a pod right now.
func (w *World) preempting(p *corev1.Pod, out *explanation.Explanation) bool {
	node := p.Status.NominatedNodeName
	if node == "" {
		return false
	}
	ends := slices.DeleteFunc(all[*corev1.Pod](w), func(o *corev1.Pod) bool {
		return o.Spec.NodeName != node || o.DeletionTimestamp == nil || finished(o) || ptr.Deref(o.Spec.Priority, 0) >= ptr.Deref(p.Spec.Priority, 0)
	})
	if len(ends) == 0 {
		return false
	}
	out.State = explanation.Waiting
	out.Summary = fmt.Sprintf("it is to run on node %s, where %s of lower priority makes room", node, count(len(ends), "pod"))
	for _, o := range ends {
		cause(out, "Preemption", "pod %s/%s ends %s", o.Namespace, o.Name, w.endsIn(o))
	}
	return true
}

func (w *World) endsIn(p *corev1.Pod) string {
	if d := p.DeletionTimestamp.Sub(w.Now); d > 0 {
		return "within " + since(d)
	}
	return "now: its grace period is over"
}

// fromCondition repeats what the scheduler said, for one who may not look himself.
func (w *World) fromCondition(p *corev1.Pod, out *explanation.Explanation, reason string) {
	out.Summary = "no node can take it"
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Message != "" {
			cause(out, c.Reason, "%s", c.Message)
		}
	}
	note(out, "What would help is found by looking at the nodes, which you may not (%s).", reason)
}

// grouped makes causes of refusals: nodes that refuse for the same reason together,
// those with most nodes first.
func (m *sim) grouped(out *explanation.Explanation, p *corev1.Pod, refusals []scheduler.Refusal) {
	if pin := pinnedTo(p); pin != "" {
		refusals = slices.DeleteFunc(refusals, func(r scheduler.Refusal) bool { return r.Node != pin })
	}
	groups := map[string]*explanation.Cause{}
	shared := map[string][]string{}
	for _, r := range refusals {
		k := m.reason(p, r)
		g := groups[k]
		if g == nil {
			g = &explanation.Cause{Reason: r.Plugin}
			groups[k] = g
		}
		g.Nodes = append(g.Nodes, r.Node)
		shared[k] = r.Reasons
	}
	keys := slices.SortedFunc(maps.Keys(groups), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(groups[b].Nodes), len(groups[a].Nodes)), cmp.Compare(a, b))
	})
	for _, k := range keys {
		g := groups[k]
		g.Message = m.sentence(p, g, k, shared[k])
		if len(g.Nodes) == m.s.NumNodes() && ofVolumes(g.Reason) && len(keys) == 1 {
			g.Nodes = nil // it is about the pod, not about nodes
		}
		out.Causes = append(out.Causes, *g)
	}
}

// search finds the smallest sets of changes after which the pod is placed: of one
// change, then of two, then of three where nothing smaller does.
func (m *sim) search(p *corev1.Pod, first []change, refusals []scheduler.Refusal) []solution {
	type set struct {
		changes  []change
		refusals []scheduler.Refusal
	}
	var found []solution
	tried := map[string]bool{}
	level := []set{{first, refusals}}
	if pin := pinnedTo(p); pin != "" {
		level[0].refusals = slices.DeleteFunc(slices.Clone(refusals), func(r scheduler.Refusal) bool { return r.Node != pin })
	}
	cheap := false
	for size := 0; size < 3 && !cheap && len(tried) < maxTried; size++ {
		var next []set
		for _, s := range level {
			var more [][]change
			for _, add := range m.proposals(changed(p, s.changes), s.refusals) {
				cs := join(s.changes, add...)
				k := keyOf(cs)
				if tried[k] || len(tried) >= maxTried || repeats(cs) {
					continue
				}
				tried[k] = true
				node, ok := m.place(p, cs)
				switch {
				case ok:
					cs, node = m.minimal(p, cs, node)
					if !contains(found, cs) {
						found = append(found, solution{cs, node})
						cheap = cheap || !slices.ContainsFunc(cs, func(c change) bool { return c.costly })
					}
				case len(next)+len(more) < maxBroken:
					more = append(more, cs)
				}
			}
			for _, cs := range more {
				next = append(next, set{cs, m.refusals(p, cs)})
			}
		}
		if size == 0 && pinnedTo(p) == "" {
			if c, node, ok := m.moreNodes(p, first); ok {
				found = append(found, solution{join(first, c), node})
			}
		}
		level = next
	}
	if len(found) == 0 && pinnedTo(p) == "" {
		for _, s := range level {
			if c, node, ok := m.moreNodes(p, s.changes); ok {
				found = append(found, solution{join(s.changes, c), node})
				break
			}
		}
	}
	slices.SortStableFunc(found, func(a, b solution) int {
		return cmp.Or(cmp.Compare(len(a.changes), len(b.changes)), cmp.Compare(cost(a), cost(b)))
	})
	return found
}

func cost(s solution) (n int) {
	for _, c := range s.changes {
		switch {
		case c.costly:
			n += 10
		case c.nodes != nil:
			n++
		}
	}
	return n
}

func keyOf(cs []change) string {
	return strings.Join(slices.Sorted(slices.Values(each(cs, func(c change) string { return c.key }))), "\n")
}

// repeats tells that a set has the same change twice: the second undoes the first.
func repeats(cs []change) bool {
	seen := map[string]bool{}
	for _, c := range cs {
		if seen[c.key] {
			return true
		}
		seen[c.key] = true
	}
	return false
}

func contains(found []solution, cs []change) bool {
	return slices.ContainsFunc(found, func(s solution) bool { return keyOf(s.changes) == keyOf(cs) })
}

// minimal drops what a set does not need.
func (m *sim) minimal(p *corev1.Pod, cs []change, node string) ([]change, string) {
	for i := 0; i < len(cs) && len(cs) > 1; {
		rest := slices.Delete(slices.Clone(cs), i, i+1)
		if n, ok := m.place(p, rest); ok {
			cs, node = rest, n
			continue
		}
		i++
	}
	return cs, node
}

// price says what it would cost to evict others: with the least priority class that
// does, as a remedy, and in any case as a fact.
func (m *sim) price(p *corev1.Pod, out *explanation.Explanation, first []change, of *editable) {
	if ptr.Deref(p.Spec.PreemptionPolicy, corev1.PreemptLowerPriority) == corev1.PreemptNever {
		out.Preemption = &explanation.Preemption{Message: "its preemptionPolicy is Never: it evicts nobody"}
		return
	}
	now := ptr.Deref(p.Spec.Priority, 0)
	raise := func(name string, to int32) change {
		return change{
			key: "priority", message: fmt.Sprintf("priority class %s (%d instead of %d)", name, to, now),
			edit: func(s *corev1.PodSpec) { s.PriorityClassName, s.Priority = name, &to },
		}
	}
	least := raise("", 1<<31-1)
	node, victims := m.preempt(p, join(first, least))
	if node == "" {
		return
	}
	need := int32(-1 << 31)
	for _, v := range victims {
		need = max(need, ptr.Deref(v.Spec.Priority, 0))
	}
	cost := &explanation.Preemption{Node: node, Evicts: toVictims(victims), Breaks: m.w.broken(victims)}
	cost.Message = fmt.Sprintf("%s on %s would have to go%s", tally(cost.Evicts), node, breaks(cost.Breaks))
	out.Preemption = cost
	if need < now {
		cost.Message += ": the scheduler is about to evict"
		return
	}
	classes := all[*schedulingv1.PriorityClass](m.w)
	slices.SortStableFunc(classes, func(a, b *schedulingv1.PriorityClass) int { return cmp.Compare(a.Value, b.Value) })
	for _, c := range classes {
		if c.Value <= now || strings.HasPrefix(c.Name, "system-") || ptr.Deref(c.PreemptionPolicy, corev1.PreemptLowerPriority) == corev1.PreemptNever {
			continue
		}
		ch := raise(c.Name, c.Value)
		node, victims := m.preempt(p, join(first, ch))
		if node == "" {
			continue
		}
		r := explanation.Remedy{Proven: true, Node: node, Evicts: toVictims(victims), Breaks: m.w.broken(victims)}
		for _, c := range join(first, ch) {
			r.Changes = append(r.Changes, c.shown(of))
		}
		out.Remedies = append(out.Remedies, r)
		return
	}
	cost.Message += fmt.Sprintf(" (it would need a priority above %d, which no PriorityClass has)", need)
}

func toVictims(ps []*corev1.Pod) []explanation.Victim {
	return each(ps, func(p *corev1.Pod) explanation.Victim {
		return explanation.Victim{Namespace: p.Namespace, Name: p.Name, Priority: ptr.Deref(p.Spec.Priority, 0)}
	})
}

// tally counts pods by their priority: "2 pods of priority 0 and 1 pod of priority 5".
func tally(vs []explanation.Victim) string {
	by := map[int32]int{}
	for _, v := range vs {
		by[v.Priority]++
	}
	return and(each(slices.Sorted(maps.Keys(by)), func(p int32) string { return fmt.Sprintf("%s of priority %d", count(by[p], "pod"), p) }))
}

func breaks(budgets []string) string {
	if len(budgets) == 0 {
		return ""
	}
	return ", which breaks " + some("disruption budget", budgets, "")
}

// broken are the disruption budgets that do not allow all these pods to go.
func (w *World) broken(pods []*corev1.Pod) []string {
	var out []string
	for _, b := range all[*policyv1.PodDisruptionBudget](w) {
		s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue
		}
		var hit int32
		for _, p := range pods {
			if p.Namespace == b.Namespace && s.Matches(labels.Set(p.Labels)) {
				if _, already := b.Status.DisruptedPods[p.Name]; !already {
					hit++
				}
			}
		}
		if hit > b.Status.DisruptionsAllowed {
			out = append(out, b.Namespace+"/"+b.Name)
		}
	}
	return out
}

// claimsBehind adds the explanations of claims that the pod waits for.
func (w *World) claimsBehind(p *corev1.Pod, out *explanation.Explanation) {
	if !slices.ContainsFunc(out.Causes, func(c explanation.Cause) bool { return ofVolumes(c.Reason) }) {
		return
	}
	for _, c := range w.claimsOf(p) {
		if claimBound(c) || c.Status.Phase == corev1.ClaimLost {
			continue
		}
		e := begin("PersistentVolumeClaim", "v1", c)
		e.State = explanation.Failing
		w.whyUnbound(e, c, false)
		out.Because = append(out.Because, *e)
	}
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// sorted are the keys of a map, in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
