// Package plugins has the scheduler's plugins, one file each. A plugin judges a
// class of pods against a node (see package framework), says in upstream's words
// why it refuses, in one sentence for a person what would help, and which changes
// in the cluster may turn its refusal around.
package plugins

import (
	"slices"

	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// Enabled is a plugin and the weight of its score.
type Enabled struct {
	framework.Plugin
	Weight int64
}

// All returns those of the default plugins that judge by nodes and pods alone, in the
// order in which they are asked.
func All() []Enabled {
	return []Enabled{
		{Plugin: SchedulingGates{}},
		{Plugin: NodeName{}},
		{Plugin: NodeUnschedulable{}},
		{Plugin: TaintToleration{}, Weight: 3},
		{Plugin: NodeAffinity{}, Weight: 2},
		{Plugin: NodePorts{}},
		{Plugin: NodeResourcesFit{}, Weight: 1},
		{Plugin: NewPodTopologySpread(&config.PodTopologySpreadArgs{}), Weight: 2},
		{Plugin: NewInterPodAffinity(&config.InterPodAffinityArgs{}), Weight: 2},
		{Plugin: &DefaultPreemption{least: leastCandidates, percent: percentCandidates}},
		{Plugin: BalancedAllocation{}, Weight: 1},
		{Plugin: ImageLocality{}, Weight: 1},
		{Plugin: NodeDeclaredFeatures{}},
	}
}

// Default returns the default plugins: upstream's, in its order.
func Default(c *client.Client, inf *client.Informers) []Enabled {
	s := NewStorage(inf)
	all := All()
	for i := range all {
		if all[i].Name() == "DefaultPreemption" {
			all[i].Plugin = NewDefaultPreemption(inf, &config.DefaultPreemptionArgs{})
		}
	}
	at := slices.IndexFunc(all, func(e Enabled) bool { return e.Name() == "PodTopologySpread" })
	return slices.Insert(all, at,
		Enabled{Plugin: NewVolumeRestrictions(s)},
		Enabled{Plugin: NewNodeVolumeLimits(s)},
		Enabled{Plugin: NewVolumeBinding(c, s, inf, &config.VolumeBindingArgs{})},
		Enabled{Plugin: NewVolumeZone(s)},
	)
}

// toGreatest scales so that the greatest value becomes the best score.
func toGreatest(raw, greatest int64) int64 {
	if greatest == 0 {
		return raw
	}
	return framework.MaxScore * raw / greatest
}
