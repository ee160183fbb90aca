package plugins

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// Weighed is a plugin by name, and the weight of its score.
type Weighed struct {
	Name   string
	Weight int64
}

// Defaults are the plugins that upstream 1.37 enables, in its order.
var Defaults = []Weighed{
	{"SchedulingGates", 0}, {"PrioritySort", 0}, {"NodeName", 0}, {"NodeUnschedulable", 0}, {"TaintToleration", 3}, {"NodeAffinity", 2},
	{"NodePorts", 0}, {"NodeResourcesFit", 1}, {"VolumeRestrictions", 0}, {"NodeVolumeLimits", 0}, {"VolumeBinding", 1}, {"VolumeZone", 0},
	{"PodTopologySpread", 2}, {"InterPodAffinity", 2}, {"DynamicResources", 2}, {"DefaultPreemption", 0},
	{"NodeResourcesBalancedAllocation", 1}, {"ImageLocality", 1}, {"DefaultBinder", 0}, {"NodeDeclaredFeatures", 0},
}

// alive are those that follow objects other than pods and nodes.
var alive = map[string]bool{
	"VolumeRestrictions": true, "NodeVolumeLimits": true, "VolumeBinding": true, "VolumeZone": true, "DynamicResources": true,
}

// Known tells whether there is a plugin of that name.
func Known(name string) bool {
	return slices.ContainsFunc(Defaults, func(w Weighed) bool { return w.Name == name })
}

// Factory makes plugins. Those of several profiles share what they know and hold of
// volumes and devices.
type Factory struct {
	d       Deps
	storage *Storage
	devices *DynamicResources
}

// NewFactory returns a Factory. The zero Factory makes those plugins that go by pods
// and nodes alone, and preemption without budgets.
func NewFactory(d Deps) *Factory {
	return &Factory{d: d, storage: NewStorage(d.Informers), devices: NewDynamicResources(d)}
}

// argsOf returns arguments of a plugin, those given or none.
func argsOf[T any](name string, args runtime.Object) (*T, error) {
	if args == nil {
		return new(T), nil
	}
	out, ok := args.(any).(*T)
	if !ok {
		return nil, fmt.Errorf("want args to be of type %sArgs, got %T", name, args)
	}
	return out, nil
}

// Make makes a plugin with arguments that were defaulted and validated; nil for its
// defaults.
func (f *Factory) Make(name string, args runtime.Object) (framework.Plugin, error) {
	switch name {
	case "SchedulingGates":
		return SchedulingGates{}, nil
	case "PrioritySort":
		return PrioritySort{}, nil
	case "NodeName":
		return NodeName{}, nil
	case "NodeUnschedulable":
		return NodeUnschedulable{}, nil
	case "TaintToleration":
		return TaintToleration{}, nil
	case "NodeAffinity":
		a, err := argsOf[config.NodeAffinityArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewNodeAffinity(a)
	case "NodePorts":
		return NodePorts{}, nil
	case "NodeResourcesFit":
		a, err := argsOf[config.NodeResourcesFitArgs](name, args)
		if err != nil {
			return nil, err
		}
		p := NewNodeResourcesFit(a)
		if f.devices != nil {
			p.Devices = f.devices
		}
		return p, nil
	case "VolumeRestrictions":
		return NewVolumeRestrictions(f.storage), nil
	case "NodeVolumeLimits":
		return NewNodeVolumeLimits(f.storage), nil
	case "VolumeBinding":
		a, err := argsOf[config.VolumeBindingArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewVolumeBinding(f.d.Client, f.storage, f.d.Informers, a), nil
	case "VolumeZone":
		return NewVolumeZone(f.storage), nil
	case "PodTopologySpread":
		a, err := argsOf[config.PodTopologySpreadArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewPodTopologySpread(a), nil
	case "InterPodAffinity":
		a, err := argsOf[config.InterPodAffinityArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewInterPodAffinity(a), nil
	case "DynamicResources":
		return f.devices, nil
	case "DefaultPreemption":
		a, err := argsOf[config.DefaultPreemptionArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewDefaultPreemption(f.d.Informers, a), nil
	case "NodeResourcesBalancedAllocation":
		a, err := argsOf[config.NodeResourcesBalancedAllocationArgs](name, args)
		if err != nil {
			return nil, err
		}
		return NewBalancedAllocation(a), nil
	case "ImageLocality":
		return ImageLocality{}, nil
	case "DefaultBinder":
		return DefaultBinder{}, nil
	case "NodeDeclaredFeatures":
		return NodeDeclaredFeatures{}, nil
	}
	return nil, fmt.Errorf("%q does not exist", name)
}

// PrioritySort stands for the order of the queue: by priority, then by time. It can be
// named in a configuration and is always on.
type PrioritySort struct{}

// Name implements framework.Plugin.
func (PrioritySort) Name() string { return "PrioritySort" }

// DefaultBinder stands for the binding of pods by the API. It can be named in a
// configuration and is always on.
type DefaultBinder struct{}

// Name implements framework.Plugin.
func (DefaultBinder) Name() string { return "DefaultBinder" }
