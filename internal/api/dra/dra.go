// Package dra declares the resources of resource.k8s.io: dynamic resource allocation
// (KEP 4381 and those that extend it).
//
// Much of what their fields may hold is said by markers on the types; package rules
// has it as functions. What stands here is the rest. The mistakes of both are
// returned in that order: first what is found here, then what the markers say. A
// rule that a marker has is left out here.
package dra

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/validate"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	resourcev1 "k8s.io/api/resource/v1"

	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// marked returns what the markers on an object's type say of it: of a new one where
// old is nil.
func marked[T any](f resource.Features, rule func(context.Context, operation.Operation, *field.Path, *T, *T) field.ErrorList, obj, old *T) field.ErrorList {
	const partitionType = "DRAPartitionableDevicesType"
	op := operation.Operation{Type: operation.Create, Options: map[string]bool{partitionType: f.Enabled(partitionType)}}
	if old != nil {
		op.Type = operation.Update
	}
	ctx := context.Background() // no rule waits
	return validate.FilterEnforcedDeclarativeErrors(ctx, rule(ctx, op, nil, obj, old), true)
}

// check collects the mistakes found in one object, in the order in which the rules
// run.
type check struct {
	selectors compiler
	// stored: expressions and parameters stand in the stored object already, and
	// are not judged anew.
	stored bool
	errs   field.ErrorList
}

func (c *check) add(errs ...*field.Error)               { c.errs = append(c.errs, errs...) }
func (c *check) required(p *field.Path, detail string)  { c.add(field.Required(p, detail)) }
func (c *check) invalid(p *field.Path, v any, d string) { c.add(field.Invalid(p, v, d)) }
func (c *check) all(p *field.Path, v any, msgs []string) {
	for _, m := range msgs {
		c.invalid(p, v, m)
	}
}

func (c *check) label(p *field.Path, v string)  { c.all(p, v, validation.IsDNS1123Label(v)) }
func (c *check) driver(p *field.Path, v string) { c.add(resource.ValidateDriverName(p, v)...) }
func (c *check) node(p *field.Path, v string)   { c.all(p, v, resource.DNSSubdomain(v, false)) }

// within tells whether a list has no more items than it may have; of a longer one no
// item is looked at. A marker says that it is too long.
func within(n, most int) bool { return n <= most }

// distinct says which keys occur again.
func distinct[T any, K comparable](c *check, p *field.Path, list []T, key func(T) K) {
	seen := map[K]bool{}
	for i, v := range list {
		k := key(v)
		if seen[k] {
			c.add(field.Duplicate(p.Index(i), k))
		}
		seen[k] = true
	}
}

// pool checks the name of a pool of devices.
func (c *check) pool(p *field.Path, name string) {
	if name == "" {
		c.required(p, "")
		return
	}
	if len(name) > resourcev1.PoolNameMaxLength {
		c.add(field.TooLong(p, "", resourcev1.PoolNameMaxLength))
	}
	for part := range strings.SplitSeq(name, "/") {
		c.all(p, part, validation.IsDNS1123Subdomain(part))
	}
}

// qualified checks the name of an attribute or a capacity: an identifier of C, and
// before it perhaps the domain of a driver.
func (c *check) qualified(p *field.Path, name resourcev1.QualifiedName) {
	domain, id, ok := strings.Cut(string(name), "/")
	switch {
	case !ok:
		c.identifier(p, domain)
	case strings.Contains(id, "/"):
		// Upstream lets it pass.
	default:
		if domain == "" {
			c.invalid(p, "", "the domain must not be empty")
		} else {
			c.driver(p, domain)
		}
		if id == "" {
			c.invalid(p, "", "the name must not be empty")
		} else {
			c.identifier(p, id)
		}
	}
}

func (c *check) identifier(p *field.Path, id string) {
	if len(id) > resourcev1.DeviceMaxIDLength {
		c.add(field.TooLong(p, "", resourcev1.DeviceMaxIDLength))
	}
	c.all(p, id, content.IsCIdentifier(id))
}

// raw checks parameters that only a driver understands: an object in JSON.
func (c *check) raw(p *field.Path, e runtime.RawExtension, most int, stored bool) {
	var v any
	switch {
	case len(e.Raw) == 0:
		c.required(p, "")
	case !stored && len(e.Raw) > most:
		c.add(field.TooLong(p, "", most))
	default:
		if err := json.Unmarshal(e.Raw, &v); err != nil {
			c.invalid(p, "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err))
		} else if v == nil {
			c.required(p, "")
		} else if _, ok := v.(map[string]any); !ok {
			c.invalid(p, "<value omitted>", "must be a valid JSON object")
		}
	}
}

// configuration checks what a driver is told. The driver's name is for a marker.
func (c *check) configuration(p *field.Path, d resourcev1.DeviceConfiguration) {
	if d.Opaque == nil {
		c.required(p.Child("opaque"), "")
		return
	}
	c.raw(p.Child("opaque", "parameters"), d.Opaque.Parameters, resourcev1.OpaqueParametersMaxLength, c.stored)
}

// selector checks one condition on devices.
func (c *check) selector(p *field.Path, s resourcev1.DeviceSelector) {
	if s.CEL == nil {
		c.required(p.Child("cel"), "")
		return
	}
	if !c.stored {
		c.add(c.selectors.check(p.Child("cel", "expression"), s.CEL.Expression)...)
	}
}

func (c *check) selectorList(p *field.Path, list []resourcev1.DeviceSelector) {
	if !within(len(list), resourcev1.DeviceSelectorsMaxSize) {
		return
	}
	for i, s := range list {
		c.selector(p.Index(i), s)
	}
}

// toleration checks what of a toleration depends on its operator.
func (c *check) toleration(p *field.Path, t resourcev1.DeviceToleration) {
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			c.invalid(p.Child("value"), t.Value, "must be empty for operator `Exists`")
		}
	case resourcev1.DeviceTolerationOpEqual:
		c.all(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
	}
}

// bindings checks the conditions that a driver reports before and instead of a
// device becoming usable.
func (c *check) bindings(p *field.Path, ready, failed []string) {
	rp, fp := p.Child("bindingConditions"), p.Child("bindingFailureConditions")
	names := func(p *field.Path, list []string, most int) {
		if within(len(list), most) {
			for i, n := range list {
				c.labelName(p.Index(i), n)
			}
		}
	}
	names(rp, ready, resourcev1.BindingConditionsMaxSize)
	names(fp, failed, resourcev1.BindingFailureConditionsMaxSize)
	distinct(c, rp, ready, func(n string) string { return n })
	seen := map[string]bool{}
	for i, n := range failed {
		if seen[n] {
			c.add(field.Duplicate(fp.Index(i), n))
		}
		seen[n] = true
		if slices.Contains(ready, n) {
			c.invalid(fp.Index(i), n, "bindingFailureConditions must not overlap with bindingConditions")
		}
	}
	if len(ready) == 0 && len(failed) > 0 {
		c.invalid(rp, ready, "bindingConditions are required to use bindingFailureConditions")
	}
	if len(failed) == 0 && len(ready) > 0 {
		c.invalid(fp, failed, "bindingFailureConditions are required to use bindingConditions")
	}
}
