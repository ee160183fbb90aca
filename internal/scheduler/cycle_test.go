package scheduler

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// randomNode and randomPod vary in everything that plugins look at.
func randomNode(r *rand.Rand, i int) *corev1.Node {
	n := node(fmt.Sprintf("n%d", i), "cpu", fmt.Sprint(1+r.IntN(8)), "memory", fmt.Sprintf("%dGi", 1+r.IntN(8)), "pods", fmt.Sprint(2+r.IntN(8)))
	n.Labels["zone"] = fmt.Sprintf("z%d", r.IntN(3))
	if r.IntN(5) > 0 {
		n.Labels[corev1.LabelHostname] = n.Name
	}
	if r.IntN(3) > 0 {
		n.Labels["rack"] = fmt.Sprintf("r%d", r.IntN(6))
	}
	if r.IntN(6) == 0 {
		delete(n.Labels, "zone")
	}
	n.Spec.Unschedulable = r.IntN(8) == 0
	if e := r.IntN(6); e < 3 {
		n.Spec.Taints = []corev1.Taint{{Key: "t", Value: "v", Effect: []corev1.TaintEffect{"NoSchedule", "PreferNoSchedule", "PreferNoSchedule"}[e]}}
	}
	if r.IntN(2) == 0 {
		n.Status.Images = []corev1.ContainerImage{{Names: []string{"app:latest"}, SizeBytes: int64(r.IntN(1000)) << 20}}
	}
	return n
}

func randomPod(r *rand.Rand, i int) *corev1.Pod {
	p := pod(fmt.Sprintf("p%d", i), "cpu", fmt.Sprintf("%dm", 250*r.IntN(8)), "memory", fmt.Sprintf("%dMi", 256*r.IntN(8)))
	if r.IntN(3) == 0 {
		p.Spec.NodeSelector = map[string]string{"zone": fmt.Sprintf("z%d", r.IntN(3))}
	}
	if r.IntN(3) == 0 {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "t", Operator: corev1.TolerationOpExists}}
	}
	if r.IntN(4) == 0 {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: int32(80 + r.IntN(2)), Protocol: corev1.ProtocolTCP}}
	}
	if r.IntN(3) == 0 {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: int32(1 + r.IntN(50)), Preference: corev1.NodeSelectorTerm{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{fmt.Sprintf("z%d", r.IntN(3))}}},
			}}},
		}}
	}
	randomTopology(r, p)
	return withPriority(p, int32(r.IntN(3)))
}

// randomTopology gives a pod labels, and perhaps constraints on the pods around it.
func randomTopology(r *rand.Rand, p *corev1.Pod) {
	p.Labels = map[string]string{"app": fmt.Sprintf("a%d", r.IntN(3)), "tier": fmt.Sprintf("t%d", r.IntN(2))}
	keys := []string{"zone", "rack", corev1.LabelHostname}
	selector := func() *metav1.LabelSelector {
		switch r.IntN(6) {
		case 0:
			return nil
		case 1:
			return &metav1.LabelSelector{}
		case 2:
			return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"t0"}}}}
		}
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("a%d", r.IntN(3))}}
	}
	term := func() corev1.PodAffinityTerm {
		t := corev1.PodAffinityTerm{TopologyKey: keys[r.IntN(3)], LabelSelector: selector()}
		switch r.IntN(4) {
		case 0:
			t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}}
		case 1:
			t.Namespaces = []string{"other"}
		}
		return t
	}
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if r.IntN(3) == 0 {
		p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{}
		if r.IntN(2) == 0 {
			p.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = []corev1.PodAffinityTerm{term()}
		} else {
			p.Spec.Affinity.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: int32(1 + r.IntN(100)), PodAffinityTerm: term()}}
		}
	}
	if r.IntN(3) == 0 {
		p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{}
		if r.IntN(2) == 0 {
			p.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = []corev1.PodAffinityTerm{term()}
		} else {
			p.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: int32(1 + r.IntN(100)), PodAffinityTerm: term()}}
		}
	}
	policies := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
	for range r.IntN(3) {
		c := corev1.TopologySpreadConstraint{
			MaxSkew: int32(1 + r.IntN(2)), TopologyKey: keys[r.IntN(3)], LabelSelector: selector(),
			WhenUnsatisfiable: []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}[r.IntN(2)],
		}
		if c.WhenUnsatisfiable == corev1.DoNotSchedule && r.IntN(3) == 0 {
			n := int32(1 + r.IntN(4))
			c.MinDomains = &n
		}
		if r.IntN(2) == 0 {
			c.NodeAffinityPolicy = &policies[r.IntN(2)]
		}
		if r.IntN(2) == 0 {
			c.NodeTaintsPolicy = &policies[r.IntN(2)]
		}
		if c.LabelSelector != nil && r.IntN(3) == 0 {
			c.MatchLabelKeys = []string{"tier", "absent"}
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}

// score is what a table said of a slot at its last decision, without the random part.
func (t *table) score(slot int) int64 { return t.fixed[slot] + t.common(t.buckets.of[slot]) }

