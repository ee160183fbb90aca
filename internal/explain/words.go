package explain

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/explanation"
	"skiff/internal/api/storage"
	"skiff/internal/scheduler"
	"skiff/internal/scheduler/framework"
)

// reason is the same for refusals that are told together.
func (m *sim) reason(p *corev1.Pod, r scheduler.Refusal) string {
	n := m.s.Node(r.Node)
	switch r.Plugin {
	case "NodeResourcesFit":
		return fmt.Sprint("fit ", lacking(m.classes.Pod(p).Class, n))
	case "TaintToleration":
		if t := against(p, n.Obj); t != nil {
			if passing(t) {
				return "taint " + t.Key + ailment(n.Obj, t)
			}
			return "taint " + t.ToString()
		}
	case "NodeAffinity":
		return "affinity " + pairs(missingLabels(p, n.Obj))
	case "NodePorts":
		if h, ok := takenPort(m.classes.Pod(p).Class, n); ok {
			return fmt.Sprint("port ", h)
		}
	}
	return r.Plugin + " " + strings.Join(r.Reasons, ", ")
}

func missingLabels(p *corev1.Pod, n *corev1.Node) map[string]string {
	out := map[string]string{}
	for k, v := range p.Spec.NodeSelector {
		if n.Labels[k] != v {
			out[k] = v
		}
	}
	return out
}

func takenPort(c *framework.Class, n *framework.Node) (framework.HostPort, bool) {
	for _, h := range c.HostPorts {
		if n.PortTaken(h) {
			return h, true
		}
	}
	return framework.HostPort{}, false
}

// sentence says to a person why the nodes of a group refuse; reasons are the plugin's.
func (m *sim) sentence(p *corev1.Pod, g *explanation.Cause, _ string, reasons []string) string {
	nodes := each(g.Nodes, m.s.Node)
	first := nodes[0]
	class := m.classes.Pod(p).Class
	switch g.Reason {
	case "NodeResourcesFit":
		return tooLittle(class, nodes)
	case "NodeUnschedulable":
		return "cordoned"
	case "TaintToleration":
		if t := against(p, first.Obj); t != nil && passing(t) {
			return "not well: " + ailment(first.Obj, t)
		} else if t != nil {
			return fmt.Sprintf("taint %s, which the pod does not tolerate", t.ToString())
		}
	case "NodeAffinity":
		return m.mismatch(p, first.Obj)
	case "NodePorts":
		if h, ok := takenPort(class, first); ok {
			if o := holder(first, h); o != nil && len(nodes) == 1 {
				return fmt.Sprintf("host port %d/%s is held by pod %s/%s", h.Port, h.Protocol, o.Namespace, o.Name)
			}
			return fmt.Sprintf("host port %d/%s is taken", h.Port, h.Protocol)
		}
	case "PodTopologySpread":
		return m.unevenly(p, nodes)
	case "InterPodAffinity":
		return m.company(p, first, reasons)
	case volumeBinding, "VolumeRestrictions", "NodeVolumeLimits", "VolumeZone":
		return m.noVolume(p, first.Obj, reasons)
	}
	return strings.Join(reasons, ", ")
}

func tooLittle(c *framework.Class, nodes []*framework.Node) string {
	names := lacking(c, nodes[0])
	if len(names) == 0 {
		most := nodes[0].Allocatable.Pods
		for _, n := range nodes {
			most = max(most, n.Allocatable.Pods)
		}
		return fmt.Sprintf("runs as many pods as it may (%d)", most)
	}
	var parts []string
	for _, name := range names {
		want := c.Requests.Of(name)
		best, largest := nodes[0], nodes[0]
		for _, n := range nodes {
			if left(c, n, name) > left(c, best, name) {
				best = n
			}
			if n.Allocatable.Of(name) > largest.Allocatable.Of(name) {
				largest = n
			}
		}
		switch {
		case largest.Allocatable.Of(name) == 0:
			parts = append(parts, fmt.Sprintf("no %s: the pod requests %s", called(name), rough(name, want)))
		case largest.Allocatable.Of(name) < want:
			parts = append(parts, fmt.Sprintf("too small: the pod requests %s %s, and %s has %s in all", rough(name, want), called(name), largest.Name, rough(name, largest.Allocatable.Of(name))))
		default:
			text := fmt.Sprintf("too little %s: the pod requests %s, %s of %s is left", called(name), rough(name, want), rough(name, left(c, best, name)), rough(name, best.Allocatable.Of(name)))
			if len(nodes) > 1 {
				text += " on " + best.Name
			}
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, "; ")
}

// mismatch says which labels are wanted, and what there is instead.
func (m *sim) mismatch(p *corev1.Pod, n *corev1.Node) string {
	missing := missingLabels(p, n)
	if len(missing) == 0 {
		if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			var terms []string
			for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
				terms = append(terms, and(each(append(slices.Clone(t.MatchExpressions), t.MatchFields...), requirement)))
			}
			return fmt.Sprintf("not as the node affinity requires: %s", strings.Join(terms, ", or "))
		}
		return "not as the node affinity requires"
	}
	text := fmt.Sprintf("not %s, as the nodeSelector asks", pairs(missing))
	if len(missing) > 1 {
		return text
	}
	for k := range missing {
		// A value that is written otherwise is the usual mistake.
		there := map[string]bool{}
		for _, o := range m.s.All() {
			if v, ok := o.Obj.Labels[k]; ok {
				there[k+"="+v] = true
			}
		}
		switch {
		case len(there) == 0:
			text += fmt.Sprintf("; no node has the label %s", k)
		case !there[k+"="+missing[k]]:
			text += "; there is " + few(sorted(there))
		}
	}
	return text
}

