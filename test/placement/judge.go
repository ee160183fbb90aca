package main

import (
	"math"

	corev1 "k8s.io/api/core/v1"
)

// result is what a placement is judged by.
type result struct {
	pods    int
	pending map[string]bool // pods without a node
	lost    int             // pods that were preempted
	used    float64         // nodes with pods
	skew    map[string]float64
	cpu     float64 // standard deviation of the share of a node's cores that is asked for, percent
	memory  float64
}

// without counts the pods that have no node here and have one there.
func (r result) without(there result) float64 {
	n := 0
	for name := range r.pending {
		if !there.pending[name] {
			n++
		}
	}
	return float64(n)
}

func judge(w workload, pods []*corev1.Pod) result {
	r := result{pods: w.pods(), pending: map[string]bool{}, skew: map[string]float64{}}
	cpu, memory, nodes := map[string]float64{}, map[string]float64{}, map[string]node{}
	for _, n := range w.nodes {
		nodes[n.name] = n
	}
	r.lost = r.pods - len(pods)
	counts := map[string]map[string]map[string]int{} // topology key, app, domain
	domain := func(key string, n node) string {
		if key == corev1.LabelHostname {
			return n.name
		}
		return n.labels[key]
	}
	for _, p := range pods {
		if p.Spec.NodeName == "" {
			r.pending[p.Name] = true
			continue
		}
		n := nodes[p.Spec.NodeName]
		req := p.Spec.Containers[0].Resources.Requests
		cpu[n.name] += float64(req.Cpu().MilliValue()) / float64(n.list.Cpu().MilliValue())
		memory[n.name] += float64(req.Memory().Value()) / float64(n.list.Memory().Value())
		// Skew is of what a constraint asks to spread.
		for _, t := range p.Spec.TopologySpreadConstraints {
			if counts[t.TopologyKey] == nil {
				counts[t.TopologyKey] = map[string]map[string]int{}
			}
			if counts[t.TopologyKey][p.Labels[app]] == nil {
				m := map[string]int{}
				for _, n := range w.nodes {
					m[domain(t.TopologyKey, n)] = 0
				}
				counts[t.TopologyKey][p.Labels[app]] = m
			}
			counts[t.TopologyKey][p.Labels[app]][domain(t.TopologyKey, n)]++
		}
	}
	for key, apps := range counts {
		for _, byDomain := range apps {
			least, most := math.MaxInt, 0
			for _, n := range byDomain {
				least, most = min(least, n), max(most, n)
			}
			r.skew[key] = max(r.skew[key], float64(most-least))
		}
	}
	r.used = float64(len(cpu))
	r.cpu, r.memory = deviation(w.nodes, cpu), deviation(w.nodes, memory)
	return r
}

// deviation is the standard deviation over nodes, in percent.
func deviation(nodes []node, share map[string]float64) float64 {
	mean, sum := 0.0, 0.0
	for _, n := range nodes {
		mean += share[n.name] / float64(len(nodes))
	}
	for _, n := range nodes {
		sum += (share[n.name] - mean) * (share[n.name] - mean)
	}
	return 100 * math.Sqrt(sum/float64(len(nodes)))
}
