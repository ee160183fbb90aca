package dra

import (
	"slices"
	"strings"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

type claim = resourcev1.ResourceClaim

// ResourceClaim declares resourceclaims. Their spec never changes.
func ResourceClaim() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: resourcev1.SchemeGroupVersion, Kind: "ResourceClaim", Plural: "resourceclaims", Singular: "resourceclaim",
		Namespaced: true, Prefix: "/registry/resourceclaims/", ReturnDeleted: true,
		New:     func() resource.Object { return &claim{} },
		NewList: func() runtime.Object { return &resourcev1.ResourceClaimList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("State", "string", "A summary of the current state (allocated, pending, reserved, etc.).", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*claim]{
			Default:             defaultClaim,
			UnconditionalUpdate: true,
			ResetFields:         []string{"metadata", "spec"},
			PrepareUpdate:       prepareClaimStatus,
			Check:               mayWriteStatus,
			ValidateUpdate:      validateClaimStatus,
		})},
	}, resource.StrategyOf[*claim]{
		Default:             defaultClaim,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, c *claim) {
			c.Status = resourcev1.ResourceClaimStatus{}
			dropClaim(env.Features, &c.Spec, nil)
		},
		PrepareUpdate: func(env resource.Env, c, old *claim) {
			c.Status = *old.Status.DeepCopy()
			dropClaim(env.Features, &c.Spec, &old.Spec)
		},
		Check: mayCreateClaim,
		ValidateCreate: func(env resource.Env, c *claim) field.ErrorList {
			errs := append(resource.ValidateMeta(c, true, resource.DNSSubdomain), validateClaimSpec(env.Features, specPath, &c.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_ResourceClaim, c, nil)...)
		},
		ValidateUpdate: func(env resource.Env, c, old *claim) field.ErrorList {
			errs := append(resource.ValidateMeta(c, true, resource.DNSSubdomain), resource.ValidateMetaUpdate(c, old)...)
			return append(errs, marked(env.Features, rules.Validate_ResourceClaim, c, old)...)
		},
		Row: func(c *claim, now time.Time) []any {
			return []any{c.Name, claimState(c), resource.Age(c.CreationTimestamp, now)}
		},
	})
}

func claimState(c *claim) string {
	var out []string
	if c.DeletionTimestamp != nil {
		out = append(out, "deleted")
	}
	switch {
	case c.Status.Allocation != nil:
		out = append(out, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			out = append(out, "reserved")
		}
	case c.DeletionTimestamp == nil:
		out = append(out, "pending")
	}
	return strings.Join(out, ",")
}

func defaultClaim(c *claim) {
	defaultRequests(&c.Spec.Devices)
	if a := c.Status.Allocation; a != nil {
		for i := range a.Devices.Results {
			defaultTolerations(a.Devices.Results[i].Tolerations)
		}
	}
}

func defaultTolerations(list []resourcev1.DeviceToleration) {
	for i := range list {
		if list[i].Operator == "" {
			list[i].Operator = resourcev1.DeviceTolerationOpEqual
		}
	}
}

func defaultRequests(d *resourcev1.DeviceClaim) {
	one := func(mode *resourcev1.DeviceAllocationMode, count *int64, tolerations []resourcev1.DeviceToleration) {
		defaultTolerations(tolerations)
		if *mode == "" {
			*mode = resourcev1.DeviceAllocationModeExactCount
		}
		if *mode == resourcev1.DeviceAllocationModeExactCount && *count == 0 {
			*count = 1
		}
	}
	for i := range d.Requests {
		if e := d.Requests[i].Exactly; e != nil {
			one(&e.AllocationMode, &e.Count, e.Tolerations)
		}
		for j := range d.Requests[i].FirstAvailable {
			s := &d.Requests[i].FirstAvailable[j]
			one(&s.AllocationMode, &s.Count, s.Tolerations)
		}
	}
}

// dropClaim drops from a spec what no feature allows; old is nil for a new one.
func dropClaim(f resource.Features, s, old *resourcev1.ResourceClaimSpec) {
	if f.Enabled("DRADerivedAttributes") || old != nil && derivedUsed(old) {
		return
	}
	for i := range s.Devices.Requests {
		if e := s.Devices.Requests[i].Exactly; e != nil {
			e.DerivedAttributes = nil
		}
		for j := range s.Devices.Requests[i].FirstAvailable {
			s.Devices.Requests[i].FirstAvailable[j].DerivedAttributes = nil
		}
	}
}

