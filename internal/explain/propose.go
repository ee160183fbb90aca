package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"skiff/internal/api/explanation"
	"skiff/internal/scheduler"
	"skiff/internal/scheduler/framework"
)

// proposals are sets of changes, each of which meets the refusal of some node. They
// are guesses: the scheduler's core says which of them do.
func (m *sim) proposals(p *corev1.Pod, refusals []scheduler.Refusal) [][]change {
	by := map[string][]*framework.Node{}
	for _, r := range refusals {
		if n := m.s.Node(r.Node); n != nil {
			by[r.Plugin] = append(by[r.Plugin], n)
		}
	}
	var out [][]change
	one := func(cs ...change) {
		for _, c := range cs {
			out = append(out, []change{c})
		}
	}
	me := m.classes.Pod(p)
	pinned := pinnedTo(p) != ""
	for _, plugin := range slices.Sorted(maps.Keys(by)) {
		nodes := by[plugin]
		switch plugin {
		case "NodeResourcesFit":
			out = append(out, lessForNodes(p, me.Class, nodes)...)
		case "TaintToleration":
			one(taintChanges(p, nodes)...)
		case "NodeUnschedulable":
			one(uncordons(nodes)...)
		case "NodeAffinity":
			if !pinned {
				one(affinityChanges(p, nodes)...)
			}
		case "NodePorts":
			one(portChanges(p, me.Class, nodes)...)
		case "PodTopologySpread":
			one(spreadChanges(p, m)...)
		case "InterPodAffinity":
			one(podAffinityChanges(p, m)...)
		case volumeBinding, "VolumeRestrictions", "NodeVolumeLimits", "VolumeZone":
			out = append(out, m.volumeChanges(p, nodes)...)
		}
	}
	return out
}

// pinnedTo is the one node that the pod of a daemon set may run on, "" for others.
func pinnedTo(p *corev1.Pod) string {
	if o := metav1.GetControllerOfNoCopy(p); o == nil || o.Kind != "DaemonSet" {
		return ""
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, f := range t.MatchFields {
				if f.Key == metav1.ObjectNameField && len(f.Values) == 1 {
					return f.Values[0]
				}
			}
		}
	}
	return ""
}

// lessForNodes asks for less: for each set of resources that nodes lack, so little
// less that the best of them can take the pod.
func lessForNodes(p *corev1.Pod, c *framework.Class, nodes []*framework.Node) [][]change {
	type best struct {
		node *framework.Node
		loss float64
	}
	found := map[string]best{}
	for _, n := range nodes {
		names := lacking(c, n)
		if len(names) == 0 {
			continue // too many pods
		}
		loss, possible := 0.0, true
		for _, name := range names {
			have := left(c, n, name)
			possible = possible && have > 0
			loss += 1 - float64(have)/float64(c.Requests.Of(name))
		}
		k := fmt.Sprint(names)
		if old, ok := found[k]; possible && (!ok || loss < old.loss) {
			found[k] = best{n, loss}
		}
	}
	var out [][]change
	for _, k := range slices.Sorted(maps.Keys(found)) {
		n := found[k].node
		var set []change
		for _, name := range lacking(c, n) {
			ch, ok := less(p, c, name, left(c, n, name))
			if !ok {
				set = nil
				break
			}
			set = append(set, ch)
		}
		if set != nil {
			out = append(out, set)
		}
	}
	return out
}

func tolerates(p *corev1.Pod, t *corev1.Taint) bool {
	return slices.ContainsFunc(p.Spec.Tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, t, false) })
}

// against is the first taint of a node that keeps the pod away.
func against(p *corev1.Pod, n *corev1.Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		if t := &n.Spec.Taints[i]; t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(p, t) {
			return t
		}
	}
	return nil
}

func nodeRef(name string) *explanation.Reference {
	return &explanation.Reference{APIVersion: "v1", Kind: "Node", Name: name}
}

