// Package plugins has the scheduler's plugins, one file each. A plugin judges a
// class of pods against a node (see package framework), says in upstream's words
// why it refuses, in one sentence for a person what would help, and which changes
// in the cluster may turn its refusal around.
package plugins

import "skiff/internal/scheduler/framework"

// Enabled is a plugin and the weight of its score.
type Enabled struct {
	framework.Plugin
	Weight int64
}

// All returns the default plugins, in the order in which they are asked.
func All() []Enabled {
	return []Enabled{
		{Plugin: SchedulingGates{}},
		{Plugin: NodeName{}},
		{Plugin: NodeUnschedulable{}},
		{Plugin: TaintToleration{}, Weight: 3},
		{Plugin: NodeAffinity{}, Weight: 2},
		{Plugin: NodePorts{}},
		{Plugin: NodeResourcesFit{}, Weight: 1},
		{Plugin: PodTopologySpread{}, Weight: 2},
		{Plugin: InterPodAffinity{}, Weight: 2},
		{Plugin: DefaultPreemption{}},
		{Plugin: BalancedAllocation{}, Weight: 1},
		{Plugin: ImageLocality{}, Weight: 1},
	}
}

// toGreatest scales so that the greatest value becomes the best score.
func toGreatest(raw, greatest int64) int64 {
	if greatest == 0 {
		return raw
	}
	return framework.MaxScore * raw / greatest
}
