package dra

import (
	"fmt"
	"slices"
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

// ResourceSlice declares resourceslices.
func ResourceSlice() *resource.Resource {
	doc := resourcev1.ResourceSliceSpec{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: resourcev1.SchemeGroupVersion, Kind: "ResourceSlice", Plural: "resourceslices", Singular: "resourceslice",
		Prefix: "/registry/resourceslices/", ReturnDeleted: true,
		New:     func() resource.Object { return &resourcev1.ResourceSlice{} },
		NewList: func() runtime.Object { return &resourcev1.ResourceSliceList{} },
		UnknownField: func(name string) string {
			return "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: " + name
		},
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Node", "string", doc["nodeName"], 0),
			resource.Column("Driver", "string", doc["driver"], 0),
			resource.Column("Pool", "string", resourcev1.ResourcePool{}.SwaggerDoc()["name"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*resourcev1.ResourceSlice]{
		UnconditionalUpdate: true,
		Default: func(s *resourcev1.ResourceSlice) {
			for i := range s.Spec.Devices {
				for j := range s.Spec.Devices[i].Taints {
					defaultTaint(&s.Spec.Devices[i].Taints[j])
				}
			}
		},
		PrepareCreate: func(env resource.Env, s *resourcev1.ResourceSlice) {
			s.Generation = 1
			dropSlice(env.Features, &s.Spec, &resourcev1.ResourceSliceSpec{})
		},
		PrepareUpdate: func(env resource.Env, s, old *resourcev1.ResourceSlice) {
			// What is dropped next counts as a change.
			if !equal(s.Spec, old.Spec) {
				s.Generation = old.Generation + 1
			}
			dropSlice(env.Features, &s.Spec, &old.Spec)
		},
		ValidateCreate: func(env resource.Env, s *resourcev1.ResourceSlice) field.ErrorList {
			errs := append(resource.ValidateMeta(s, false, resource.DNSSubdomain), validateSlice(&s.Spec, nil)...)
			return append(errs, marked(env.Features, rules.Validate_ResourceSlice, s, nil)...)
		},
		ValidateUpdate: func(env resource.Env, s, old *resourcev1.ResourceSlice) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(s, old), validateSlice(&s.Spec, &old.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_ResourceSlice, s, old)...)
		},
		Warnings: func(_ resource.Env, s, _ *resourcev1.ResourceSlice) []string {
			if d := s.Spec.Driver; d != strings.ToLower(d) {
				return []string{fmt.Sprintf("spec.driver: driver names should be lowercase; %q contains uppercase characters", d)}
			}
			return nil
		},
		Selectable: func(s *resourcev1.ResourceSlice) fields.Set {
			return fields.Set{
				resourcev1.ResourceSliceSelectorNodeName: text(s.Spec.NodeName),
				resourcev1.ResourceSliceSelectorDriver:   s.Spec.Driver,
				resourcev1.ResourceSliceSelectorPoolName: s.Spec.Pool.Name,
			}
		},
		Row: func(s *resourcev1.ResourceSlice, now time.Time) []any {
			return []any{s.Name, text(s.Spec.NodeName), s.Spec.Driver, s.Spec.Pool.Name, resource.Age(s.CreationTimestamp, now)}
		},
	})
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// gated is a part of a slice that exists only while a feature is on. It is dropped
// from what drivers send, unless the slice has it already.
type gated struct {
	feature string
	used    func(*resourcev1.ResourceSliceSpec) bool
	drop    func(*resourcev1.ResourceSliceSpec)
}

var gatedSlice = []gated{
	{"DRADeviceCompatibilityGroups", anyDevice(func(d *resourcev1.Device) bool {
		return slices.ContainsFunc(d.ConsumesCounters, func(c resourcev1.DeviceCounterConsumption) bool { return len(c.CompatibilityGroups) > 0 })
	}), eachDevice(func(d *resourcev1.Device) {
		for i := range d.ConsumesCounters {
			d.ConsumesCounters[i].CompatibilityGroups = nil
		}
	})},
	{"DRANodeAllocatableResources", anyDevice(func(d *resourcev1.Device) bool { return len(d.NodeAllocatableResources) > 0 }),
		eachDevice(func(d *resourcev1.Device) { d.NodeAllocatableResources = nil })},
	{"DRAListTypeAttributes", anyDevice(func(d *resourcev1.Device) bool {
		for _, a := range d.Attributes {
			if a.BoolValues != nil || a.IntValues != nil || a.StringValues != nil || a.VersionValues != nil {
				return true
			}
		}
		return false
	}), eachDevice(func(d *resourcev1.Device) {
		for k, a := range d.Attributes {
			a.BoolValues, a.IntValues, a.StringValues, a.VersionValues = nil, nil, nil, nil
			d.Attributes[k] = a
		}
	})},
	{"DRAPartitionableDevicesType", func(s *resourcev1.ResourceSliceSpec) bool { return s.PartitionTypeAttribute != nil },
		func(s *resourcev1.ResourceSliceSpec) { s.PartitionTypeAttribute = nil }},
	{"DRAOptionalNodeOperations", func(s *resourcev1.ResourceSliceSpec) bool { return len(s.SkipNodeOperations) > 0 },
		func(s *resourcev1.ResourceSliceSpec) { s.SkipNodeOperations = nil }},
}

func anyDevice(has func(*resourcev1.Device) bool) func(*resourcev1.ResourceSliceSpec) bool {
	return func(s *resourcev1.ResourceSliceSpec) bool {
		return slices.ContainsFunc(s.Devices, func(d resourcev1.Device) bool { return has(&d) })
	}
}

func eachDevice(do func(*resourcev1.Device)) func(*resourcev1.ResourceSliceSpec) {
	return func(s *resourcev1.ResourceSliceSpec) {
		for i := range s.Devices {
			do(&s.Devices[i])
		}
	}
}

func dropSlice(f resource.Features, s, old *resourcev1.ResourceSliceSpec) {
	for _, g := range gatedSlice {
		if !f.Enabled(g.feature) && !g.used(old) {
			g.drop(s)
		}
	}
}

// validateSlice checks a slice; old is nil for a new one.
func validateSlice(s, old *resourcev1.ResourceSliceSpec) field.ErrorList {
	c := &check{}
	pp := specPath.Child("pool")
	c.driver(specPath.Child("driver"), s.Driver)
	c.pool(pp.Child("name"), s.Pool.Name)
	if n := s.Pool.ResourceSliceCount; n <= 0 {
		c.invalid(pp.Child("resourceSliceCount"), n, "must be greater than zero")
	}
	if n := s.Pool.Generation; n < 0 {
		c.invalid(pp.Child("generation"), n, "must be greater than or equal to zero")
	}
	if old != nil {
		c.add(apivalidation.ValidateImmutableField(s.Pool.Name, old.Pool.Name, pp.Child("name"))...)
		c.add(apivalidation.ValidateImmutableField(s.Driver, old.Driver, specPath.Child("driver"))...)
		c.add(apivalidation.ValidateImmutableField(s.NodeName, old.NodeName, specPath.Child("nodeName"))...)
	}
	c.nodes(s)
	if s.SharedCounters != nil && s.Devices != nil {
		c.invalid(specPath, "", "only one of `sharedCounters` or `devices` is allowed")
	}
	dp, most := specPath.Child("devices"), resourcev1.ResourceSliceMaxDevices
	if slices.ContainsFunc(s.Devices, advanced) {
		most = resourcev1.ResourceSliceMaxDevicesWithAdvancedFeatures
	}
	if n := len(s.Devices); n > most {
		c.add(field.TooMany(dp, n, most))
	} else {
		for i := range s.Devices {
			c.device(dp.Index(i), &s.Devices[i], deviceOf(old, s.Devices[i].Name), isTrue(s.PerDeviceNodeSelection))
		}
		distinct(c, dp, s.Devices, func(d resourcev1.Device) string { return d.Name })
	}
	if within(len(s.SharedCounters), resourcev1.ResourceSliceMaxCounterSets) {
		for i, set := range s.SharedCounters {
			c.counters(specPath.Child("sharedCounters").Index(i).Child("counters"), len(set.Counters), resourcev1.ResourceSliceMaxCountersPerCounterSet)
		}
	}
	return c.errs
}

// advanced tells whether a device has something that makes slices expensive: they
// may have fewer such devices.
func advanced(d resourcev1.Device) bool {
	if len(d.Taints) > 0 || len(d.ConsumesCounters) > 0 {
		return true
	}
	for _, a := range d.Attributes {
		if a.BoolValues != nil || a.IntValues != nil || a.StringValues != nil || a.VersionValues != nil {
			return true
		}
	}
	return false
}

func deviceOf(s *resourcev1.ResourceSliceSpec, name string) *resourcev1.Device {
	if s == nil {
		return nil
	}
	if i := slices.IndexFunc(s.Devices, func(d resourcev1.Device) bool { return d.Name == name }); i >= 0 {
		return &s.Devices[i]
	}
	return nil
}

// counters checks how many there are; their names are for a marker.
func (c *check) counters(p *field.Path, n, most int) {
	if n > most {
		c.add(field.TooMany(p, n, most))
	}
}

// nodes checks that a slice says in one way for which nodes its devices are.
func (c *check) nodes(s *resourcev1.ResourceSliceSpec) {
	const one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	var set []string
	if n, p := s.NodeName, specPath.Child("nodeName"); n != nil {
		if *n != "" {
			set = append(set, "`nodeName`")
			c.node(p, *n)
		} else {
			c.invalid(p, *n, "must be either unset or set to a non-empty string")
		}
	}
	if n, p := s.NodeSelector, specPath.Child("nodeSelector"); n != nil {
		set = append(set, "`nodeSelector`")
		c.add(pod.ValidateNodeSelector(p, n)...)
		if len(n.NodeSelectorTerms) != 1 {
			c.invalid(p.Child("nodeSelectorTerms"), resource.Shown(n.NodeSelectorTerms), "must have exactly one node selector term")
		}
	}
	for _, b := range []struct {
		name  string
		value *bool
	}{{"allNodes", s.AllNodes}, {"perDeviceNodeSelection", s.PerDeviceNodeSelection}} {
		if isTrue(b.value) {
			set = append(set, "`"+b.name+"`")
		} else if b.value != nil {
			c.invalid(specPath.Child(b.name), *b.value, "must be either unset or set to true")
		}
	}
	switch len(set) {
	case 0:
		c.required(specPath, one)
	case 1:
	default:
		c.invalid(specPath, "{"+strings.Join(set, ", ")+"}", one+", but multiple fields are set")
	}
}