// taintChanges tolerate what is meant to keep pods away; where a taint says that a
// node is not well, it is the node that has to change.
func taintChanges(p *corev1.Pod, nodes []*framework.Node) []change {
	var out []change
	for _, n := range nodes {
		t := against(p, n.Obj)
		switch {
		case t == nil:
		case t.Key == corev1.TaintNodeUnschedulable:
			out = append(out, uncordons([]*framework.Node{n})...)
		case passing(t):
			next := n.Obj.DeepCopy()
			next.Spec.Taints = slices.DeleteFunc(next.Spec.Taints, func(t corev1.Taint) bool { return passing(&t) && t.Key != corev1.TaintNodeUnschedulable })
			out = append(out, change{
				key: "well " + n.Name, message: fmt.Sprintf("node %s is well again (%s)", n.Name, ailment(n.Obj, t)),
				nodes: []*corev1.Node{next}, target: nodeRef(n.Name), costly: true,
			})
		default:
			add := corev1.Toleration{Key: t.Key, Operator: corev1.TolerationOpEqual, Value: t.Value, Effect: t.Effect}
			if t.Value == "" {
				add.Operator = corev1.TolerationOpExists
			}
			out = append(out, change{
				key: "tolerate " + t.ToString(), message: "a toleration for " + t.ToString(),
				edit: func(s *corev1.PodSpec) { s.Tolerations = append(s.Tolerations, add) },
			})
		}
	}
	return distinct(out)
}

// ailment says what state of a node a taint stands for.
func ailment(n *corev1.Node, t *corev1.Taint) string {
	kinds := map[string]corev1.NodeConditionType{
		corev1.TaintNodeMemoryPressure: corev1.NodeMemoryPressure, corev1.TaintNodeDiskPressure: corev1.NodeDiskPressure,
		corev1.TaintNodePIDPressure: corev1.NodePIDPressure, corev1.TaintNodeNetworkUnavailable: corev1.NodeNetworkUnavailable,
	}
	kind, bad := kinds[t.Key], corev1.ConditionTrue
	if kind == "" {
		kind = corev1.NodeReady
	}
	for _, c := range n.Status.Conditions {
		if c.Type == kind && (kind == corev1.NodeReady) != (c.Status == bad) && c.Message != "" {
			return strings.TrimSuffix(c.Message, ".")
		}
	}
	return t.Key
}

// uncordons take the cordon off the nodes with most room.
func uncordons(nodes []*framework.Node) []change {
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b *framework.Node) int {
		return cmp.Or(cmp.Compare(b.Allocatable.MilliCPU-b.Requested.MilliCPU, a.Allocatable.MilliCPU-a.Requested.MilliCPU), cmp.Compare(a.Name, b.Name))
	})
	var out []change
	for _, n := range nodes[:min(len(nodes), 2)] {
		next := n.Obj.DeepCopy()
		next.Spec.Unschedulable = false
		next.Spec.Taints = slices.DeleteFunc(next.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnschedulable })
		out = append(out, change{
			key: "uncordon " + n.Name, message: "uncordon node " + n.Name, nodes: []*corev1.Node{next},
			target: nodeRef(n.Name), command: "kubectl uncordon " + n.Name,
		})
	}
	return out
}

// affinityChanges give up what the pod asks of its node, or give a node what it asks.
func affinityChanges(p *corev1.Pod, nodes []*framework.Node) []change {
	var out []change
	for _, n := range nodes {
		if missing := missingLabels(p, n.Obj); len(missing) > 0 {
			out = append(out, dropSelector(missing), label(n.Obj, missing))
			continue
		}
		out = append(out, dropTerms(p, n.Obj)...)
	}
	out = distinct(out)
	// A label on one node of many is enough to propose.
	labeled := 0
	return slices.DeleteFunc(out, func(c change) bool {
		if c.nodes == nil {
			return c.key == ""
		}
		labeled++
		return labeled > 3
	})
}

func dropSelector(missing map[string]string) change {
	return change{
		key: "selector " + pairs(missing), message: "no nodeSelector " + pairs(missing),
		edit: func(s *corev1.PodSpec) {
			for k := range missing {
				delete(s.NodeSelector, k)
			}
		},
	}
}

func pairs(m map[string]string) string {
	return strings.Join(each(slices.Sorted(maps.Keys(m)), func(k string) string { return k + "=" + m[k] }), ",")
}

// label is a node with labels that it lacks; the key is empty where they are not for
// people to set.
func label(n *corev1.Node, missing map[string]string) change {
	next := n.DeepCopy()
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	args := []string{"kubectl label node", n.Name}
	for _, k := range slices.Sorted(maps.Keys(missing)) {
		if k == corev1.LabelHostname || k == corev1.LabelOSStable || k == corev1.LabelArchStable {
			return change{}
		}
		next.Labels[k] = missing[k]
		args = append(args, k+"="+missing[k])
		if _, other := n.Labels[k]; other {
			args = append(args, "--overwrite")
		}
	}
	// Nodes that are alike are one proposal.
	return change{
		key: "label " + pairs(missing) + shape(n), message: fmt.Sprintf("the label %s on node %s", pairs(missing), n.Name),
		nodes: []*corev1.Node{next}, target: nodeRef(n.Name), command: strings.Join(args, " "),
	}
}

