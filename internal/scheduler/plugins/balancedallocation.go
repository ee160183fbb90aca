package plugins

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// BalancedAllocation prefers nodes whose resources the pod leaves used in even
// proportion, so that none is stranded. The zero value looks at CPU and memory.
type BalancedAllocation struct{ resources []corev1.ResourceName }

// NewBalancedAllocation returns the plugin with arguments that were defaulted and
// validated.
func NewBalancedAllocation(args *config.NodeResourcesBalancedAllocationArgs) BalancedAllocation {
	var b BalancedAllocation
	for _, r := range args.Resources {
		b.resources = append(b.resources, corev1.ResourceName(r.Name))
	}
	return b
}

var balanced = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}

func (b BalancedAllocation) over() []corev1.ResourceName {
	if b.resources == nil {
		return balanced
	}
	return b.resources
}

// Name implements framework.Plugin.
func (BalancedAllocation) Name() string { return "NodeResourcesBalancedAllocation" }

// PreScore implements framework.PreScorer: a pod that requests nothing balances
// nothing, and would follow all others onto one node.
func (b BalancedAllocation) PreScore(c *framework.Class) (any, *framework.Status) {
	for _, name := range b.over() {
		if c.Requests.Of(name) != 0 {
			return nil, nil
		}
	}
	return nil, skip
}

// Score implements framework.Scorer: how much evener, or less even, the node
// becomes. 75 is no change, 50 the worst, 100 the best.
func (b BalancedAllocation) Score(_ any, c *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	var before, after [8]float64
	was, will := before[:0], after[:0]
	for _, name := range b.over() {
		used, wanted, capacity := n.Requested.Of(name), c.Requests.Of(name), n.Allocatable.Of(name)
		if !counts(name, wanted, capacity) {
			continue
		}
		was = append(was, part(used, capacity))
		will = append(will, part(used+wanted, capacity))
	}
	return framework.MaxScore/2 + (framework.MaxScore/2+evenness(will)-evenness(was))/2
}

func part(of, whole int64) float64 { return max(min(float64(of)/float64(whole), 1), 0) }

// evenness is MaxScore less the standard deviation of the used fractions.
func evenness(used []float64) int64 {
	var deviation float64
	switch len(used) {
	case 0, 1:
	case 2:
		deviation = math.Abs((used[0] - used[1]) / 2)
	default:
		var mean, sum float64
		for _, u := range used {
			mean += u
		}
		mean /= float64(len(used))
		for _, u := range used {
			sum += (u - mean) * (u - mean)
		}
		deviation = math.Sqrt(sum / float64(len(used)))
	}
	return int64((1 - deviation) * framework.MaxScore)
}
