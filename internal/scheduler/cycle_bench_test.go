package scheduler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// benchNodes returns a snapshot of nodes in three zones.
func benchNodes(n int) *framework.Snapshot {
	s := framework.NewSnapshot()
	for i := range n {
		o := node(fmt.Sprintf("node-%d", i), "cpu", "32", "memory", "64Gi", "pods", "110")
		o.Labels["zone"] = fmt.Sprintf("z%d", i%3)
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
