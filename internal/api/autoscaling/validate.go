package autoscaling

import (
	"errors"
	"fmt"
	"slices"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// Seconds at most of a policy's period, and of the time over which
// recommendations are looked at.
const (
	longestPeriod = 1800
	longestWindow = 3600
)

// rules say how strict validation is: what is stored already may stay.
type rules struct {
	fewest int32
	// target and object are about the references to what is scaled, and to what
	// has a metric.
	target, object reference
}

type reference struct{ anyVersion, noGroup bool }

// rulesFor: old is nil for a new object.
func rulesFor(f resource.Features, h, old *autoscalingv2.HorizontalPodAutoscaler) rules {
	r := rules{fewest: 1, object: reference{noGroup: true}}
	if f.Enabled("HPAScaleToZero") || old != nil && old.Spec.MinReplicas != nil && *old.Spec.MinReplicas == 0 {
		r.fewest = 0
	}
	is := h.Spec.ScaleTargetRef
	if old != nil && old.Spec.ScaleTargetRef.APIVersion == is.APIVersion && old.Spec.ScaleTargetRef.Kind == is.Kind {
		r.target.anyVersion = true
	} else {
		// The one kind with a scale that has no group.
		r.target.noGroup = is.Kind == "ReplicationController"
	}
	if old != nil {
		for _, m := range old.Spec.Metrics {
			if m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil && r.object.version(m.Object.DescribedObject.APIVersion) != nil {
				r.object.anyVersion = true
			}
		}
	}
	return r
}

func (r reference) version(v string) error {
	if r.anyVersion {
		return nil
	}
	gv, err := schema.ParseGroupVersion(v)
	if err == nil && !r.noGroup && gv.Group == "" {
		err = errors.New("apiVersion must specify API group")
	}
	return err
}

func (r reference) validate(p *field.Path, ref autoscalingv2.CrossVersionObjectReference) field.ErrorList {
	errs := append(segment(p.Child("kind"), ref.Kind, ""), segment(p.Child("name"), ref.Name, "")...)
	if err := r.version(ref.APIVersion); err != nil {
		errs = append(errs, field.Invalid(p.Child("apiVersion"), ref.APIVersion, err.Error()))
	}
	return errs
}

// segment asks for a name that can stand in a path.
func segment(p *field.Path, v, detail string) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, detail)}
	}
	var errs field.ErrorList
	for _, msg := range content.IsPathSegmentName(v) {
		errs = append(errs, field.Invalid(p, v, msg))
	}
	return errs
}

