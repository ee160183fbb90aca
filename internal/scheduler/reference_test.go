package scheduler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// reference judges pod affinity and topology spread in the plainest way, from the
// objects of the API as their documentation says: the counts are made anew for
// every question, node by node and pod by pod.
type reference struct {
	nodes      []*corev1.Node
	on         map[string][]*corev1.Pod
	namespaces map[string]map[string]string
	group      labels.Selector // of pods without constraints
}

func selectorFor(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err)
	}
	return out
}

// selects tells whether a term of owner's selects other.
func (f *reference) selects(owner *corev1.Pod, t *corev1.PodAffinityTerm, other *corev1.Pod) bool {
	in := len(t.Namespaces) == 0 && t.NamespaceSelector == nil && owner.Namespace == other.Namespace
	for _, ns := range t.Namespaces {
		in = in || ns == other.Namespace
	}
	if t.NamespaceSelector != nil && selectorFor(t.NamespaceSelector).Matches(labels.Set(f.namespaces[other.Namespace])) {
		in = true
	}
	return in && selectorFor(t.LabelSelector).Matches(labels.Set(other.Labels))
}

func near(p *corev1.Pod) []corev1.PodAffinityTerm {
	if a := p.Spec.Affinity; a != nil && a.PodAffinity != nil {
		return a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

func apart(p *corev1.Pod) []corev1.PodAffinityTerm {
	if a := p.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		return a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

// preferred are the preferred terms, those of anti-affinity with negative weights.
func preferred(p *corev1.Pod) []corev1.WeightedPodAffinityTerm {
	var out []corev1.WeightedPodAffinityTerm
	if a := p.Spec.Affinity; a != nil && a.PodAffinity != nil {
		out = append(out, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution...)
	}
	if a := p.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		for _, t := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			t.Weight = -t.Weight
			out = append(out, t)
		}
	}
	return out
}

// around calls f for every pod in a node's domain of a key.
func (f *reference) around(n *corev1.Node, key string, do func(*corev1.Pod)) {
	v, ok := n.Labels[key]
	if !ok {
		return
	}
	for _, o := range f.nodes {
		if w, ok := o.Labels[key]; ok && v == w {
			for _, p := range f.on[o.Name] {
				do(p)
			}
		}
	}
}

func (f *reference) affinity(p *corev1.Pod, n *corev1.Node) string {
	all := func(o *corev1.Pod) bool {
		for _, t := range near(p) {
			if !f.selects(p, &t, o) {
				return false
			}
		}
		return true
	}
	if len(near(p)) > 0 {
		met, keys, anywhere := true, true, false
		for _, t := range near(p) {
			if _, ok := n.Labels[t.TopologyKey]; !ok {
				keys = false
			}
			found := false
			f.around(n, t.TopologyKey, func(o *corev1.Pod) { found = found || all(o) })
			met = met && found
			for _, m := range f.nodes {
				if _, ok := m.Labels[t.TopologyKey]; ok {
					for _, o := range f.on[m.Name] {
						anywhere = anywhere || all(o)
					}
				}
			}
		}
		if !keys || !met && (anywhere || !all(p)) {
			return "node(s) didn't match pod affinity rules"
		}
	}
	for _, t := range apart(p) {
		hit := false
		f.around(n, t.TopologyKey, func(o *corev1.Pod) { hit = hit || f.selects(p, &t, o) })
		if hit {
			return "node(s) didn't match pod anti-affinity rules"
		}
	}
	for _, m := range f.nodes {
		for _, o := range f.on[m.Name] {
			for _, t := range apart(o) {
				v, ok := m.Labels[t.TopologyKey]
				w, here := n.Labels[t.TopologyKey]
				if ok && here && v == w && f.selects(o, &t, p) {
					return "node(s) didn't satisfy existing pods anti-affinity rules"
				}
			}
		}
	}
	return ""
}

func (f *reference) affinityScores(p *corev1.Pod, feasible []*corev1.Node) map[string]int64 {
	raw := map[string]int64{}
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	for _, n := range feasible {
		var sum int64
		for _, m := range f.nodes {
			same := func(key string) bool {
				v, ok := m.Labels[key]
				w, here := n.Labels[key]
				return ok && here && v == w
			}
			for _, o := range f.on[m.Name] {
				for _, t := range preferred(p) {
					if same(t.PodAffinityTerm.TopologyKey) && f.selects(p, &t.PodAffinityTerm, o) {
						sum += int64(t.Weight)
					}
				}
				for _, t := range preferred(o) {
					if same(t.PodAffinityTerm.TopologyKey) && f.selects(o, &t.PodAffinityTerm, p) {
						sum += int64(t.Weight)
					}
				}
				for _, t := range near(o) {
					if same(t.TopologyKey) && f.selects(o, &t, p) {
						sum++
					}
				}
			}
		}
		raw[n.Name] = sum
		least, most = min(least, sum), max(most, sum)
	}
	for name, v := range raw {
		raw[name] = 0
		if most > least {
			raw[name] = int64(100 * (float64(v-least) / float64(most-least)))
		}
	}
	return raw
}

// constraints are those of one kind, with their selectors.
func (f *reference) constraints(p *corev1.Pod, when corev1.UnsatisfiableConstraintAction) (out []corev1.TopologySpreadConstraint, sel []labels.Selector) {
	of := p.Spec.TopologySpreadConstraints
	if len(of) == 0 && f.group != nil {
		if when == corev1.ScheduleAnyway {
			out = append(out,
				corev1.TopologySpreadConstraint{TopologyKey: corev1.LabelHostname, MaxSkew: 3}, corev1.TopologySpreadConstraint{TopologyKey: corev1.LabelTopologyZone, MaxSkew: 5})
			sel = append(sel, f.group, f.group)
		}
		return out, sel
	}
	for _, c := range of {
		if c.WhenUnsatisfiable != when {
			continue
		}
		s := selectorFor(c.LabelSelector)
		own := labels.Set{}
		for _, k := range c.MatchLabelKeys {
			if v, ok := p.Labels[k]; ok {
				own[k] = v
			}
		}
		if r, ok := s.Requirements(); ok && len(own) > 0 {
			s = own.AsSelector().Add(r...)
		}
		out, sel = append(out, c), append(sel, s)
	}
	return out, sel
}

func hasKeys(n *corev1.Node, cs []corev1.TopologySpreadConstraint) bool {
	for _, c := range cs {
		if _, ok := n.Labels[c.TopologyKey]; !ok {
			return false
		}
	}
	return true
}

func counted(p *corev1.Pod, c *corev1.TopologySpreadConstraint, n *corev1.Node) bool {
	if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
		if ok, _ := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); !ok {
			return false
		}
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
		for i := range n.Spec.Taints {
			taint := &n.Spec.Taints[i]
			tolerated := taint.Effect == corev1.TaintEffectPreferNoSchedule
			for j := range p.Spec.Tolerations {
				tolerated = tolerated || p.Spec.Tolerations[j].ToleratesTaint(klog.Logger{}, taint, false)
			}
			if !tolerated {
				return false
			}
		}
	}
	return true
}

