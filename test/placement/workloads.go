package main

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// workload is a cluster and what is to be placed on it: the same for every
// scheduler, since it follows from a seed.
type workload struct {
	name  string
	about string
	nodes []node
	// waves are placed one after the other; the next comes when the last rests.
	waves [][]*corev1.Pod
}

type node struct {
	name   string
	list   corev1.ResourceList
	labels map[string]string
	taints []corev1.Taint
}

// app is the label of pods that belong together; skew is measured over it.
const app = "app"

const gpu = corev1.ResourceName("nvidia.com/gpu")

func list(milli, mebi int64) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewMilliQuantity(milli, resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(mebi<<20, resource.BinarySI),
	}
}

// pool returns n nodes of a size, in zones by share: zones[i] of them in zone i.
func pool(prefix string, milli, mebi int64, zones ...int) []node {
	var out []node
	for z, n := range zones {
		for range n {
			l := list(milli, mebi)
			l[corev1.ResourcePods] = resource.MustParse("110")
			out = append(out, node{
				name: fmt.Sprintf("%s-%03d", prefix, len(out)), list: l,
				labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprint("zone-", z), "pool": prefix},
			})
		}
	}
	return out
}

func pod(name, of string, milli, mebi int64, with ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{app: of}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers:                    []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Requests: list(milli, mebi)}}},
		},
	}
	for _, f := range with {
		f(p)
	}
	return p
}

func spread(key string, skew int32, when corev1.UnsatisfiableConstraintAction) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: skew, TopologyKey: key, WhenUnsatisfiable: when, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels},
		})
	}
}

func affinity(p *corev1.Pod) *corev1.Affinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	return p.Spec.Affinity
}

func apart(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinity(p).PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}, TopologyKey: key,
		}}}
	}
}

func near(key, of string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinity(p).PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{app: of}}, TopologyKey: key,
		}}}
	}
}

func tolerates(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists})
	}
}

func (w workload) pods() int {
	n := 0
	for _, wave := range w.waves {
		n += len(wave)
	}
	return n
}

func workloads(variant uint64) []workload {
	return []workload{packed(variant), zoneSpread(), antiAffinity(), gpus(variant), priorities(variant), heterogeneous(variant)}
}

func packed(variant uint64) workload {
	r := rand.New(rand.NewPCG(1, variant))
	w := workload{name: "packed", about: "60 equal nodes, pods of 0.25 to 3 cores for 92 % of them", nodes: pool("n", 8000, 32<<10, 20, 20, 20)}
	var pods []*corev1.Pod
	for sum := int64(0); sum < 60*8000*92/100; {
		cpu := 250 * (1 + r.Int64N(12))
		pods = append(pods, pod(fmt.Sprintf("p-%04d", len(pods)), fmt.Sprint("app-", r.IntN(12)), cpu, 256*(1+r.Int64N(16))))
		sum += cpu
	}
	w.waves = [][]*corev1.Pod{pods}
	return w
}

func zoneSpread() workload {
	w := workload{name: "zone spread", about: "60 nodes in zones of 30, 20 and 10; apps spread over zones (required) and hosts (preferred)", nodes: pool("n", 8000, 32<<10, 30, 20, 10)}
	var pods []*corev1.Pod
	for a := range 6 {
		for i := range 50 {
			of := fmt.Sprint("app-", a)
			pods = append(pods, pod(fmt.Sprintf("%s-%02d", of, i), of, 500, 512, spread(corev1.LabelTopologyZone, 1, corev1.DoNotSchedule), spread(corev1.LabelHostname, 1, corev1.ScheduleAnyway)))
		}
	}
	w.waves = [][]*corev1.Pod{pods}
	return w
}

func antiAffinity() workload {
	w := workload{name: "anti-affinity", about: "40 nodes; databases one a host, as many as hosts; caches beside their database's zone", nodes: pool("n", 8000, 32<<10, 14, 13, 13)}
	var pods []*corev1.Pod
	for a := range 4 {
		of := fmt.Sprint("db-", a)
		for i := range 40 {
			pods = append(pods, pod(fmt.Sprintf("%s-%02d", of, i), of, 1000, 2048, apart(corev1.LabelHostname)))
		}
	}
	for a := range 4 {
		of := fmt.Sprint("cache-", a)
		for i := range 30 {
			pods = append(pods, pod(fmt.Sprintf("%s-%02d", of, i), of, 500, 1024, near(corev1.LabelTopologyZone, fmt.Sprint("db-", a))))
		}
	}
	w.waves = [][]*corev1.Pod{pods}
	return w
}

