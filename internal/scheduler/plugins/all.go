// Package plugins has the scheduler's plugins, one file each. A plugin judges a
// class of pods against a node (see package framework), says in upstream's words
// why it refuses, in one sentence for a person what would help, and which changes
// in the cluster may turn its refusal around.
package plugins

import (
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// Enabled is a plugin and the weight of its score.
type Enabled struct {
	framework.Plugin
	Weight int64
}

// Deps is what plugins need that read and write objects other than pods and nodes.
type Deps struct {
	Client    *client.Client
	Informers *client.Informers
	// Events records what such a plugin waits for.
	Events interface {
		Event(regarding, related *corev1.Pod, eventType, reason, action, note string)
	}
	Log *slog.Logger
	Now func() time.Time
}

// Live returns All and the plugins that read and write other objects.
func Live(d Deps) []Enabled {
	devices := NewDynamicResources(d)
	out := All()
	for i := range out {
		if _, ok := out[i].Plugin.(NodeResourcesFit); ok {
			out[i].Plugin = NodeResourcesFit{Devices: devices}
		}
	}
	// Claims are given back before victims are looked for.
	at := slices.IndexFunc(out, func(e Enabled) bool { return e.Name() == DefaultPreemption{}.Name() })
	return slices.Insert(out, at,
		Enabled{Plugin: NewVolumeBinding(d.Client, d.Informers)},
		Enabled{Plugin: devices, Weight: 2},
	)
}

// All returns the default plugins that go by pods and nodes alone, in the order in
// which they are asked.
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