func (f *reference) matching(n string, p *corev1.Pod, s labels.Selector) (count int64) {
	for _, o := range f.on[n] {
		if o.DeletionTimestamp == nil && o.Namespace == p.Namespace && !s.Empty() && s.Matches(labels.Set(o.Labels)) {
			count++
		}
	}
	return count
}

func (f *reference) spread(p *corev1.Pod, n *corev1.Node) string {
	cs, sel := f.constraints(p, corev1.DoNotSchedule)
	for i, c := range cs {
		v, ok := n.Labels[c.TopologyKey]
		if !ok {
			return "node(s) didn't match pod topology spread constraints (missing required label)"
		}
		sums := map[string]int64{}
		for _, m := range f.nodes {
			if hasKeys(m, cs) && counted(p, &c, m) {
				sums[m.Labels[c.TopologyKey]] += f.matching(m.Name, p, sel[i])
			}
		}
		least := int64(math.MaxInt64)
		for _, sum := range sums {
			least = min(least, sum)
		}
		domains := 1
		if c.MinDomains != nil {
			domains = int(*c.MinDomains)
		}
		if len(sums) < domains {
			least = 0
		}
		skew := sums[v] - least
		if sel[i].Matches(labels.Set(p.Labels)) {
			skew++
		}
		if skew > int64(c.MaxSkew) {
			return "node(s) didn't match pod topology spread constraints"
		}
	}
	return ""
}

func (f *reference) spreadScores(p *corev1.Pod, feasible []*corev1.Node) map[string]int64 {
	cs, sel := f.constraints(p, corev1.ScheduleAnyway)
	if len(cs) == 0 {
		return map[string]int64{}
	}
	strict := len(p.Spec.TopologySpreadConstraints) > 0
	var scored []*corev1.Node
	for _, n := range feasible {
		if !strict || hasKeys(n, cs) {
			scored = append(scored, n)
		}
	}
	raw := map[string]int64{}
	least, most := int64(math.MaxInt64), int64(0)
	for _, n := range scored {
		var sum float64
		for i, c := range cs {
			v, ok := n.Labels[c.TopologyKey]
			if !ok {
				continue
			}
			size, count := len(scored), int64(0)
			if c.TopologyKey == corev1.LabelHostname {
				count = f.matching(n.Name, p, sel[i])
			} else {
				values := map[string]bool{}
				for _, m := range scored {
					values[m.Labels[c.TopologyKey]] = true
				}
				size = len(values)
				for _, m := range f.nodes {
					if w, ok := m.Labels[c.TopologyKey]; ok && v == w && (!strict || hasKeys(m, cs)) && counted(p, &c, m) {
						count += f.matching(m.Name, p, sel[i])
					}
				}
			}
			sum += float64(count)*math.Log(float64(size+2)) + float64(c.MaxSkew-1)
		}
		raw[n.Name] = int64(math.Round(sum))
		least, most = min(least, raw[n.Name]), max(most, raw[n.Name])
	}
	for name, v := range raw {
		raw[name] = 100
		if most > 0 {
			raw[name] = 100 * (most + least - v) / most
		}
	}
	return raw
}

