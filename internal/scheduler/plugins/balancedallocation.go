package plugins

import (
	"math"

	"skiff/internal/scheduler/framework"
)

// BalancedAllocation prefers nodes whose CPU and memory the pod leaves used in
// even proportion, so that neither is stranded.
type BalancedAllocation struct{}

// Name implements framework.Plugin.
func (BalancedAllocation) Name() string { return "NodeResourcesBalancedAllocation" }

// PreScore implements framework.PreScorer: a pod that requests nothing balances
// nothing, and would follow all others onto one node.
func (BalancedAllocation) PreScore(c *framework.Class) (any, *framework.Status) {
	if c.Requests.MilliCPU == 0 && c.Requests.Memory == 0 {
		return nil, skip
	}
	return nil, nil
}

// Score implements framework.Scorer: how much evener, or less even, the node
// becomes. 75 is no change, 50 the worst, 100 the best.
func (BalancedAllocation) Score(_ any, c *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	before := evenness(n.Requested.MilliCPU, n.Allocatable.MilliCPU, n.Requested.Memory, n.Allocatable.Memory)
	after := evenness(n.Requested.MilliCPU+c.Requests.MilliCPU, n.Allocatable.MilliCPU, n.Requested.Memory+c.Requests.Memory, n.Allocatable.Memory)
	return framework.MaxScore/2 + (framework.MaxScore/2+after-before)/2
}

// evenness is MaxScore less the standard deviation of the two used fractions.
func evenness(cpu, ofCPU, memory, ofMemory int64) int64 {
	if ofCPU <= 0 || ofMemory <= 0 {
		return framework.MaxScore
	}
	a := max(min(float64(cpu)/float64(ofCPU), 1), 0)
	b := max(min(float64(memory)/float64(ofMemory), 1), 0)
	return int64((1 - math.Abs((a-b)/2)) * framework.MaxScore)
}
