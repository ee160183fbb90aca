package dra

import (
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

// DeviceClass declares deviceclasses.
func DeviceClass() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: resourcev1.SchemeGroupVersion, Kind: "DeviceClass", Plural: "deviceclasses", Singular: "deviceclass",
		Prefix: "/registry/deviceclasses/", ReturnDeleted: true,
		New:     func() resource.Object { return &resourcev1.DeviceClass{} },
		NewList: func() runtime.Object { return &resourcev1.DeviceClassList{} },
		Columns: []metav1.TableColumnDefinition{resource.NameColumn(), resource.AgeColumn()},
	}, resource.StrategyOf[*resourcev1.DeviceClass]{
		UnconditionalUpdate: true,
		PrepareCreate:       func(_ resource.Env, c *resourcev1.DeviceClass) { c.Generation = 1 },
		PrepareUpdate: func(_ resource.Env, c, old *resourcev1.DeviceClass) {
			if !equal(c.Spec, old.Spec) {
				c.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(env resource.Env, c *resourcev1.DeviceClass) field.ErrorList {
			// The rule for the name is a marker's.
			errs := resource.ValidateMeta(c, false, anyName)
			errs = append(errs, validateClass(env.Features, &c.Spec, nil)...)
			return append(errs, marked(env.Features, rules.Validate_DeviceClass, c, nil)...)
		},
		ValidateUpdate: func(env resource.Env, c, old *resourcev1.DeviceClass) field.ErrorList {
			errs := append(resource.ValidateMeta(c, false, resource.DNSSubdomain), resource.ValidateMetaUpdate(c, old)...)
			errs = append(errs, validateClass(env.Features, &c.Spec, &old.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_DeviceClass, c, old)...)
		},
		Row: func(c *resourcev1.DeviceClass, now time.Time) []any {
			return []any{c.Name, resource.Age(c.CreationTimestamp, now)}
		},
	})
}

func anyName(string, bool) []string { return nil }

// validateClass checks a class; old is nil for a new one. Expressions and parameters
// that did not change are not judged anew.
func validateClass(f resource.Features, s, old *resourcev1.DeviceClassSpec) field.ErrorList {
	c := &check{selectors: compilerOf(f), stored: old != nil && equal(s.Selectors, old.Selectors)}
	c.selectorList(specPath.Child("selectors"), s.Selectors)
	c.stored = old != nil && equal(s.Config, old.Config)
	if within(len(s.Config), resourcev1.DeviceConfigMaxSize) {
		for i, d := range s.Config {
			c.configuration(specPath.Child("config").Index(i), d.DeviceConfiguration)
		}
	}
	return c.errs
}
