package dra

import (
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

// DeviceTaintRule declares devicetaintrules (KEP 5055).
func DeviceTaintRule() *resource.Resource {
	doc := resourcev1.DeviceTaint{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: resourcev1.SchemeGroupVersion, Kind: "DeviceTaintRule", Plural: "devicetaintrules", Singular: "devicetaintrule",
		Prefix:  "/registry/devicetaintrules/",
		New:     func() resource.Object { return &resourcev1.DeviceTaintRule{} },
		NewList: func() runtime.Object { return &resourcev1.DeviceTaintRuleList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Key", "string", doc["key"], 0),
			resource.Column("Value", "string", doc["value"], 0),
			resource.Column("Effect", "string", doc["effect"], 0),
			resource.Column("TimeAdded", "string", doc["timeAdded"], 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*resourcev1.DeviceTaintRule]{
			ResetFields: []string{"metadata", "spec"},
			PrepareUpdate: func(_ resource.Env, r, old *resourcev1.DeviceTaintRule) {
				r.Spec = *old.Spec.DeepCopy()
				metav1.ResetObjectMetaForStatus(&r.ObjectMeta, old.ObjectMeta.DeepCopy())
			},
			ValidateUpdate: func(env resource.Env, r, old *resourcev1.DeviceTaintRule) field.ErrorList {
				c := &check{errs: resource.ValidateMetaUpdate(r, old)}
				p := statusPath.Child("conditions")
				c.add(metavalidation.ValidateConditions(r.Status.Conditions, p)...)
				if n := len(r.Status.Conditions); n > resourcev1.DeviceTaintRuleStatusMaxConditions {
					c.add(field.TooMany(p, n, resourcev1.DeviceTaintRuleStatusMaxConditions))
				}
				return append(c.errs, marked(env.Features, rules.Validate_DeviceTaintRule, r, old)...)
			},
		})},
	}, resource.StrategyOf[*resourcev1.DeviceTaintRule]{
		ResetFields: []string{"status"},
		Default:     func(r *resourcev1.DeviceTaintRule) { defaultTaint(&r.Spec.Taint) },
		PrepareCreate: func(_ resource.Env, r *resourcev1.DeviceTaintRule) {
			r.Status = resourcev1.DeviceTaintRuleStatus{}
			r.Generation = 1
		},
		PrepareUpdate: func(env resource.Env, r, old *resourcev1.DeviceTaintRule) {
			r.Status = *old.Status.DeepCopy()
			// The time says since when the effect holds.
			if is, was := &r.Spec.Taint, &old.Spec.Taint; is.Effect != was.Effect && is.TimeAdded.Equal(was.TimeAdded) {
				is.TimeAdded = &metav1.Time{Time: env.Now().Truncate(time.Second)}
			}
			if !equal(r.Spec, old.Spec) {
				r.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(env resource.Env, r *resourcev1.DeviceTaintRule) field.ErrorList {
			errs := append(resource.ValidateMeta(r, false, resource.DNSSubdomain), validateTaintRule(&r.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_DeviceTaintRule, r, nil)...)
		},
		ValidateUpdate: func(env resource.Env, r, old *resourcev1.DeviceTaintRule) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(r, old), validateTaintRule(&r.Spec)...)
			return append(errs, marked(env.Features, rules.Validate_DeviceTaintRule, r, old)...)
		},
		Row: func(r *resourcev1.DeviceTaintRule, now time.Time) []any {
			t, since := &r.Spec.Taint, ""
			if t.TimeAdded != nil {
				since = resource.Age(*t.TimeAdded, now)
			}
			return []any{r.Name, t.Key, t.Value, string(t.Effect), since, resource.Age(r.CreationTimestamp, now)}
		},
	})
}

// defaultTaint notes when a taint came. The time is the clock's: it is filled in
// before it is known who sets what.
func defaultTaint(t *resourcev1.DeviceTaint) {
	if t.TimeAdded == nil {
		t.TimeAdded = &metav1.Time{Time: time.Now().Truncate(time.Second)}
	}
}

func validateTaintRule(s *resourcev1.DeviceTaintRuleSpec) field.ErrorList {
	c := &check{}
	if d, p := s.DeviceSelector, specPath.Child("deviceSelector"); d != nil {
		if d.Driver != nil {
			c.driver(p.Child("driver"), *d.Driver)
		}
		if d.Pool != nil {
			c.pool(p.Child("pool"), *d.Pool)
		}
		if d.Device != nil {
			c.label(p.Child("device"), *d.Device)
		}
	}
	c.taint(specPath.Child("taint"), s.Taint)
	return c.errs
}

// taint checks key and value; the effect is for a marker.
func (c *check) taint(p *field.Path, t resourcev1.DeviceTaint) {
	c.labelName(p.Child("key"), t.Key)
	if t.Value != "" {
		c.all(p.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))
	}
}

func (c *check) labelName(p *field.Path, v string) { c.add(metavalidation.ValidateLabelName(v, p)...) }