// dropTerms take those expressions out of the pod's required node affinity that a
// node does not match, from the term of which it misses fewest.
func dropTerms(p *corev1.Pod, n *corev1.Node) []change {
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	terms := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	term, missed := -1, []corev1.NodeSelectorRequirement(nil)
	for i := range terms {
		var now []corev1.NodeSelectorRequirement
		for _, e := range terms[i].MatchExpressions {
			one := &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{e}}}}
			if s, err := nodeaffinity.NewNodeSelector(one); err != nil || !s.Match(n) {
				now = append(now, e)
			}
		}
		if len(now) > 0 && (term < 0 || len(now) < len(missed)) {
			term, missed = i, now
		}
	}
	if term < 0 {
		return nil
	}
	texts := each(missed, requirement)
	drop := change{
		key: fmt.Sprint("term ", term, texts), message: "no required node affinity for " + and(texts),
		edit: func(s *corev1.PodSpec) {
			if s.Affinity == nil || s.Affinity.NodeAffinity == nil || s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil ||
				term >= len(s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms) {
				return
			}
			na := s.Affinity.NodeAffinity
			t := &na.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[term]
			t.MatchExpressions = slices.DeleteFunc(t.MatchExpressions, func(e corev1.NodeSelectorRequirement) bool { return slices.Contains(texts, requirement(e)) })
			if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
				// An empty term would match nothing; without it all nodes do.
				na.RequiredDuringSchedulingIgnoredDuringExecution = nil
			}
		},
	}
	labels := map[string]string{}
	for _, e := range missed {
		switch {
		case e.Operator == corev1.NodeSelectorOpIn && len(e.Values) > 0:
			labels[e.Key] = e.Values[0]
		default:
			return []change{drop}
		}
	}
	return []change{drop, label(n, labels)}
}

func requirement(e corev1.NodeSelectorRequirement) string {
	switch e.Operator {
	case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
		return e.Key + " " + string(e.Operator)
	case corev1.NodeSelectorOpIn:
		if len(e.Values) == 1 {
			return e.Key + "=" + e.Values[0]
		}
	}
	return fmt.Sprintf("%s %s [%s]", e.Key, e.Operator, strings.Join(e.Values, ","))
}

// portChanges give up a host port, or have the pod go that holds it.
func portChanges(p *corev1.Pod, c *framework.Class, nodes []*framework.Node) []change {
	var out []change
	for _, n := range nodes {
		for _, h := range c.HostPorts {
			if !n.PortTaken(h) {
				continue
			}
			if !p.Spec.HostNetwork {
				out = append(out, change{
					key: fmt.Sprint("port ", h), message: fmt.Sprintf("no host port %d/%s", h.Port, h.Protocol),
					edit: func(s *corev1.PodSpec) { dropPort(s, h) },
				})
			}
			if held := holder(n, h); held != nil {
				out = append(out, leaves(held))
			}
			break
		}
	}
	return distinct(out)
}

func dropPort(s *corev1.PodSpec, h framework.HostPort) {
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			for j := range list[i].Ports {
				if o := &list[i].Ports[j]; o.HostPort == h.Port && cmp.Or(o.Protocol, corev1.ProtocolTCP) == h.Protocol {
					o.HostPort = 0
				}
			}
		}
	}
}

// holder is the pod on a node that holds a host port.
func holder(n *framework.Node, h framework.HostPort) *corev1.Pod {
	for _, p := range n.Pods {
		if n.Without(p).PortTaken(h) {
			continue
		}
		return p.Pod
	}
	return nil
}

func leaves(p *corev1.Pod) change {
	return change{
		key: "gone " + string(p.UID), message: fmt.Sprintf("pod %s/%s leaves node %s", p.Namespace, p.Name, p.Spec.NodeName), costly: true,
		gone: []*corev1.Pod{p}, target: &explanation.Reference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name},
	}
}