func (r rules) spec(s *autoscalingv2.HorizontalPodAutoscalerSpec) field.ErrorList {
	var errs field.ErrorList
	most := specPath.Child("maxReplicas")
	if n := s.MinReplicas; n != nil && s.MaxReplicas < *n {
		errs = append(errs, field.Invalid(most, s.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, r.target.validate(specPath.Child("scaleTargetRef"), s.ScaleTargetRef)...)
	errs = append(errs, r.metrics(specPath.Child("metrics"), s)...)
	if b := s.Behavior; b != nil {
		p := specPath.Child("behavior")
		errs = append(errs, validateScaling(p.Child("scaleUp"), b.ScaleUp)...)
		errs = append(errs, validateScaling(p.Child("scaleDown"), b.ScaleDown)...)
	}
	// Upstream's rules of these are declared with the fields, and come last.
	if n := s.MinReplicas; n != nil && *n < r.fewest {
		errs = append(errs, field.Invalid(specPath.Child("minReplicas"), *n, fmt.Sprintf("must be greater than or equal to %d", r.fewest)))
	}
	switch {
	case s.MaxReplicas == 0:
		errs = append(errs, field.Required(most, ""))
	case s.MaxReplicas < 0:
		errs = append(errs, field.Invalid(most, s.MaxReplicas, "must be greater than or equal to 1"))
	}
	return errs
}

func (r rules) metrics(p *field.Path, s *autoscalingv2.HorizontalPodAutoscalerSpec) field.ErrorList {
	var errs field.ErrorList
	outside := false
	for i := range s.Metrics {
		m := &s.Metrics[i]
		errs = append(errs, r.metric(p.Index(i), m)...)
		outside = outside || m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType
	}
	if s.MinReplicas != nil && *s.MinReplicas == 0 && !outside {
		errs = append(errs, field.Forbidden(p, "must specify at least one Object or External metric to support scaling to zero replicas"))
	}
	return errs
}

// metric checks one metric: it has the source that its type names, and no other.
func (r rules) metric(p *field.Path, m *autoscalingv2.MetricSpec) field.ErrorList {
	types := []autoscalingv2.MetricSourceType{autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType,
		autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType}
	var errs field.ErrorList
	if m.Type == "" {
		errs = append(errs, field.Required(p.Child("type"), "must specify a metric source type"))
	}
	if !slices.Contains(types, m.Type) {
		errs = append(errs, field.NotSupported(p.Child("type"), m.Type, types))
	}
	sources := []struct {
		typ      autoscalingv2.MetricSourceType
		name     string
		set      bool
		validate func(*field.Path) field.ErrorList
	}{
		{autoscalingv2.ObjectMetricSourceType, "object", m.Object != nil, func(p *field.Path) field.ErrorList { return r.objectSource(p, m.Object) }},
		{autoscalingv2.ExternalMetricSourceType, "external", m.External != nil, func(p *field.Path) field.ErrorList { return externalSource(p, m.External) }},
		{autoscalingv2.PodsMetricSourceType, "pods", m.Pods != nil, func(p *field.Path) field.ErrorList { return podsSource(p, m.Pods) }},
		{autoscalingv2.ResourceMetricSourceType, "resource", m.Resource != nil, func(p *field.Path) field.ErrorList { return resourceSource(p, m.Resource) }},
		{autoscalingv2.ContainerResourceMetricSourceType, "containerResource", m.ContainerResource != nil,
			func(p *field.Path) field.ErrorList { return containerSource(p, m.ContainerResource) }},
	}
	set := 0
	for _, s := range sources {
		if !s.set {
			continue
		}
		// Only the first one is looked into.
		if set++; set == 1 {
			errs = append(errs, s.validate(p.Child(s.name))...)
		}
	}
	for _, s := range sources {
		if s.typ == m.Type && !s.set {
			errs = append(errs, field.Required(p.Child(s.name), "must populate information for the given metric source"))
		}
	}
	if set != 1 {
		for _, s := range sources {
			if s.set && s.typ != m.Type {
				errs = append(errs, field.Forbidden(p.Child(s.name), "must populate the given metric source only"))
			}
		}
	}
	return errs
}

func (r rules) objectSource(p *field.Path, s *autoscalingv2.ObjectMetricSource) field.ErrorList {
	errs := r.object.validate(p.Child("describedObject"), s.DescribedObject)
	errs = append(errs, identified(p, s.Metric, &s.Target)...)
	if s.Target.Value == nil && s.Target.AverageValue == nil {
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must set either a target value or averageValue"))
	}
	return errs
}

func externalSource(p *field.Path, s *autoscalingv2.ExternalMetricSource) field.ErrorList {
	errs := identified(p, s.Metric, &s.Target)
	switch value, average := s.Target.Value != nil, s.Target.AverageValue != nil; {
	case !value && !average:
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target"))
	case value && average:
		errs = append(errs, field.Forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
	}
	return errs
}

func podsSource(p *field.Path, s *autoscalingv2.PodsMetricSource) field.ErrorList {
	errs := identified(p, s.Metric, &s.Target)
	if s.Target.AverageValue == nil {
		errs = append(errs, field.Required(p.Child("target", "averageValue"), "must specify a positive target averageValue"))
	}
	return errs
}

func resourceSource(p *field.Path, s *autoscalingv2.ResourceMetricSource) field.ErrorList {
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), "must specify a resource name"))
	}
	return append(errs, usageTarget(p.Child("target"), &s.Target)...)
}

func containerSource(p *field.Path, s *autoscalingv2.ContainerResourceMetricSource) field.ErrorList {
	var errs field.ErrorList
	if s.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), "must specify a resource name"))
	} else {
		errs = append(errs, pod.ValidateContainerResource(p.Child("name"), s.Name)...)
	}
	if s.Container == "" {
		errs = append(errs, field.Required(p.Child("container"), "must specify a container"))
	} else {
		for _, msg := range validation.IsDNS1123Label(s.Container) {
			errs = append(errs, field.Invalid(p.Child("container"), s.Container, msg))
		}
	}
	return append(errs, usageTarget(p.Child("target"), &s.Target)...)
}

