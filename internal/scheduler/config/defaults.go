package config

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/scheduler/plugins"
)

func set[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

func setDefaults(c *configv1.KubeSchedulerConfiguration) {
	set(&c.Parallelism, 16)
	set(&c.PercentageOfNodesToScore, 0)
	set(&c.PodInitialBackoffSeconds, 1)
	set(&c.PodMaxBackoffSeconds, 10)
	set(&c.EnableProfiling, true)
	if *c.EnableProfiling {
		set(&c.EnableContentionProfiling, true)
	}
	e := &c.LeaderElection
	set(&e.LeaderElect, true)
	for p, v := range map[*string]string{
		&e.ResourceLock: "leases", &e.ResourceNamespace: configv1.SchedulerDefaultLockObjectNamespace,
		&e.ResourceName: configv1.SchedulerDefaultLockObjectName, &c.ClientConnection.ContentType: "application/vnd.kubernetes.protobuf",
	} {
		if *p == "" {
			*p = v
		}
	}
	for p, v := range map[*metav1.Duration]time.Duration{&e.LeaseDuration: 15 * time.Second, &e.RenewDeadline: 10 * time.Second, &e.RetryPeriod: 2 * time.Second} {
		if p.Duration == 0 {
			p.Duration = v
		}
	}
	if c.ClientConnection.QPS == 0 {
		c.ClientConnection.QPS = 50
	}
	if c.ClientConnection.Burst == 0 {
		c.ClientConnection.Burst = 100
	}
	if len(c.Profiles) == 0 {
		c.Profiles = []configv1.KubeSchedulerProfile{{}}
	}
	if len(c.Profiles) == 1 {
		// Of several each must say its name.
		set(&c.Profiles[0].SchedulerName, corev1.DefaultSchedulerName)
	}
	for i := range c.Profiles {
		profileDefaults(&c.Profiles[i])
	}
}

// defaultPlugins is what is enabled where a profile says nothing.
func defaultPlugins() *configv1.Plugins {
	p := &configv1.Plugins{}
	for _, d := range plugins.Defaults {
		e := configv1.Plugin{Name: d.Name}
		if d.Weight > 1 {
			e.Weight = ptr.To(int32(d.Weight))
		}
		p.MultiPoint.Enabled = append(p.MultiPoint.Enabled, e)
	}
	return p
}

// Point is an extension point of a profile, by its name there.
type Point struct {
	Name string
	Set  *configv1.PluginSet
}

// Points are the extension points at which plugins can be named, multiPoint apart.
func Points(p *configv1.Plugins) []Point {
	return []Point{
		{"preEnqueue", &p.PreEnqueue}, {"queueSort", &p.QueueSort}, {"preFilter", &p.PreFilter}, {"filter", &p.Filter},
		{"postFilter", &p.PostFilter}, {"preScore", &p.PreScore}, {"score", &p.Score}, {"reserve", &p.Reserve}, {"permit", &p.Permit},
		{"preBind", &p.PreBind}, {"bind", &p.Bind}, {"postBind", &p.PostBind},
		{"placementGenerate", &p.PlacementGenerate}, {"placementScore", &p.PlacementScore}, {"podGroupPostFilter", &p.PodGroupPostFilter},
	}
}

func profileDefaults(p *configv1.KubeSchedulerProfile) {
	all := defaultPlugins()
	if own := p.Plugins; own != nil {
		all.MultiPoint = merged(all.MultiPoint, own.MultiPoint)
		to := Points(all)
		for i, from := range Points(own) {
			*to[i].Set = merged(*to[i].Set, *from.Set)
		}
	}
	p.Plugins = all
	given := map[string]bool{}
	for i := range p.PluginConfig {
		given[p.PluginConfig[i].Name] = true
		argumentDefaults(p.PluginConfig[i].Args.Object)
	}
	names := map[string]bool{}
	for _, e := range all.MultiPoint.Enabled {
		names[e.Name] = true
	}
	for _, point := range Points(all) {
		for _, e := range point.Set.Enabled {
			names[e.Name] = true
		}
	}
	for _, name := range sorted(names) {
		if args := arguments(name); args != nil && !given[name] {
			argumentDefaults(args)
			p.PluginConfig = append(p.PluginConfig, configv1.PluginConfig{Name: name, Args: runtime.RawExtension{Object: args}})
		}
	}
}

func sorted(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// merged applies what a profile says to a set: what it disables is left out, what it
// enables anew keeps its place, the rest comes after.
func merged(def, own configv1.PluginSet) configv1.PluginSet {
	out := configv1.PluginSet{}
	off, used := map[string]bool{}, map[int]bool{}
	for _, d := range slices.Concat(own.Disabled, def.Disabled) {
		out.Disabled = append(out.Disabled, configv1.Plugin{Name: d.Name})
		off[d.Name] = true
	}
	for _, e := range def.Enabled {
		if off["*"] || off[e.Name] {
			continue
		}
		for i, o := range own.Enabled {
			if o.Name == e.Name {
				e = o
				used[i] = true
			}
		}
		out.Enabled = append(out.Enabled, e)
	}
	for i, o := range own.Enabled {
		if !used[i] {
			out.Enabled = append(out.Enabled, o)
		}
	}
	return out
}

// arguments are the empty arguments of a plugin, nil where it takes none.
func arguments(name string) runtime.Object {
	switch name {
	case "DefaultPreemption":
		return &configv1.DefaultPreemptionArgs{}
	case "DynamicResources":
		return &configv1.DynamicResourcesArgs{}
	case "InterPodAffinity":
		return &configv1.InterPodAffinityArgs{}
	case "NodeAffinity":
		return &configv1.NodeAffinityArgs{}
	case "NodeResourcesBalancedAllocation":
		return &configv1.NodeResourcesBalancedAllocationArgs{}
	case "NodeResourcesFit":
		return &configv1.NodeResourcesFitArgs{}
	case "PodTopologySpread":
		return &configv1.PodTopologySpreadArgs{}
	case "VolumeBinding":
		return &configv1.VolumeBindingArgs{}
	}
	return nil
}

func argumentDefaults(args runtime.Object) {
	switch a := args.(type) {
	case *configv1.DefaultPreemptionArgs:
		set(&a.MinCandidateNodesPercentage, 10)
		set(&a.MinCandidateNodesAbsolute, 100)
	case *configv1.InterPodAffinityArgs:
		set(&a.HardPodAffinityWeight, 1)
	case *configv1.NodeResourcesBalancedAllocationArgs:
		a.Resources = weighed(a.Resources)
	case *configv1.NodeResourcesFitArgs:
		if a.ScoringStrategy == nil {
			a.ScoringStrategy = &configv1.ScoringStrategy{Type: configv1.LeastAllocated}
		}
		a.ScoringStrategy.Resources = weighed(a.ScoringStrategy.Resources)
	case *configv1.PodTopologySpreadArgs:
		if a.DefaultingType == "" {
			a.DefaultingType = configv1.SystemDefaulting
		}
	case *configv1.VolumeBindingArgs:
		set(&a.BindTimeoutSeconds, 600)
		if len(a.Shape) == 0 {
			a.Shape = []configv1.UtilizationShapePoint{{Utilization: 0, Score: maxShapeScore}, {Utilization: 100, Score: 0}}
		}
	case *configv1.DynamicResourcesArgs:
		set(&a.FilterTimeout, metav1.Duration{Duration: configv1.DynamicResourcesFilterTimeoutDefault})
		set(&a.BindingTimeout, metav1.Duration{Duration: configv1.DynamicResourcesBindingTimeoutDefault})
	}
}

func weighed(rs []configv1.ResourceSpec) []configv1.ResourceSpec {
	if len(rs) == 0 {
		return []configv1.ResourceSpec{{Name: "cpu", Weight: 1}, {Name: "memory", Weight: 1}}
	}
	for i := range rs {
		if rs[i].Weight == 0 {
			rs[i].Weight = 1
		}
	}
	return rs
}
