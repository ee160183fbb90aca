package core

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// LimitRange declares core/v1 limitranges.
func LimitRange() *resource.Resource {
	validate := func(_ resource.Env, l *corev1.LimitRange) field.ErrorList {
		return append(resource.ValidateMeta(l, true, resource.DNSSubdomain), validateLimits(specPath.Child("limits"), l.Spec.Limits)...)
	}
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "LimitRange", Plural: "limitranges", Singular: "limitrange",
		ShortNames: []string{"limits"}, Namespaced: true, Prefix: "/registry/limitranges/",
		New:     func() resource.Object { return &corev1.LimitRange{} },
		NewList: func() runtime.Object { return &corev1.LimitRangeList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Created At", "date", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"], 0),
		},
	}, resource.StrategyOf[*corev1.LimitRange]{
		Default:             defaultLimitRange,
		CreateOnUpdate:      true,
		UnconditionalUpdate: true,
		PrepareCreate: func(_ resource.Env, l *corev1.LimitRange) {
			if l.Name == "" {
				l.Name = string(uuid.NewUUID())
			}
		},
		ValidateCreate: validate,
		ValidateUpdate: func(env resource.Env, l, _ *corev1.LimitRange) field.ErrorList { return validate(env, l) },
		Row: func(l *corev1.LimitRange, _ time.Time) []any {
			return []any{l.Name, l.CreationTimestamp.UTC().Format(time.RFC3339)}
		},
	})
}

// defaultLimitRange: what containers are limited to at most is their default too,
// and what they are limited to by default, or request at least, is requested.
func defaultLimitRange(r *corev1.LimitRange) {
	fill := func(list, from corev1.ResourceList) {
		for n, q := range from {
			if _, ok := list[n]; !ok {
				list[n] = q.DeepCopy()
			}
		}
	}
	for i := range r.Spec.Limits {
		l := &r.Spec.Limits[i]
		if l.Type == corev1.LimitTypeContainer {
			if l.Default == nil {
				l.Default = corev1.ResourceList{}
			}
			if l.DefaultRequest == nil {
				l.DefaultRequest = corev1.ResourceList{}
			}
			fill(l.Default, l.Max)
			fill(l.DefaultRequest, l.Default)
			fill(l.DefaultRequest, l.Min)
		}
		pod.WholeMillis(l.Max, l.Min, l.Default, l.DefaultRequest, l.MaxLimitRequestRatio)
	}
}

func validateLimits(p *field.Path, limits []corev1.LimitRangeItem) field.ErrorList {
	var errs field.ErrorList
	seen := map[corev1.LimitType]bool{}
	for i := range limits {
		l, ip := &limits[i], p.Index(i)
		errs = append(errs, validateLimitType(ip.Child("type"), l.Type)...)
		if seen[l.Type] {
			errs = append(errs, field.Duplicate(ip.Child("type"), l.Type))
		}
		seen[l.Type] = true
		c := limitItem{p: ip, typ: l.Type, names: map[corev1.ResourceName]bool{}}
		c.list("max", l.Max)
		c.list("min", l.Min)
		std, request := l.Default, l.DefaultRequest
		if l.Type == corev1.LimitTypePod {
			const detail = "may not be specified when `type` is 'Pod'"
			if len(std) > 0 {
				c.errs = append(c.errs, field.Forbidden(ip.Child("default"), detail))
			}
			if len(request) > 0 {
				c.errs = append(c.errs, field.Forbidden(ip.Child("defaultRequest"), detail))
			}
			std, request = nil, nil
		}
		c.list("default", std)
		c.list("defaultRequest", request)
		if l.Type == corev1.LimitTypePersistentVolumeClaim {
			_, least := l.Min[corev1.ResourceStorage]
			_, most := l.Max[corev1.ResourceStorage]
			if !least && !most {
				c.errs = append(c.errs, field.Required(ip.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
			}
		}
		c.list("maxLimitRequestRatio", l.MaxLimitRequestRatio)
		for _, n := range sortedKeys(c.names) {
			c.compare(n, l, std, request)
		}
		errs = append(errs, c.errs...)
	}
	return errs
}

func validateLimitType(p *field.Path, t corev1.LimitType) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsQualifiedName(string(t)) {
		errs = append(errs, field.Invalid(p, t, msg))
	}
	if len(errs) > 0 || strings.Contains(string(t), "/") {
		return errs
	}
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
		return nil
	}
	return field.ErrorList{field.Invalid(p, t, "must be a standard limit type or fully qualified")}
}