func identified(p *field.Path, id autoscalingv2.MetricIdentifier, t *autoscalingv2.MetricTarget) field.ErrorList {
	return append(segment(p.Child("metric", "name"), id.Name, "must specify a metric name"), validateTarget(p.Child("target"), t)...)
}

// usageTarget checks the target of a resource: an amount or a share.
func usageTarget(p *field.Path, t *autoscalingv2.MetricTarget) field.ErrorList {
	errs := validateTarget(p, t)
	switch share, amount := t.AverageUtilization != nil, t.AverageValue != nil; {
	case !share && !amount:
		errs = append(errs, field.Required(p.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case share && amount:
		errs = append(errs, field.Forbidden(p.Child("averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func validateTarget(p *field.Path, t *autoscalingv2.MetricTarget) field.ErrorList {
	var errs field.ErrorList
	if t.Type == "" {
		errs = append(errs, field.Required(p.Child("type"), "must specify a metric target type"))
	}
	switch t.Type {
	case autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType:
	default:
		errs = append(errs, field.Invalid(p.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue"))
	}
	if v := t.Value; v != nil && v.Sign() != 1 {
		errs = append(errs, field.Invalid(p.Child("value"), v, "must be positive"))
	}
	if v := t.AverageValue; v != nil && v.Sign() != 1 {
		errs = append(errs, field.Invalid(p.Child("averageValue"), v, "must be positive"))
	}
	if n := t.AverageUtilization; n != nil && *n < 1 {
		errs = append(errs, field.Invalid(p.Child("averageUtilization"), *n, "must be greater than 0"))
	}
	return errs
}

func validateScaling(p *field.Path, r *autoscalingv2.HPAScalingRules) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if n := r.StabilizationWindowSeconds; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(p.Child("stabilizationWindowSeconds"), *n, "must be greater than or equal to zero"))
	} else if n != nil && *n > longestWindow {
		errs = append(errs, field.Invalid(p.Child("stabilizationWindowSeconds"), *n, fmt.Sprintf("must be less than or equal to %d", longestWindow)))
	}
	selects := []autoscalingv2.ScalingPolicySelect{autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect}
	if s := r.SelectPolicy; s != nil && !slices.Contains(selects, *s) {
		errs = append(errs, field.NotSupported(p.Child("selectPolicy"), *s, selects))
	}
	pp := p.Child("policies")
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(pp, "must specify at least one Policy"))
	}
	for i, policy := range r.Policies {
		ip := pp.Index(i)
		if policy.Type != autoscalingv2.PodsScalingPolicy && policy.Type != autoscalingv2.PercentScalingPolicy {
			errs = append(errs, field.NotSupported(ip.Child("type"), policy.Type,
				[]autoscalingv2.HPAScalingPolicyType{autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy}))
		}
		if policy.Value <= 0 {
			errs = append(errs, field.Invalid(ip.Child("value"), policy.Value, "must be greater than zero"))
		}
		if policy.PeriodSeconds <= 0 {
			errs = append(errs, field.Invalid(ip.Child("periodSeconds"), policy.PeriodSeconds, "must be greater than zero"))
		} else if policy.PeriodSeconds > longestPeriod {
			errs = append(errs, field.Invalid(ip.Child("periodSeconds"), policy.PeriodSeconds, fmt.Sprintf("must be less than or equal to %d", longestPeriod)))
		}
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		errs = append(errs, field.Invalid(p.Child("tolerance"), t.String(), "must be greater than or equal to 0"))
	}
	return errs
}

func validateStatus(_ resource.Env, h, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	errs := resource.ValidateMetaUpdate(h, old)
	for i, c := range h.Status.Conditions {
		if c.ObservedGeneration != nil {
			errs = append(errs, apivalidation.ValidateNonnegativeField(*c.ObservedGeneration, statusPath.Child("conditions").Index(i).Child("observedGeneration"))...)
		}
	}
	return append(errs, resource.NotNegative(statusPath, resource.N("currentReplicas", h.Status.CurrentReplicas), resource.N("desiredReplicas", h.Status.DesiredReplicas))...)
}