func derivedUsed(s *resourcev1.ResourceClaimSpec) bool {
	return slices.ContainsFunc(s.Devices.Requests, func(r resourcev1.DeviceRequest) bool {
		return r.Exactly != nil && len(r.Exactly.DerivedAttributes) > 0 ||
			slices.ContainsFunc(r.FirstAvailable, func(s resourcev1.DeviceSubRequest) bool { return len(s.DerivedAttributes) > 0 })
	})
}

// requests are the names of a claim's requests, each with those of its subrequests.
type requests map[string]sets.Set[string]

func requestsOf(d *resourcev1.DeviceClaim) requests {
	out := requests{}
	for _, r := range d.Requests {
		out[r.Name] = nil
		for i, s := range r.FirstAvailable {
			if i == 0 {
				out[r.Name] = sets.New[string]()
			}
			out[r.Name].Insert(s.Name)
		}
	}
	return out
}

func (r requests) has(ref string) bool {
	name, sub, nested := strings.Cut(ref, "/")
	subs, ok := r[name]
	return ok && (!nested || subs.Has(sub))
}

// ref checks the name of a request, or of a request and a subrequest.
func (c *check) ref(p *field.Path, name string, r requests) {
	const text = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
	parts := strings.Split(name, "/")
	if len(parts) > 2 {
		c.invalid(p, name, text)
		return
	}
	for _, part := range parts {
		c.label(p, part)
	}
	if !r.has(name) {
		c.invalid(p, name, text)
	}
}

func (c *check) refs(p *field.Path, names []string, r requests) {
	if within(len(names), resourcev1.DeviceRequestsMaxSize) {
		for i, n := range names {
			c.ref(p.Index(i), n, r)
		}
	}
}

// validateClaimSpec checks a new spec. Since specs never change, no stored one is
// checked again.
func validateClaimSpec(f resource.Features, p *field.Path, s *resourcev1.ResourceClaimSpec) field.ErrorList {
	c := &check{selectors: compilerOf(f)}
	d, dp := &s.Devices, p.Child("devices")
	names := requestsOf(d)
	if within(len(d.Requests), resourcev1.DeviceRequestsMaxSize) {
		for i := range d.Requests {
			c.request(dp.Child("requests").Index(i), &d.Requests[i])
		}
	}
	if within(len(d.Constraints), resourcev1.DeviceConstraintsMaxSize) {
		for i, k := range d.Constraints {
			kp := dp.Child("constraints").Index(i)
			c.refs(kp.Child("requests"), k.Requests, names)
			if k.MatchAttribute == nil && k.DistinctAttribute == nil {
				c.required(kp, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`)
			}
		}
	}
	if within(len(d.Config), resourcev1.DeviceConfigMaxSize) {
		for i, g := range d.Config {
			gp := dp.Child("config").Index(i)
			c.refs(gp.Child("requests"), g.Requests, names)
			c.configuration(gp, g.DeviceConfiguration)
		}
	}
	return c.errs
}

func (c *check) request(p *field.Path, r *resourcev1.DeviceRequest) {
	const one = "exactly one of `exactly` or `firstAvailable` is required"
	c.label(p.Child("name"), r.Name)
	switch e := r.Exactly; {
	case e == nil && len(r.FirstAvailable) == 0:
		c.required(p, one)
	case e != nil && len(r.FirstAvailable) > 0:
		c.invalid(p, nil, one+", but multiple fields are set")
	case e != nil:
		ep := p.Child("exactly")
		if cp := ep.Child("deviceClassName"); e.DeviceClassName == "" {
			c.required(cp, "")
		} else {
			c.node(cp, e.DeviceClassName)
		}
		c.selectorList(ep.Child("selectors"), e.Selectors)
		c.count(ep.Child("count"), e.AllocationMode, e.Count)
		for i, t := range e.Tolerations {
			c.toleration(ep.Child("tolerations").Index(i), t)
		}
	case within(len(r.FirstAvailable), resourcev1.FirstAvailableDeviceRequestMaxSize):
		for i, s := range r.FirstAvailable {
			sp := p.Child("firstAvailable").Index(i)
			c.label(sp.Child("name"), s.Name)
			c.selectorList(sp.Child("selectors"), s.Selectors)
			c.count(sp.Child("count"), s.AllocationMode, s.Count)
			for j, t := range s.Tolerations {
				c.toleration(sp.Child("tolerations").Index(j), t)
			}
		}
	}
}

// count checks how many devices are asked for; the mode is for a marker.
func (c *check) count(p *field.Path, mode resourcev1.DeviceAllocationMode, n int64) {
	switch {
	case mode == resourcev1.DeviceAllocationModeAll && n != 0:
		c.invalid(p, n, "must not be specified when allocationMode is 'All'")
	case mode == resourcev1.DeviceAllocationModeExactCount && n <= 0:
		c.invalid(p, n, "must be greater than zero")
	}
}