// A table that followed the log says what a table made anew says, whatever
// happened; the pod goes to a best node; no node is over-committed.
func TestTablesFollow(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 0))
		s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), seed)
		s.SetNamespace("other", map[string]string{"team": "x"})
		templates := make([]*corev1.Pod, 6)
		for i := range templates {
			templates[i] = randomPod(r, i)
		}
		var placed []*framework.Pod
		for step := range 400 {
			p := templates[r.IntN(len(templates))].DeepCopy()
			p.Name, p.UID = fmt.Sprintf("p%d", step), types.UID(fmt.Sprintf("u%d", step))
			if r.IntN(4) == 0 {
				p.Namespace = "other"
			}
			switch r.IntN(9) {
			case 8:
				if len(placed) > 0 {
					// Relabeled, or its end begins.
					o := placed[r.IntN(len(placed))]
					_, at, _ := s.Placed(o.UID)
					changed := o.Pod.DeepCopy()
					if r.IntN(2) == 0 {
						changed.DeletionTimestamp = &metav1.Time{}
					} else {
						changed.Labels["app"] = fmt.Sprintf("a%d", r.IntN(3))
					}
					s.SetPod(classes.Pod(changed), at)
				} else {
					s.SetNamespace("other", map[string]string{"team": fmt.Sprint(r.IntN(2))})
				}
			case 0, 1:
				s.SetNode(randomNode(r, r.IntN(12)))
			case 2:
				if r.IntN(3) == 0 {
					s.RemoveNode(fmt.Sprintf("n%d", r.IntN(12)))
				}
			case 3:
				if len(placed) > 0 {
					i := r.IntN(len(placed))
					s.RemovePod(placed[i].UID)
					placed = append(placed[:i], placed[i+1:]...)
				}
			case 4:
				p.UID = "waiting"
				s.Nominate(classes.Pod(p), fmt.Sprintf("n%d", r.IntN(12)))
			default:
				wrapped := classes.Pod(p)
				var fresh *table
				best, scores := -1, map[int]int64{}
				if s.NumNodes() > 0 {
					fresh = c.newTable(s.Subject(wrapped), s)
					fresh.refresh(c, s)
					best, _ = fresh.best()
					for slot := range s.Slots() {
						if fresh.statusOf(slot) == nil {
							scores[slot] = fresh.score(slot)
						}
					}
					kept := c.table(s, s.Subject(wrapped))
					kept.refresh(c, s)
					kept.best()
					compareTables(t, seed, step, s, kept, fresh)
				}
				d := c.Schedule(s, []*framework.Pod{wrapped})[0]
				if d.Failure != nil {
					if d.Failure.Message == "" {
						t.Fatalf("seed %d step %d: no explanation", seed, step)
					}
					if best >= 0 {
						t.Fatalf("seed %d step %d: refused, and %s could take it", seed, step, s.At(best).Name)
					}
					continue
				}
				placed = append(placed, wrapped)
				slot, _ := s.SlotOf(d.Node)
				if scores[slot] != scores[best] {
					t.Fatalf("seed %d step %d: %s was chosen, %s is better", seed, step, d.Node, s.At(best).Name)
				}
				checkNode(t, s.Node(d.Node), wrapped)
			}
		}
	}
}

func compareTables(t *testing.T, seed uint64, step int, s *framework.Snapshot, kept, fresh *table) {
	t.Helper()
	for slot := range s.Slots() {
		a, b := kept.statusOf(slot), fresh.statusOf(slot)
		if (a == nil) != (b == nil) || a != nil && fmt.Sprint(a.Reasons) != fmt.Sprint(b.Reasons) {
			t.Fatalf("seed %d step %d slot %d: followed %+v, anew %+v", seed, step, slot, a, b)
		}
		if a == nil && kept.score(slot) != fresh.score(slot) {
			t.Fatalf("seed %d step %d slot %d: score followed %d, anew %d", seed, step, slot, kept.score(slot), fresh.score(slot))
		}
	}
}

// checkNode tells whether a node that just took a pod holds more than it has of
// what the pod asked for, and whether what it counts is what its pods sum up to.
func checkNode(t *testing.T, n *framework.Node, took *framework.Pod) {
	t.Helper()
	var cpu, memory int64
	ports := map[framework.HostPort]string{}
	for _, p := range n.Pods {
		cpu += p.Class.Requests.MilliCPU
		memory += p.Class.Requests.Memory
		for _, h := range p.Class.HostPorts {
			if other, taken := ports[h]; taken {
				t.Fatalf("node %s: %s and %s share port %d", n.Name, other, p.Name, h.Port)
			}
			ports[h] = p.Name
		}
	}
	if cpu != n.Requested.MilliCPU || memory != n.Requested.Memory {
		t.Fatalf("node %s counts %+v, its pods request %dm and %d", n.Name, n.Requested, cpu, memory)
	}
	want, have := &took.Class.Requests, &n.Allocatable
	if want.MilliCPU > 0 && cpu > have.MilliCPU || want.Memory > 0 && memory > have.Memory || int64(len(n.Pods)) > have.Pods {
		t.Fatalf("node %s is over-committed: %dm of %dm, %d of %d, %d of %d pods", n.Name, cpu, have.MilliCPU, memory, have.Memory, len(n.Pods), have.Pods)
	}
}

