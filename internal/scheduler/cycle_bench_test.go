package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// benchNodes returns a snapshot of nodes in three zones.
func benchNodes(n int) *framework.Snapshot {
	s := framework.NewSnapshot()
	for i := range n {
		o := node(fmt.Sprintf("node-%d", i), "cpu", "32", "memory", "64Gi", "pods", "110")
		o.Labels["zone"] = fmt.Sprintf("z%d", i%3)
		o.Labels[corev1.LabelTopologyZone] = o.Labels["zone"]
		o.Labels["rack"] = fmt.Sprintf("r%d", i/20)
		s.SetNode(o)
	}
	return s
}

func benchCycle(b *testing.B, nodes, templates int, change func(i int, p *corev1.Pod)) {
	const pods = 10_000
	objects := make([]*corev1.Pod, pods)
	for i := range objects {
		objects[i] = pod(fmt.Sprintf("p%d", i), "cpu", fmt.Sprintf("%dm", 100+i%templates), "memory", "64Mi")
		if change != nil {
			change(i, objects[i])
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s := benchNodes(nodes)
		c := NewCycle(plugins.All(), 1)
		classes := framework.NewClasses()
		b.StartTimer()
		for i := 0; i < pods; i += maxBatch {
			batch := make([]*framework.Pod, 0, maxBatch)
			for _, p := range objects[i:min(i+maxBatch, pods)] {
				batch = append(batch, classes.Pod(p))
			}
			for _, d := range c.Schedule(s, batch) {
				if d.Failure != nil {
					b.Fatalf("%s: %s", d.Pod.Name, d.Failure.Message)
				}
			}
		}
	}
	b.ReportMetric(pods*float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}

func BenchmarkCycle(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("basic/%d", nodes), func(b *testing.B) { benchCycle(b, nodes, 1, nil) })
		b.Run(fmt.Sprintf("100templates/%d", nodes), func(b *testing.B) { benchCycle(b, nodes, 100, nil) })
		b.Run(fmt.Sprintf("affinity/%d", nodes), func(b *testing.B) {
			benchCycle(b, nodes, 1, func(_ int, p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
					RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"z1", "z2"}}},
					}}},
					PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 10, Preference: corev1.NodeSelectorTerm{
						MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"z2"}}},
					}}},
				}}
			})
		})
		app := map[string]string{"app": "web"}
		selector := &metav1.LabelSelector{MatchLabels: app}
		b.Run(fmt.Sprintf("taints/%d", nodes), func(b *testing.B) {
			benchCycle(b, nodes, 1, func(_ int, p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
			})
		})
		for name, key := range map[string]string{"zone": "zone", "rack": "rack", "host": corev1.LabelHostname} {
			for _, when := range []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway} {
				b.Run(fmt.Sprintf("spread-%s-%s/%d", name, when, nodes), func(b *testing.B) {
					benchCycle(b, nodes, 1, func(_ int, p *corev1.Pod) {
						p.Labels = app
						p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: when, LabelSelector: selector}}
					})
				})
			}
			b.Run(fmt.Sprintf("pod-affinity-%s/%d", name, nodes), func(b *testing.B) {
				benchCycle(b, nodes, 1, func(i int, p *corev1.Pod) {
					// A group of 100 fits on a host, a rack, a zone.
					p.Labels = map[string]string{"app": fmt.Sprintf("web-%d", i/100)}
					p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
						{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}},
					}}}
				})
			})
		}
		b.Run(fmt.Sprintf("pod-anti-affinity/%d", nodes), func(b *testing.B) {
			benchCycle(b, nodes, 1, func(i int, p *corev1.Pod) {
				// Groups of as many as there are nodes at most.
				p.Labels = map[string]string{"app": fmt.Sprintf("web-%d", i/nodes)}
				p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
					{TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}},
				}}}
			})
		})
		b.Run(fmt.Sprintf("pod-preferences/%d", nodes), func(b *testing.B) {
			benchCycle(b, nodes, 1, func(_ int, p *corev1.Pod) {
				p.Labels = app
				p.Spec.Affinity = &corev1.Affinity{
					PodAffinity: &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
						{Weight: 1, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: "zone", LabelSelector: selector}},
					}},
					PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
						{Weight: 1, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: corev1.LabelHostname, LabelSelector: selector}},
					}},
				}
			})
		})
		b.Run(fmt.Sprintf("own-labels/%d", nodes), func(b *testing.B) {
			// Every pod has a label of its own, as those of a StatefulSet have.
			benchCycle(b, nodes, 1, func(i int, p *corev1.Pod) {
				p.Labels = map[string]string{"app": "web", "pod-index": fmt.Sprint(i)}
				p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector}}
			})
		})
		b.Run(fmt.Sprintf("daemonset/%d", nodes), func(b *testing.B) {
			benchCycle(b, nodes, 1, func(i int, p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
					RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
						MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{fmt.Sprintf("node-%d", i%nodes)}}},
					}}},
				}}
			})
		})
	}
}

// BenchmarkRefused is a cycle of pods that fit nowhere, after one node changed.
func BenchmarkRefused(b *testing.B) {
	s, classes, c := benchNodes(1000), framework.NewClasses(), NewCycle(plugins.All(), 1)
	batch := make([]*framework.Pod, maxBatch)
	for i := range batch {
		batch[i] = classes.Pod(pod(fmt.Sprintf("p%d", i), "cpu", "33"))
	}
	for i := 0; b.Loop(); i++ {
		s.SetNode(node(fmt.Sprintf("node-%d", i%1000), "cpu", "32", "memory", "64Gi", "pods", "110"))
		for _, d := range c.Schedule(s, batch) {
			if d.Failure == nil {
				b.Fatal("placed")
			}
		}
	}
	b.ReportMetric(float64(maxBatch)*float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}

// BenchmarkPreemption: every pod must have one of four end, on nodes that are full.
func BenchmarkPreemption(b *testing.B) {
	for _, nodes := range []int{1000, 5000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), 1)
				for i := range nodes {
					name := fmt.Sprintf("node-%d", i)
					s.SetNode(node(name, "cpu", "4", "memory", "64Gi", "pods", "110"))
					for j := range 4 {
						s.SetPod(classes.Pod(withPriority(pod(fmt.Sprintf("low-%d-%d", i, j), "cpu", "900m", "memory", "500Mi"), 1)), name)
					}
				}
				pods := make([]*framework.Pod, nodes)
				for i := range pods {
					pods[i] = classes.Pod(withPriority(pod(fmt.Sprintf("high-%d", i), "cpu", "3", "memory", "500Mi"), 10))
				}
				b.StartTimer()
				for _, d := range c.Schedule(s, pods) {
					if d.Failure == nil || len(d.Failure.Victims) != 3 {
						b.Fatalf("%s: %+v", d.Pod.Name, d.Failure)
					}
				}
			}
			b.ReportMetric(float64(nodes*b.N)/b.Elapsed().Seconds(), "pods/s")
		})
	}
}
