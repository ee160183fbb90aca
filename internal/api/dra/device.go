package dra

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
)

// maxKey is how much of a key is shown in paths.
const maxKey = resourcev1.DeviceMaxDomainLength + 1 + resourcev1.DeviceMaxIDLength

// shorten cuts the middle out of a key that is too long.
func shorten(s string) string {
	if len(s) <= maxKey {
		return s
	}
	const dots = "..."
	left := maxKey - len(dots)
	return s[:(left+1)/2] + dots + s[len(s)-left/2:]
}

// device checks one device of a slice; old is nil where it is new. perDevice: the
// device itself says for which nodes it is.
func (c *check) device(p *field.Path, d, old *resourcev1.Device, perDevice bool) {
	c.label(p.Child("name"), d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		c.invalid(p, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice))
	}
	if n := valuesOf(d); n > resourcev1.ResourceSliceMaxAttributeValuesPerDevice {
		c.invalid(p, n, fmt.Sprintf("the total number of attribute values must not exceed %d", resourcev1.ResourceSliceMaxAttributeValuesPerDevice))
	}
	ap := p.Child("attributes")
	for _, k := range sortedKeys(d.Attributes) {
		a := d.Attributes[k]
		c.qualified(ap, k)
		c.attribute(ap.Key(shorten(string(k))), &a)
	}
	// What did not change was right once.
	if old == nil || !equal(old.Capacity, d.Capacity) {
		cp := p.Child("capacity")
		for _, k := range sortedKeys(d.Capacity) {
			c.qualified(cp, k)
			q, pp := d.Capacity[k], cp.Key(shorten(string(k))).Child("requestPolicy")
			if q.RequestPolicy == nil {
				continue
			}
			if isTrue(d.AllowMultipleAllocations) {
				c.policy(pp, q.Value, q.RequestPolicy)
			} else {
				c.add(field.Forbidden(pp, "allowMultipleAllocations must be true"))
			}
		}
	}
	if old == nil || !equal(old.Taints, d.Taints) {
		if n := len(d.Taints); n > resourcev1.DeviceTaintsMaxLength {
			c.add(field.TooMany(p.Child("taints"), n, resourcev1.DeviceTaintsMaxLength))
		} else {
			for i, t := range d.Taints {
				c.taint(p.Child("taints").Index(i), t)
			}
		}
	}
	if within(len(d.ConsumesCounters), resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice) {
		for i, k := range d.ConsumesCounters {
			c.counters(p.Child("consumesCounters").Index(i).Child("counters"), len(k.Counters), resourcev1.ResourceSliceMaxCountersPerDeviceCounterConsumption)
		}
	}
	c.deviceNodes(p, d, perDevice)
	c.bindings(p, d.BindingConditions, d.BindingFailureConditions)
}

// valuesOf counts the values of attributes, each item of a list.
func valuesOf(d *resourcev1.Device) int {
	n := 0
	for _, a := range d.Attributes {
		n += max(1, len(a.BoolValues)+len(a.IntValues)+len(a.StringValues)+len(a.VersionValues))
	}
	return n
}

// semver is the form of versions, of semver.org's second specification.
var semver = func() *regexp.Regexp {
	const (
		number = `(0|[1-9]\d*)`
		pre    = `(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)`
		build  = `[0-9a-zA-Z-]+`
	)
	return regexp.MustCompile(`^` + number + `\.` + number + `\.` + number + `(-` + pre + `(\.` + pre + `)*)?(\+` + build + `(\.` + build + `)*)?$`)
}()

// attribute checks a value; that there is exactly one is for a marker.
func (c *check) attribute(p *field.Path, a *resourcev1.DeviceAttribute) {
	const most = resourcev1.DeviceAttributeMaxValueLength
	if s := a.StringValue; s != nil && len(*s) > most {
		c.add(field.TooLong(p.Child("string"), "", most))
	}
	if v := a.VersionValue; v != nil {
		if !semver.MatchString(*v) {
			c.invalid(p.Child("version"), *v, "must be a string compatible with semver.org spec 2.0.0")
		}
		if len(*v) > most {
			c.add(field.TooLong(p.Child("version"), "", most))
		}
	}
}

