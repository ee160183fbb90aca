package schedule

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// source makes nodes and pods that use what scheduling knows, often enough of the same
// few labels, keys and sizes that much of it meets.
type source struct{ *rand.Rand }

func pick[T any](r source, of ...T) T { return of[r.IntN(len(of))] }

// one in n.
func (r source) one(n int) bool { return r.IntN(n) == 0 }

func amounts(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func (r source) node(i int) *corev1.Node {
	name := fmt.Sprintf("n%d", i)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{corev1.LabelHostname: name}}}
	if !r.one(6) {
		n.Labels[corev1.LabelTopologyZone] = pick(r, "z1", "z2", "z3")
	}
	if !r.one(4) {
		n.Labels["disk"] = pick(r, "ssd", "hdd")
	}
	if r.one(3) {
		n.Labels["cores"] = pick(r, "8", "16", "x")
	}
	n.Status.Allocatable = amounts("cpu", pick(r, "2", "4", "8"), "memory", pick(r, "4Gi", "8Gi", "16Gi"), "pods", pick(r, "3", "110"), "ephemeral-storage", "10Gi")
	if r.one(3) {
		n.Status.Allocatable["x.io/gpu"] = resource.MustParse(pick(r, "1", "4"))
	}
	n.Status.Capacity = n.Status.Allocatable
	n.Spec.Unschedulable = r.one(12)
	for range r.IntN(3) {
		if r.one(3) {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{
				Key: pick(r, "dedicated", "slow"), Value: pick(r, "", "a", "b"),
				Effect: pick(r, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute),
			})
		}
	}
	for _, image := range []string{"app:1", "app:2", "big:latest"} {
		if r.one(3) {
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{image}, SizeBytes: int64(1+r.IntN(1500)) << 20})
		}
	}
	return n
}

func (r source) requests() corev1.ResourceList {
	l := corev1.ResourceList{}
	if !r.one(4) {
		l["cpu"] = resource.MustParse(pick(r, "0", "100m", "500m", "1", "3"))
	}
	if !r.one(4) {
		l["memory"] = resource.MustParse(pick(r, "0", "128Mi", "1Gi", "3Gi"))
	}
	if r.one(6) {
		l["ephemeral-storage"] = resource.MustParse(pick(r, "1Gi", "6Gi"))
	}
	if r.one(6) {
		l["x.io/gpu"] = resource.MustParse(pick(r, "1", "2"))
	}
	return l
}

func (r source) labels() map[string]string {
	l := map[string]string{}
	if !r.one(5) {
		l["app"] = pick(r, "web", "db")
	}
	if r.one(2) {
		l["tier"] = pick(r, "1", "2")
	}
	return l
}

func (r source) selector() *metav1.LabelSelector {
	switch r.IntN(5) {
	case 0:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "db"}}}}
	case 1:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpDoesNotExist}}}
	case 2:
		return pick(r, nil, &metav1.LabelSelector{})
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": pick(r, "web", "db")}}
}

func (r source) key() string {
	return pick(r, corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyZone, "disk")
}

func (r source) term() corev1.PodAffinityTerm {
	t := corev1.PodAffinityTerm{TopologyKey: r.key(), LabelSelector: r.selector()}
	switch r.IntN(5) {
	case 0:
		t.Namespaces = []string{pick(r, "default", "other")}
	case 1:
		t.NamespaceSelector = pick(r, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}})
	}
	return t
}

func (r source) nodeTerm() corev1.NodeSelectorTerm {
	t := corev1.NodeSelectorTerm{}
	switch r.IntN(5) {
	case 0:
		t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: "cores", Operator: pick(r, corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt), Values: []string{"10"}})
	case 1:
		t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: "disk", Operator: pick(r, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist)})
	case 2:
		t.MatchFields = append(t.MatchFields, corev1.NodeSelectorRequirement{Key: "metadata.name", Operator: pick(r, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn), Values: []string{"n1", "n2"}[:1+r.IntN(1)]})
	default:
		t.MatchExpressions = append(t.MatchExpressions, corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: pick(r, corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn), Values: []string{pick(r, "z1", "z2")}})
	}
	return t
}

