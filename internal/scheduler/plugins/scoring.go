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
		requested, capacity, counts := taken(r.name, c, n, true)
		if !counts {
			continue
		}
		v := s.one(requested, capacity)
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

// taken is what of a resource will be requested on a node with one more pod of a
// class, and what the node has. A resource counts that the node has and, but for
// CPU, memory and storage, the pod requests. assumed has containers that request no
// CPU or memory count for some.
func taken(name corev1.ResourceName, c *framework.Class, n *framework.Node, assumed bool) (requested, capacity int64, counts bool) {
	capacity = n.Allocatable.Of(name)
	if capacity <= 0 {
		return 0, 0, false
	}
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory:
		if assumed {
			return n.NonZero.Of(name) + c.NonZero.Of(name), capacity, true
		}
	case corev1.ResourceEphemeralStorage:
	default:
		if c.Requests.Of(name) == 0 {
			return 0, 0, false
		}
	}
	return n.Requested.Of(name) + c.Requests.Of(name), capacity, true
}