func (c *check) deviceNodes(p *field.Path, d *resourcev1.Device, perDevice bool) {
	if !perDevice {
		if d.NodeName != nil || d.NodeSelector != nil || d.AllNodes != nil {
			c.invalid(p, nil, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec")
		}
		return
	}
	const one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
	var set []string
	if n, np := d.NodeName, p.Child("nodeName"); n != nil {
		if *n != "" {
			set = append(set, "`nodeName`")
			c.node(np, *n)
		} else {
			c.invalid(np, *n, "must not be empty")
		}
	}
	if d.NodeSelector != nil {
		set = append(set, "`nodeSelector`")
		c.add(pod.ValidateNodeSelector(p.Child("nodeSelector"), d.NodeSelector)...)
	}
	if isTrue(d.AllNodes) {
		set = append(set, "`allNodes`")
	} else if d.AllNodes != nil {
		c.invalid(p.Child("allNodes"), *d.AllNodes, "must be either unset or set to true")
	}
	if len(set) == 0 {
		c.required(p, one)
	} else if len(set) > 1 {
		c.invalid(p, "{"+strings.Join(set, ", ")+"}", one)
	}
}

// maxPolicyValues is how many amounts a policy may list.
const maxPolicyValues = 10

// policy checks in which amounts a capacity is shared out (KEP 5075).
func (c *check) policy(p *field.Path, capacity apiresource.Quantity, policy *resourcev1.CapacityRequestPolicy) {
	switch {
	case len(policy.ValidValues) > 0 && policy.ValidRange != nil:
		c.add(field.Forbidden(p, `exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time`))
	case len(policy.ValidValues) > 0:
		if policy.Default == nil {
			c.required(p.Child("default"), "required when validValues is defined")
		} else {
			c.values(p.Child("validValues"), *policy.Default, capacity, policy.ValidValues)
		}
	case policy.ValidRange != nil:
		if policy.Default == nil {
			c.required(p.Child("default"), "required when validRange is defined")
		} else {
			c.policyRange(p.Child("validRange"), *policy.Default, capacity, policy.ValidRange)
		}
	}
}

func (c *check) values(p *field.Path, def, capacity apiresource.Quantity, list []apiresource.Quantity) {
	for i := 1; i < len(list); i++ {
		if list[i-1].Cmp(list[i]) > 0 {
			c.invalid(p.Index(i), list[i].String(), "values must be sorted in ascending order")
		}
	}
	found := false
	if n := len(list); n > maxPolicyValues {
		c.add(field.TooMany(p, n, maxPolicyValues))
	} else {
		for i, q := range list {
			if q.Cmp(capacity) > 0 {
				c.invalid(p.Index(i), q.String(), "option is larger than capacity value: "+capacity.String())
			}
			found = found || q.Cmp(def) == 0
		}
		distinct(c, p, list, func(q apiresource.Quantity) string {
			return strconv.FormatInt(q.Value(), 10)
		})
	}
	if !found {
		c.invalid(p, def.String(), "default value is not valid according to the requestPolicy")
	}
}

// policyRange checks a range and its steps, which are whole numbers (while
// DRAFractionalCapacityRange is off).
func (c *check) policyRange(p *field.Path, def, capacity apiresource.Quantity, r *resourcev1.CapacityRequestPolicyRange) {
	if r.Min == nil {
		c.required(p.Child("min"), "required when validRange is defined")
		return
	}
	less := func(name string, a, b apiresource.Quantity, text string) {
		if a.Cmp(b) > 0 {
			c.invalid(p.Child(name), a.String(), text+": "+b.String())
		}
	}
	less("min", *r.Min, capacity, "min is larger than capacity value")
	if def.Cmp(*r.Min) < 0 {
		c.invalid(p.Child("default"), def.String(), "default is less than min: "+r.Min.String())
	}
	if r.Max != nil {
		less("max", *r.Min, *r.Max, "min is larger than max")
		less("max", *r.Max, capacity, "max is larger than capacity value")
		less("default", def, *r.Max, "default is more than max")
	}
	amounts := []struct {
		q    *apiresource.Quantity
		name string
	}{{&def, "default"}, {r.Min, "min"}, {r.Max, "max"}, {r.Step, "step"}}
	if r.Step == nil {
		return
	}
	sp := p.Child("step")
	if r.Step.Sign() <= 0 {
		c.invalid(sp, r.Step.String(), "must be greater than zero")
		return
	}
	first := r.Min.DeepCopy()
	first.Add(*r.Step)
	if first.Cmp(capacity) > 0 {
		c.invalid(sp, r.Step.String(), fmt.Sprintf("one step %s is larger than capacity value: %s", first.String(), capacity.String()))
	}
	// Only what fits into 64 bits is read as it is.
	before := len(c.errs)
	for _, a := range amounts {
		switch {
		case a.q == nil:
		case a.q.Sign() < 0:
			c.invalid(p.Child(a.name), a.q.String(), "must be greater than or equal to 0")
		case a.q.CmpInt64(math.MaxInt64) > 0:
			c.invalid(p.Child(a.name), a.q.String(), "must not be larger than 9223372036854775807")
		}
	}
	if len(c.errs) > before {
		return
	}
	for _, q := range []*apiresource.Quantity{&def, r.Max} {
		if q != nil && (q.Value()-r.Min.Value())%r.Step.Value() != 0 {
			c.invalid(sp, q.String(), fmt.Sprintf("value is not a multiple of a given step (%s) from (%s)", r.Step.String(), r.Min.String()))
		}
	}
}