// What the cycle says by its kept counts is what the reference says, refusal by
// refusal and score by score, in clusters of a few domains and of many.
func TestTopologyReference(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 11))
		size := 12
		if seed%3 == 0 {
			size = 90 // host names are fine then, see domains
		}
		f := &reference{on: map[string][]*corev1.Pod{}, namespaces: map[string]map[string]string{"default": {}, "other": {"team": "x"}}}
		s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), seed)
		for name, set := range f.namespaces {
			s.SetNamespace(name, set)
		}
		for i := range size {
			n := randomNode(r, i)
			if zone, ok := n.Labels["zone"]; ok && r.IntN(2) == 0 {
				n.Labels[corev1.LabelTopologyZone] = zone
			}
			f.nodes = append(f.nodes, n)
			s.SetNode(n)
		}
		for step := range 120 {
			p := randomPod(r, step)
			p.Spec.Priority = nil
			if r.IntN(4) == 0 {
				p.Namespace = "other"
			}
			w := classes.Pod(p)
			f.group = nil
			if r.IntN(2) == 0 {
				f.group = labels.Set{"app": p.Labels["app"]}.AsSelector()
				if len(p.Spec.TopologySpreadConstraints) == 0 {
					w.Group = classes.Group(f.group)
				}
			}
			f.compare(t, fmt.Sprintf("seed %d step %d", seed, step), c, s, w)
			// Then it runs somewhere, whatever was said: more happens so.
			n := f.nodes[r.IntN(len(f.nodes))]
			if d := c.Schedule(s, []*framework.Pod{w})[0]; d.Node != "" {
				for _, m := range f.nodes {
					if m.Name == d.Node {
						n = m
					}
				}
			} else if r.IntN(2) == 0 {
				continue
			}
			if r.IntN(8) == 0 {
				p = p.DeepCopy()
				p.DeletionTimestamp = &metav1.Time{}
			}
			s.SetPod(classes.Pod(p), n.Name)
			f.on[n.Name] = append(f.on[n.Name], p)
			if on := f.on[n.Name]; r.IntN(5) == 0 {
				s.RemovePod(on[0].UID)
				f.on[n.Name] = on[1:]
			}
		}
	}
}

func (f *reference) compare(t *testing.T, at string, c *Cycle, s *framework.Snapshot, w *framework.Pod) {
	t.Helper()
	table := c.table(s, s.Subject(w))
	if table.preFilter != nil {
		return
	}
	table.refresh(c, s)
	table.best()
	var feasible []*corev1.Node
	for _, n := range f.nodes {
		slot, _ := s.SlotOf(n.Name)
		if table.status[slot] != nil {
			continue // refused by the node itself
		}
		want := f.spread(w.Pod, n)
		if want == "" {
			want = f.affinity(w.Pod, n)
		}
		got := ""
		if st := table.statusOf(slot); st != nil {
			got = st.Reasons[0]
		}
		if got != want {
			t.Fatalf("%s: node %s: %q, want %q", at, n.Name, got, want)
		}
		if again := table.refilter(s.At(slot), ""); (again == nil) != (want == "") {
			t.Fatalf("%s: node %s, judged alone: %+v, want %q", at, n.Name, again, want)
		}
		if want == "" {
			feasible = append(feasible, n)
		}
	}
	if table.domains == nil {
		return
	}
	wants := map[string]map[string]int64{
		"PodTopologySpread": f.spreadScores(w.Pod, feasible), "InterPodAffinity": f.affinityScores(w.Pod, feasible),
	}
	for i := range table.domains.plugins {
		p := &table.domains.plugins[i]
		if !p.topology.Scores {
			continue
		}
		for _, n := range feasible {
			slot, _ := s.SlotOf(n.Name)
			var got int64
			if raw := table.buckets.of[slot].topo[i]; raw != unscored {
				got = p.NormalizeDomains(raw, p.least, p.most)
			}
			if want := wants[p.Name()][n.Name]; got != want {
				t.Fatalf("%s: %s scores node %s %d, want %d", at, p.Name(), n.Name, got, want)
			}
		}
	}
}