// unevenly says how uneven the pods of a constraint would be.
func (m *sim) unevenly(p *corev1.Pod, nodes []*framework.Node) string {
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable != corev1.DoNotSchedule {
			continue
		}
		if _, ok := nodes[0].Obj.Labels[c.TopologyKey]; !ok {
			return fmt.Sprintf("no label %s, by which the pod is spread", c.TopologyKey)
		}
	}
	for i := range p.Spec.TopologySpreadConstraints {
		c := &p.Spec.TopologySpreadConstraints[i]
		s, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
		if c.WhenUnsatisfiable != corev1.DoNotSchedule || err != nil {
			continue
		}
		counts := map[string]int{}
		for _, n := range m.s.All() {
			v, ok := n.Obj.Labels[c.TopologyKey]
			if !ok {
				continue
			}
			counts[v] += 0
			for _, o := range n.Pods {
				if o.Kin.Namespace == p.Namespace && o.DeletionTimestamp == nil && s.Matches(o.Kin.Labels) {
					counts[v]++
				}
			}
		}
		texts := each(sorted(counts), func(v string) string { return fmt.Sprintf("%s has %d", v, counts[v]) })
		return fmt.Sprintf("one more here would exceed maxSkew %d over %s (%s)", c.MaxSkew, c.TopologyKey, few(texts))
	}
	return "one more here would be spread too unevenly"
}

// company says which pods are missing, or not wanted beside.
func (m *sim) company(p *corev1.Pod, n *framework.Node, reasons []string) string {
	a := p.Spec.Affinity
	text := strings.Join(reasons, ", ")
	switch {
	case strings.Contains(text, "existing pods anti-affinity"):
		if others := m.unwelcoming(p); len(others) > 0 {
			return fmt.Sprintf("pod %s/%s keeps pods with these labels away", others[0].Namespace, others[0].Name)
		}
	case strings.Contains(text, "anti-affinity") && a != nil && a.PodAntiAffinity != nil:
		for _, t := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			return fmt.Sprintf("a pod is there already that it is to keep apart from (%s, by %s)", selects(&t), t.TopologyKey)
		}
	case a != nil && a.PodAffinity != nil:
		for _, t := range a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			if _, ok := n.Obj.Labels[t.TopologyKey]; !ok {
				return fmt.Sprintf("no label %s, by which it is to be near others", t.TopologyKey)
			}
		}
		for _, t := range a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			return fmt.Sprintf("no pod is there that it is to be near (%s, by %s)", selects(&t), t.TopologyKey)
		}
	}
	return text
}

func (w *World) claimsOf(p *corev1.Pod) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range p.Spec.Volumes {
		if c, ok := get[*corev1.PersistentVolumeClaim](w, p.Namespace, storage.ClaimOf(p, &p.Spec.Volumes[i])); ok {
			out = append(out, c)
		}
	}
	return out
}

// noVolume says which claim has no volume for the pod here.
func (m *sim) noVolume(p *corev1.Pod, n *corev1.Node, reasons []string) string {
	text := strings.Join(reasons, ", ")
	for _, c := range m.w.claimsOf(p) {
		switch {
		case strings.Contains(text, "unbound immediate") && !claimBound(c):
			return fmt.Sprintf("claim %s is not bound", c.Name)
		case strings.Contains(text, "available persistent volumes") && !claimBound(c):
			return fmt.Sprintf("no volume for claim %s", c.Name)
		case strings.Contains(text, "node affinity") && claimBound(c):
			if v, ok := get[*corev1.PersistentVolume](m.w, "", c.Spec.VolumeName); ok && !storage.Reaches(v, n) {
				return fmt.Sprintf("volume %s of claim %s is on other nodes", v.Name, c.Name)
			}
		}
	}
	if strings.HasPrefix(text, "persistentvolumeclaim ") {
		return strings.Replace(strings.Replace(strings.TrimPrefix(text, "persistentvolume"), "not found", "does not exist", 1), `"`, "", 2)
	}
	return text
}
