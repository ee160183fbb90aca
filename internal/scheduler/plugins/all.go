// Package plugins has the scheduler's plugins, one file each. A plugin judges a
// class of pods against a node (see package framework), says in upstream's words
// why it refuses, in one sentence for a person what would help, and which changes
// in the cluster may turn its refusal around.
package plugins

import (
	"log/slog"
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

// All returns those of the default plugins that go by pods and nodes alone, in the
// order in which they are asked.
func All() []Enabled { return defaults(&Factory{}, false) }

// Live returns the default plugins: upstream's, in its order.
func Live(d Deps) []Enabled { return defaults(NewFactory(d), true) }

func defaults(f *Factory, live bool) []Enabled {
	var out []Enabled
	for _, w := range Defaults {
		if !live && alive[w.Name] {
			continue
		}
		p, err := f.Make(w.Name, nil)
		if err != nil {
			panic(err) // of a name in this package
		}
		out = append(out, Enabled{Plugin: p, Weight: w.Weight})
	}
	return out
}

// toGreatest scales so that the greatest value becomes the best score.
func toGreatest(raw, greatest int64) int64 {
	if greatest == 0 {
		return raw
	}
	return framework.MaxScore * raw / greatest
}