// spreadChanges let the pods of a required constraint be less even: by the least
// larger maxSkew that does, and by making it a preference.
func spreadChanges(p *corev1.Pod, m *sim) []change {
	var out []change
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable != corev1.DoNotSchedule {
			continue
		}
		skewed := func(to int32) change {
			return change{
				key: fmt.Sprint("skew ", i), message: fmt.Sprintf("maxSkew %d instead of %d over %s", to, c.MaxSkew, c.TopologyKey),
				edit: spread(i, func(c *corev1.TopologySpreadConstraint) { c.MaxSkew = to }),
			}
		}
		most := int32(min(len(m.ahead)+m.s.NumPods()+1, 1<<20))
		if _, ok := m.place(p, []change{skewed(c.MaxSkew + most)}); ok {
			low, high := c.MaxSkew, c.MaxSkew+most // low does not do, high does
			for low+1 < high {
				mid := low + (high-low)/2
				if _, ok := m.place(p, []change{skewed(mid)}); ok {
					high = mid
				} else {
					low = mid
				}
			}
			out = append(out, skewed(high))
		}
		out = append(out, change{
			key: fmt.Sprint("spread ", i), message: fmt.Sprintf("whenUnsatisfiable: ScheduleAnyway for the spread over %s", c.TopologyKey),
			edit: spread(i, func(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway }),
		})
	}
	return out
}

func spread(i int, edit func(*corev1.TopologySpreadConstraint)) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		if i < len(s.TopologySpreadConstraints) {
			edit(&s.TopologySpreadConstraints[i])
		}
	}
}

// podAffinityChanges make required terms preferred, and have those pods go that keep
// the pod away.
func podAffinityChanges(p *corev1.Pod, m *sim) []change {
	var out []change
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			for i, t := range a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				out = append(out, change{
					key: fmt.Sprint("near ", i), message: fmt.Sprintf("affinity to %s by %s preferred instead of required", selects(&t), t.TopologyKey),
					edit: func(s *corev1.PodSpec) { prefer(s.Affinity, false, t, i) },
				})
			}
		}
		if a.PodAntiAffinity != nil {
			for i, t := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				out = append(out, change{
					key: fmt.Sprint("apart ", i), message: fmt.Sprintf("anti-affinity to %s by %s preferred instead of required", selects(&t), t.TopologyKey),
					edit: func(s *corev1.PodSpec) { prefer(s.Affinity, true, t, i) },
				})
			}
		}
	}
	for _, o := range m.unwelcoming(p) {
		out = append(out, leaves(o))
	}
	return out
}

// prefer makes a required term a preferred one. The template of a pod may say the
// same in other words (matchLabelKeys): then the place tells which it is.
func prefer(a *corev1.Affinity, anti bool, term corev1.PodAffinityTerm, i int) {
	if a == nil || anti && a.PodAntiAffinity == nil || !anti && a.PodAffinity == nil {
		return
	}
	var required *[]corev1.PodAffinityTerm
	var preferred *[]corev1.WeightedPodAffinityTerm
	if anti {
		required, preferred = &a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, &a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution
	} else {
		required, preferred = &a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, &a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution
	}
	at := slices.IndexFunc(*required, func(t corev1.PodAffinityTerm) bool { return equality.Semantic.DeepEqual(t, term) })
	if at < 0 && i < len(*required) && (*required)[i].TopologyKey == term.TopologyKey {
		at = i
	}
	if at < 0 {
		return
	}
	*preferred = append(*preferred, corev1.WeightedPodAffinityTerm{Weight: 100, PodAffinityTerm: (*required)[at]})
	*required = slices.Delete(slices.Clone(*required), at, at+1)
}

// selects says which pods a term is about.
func selects(t *corev1.PodAffinityTerm) string {
	s := metav1.FormatLabelSelector(t.LabelSelector)
	if len(t.Namespaces) > 0 {
		s += " in " + strings.Join(t.Namespaces, ",")
	}
	return s
}

// unwelcoming are the first pods whose anti-affinity keeps the pod away from them.
func (m *sim) unwelcoming(p *corev1.Pod) []*corev1.Pod {
	me := m.classes.Pod(p)
	ns := m.s.Namespace(p.Namespace)
	var out []*corev1.Pod
	for _, n := range m.s.All() {
		for _, o := range n.Pods {
			if o.Terms != nil && slices.ContainsFunc(o.Terms.Apart, func(t *framework.PodTerm) bool { return t.Matches(me.Kin, labels.Set(ns)) }) {
				out = append(out, o.Pod)
			}
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int { return cmp.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return out[:min(len(out), 3)]
}

// distinct drops changes that came before.
func distinct(cs []change) []change {
	seen := map[string]bool{}
	return slices.DeleteFunc(cs, func(c change) bool {
		again := seen[c.key]
		seen[c.key] = true
		return again
	})
}