func (r source) affinity() *corev1.Affinity {
	a := &corev1.Affinity{}
	if r.one(3) {
		a.NodeAffinity = &corev1.NodeAffinity{}
		if r.one(2) {
			a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{r.nodeTerm(), r.nodeTerm()}[:1+r.IntN(2)]}
		}
		for range r.IntN(3) {
			a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution = append(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution, corev1.PreferredSchedulingTerm{Weight: int32(1 + r.IntN(100)), Preference: r.nodeTerm()})
		}
	}
	weighted := func() (out []corev1.WeightedPodAffinityTerm) {
		for range r.IntN(3) {
			out = append(out, corev1.WeightedPodAffinityTerm{Weight: int32(1 + r.IntN(100)), PodAffinityTerm: r.term()})
		}
		return out
	}
	required := func() (out []corev1.PodAffinityTerm) {
		for range r.IntN(3) {
			out = append(out, r.term())
		}
		return out
	}
	if r.one(3) {
		a.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted()}
		if r.one(3) {
			a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = required()
		}
	}
	if r.one(3) {
		a.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted()}
		if r.one(2) {
			a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = required()
		}
	}
	return a
}

func (r source) spread() (out []corev1.TopologySpreadConstraint) {
	for range 1 + r.IntN(2) {
		c := corev1.TopologySpreadConstraint{
			TopologyKey: r.key(), MaxSkew: int32(1 + r.IntN(2)), LabelSelector: r.selector(),
			WhenUnsatisfiable: pick(r, corev1.DoNotSchedule, corev1.ScheduleAnyway),
		}
		if c.LabelSelector == nil {
			c.LabelSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
		}
		if r.one(3) && c.WhenUnsatisfiable == corev1.DoNotSchedule {
			c.MinDomains = ptr.To(int32(1 + r.IntN(4)))
		}
		if r.one(3) {
			c.NodeAffinityPolicy = ptr.To(pick(r, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
		}
		if r.one(3) {
			c.NodeTaintsPolicy = ptr.To(pick(r, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore))
		}
		if r.one(4) {
			c.MatchLabelKeys = []string{"tier"}
		}
		out = append(out, c)
	}
	return out
}

func (r source) pod(i int) *corev1.Pod {
	name := fmt.Sprintf("p%d", i)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, "default", "default", "other"), Name: name, UID: types.UID(name), Labels: r.labels()}}
	s := &p.Spec
	s.SchedulerName = corev1.DefaultSchedulerName
	for j := range 1 + r.IntN(2) {
		c := corev1.Container{Name: fmt.Sprintf("c%d", j), Image: pick(r, "app:1", "app:2", "big", "none"), Resources: corev1.ResourceRequirements{Requests: r.requests()}}
		if r.one(8) {
			port := int32(8000 + r.IntN(2))
			c.Ports = append(c.Ports, corev1.ContainerPort{HostPort: port, ContainerPort: port, Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP), HostIP: pick(r, "", "10.0.0.1", "0.0.0.0")})
		}
		s.Containers = append(s.Containers, c)
	}
	for j := range 2 {
		if r.one(6) {
			c := corev1.Container{Name: fmt.Sprintf("i%d", j), Image: "app:1", Resources: corev1.ResourceRequirements{Requests: r.requests()}}
			if r.one(2) {
				c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
			}
			s.InitContainers = append(s.InitContainers, c)
		}
	}
	if r.one(10) {
		s.Overhead = amounts("cpu", "250m", "memory", "64Mi")
	}
	if r.one(10) {
		s.Resources = &corev1.ResourceRequirements{Requests: amounts("cpu", pick(r, "1", "2"))}
	}
	if r.one(5) {
		s.NodeSelector = map[string]string{"disk": pick(r, "ssd", "hdd")}
	}
	for range 2 {
		if r.one(3) {
			t := corev1.Toleration{Key: pick(r, "dedicated", "slow"), Operator: pick(r, corev1.TolerationOpExists, corev1.TolerationOpEqual), Effect: pick(r, "", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)}
			if t.Operator == corev1.TolerationOpEqual {
				t.Value = pick(r, "", "a", "b")
			}
			s.Tolerations = append(s.Tolerations, t)
		}
	}
	if r.one(3) {
		s.Affinity = r.affinity()
	}
	if r.one(3) {
		s.TopologySpreadConstraints = r.spread()
	}
	return p
}
