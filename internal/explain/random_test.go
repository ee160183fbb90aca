package explain

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

func randomNode(r *rand.Rand, i int) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i), UID: types.UID(fmt.Sprintf("n%d", i)), Labels: map[string]string{"zone": fmt.Sprint(r.IntN(3)), "disk": []string{"ssd", "hdd"}[r.IntN(2)]}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(fmt.Sprint(1 + r.IntN(4))), corev1.ResourceMemory: resource.MustParse(fmt.Sprintf("%dGi", 1+r.IntN(8))),
		}},
	}
	nodeDefaults(n)
	switch r.IntN(5) {
	case 0:
		n.Spec.Unschedulable = true
	case 1:
		n.Spec.Taints = []corev1.Taint{{Key: "dedicated", Value: fmt.Sprint(r.IntN(2)), Effect: corev1.TaintEffectNoSchedule}}
	case 2:
		n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}}
	}
	return n
}

func randomPod(r *rand.Rand, name, node string) *corev1.Pod {
	app := fmt.Sprint(r.IntN(3))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "a", Image: "a"}, {Name: "b", Image: "b"}}},
	}
	podDefaults(p)
	p.Spec.Priority = new(int32)
	*p.Spec.Priority = int32(r.IntN(2)) * 100
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Resources.Requests = corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewMilliQuantity(int64(r.IntN(2000)), resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(int64(r.IntN(3<<30)), resource.BinarySI),
		}
	}
	if r.IntN(3) == 0 {
		p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		if r.IntN(2) == 0 {
			p.Spec.NodeSelector["gpu"] = "yes"
		}
	}
	if r.IntN(4) == 0 {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, ContainerPort: 80, Protocol: corev1.ProtocolTCP}}
	}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
	switch r.IntN(5) {
	case 0:
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector}}
	case 1:
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
			{TopologyKey: corev1.LabelHostname, LabelSelector: selector}, {TopologyKey: "zone", LabelSelector: selector},
		}}}
	case 2:
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: "zone", LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "none"}}}}}}
	}
	if r.IntN(6) == 0 {
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(int64(r.IntN(5000)), resource.DecimalSI)}}}}
	}
	return p
}

// In worlds at random: each set of changes that is found does, in a world made anew
// with them, and no smaller part of it does; and the search leaves no trace. There are
// no other pending pods: where those land that come first is the scheduler's to choose.
func TestRandomWorlds(t *testing.T) {
	rounds, solved, pending := 1500, 0, 0
	if testing.Short() {
		rounds = 200
	}
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		w := NewWorld(now)
		for i := range 1 + r.IntN(5) {
			n := randomNode(r, i)
			w.Put(n)
			for j := range r.IntN(3) {
				w.Put(randomPod(r, fmt.Sprintf("%s-%d", n.Name, j), n.Name))
			}
		}
		p := randomPod(r, "new", "")
		w.Put(p)
		m := newSim(w, p)
		if _, ok := m.place(p, nil); ok {
			continue
		}
		pending++
		found := m.search(p, nil, m.refusals(p, nil))
		if len(found) > 0 {
			solved++
		}
		for _, s := range found {
			if node, ok := anew(w, p, s.changes); !ok {
				t.Fatalf("seed %d: %v was to let it run on %s", seed, each(s.changes, func(c change) string { return c.message }), node)
			}
			for i := range s.changes {
				if rest := append(append([]change{}, s.changes[:i]...), s.changes[i+1:]...); len(rest) > 0 {
					if _, ok := anew(w, p, rest); ok {
						t.Fatalf("seed %d: of %v the last %d is not needed", seed, each(s.changes, func(c change) string { return c.message }), i)
					}
				}
			}
		}
		if _, ok := m.place(p, nil); ok {
			t.Fatalf("seed %d: the search has left something behind", seed)
		}
		var text strings.Builder
		if err := Text(&text, w.Explain(p), Style{Width: 80}); err != nil || strings.Contains(text.String(), "%!") {
			t.Fatalf("seed %d: %v\n%s", seed, err, text.String())
		}
	}
	if pending < rounds/3 || solved < pending*4/5 {
		t.Errorf("of %d worlds, %d pods are pending, and %d are helped", rounds, pending, solved)
	}
}

// anew asks a world in which the changes are made whether it places the pod.
func anew(w *World, p *corev1.Pod, cs []change) (string, bool) {
	next := NewWorld(w.Now)
	for _, list := range w.byType {
		next.Put(list...)
	}
	for _, c := range cs {
		for _, n := range c.nodes {
			next.Put(n)
		}
		for _, o := range c.pods {
			next.Put(o)
		}
		for _, o := range c.gone {
			next.Remove(o)
		}
	}
	q := changed(p, cs)
	next.Put(q)
	return newSim(next, q).place(q, nil)
}

// BenchmarkExplain: a pod that no node of a large cluster takes.
func BenchmarkExplain(b *testing.B) {
	const nodes, pods = 5000, 150_000
	r := rand.New(rand.NewPCG(1, 1))
	var objects []client.Object
	for i := range nodes {
		n := randomNode(r, i)
		n.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("4")
		objects = append(objects, n)
	}
	for i := range pods {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Namespace: "default", UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": fmt.Sprint(i % 100)}},
			Spec:       corev1.PodSpec{NodeName: fmt.Sprintf("n%d", i%nodes), Containers: []corev1.Container{{Name: "a", Image: "a"}}},
		}
		podDefaults(p)
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
		objects = append(objects, p)
	}
	p := randomPod(r, "new", "")
	p.Spec = corev1.PodSpec{SchedulerName: p.Spec.SchedulerName, Containers: []corev1.Container{{Name: "a", Image: "a", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}}}
	objects = append(objects, p)
	for b.Loop() {
		start := time.Now()
		w := NewWorld(now, objects...)
		read := time.Since(start)
		e := w.Explain(p)
		if len(e.Remedies) == 0 {
			b.Fatal(e.Summary)
		}
		b.ReportMetric(read.Seconds(), "world-s/op")
	}
}