// limitItem checks one item of a limit range.
type limitItem struct {
	p     *field.Path
	typ   corev1.LimitType
	names map[corev1.ResourceName]bool
	errs  field.ErrorList
}

func (c *limitItem) list(name string, list corev1.ResourceList) {
	for _, n := range sortedKeys(list) {
		p := c.p.Child(name).Key(string(n))
		switch c.typ {
		case corev1.LimitTypePod, corev1.LimitTypeContainer:
			c.errs = append(c.errs, pod.ValidateContainerResource(p, n)...)
		default:
			c.errs = append(c.errs, pod.ValidateResourceName(p, n)...)
		}
		c.names[n] = true
	}
}

// compare checks the amounts of one resource against each other.
func (c *limitItem) compare(n corev1.ResourceName, l *corev1.LimitRangeItem, std, request corev1.ResourceList) {
	least, hasMin := l.Min[n]
	most, hasMax := l.Max[n]
	limit, hasDefault := std[n]
	req, hasRequest := request[n]
	ratio, hasRatio := l.MaxLimitRequestRatio[n]
	refuse := func(bad bool, name string, shown apiresource.Quantity, format string, args ...any) {
		if bad {
			c.errs = append(c.errs, field.Invalid(c.p.Child(name).Key(string(n)), shown, fmt.Sprintf(format, args...)))
		}
	}
	refuse(hasMin && hasMax && least.Cmp(most) > 0, "min", least, "min value %s is greater than max value %s", least.String(), most.String())
	refuse(hasRequest && hasMin && least.Cmp(req) > 0, "defaultRequest", req, "min value %s is greater than default request value %s", least.String(), req.String())
	refuse(hasRequest && hasMax && req.Cmp(most) > 0, "defaultRequest", req, "default request value %s is greater than max value %s", req.String(), most.String())
	refuse(hasRequest && hasDefault && req.Cmp(limit) > 0, "defaultRequest", req, "default request value %s is greater than default limit value %s", req.String(), limit.String())
	refuse(hasDefault && hasMin && least.Cmp(limit) > 0, "default", least, "min value %s is greater than default value %s", least.String(), limit.String())
	refuse(hasDefault && hasMax && limit.Cmp(most) > 0, "default", most, "default value %s is greater than max value %s", limit.String(), most.String())
	refuse(hasRatio && ratio.Cmp(apiresource.MustParse("1")) < 0, "maxLimitRequestRatio", ratio, "ratio %s is less than 1", ratio.String())
	if hasRatio && hasMin && hasMax {
		value, low, high := float64(ratio.Value()), least.Value(), most.Value()
		if ratio.Value() < apiresource.MaxMilliValue && low < apiresource.MaxMilliValue && high < apiresource.MaxMilliValue {
			value, low, high = float64(ratio.MilliValue())/1000, least.MilliValue(), most.MilliValue()
		}
		possible := float64(high) / float64(low)
		refuse(value > possible, "maxLimitRequestRatio", ratio, "ratio %s is greater than max/min = %f", ratio.String(), possible)
	}
	refuse(!pod.MayOvercommit(n) && hasDefault && hasRequest && limit.Cmp(req) != 0, "defaultRequest", req,
		"default value %s must equal to defaultRequest value %s in %s", limit.String(), req.String(), n)
}