func gpus(variant uint64) workload {
	r := rand.New(rand.NewPCG(4, variant))
	w := workload{name: "taints and GPUs", about: "30 general nodes, 10 tainted with 8 GPUs each; 80 GPUs asked for", nodes: pool("cpu", 16000, 64<<10, 10, 10, 10)}
	special := pool("gpu", 32000, 128<<10, 5, 5)
	for i := range special {
		special[i].list[gpu] = resource.MustParse("8")
		special[i].taints = []corev1.Taint{{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule}}
	}
	w.nodes = append(w.nodes, special...)
	var pods []*corev1.Pod
	for i := range 250 {
		var with []func(*corev1.Pod)
		if i%10 == 0 {
			with = append(with, tolerates("gpu"))
		}
		pods = append(pods, pod(fmt.Sprintf("web-%03d", i), fmt.Sprint("web-", i%5), 250*(1+r.Int64N(8)), 512, with...))
	}
	for i := range 50 {
		n := []int64{1, 1, 1, 2, 3}[i%5]
		pods = append(pods, pod(fmt.Sprintf("train-%02d", i), "train", 1000*n, 4096, tolerates("gpu"), func(p *corev1.Pod) {
			q := corev1.ResourceList{gpu: *resource.NewQuantity(n, resource.DecimalSI)}
			p.Spec.Containers[0].Resources.Limits = q
			p.Spec.Containers[0].Resources.Requests[gpu] = q[gpu]
		}))
	}
	w.waves = [][]*corev1.Pod{pods}
	return w
}

func priorities(variant uint64) workload {
	r := rand.New(rand.NewPCG(5, variant))
	w := workload{name: "mixed priorities", about: "40 nodes filled with low priority, then a third of them wanted by high", nodes: pool("n", 8000, 32<<10, 14, 13, 13)}
	class := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.PriorityClassName = name }
	}
	var low, high []*corev1.Pod
	for i := range 40 * 8 {
		low = append(low, pod(fmt.Sprintf("low-%03d", i), fmt.Sprint("low-", i%8), 1000, 1024, class("low")))
	}
	for i := range 60 {
		high = append(high, pod(fmt.Sprintf("high-%02d", i), "high", 500*(1+r.Int64N(6)), 2048, class("high")))
	}
	w.waves = [][]*corev1.Pod{low, high}
	return w
}

func heterogeneous(variant uint64) workload {
	r := rand.New(rand.NewPCG(6, variant))
	w := workload{name: "large, heterogeneous", about: "100 nodes of 4 to 64 cores; 1,200 pods of 0.1 to 24 cores, constrained in every way"}
	w.nodes = append(w.nodes, pool("small", 4000, 16<<10, 14, 13, 13)...)
	w.nodes = append(w.nodes, pool("medium", 16000, 64<<10, 10, 10, 10)...)
	w.nodes = append(w.nodes, pool("large", 32000, 256<<10, 7, 7, 6)...)
	w.nodes = append(w.nodes, pool("huge", 64000, 512<<10, 4, 3, 3)...)
	var pods []*corev1.Pod
	for i := range 1200 {
		of := fmt.Sprint("app-", i%40)
		cpu, mem := 100*(1+r.Int64N(20)), 128*(1+r.Int64N(24))
		var with []func(*corev1.Pod)
		switch i % 40 {
		case 0, 1:
			cpu, mem = 4000+1000*r.Int64N(21), 8192
		case 2, 3, 4, 5:
			with = append(with, spread(corev1.LabelTopologyZone, 1, corev1.DoNotSchedule))
		case 6, 7:
			with = append(with, apart(corev1.LabelHostname))
		case 8, 9:
			with = append(with, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"pool": "medium"} })
		case 10, 11, 12:
			with = append(with, spread(corev1.LabelHostname, 2, corev1.ScheduleAnyway))
		}
		pods = append(pods, pod(fmt.Sprintf("%s-%04d", of, i), of, cpu, mem, with...))
	}
	w.waves = [][]*corev1.Pod{pods}
	return w
}
