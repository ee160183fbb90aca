package plugins

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/scheduler/framework"
)

// Profile is which plugins act at which extension points, in order, for the pods of
// one schedulerName.
type Profile struct {
	Name string
	// All has every plugin once; its weights mean nothing.
	All []Enabled

	PreEnqueue, PreFilter, Filter, PostFilter, Score, Reserve, Permit, PreBind []Enabled
}

// ProfileOf is a profile whose plugins act wherever they can.
func ProfileOf(name string, all []Enabled) Profile {
	return Profile{
		Name: name, All: all,
		PreEnqueue: all, PreFilter: all, Filter: all, PostFilter: all, Score: all, Reserve: all, Permit: all, PreBind: all,
	}
}

// point is an extension point: what upstream calls the interface, who acts there, and
// what a configuration says of it.
type point struct {
	name string
	acts func(framework.Plugin) bool
	set  *configv1.PluginSet
	into *[]Enabled
}

func is[T any](p framework.Plugin) bool { _, ok := p.(T); return ok }

func judges[T any](p framework.Plugin) bool { return is[T](p) || is[framework.Topological](p) }

func never(framework.Plugin) bool { return false }

func (p *Profile) points(c *configv1.Plugins) []point {
	var nobody []Enabled
	return []point{
		{"PreEnqueuePlugin", is[framework.PreEnqueuer], &c.PreEnqueue, &p.PreEnqueue},
		{"QueueSortPlugin", is[PrioritySort], &c.QueueSort, &nobody},
		{"PreFilterPlugin", judges[framework.Filterer], &c.PreFilter, &p.PreFilter},
		{"FilterPlugin", judges[framework.Filterer], &c.Filter, &p.Filter},
		{"PostFilterPlugin", is[framework.PostFilterer], &c.PostFilter, &p.PostFilter},
		{"PreScorePlugin", judges[framework.Scorer], &c.PreScore, &nobody},
		{"ScorePlugin", judges[framework.Scorer], &c.Score, &p.Score},
		{"ReservePlugin", is[framework.Reserver], &c.Reserve, &p.Reserve},
		{"PermitPlugin", is[framework.Permitter], &c.Permit, &p.Permit},
		{"PreBindPlugin", is[framework.PreBinder], &c.PreBind, &p.PreBind},
		{"BindPlugin", is[DefaultBinder], &c.Bind, &nobody},
		{"PostBindPlugin", never, &c.PostBind, &nobody},
	}
}

// Profile makes the plugins of a defaulted profile.
func (f *Factory) Profile(c *configv1.KubeSchedulerProfile) (Profile, error) {
	out := Profile{Name: *c.SchedulerName}
	args := map[string]runtime.Object{}
	for _, pc := range c.PluginConfig {
		args[pc.Name] = pc.Args.Object
	}
	made := map[string]framework.Plugin{}
	points := out.points(c.Plugins)
	sets := []*configv1.PluginSet{&c.Plugins.MultiPoint}
	for _, p := range points {
		sets = append(sets, p.set)
	}
	for _, set := range sets {
		for _, e := range set.Enabled {
			if made[e.Name] != nil || !Known(e.Name) {
				continue
			}
			p, err := f.Make(e.Name, args[e.Name])
			if err != nil {
				return out, fmt.Errorf("initializing plugin %q: %w", e.Name, err)
			}
			made[e.Name] = p
			out.All = append(out.All, Enabled{Plugin: p})
		}
	}
	for _, p := range points {
		list, err := p.enabled(&c.Plugins.MultiPoint, made)
		if err != nil {
			return out, err
		}
		switch {
		case p.name == "QueueSortPlugin" && len(list) != 1:
			return out, fmt.Errorf("only one queue sort plugin required for profile with scheduler name %q, but got %d", out.Name, len(list))
		case p.name == "BindPlugin" && len(list) == 0:
			return out, fmt.Errorf("at least one bind plugin is needed for profile with scheduler name %q", out.Name)
		}
		*p.into = list
	}
	return out, nil
}

// enabled are the plugins that act at a point: first those of multiPoint that the
// point itself names, as it orders them, then the rest of multiPoint, then the rest of
// the point.
func (p point) enabled(multi *configv1.PluginSet, made map[string]framework.Plugin) ([]Enabled, error) {
	var own []configv1.Plugin
	for _, e := range p.set.Enabled {
		pl := made[e.Name]
		switch {
		case pl == nil:
			return nil, fmt.Errorf("%s %q does not exist", p.name, e.Name)
		case !p.acts(pl):
			return nil, fmt.Errorf("plugin %q does not extend %s plugin", e.Name, p.name)
		case has(own, e.Name):
			return nil, fmt.Errorf("plugin %q already registered as %q", e.Name, p.name)
		}
		own = append(own, e)
	}
	var overridden, rest []configv1.Plugin
	if !has(p.set.Disabled, "*") {
		for _, e := range multi.Enabled {
			pl := made[e.Name]
			switch {
			case pl == nil:
				return nil, fmt.Errorf("%s %q does not exist", p.name, e.Name)
			case !p.acts(pl) || has(p.set.Disabled, e.Name):
			case has(own, e.Name):
				overridden = append(overridden, e)
			case has(rest, e.Name):
				return nil, fmt.Errorf("plugin %q already registered as %q", e.Name, p.name)
			default:
				rest = append(rest, e)
			}
		}
	}
	var first, last []configv1.Plugin
	for _, e := range own {
		if has(overridden, e.Name) {
			first = append(first, e)
		} else {
			last = append(last, e)
		}
	}
	var out []Enabled
	for _, e := range slices.Concat(first, rest, last) {
		weight := int64(ptr.Deref(e.Weight, 0))
		if weight == 0 {
			weight = 1
		}
		out = append(out, Enabled{Plugin: made[e.Name], Weight: weight})
	}
	return out, nil
}

func has(list []configv1.Plugin, name string) bool {
	return slices.ContainsFunc(list, func(p configv1.Plugin) bool { return p.Name == name })
}