// The same seed decides the same, another seed chooses other nodes among equals.
func TestDeterministic(t *testing.T) {
	decide := func(seed uint64) string {
		r := rand.New(rand.NewPCG(7, 7))
		s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), seed)
		for i := range 20 {
			s.SetNode(node(fmt.Sprintf("n%d", i)))
		}
		var batch []*framework.Pod
		for i := range 60 {
			batch = append(batch, classes.Pod(randomPod(r, i)))
		}
		out := ""
		for _, d := range c.Schedule(s, batch) {
			out += d.Pod.Name + "=" + d.Node + " "
			if d.Failure != nil {
				out += d.Failure.Message + " "
			}
		}
		return out
	}
	if a, b := decide(1), decide(1); a != b {
		t.Errorf("one seed, two outcomes:\n%s\n%s", a, b)
	}
	if decide(1) == decide(2) {
		t.Error("two seeds chose the same among equals, everywhere")
	}
}

// What is done to a fork does not show in the snapshot that it was made from,
// and the other way round.
func TestFork(t *testing.T) {
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	s.SetNode(node("a"))
	s.SetNode(node("b"))
	s.SetPod(classes.Pod(pod("p", "cpu", "1")), "a")
	f := s.Fork()
	f.SetPod(classes.Pod(pod("q", "cpu", "2")), "a")
	f.RemoveNode("b")
	s.RemovePod("pod-p")
	if n := s.Node("a"); n.Requested.MilliCPU != 0 || s.NumNodes() != 2 {
		t.Errorf("origin: %+v, %d nodes", n.Requested, s.NumNodes())
	}
	if n := f.Node("a"); n.Requested.MilliCPU != 3000 || f.NumNodes() != 1 {
		t.Errorf("fork: %+v, %d nodes", n.Requested, f.NumNodes())
	}
}

// A pod resized in place counts with the greater of what is wished and what it has.
func TestResizedPod(t *testing.T) {
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	s.SetNode(node("a"))
	p := on(pod("p", "cpu", "1"), "a")
	s.SetPod(classes.Pod(p), "a")
	p = p.DeepCopy()
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", AllocatedResources: list("cpu", "3"), Resources: &corev1.ResourceRequirements{Requests: list("cpu", "2")}}}
	if got := s.SetPod(classes.Pod(p), "a"); got != framework.PodShrunk {
		t.Errorf("a resize is change %b", got)
	}
	if got := s.Node("a").Requested.MilliCPU; got != 3000 {
		t.Errorf("counts %dm, want 3000m", got)
	}
	p = p.DeepCopy()
	p.Status.ContainerStatuses[0].AllocatedResources = list("cpu", "1000m")
	p.Status.ContainerStatuses[0].Resources.Requests = list("cpu", "1")
	s.SetPod(classes.Pod(p), "a")
	if got := s.Node("a").Requested.MilliCPU; got != 1000 {
		t.Errorf("counts %dm when the resize is done, want 1000m", got)
	}
}

// A refusal by Reserve or Permit undoes the decision.
func TestReserveAndPermit(t *testing.T) {
	v := &veto{}
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	c := NewCycle(append(plugins.All(), plugins.Enabled{Plugin: v}), 1)
	s.SetNode(node("a"))
	d := c.Schedule(s, []*framework.Pod{classes.Pod(pod("p"))})[0]
	if d.Failure == nil || d.Failure.Message != "0/1 nodes are available: 1 not today." || len(d.Failure.Plugins) != 1 || d.Failure.Plugins[0] != "Veto" {
		t.Fatalf("decision %+v", d.Failure)
	}
	if s.NumPods() != 0 || v.reserved != 0 {
		t.Fatalf("%d pods placed, %d reserved", s.NumPods(), v.reserved)
	}
	v.allow = true
	p := classes.Pod(pod("p"))
	if d = c.Schedule(s, []*framework.Pod{p})[0]; d.Node != "a" || v.reserved != 1 {
		t.Fatalf("decision %+v, %d reserved", d, v.reserved)
	}
	c.Undo(s, p, "a")
	if s.NumPods() != 0 || v.reserved != 0 {
		t.Fatalf("after Undo: %d pods placed, %d reserved", s.NumPods(), v.reserved)
	}
}

type veto struct {
	allow    bool
	reserved int
}

func (*veto) Name() string { return "Veto" }

func (v *veto) Reserve(*framework.Pod, *framework.Node) *framework.Status { v.reserved++; return nil }

func (v *veto) Unreserve(*framework.Pod, *framework.Node) { v.reserved-- }

func (v *veto) Permit(*framework.Pod, *framework.Node) *framework.Status {
	if v.allow {
		return nil
	}
	return &framework.Status{Code: framework.Unschedulable, Plugin: "Veto", Reasons: []string{"not today"}}
}
