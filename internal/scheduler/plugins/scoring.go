package plugins

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// scoring is how NodeResourcesFit prefers nodes where that was configured.
type scoring struct {
	resources []weighed
	// one is the score of one resource; zeroOut leaves resources out of the mean
	// that score 0, as RequestedToCapacityRatio does.
	one     func(requested, capacity int64) int64
	zeroOut bool
	round   bool
}

type weighed struct {
	name   corev1.ResourceName
	weight int64
}

func newScoring(s *config.ScoringStrategy) *scoring {
	out := &scoring{}
	for _, r := range s.Resources {
		out.resources = append(out.resources, weighed{corev1.ResourceName(r.Name), r.Weight})
	}
	switch s.Type {
	case config.MostAllocated:
		out.one = func(requested, capacity int64) int64 { return share(min(max(requested, 0), capacity), capacity) }
	case config.RequestedToCapacityRatio:
		out.one, out.zeroOut, out.round = ratio(s.RequestedToCapacityRatio.Shape), true, true
	default:
		out.one = leastAllocated
	}
	return out
}

// leastAllocated is the part that stays free, of MaxScore; 0 where it does not fit.
func leastAllocated(requested, capacity int64) int64 {
	if requested < 0 || requested > capacity {
		return 0
	}
	return share(capacity-requested, capacity)
}

// ratio is a broken line through points of utilization (percent) and score (0 to
// 10).
func ratio(shape []config.UtilizationShapePoint) func(requested, capacity int64) int64 {
	at := func(i int) (int64, int64) {
		return int64(shape[i].Utilization), int64(shape[i].Score) * (framework.MaxScore / 10)
	}
	return func(requested, capacity int64) int64 {
		used := int64(100)
		if requested <= capacity {
			used = share(max(requested, 0), capacity)
		}
		for i := range shape {
			x, y := at(i)
			if used > x {
				continue
			}
			if i == 0 {
				return y
			}
			fromX, fromY := at(i - 1)
			return fromY + (y-fromY)*(used-fromX)/(x-fromX)
		}
		_, last := at(len(shape) - 1)
		return last
	}
}

func (s *scoring) score(c *framework.Class, n *framework.Node) int64 {
	var sum, weights int64
	for _, r := range s.resources {
		used := n.Requested.Of(r.name)
		if r.name == corev1.ResourceCPU || r.name == corev1.ResourceMemory {
			used = n.NonZero.Of(r.name)
		}
		wanted, capacity := c.Scored.Of(r.name), n.Allocatable.Of(r.name)
		if !counts(r.name, wanted, capacity) {
			continue
		}
		v := s.one(used+wanted, capacity)
		if v <= 0 && s.zeroOut {
			continue
		}
		sum += v * r.weight
		weights += r.weight
	}
	switch {
	case weights == 0:
		return 0
	case s.round:
		return int64(math.Round(float64(sum) / float64(weights)))
	}
	return sum / weights
}

// counts tells whether a resource is looked at: the node has it and, but for CPU,
// memory and storage, the pod wants it.
func counts(name corev1.ResourceName, wanted, capacity int64) bool {
	if capacity <= 0 {
		return false
	}
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return true
	}
	return wanted != 0
}
