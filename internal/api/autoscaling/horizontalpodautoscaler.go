// Package autoscaling declares the resources of the autoscaling group.
package autoscaling

import (
	"fmt"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// HorizontalPodAutoscalers declares horizontalpodautoscalers in both versions. They
// are stored as autoscaling/v2, whose rules hold for both: version 1 keeps in
// annotations what it has no fields for.
func HorizontalPodAutoscalers() (v2, v1 *resource.Resource) {
	doc := autoscalingv2.HorizontalPodAutoscalerSpec{}.SwaggerDoc()
	shared := resource.Resource{
		Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler",
		ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true,
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Reference", "string", doc["scaleTargetRef"], 0),
			resource.Column("Targets", "string", doc["metrics"], 0),
			resource.Column("MinPods", "string", doc["minReplicas"], 0),
			resource.Column("MaxPods", "string", doc["maxReplicas"], 0),
			resource.Column("Replicas", "string", autoscalingv2.HorizontalPodAutoscalerStatus{}.SwaggerDoc()["currentReplicas"], 0),
			resource.AgeColumn(),
		},
	}
	rules, status := strategy(), statusStrategy()

	two := shared
	two.GroupVersion, two.Prefix = autoscalingv2.SchemeGroupVersion, "/registry/horizontalpodautoscalers/"
	two.New = func() resource.Object { return &autoscalingv2.HorizontalPodAutoscaler{} }
	two.NewList = func() runtime.Object { return &autoscalingv2.HorizontalPodAutoscalerList{} }
	two.Subresources = []resource.Subresource{resource.StatusOf(status)}
	v2 = resource.Define(two, rules)

	one := shared
	one.GroupVersion = autoscalingv1.SchemeGroupVersion
	one.New = func() resource.Object { return &autoscalingv1.HorizontalPodAutoscaler{} }
	one.NewList = func() runtime.Object { return &autoscalingv1.HorizontalPodAutoscalerList{} }
	one.Subresources = []resource.Subresource{resource.StatusOf(asVersion1(status))}
	one.Twin = &resource.Twin{
		Of:         v2,
		ToStored:   func(o resource.Object) resource.Object { return toVersion2(o.(*autoscalingv1.HorizontalPodAutoscaler)) },
		FromStored: func(o resource.Object) resource.Object { return toVersion1(o.(*autoscalingv2.HorizontalPodAutoscaler)) },
	}
	return v2, resource.Define(one, asVersion1(rules))
}

func strategy() resource.StrategyOf[*autoscalingv2.HorizontalPodAutoscaler] {
	return resource.StrategyOf[*autoscalingv2.HorizontalPodAutoscaler]{
		Default:             defaultAutoscaler,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(_ resource.Env, h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{}
			h.Generation = 1
		},
		PrepareUpdate: func(_ resource.Env, h, old *autoscalingv2.HorizontalPodAutoscaler) {
			h.Status = old.Status
			h.Generation = old.Generation
			if !apiequality.Semantic.DeepEqual(h.Spec, old.Spec) {
				h.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
			return append(resource.ValidateMeta(h, true, resource.DNSSubdomain), rulesFor(env.Features, h, nil).spec(&h.Spec)...)
		},
		ValidateUpdate: func(env resource.Env, h, old *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
			return append(resource.ValidateMetaUpdate(h, old), rulesFor(env.Features, h, old).spec(&h.Spec)...)
		},
		Row: row,
	}
}

func statusStrategy() resource.StrategyOf[*autoscalingv2.HorizontalPodAutoscaler] {
	return resource.StrategyOf[*autoscalingv2.HorizontalPodAutoscaler]{
		Default:             defaultAutoscaler,
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec"},
		PrepareUpdate:       func(_ resource.Env, h, old *autoscalingv2.HorizontalPodAutoscaler) { h.Spec = old.Spec },
		ValidateUpdate:      validateStatus,
	}
}

// asVersion1 turns the rules of version 2 into those of version 1.
func asVersion1(s resource.StrategyOf[*autoscalingv2.HorizontalPodAutoscaler]) resource.StrategyOf[*autoscalingv1.HorizontalPodAutoscaler] {
	type version1 = *autoscalingv1.HorizontalPodAutoscaler
	change := func(h version1, by func(*autoscalingv2.HorizontalPodAutoscaler)) {
		two := toVersion2(h)
		by(two)
		*h = *toVersion1(two)
	}
	out := resource.StrategyOf[*autoscalingv1.HorizontalPodAutoscaler]{
		Default: func(h version1) {
			if h.Spec.MinReplicas == nil {
				h.Spec.MinReplicas = new(int32(1))
			}
			// What version 1 cannot say comes out as it is kept.
			*h = *toVersion1(toVersion2(h))
		},
		UnconditionalUpdate: s.UnconditionalUpdate, ResetFields: s.ResetFields,
		PrepareUpdate: func(env resource.Env, h, old version1) {
			change(h, func(two *autoscalingv2.HorizontalPodAutoscaler) { s.PrepareUpdate(env, two, toVersion2(old)) })
		},
		ValidateUpdate: func(env resource.Env, h, old version1) field.ErrorList {
			return s.ValidateUpdate(env, toVersion2(h), toVersion2(old))
		},
	}
	if s.PrepareCreate != nil {
		out.PrepareCreate = func(env resource.Env, h version1) {
			change(h, func(two *autoscalingv2.HorizontalPodAutoscaler) { s.PrepareCreate(env, two) })
		}
		out.ValidateCreate = func(env resource.Env, h version1) field.ErrorList { return s.ValidateCreate(env, toVersion2(h)) }
		out.Row = func(h version1, now time.Time) []any { return s.Row(toVersion2(h), now) }
	}
	return out
}

// usualUtilization is the share of requested cpu, in percent, that an autoscaler
// without metrics keeps.
const usualUtilization = 80

func cpuUtilization(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{
		Type: autoscalingv2.ResourceMetricSourceType,
		Resource: &autoscalingv2.ResourceMetricSource{
			Name:   corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		},
	}
}

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	h.Annotations = withoutKept(h.Annotations)
	if h.Spec.MinReplicas == nil {
		h.Spec.MinReplicas = new(int32(1))
	}
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []autoscalingv2.MetricSpec{cpuUtilization(usualUtilization)}
	}
	if b := h.Spec.Behavior; b != nil {
		percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
		b.ScaleUp = withRules(b.ScaleUp, new(int32(0)),
			autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, percent)
		b.ScaleDown = withRules(b.ScaleDown, nil, percent)
	}
}

func withRules(r *autoscalingv2.HPAScalingRules, window *int32, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	if r == nil {
		r = &autoscalingv2.HPAScalingRules{}
	}
	if r.StabilizationWindowSeconds == nil {
		r.StabilizationWindowSeconds = window
	}
	if r.SelectPolicy == nil {
		r.SelectPolicy = new(autoscalingv2.MaxChangePolicySelect)
	}
	if r.Policies == nil {
		r.Policies = policies
	}
	return r
}

func row(h *autoscalingv2.HorizontalPodAutoscaler, now time.Time) []any {
	least := "<unset>"
	if n := h.Spec.MinReplicas; n != nil {
		least = fmt.Sprint(*n)
	}
	target := h.Spec.ScaleTargetRef
	return []any{h.Name, target.Kind + "/" + target.Name, targets(h), least, int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), resource.Age(h.CreationTimestamp, now)}
}

const unknown = "<unknown>"

// targets shows the first two metrics: what is, and what is wanted.
func targets(h *autoscalingv2.HorizontalPodAutoscaler) string {
	if len(h.Spec.Metrics) == 0 {
		return "<none>"
	}
	var list []string
	for i := range h.Spec.Metrics {
		var status *autoscalingv2.MetricStatus
		if i < len(h.Status.CurrentMetrics) {
			status = &h.Status.CurrentMetrics[i]
		}
		list = append(list, target(&h.Spec.Metrics[i], status))
	}
	const most = 2
	if more := len(list) - most; more > 0 {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:most], ", "), more)
	}
	return strings.Join(list, ", ")
}

// target shows one metric; status is nil where there is none.
func target(m *autoscalingv2.MetricSpec, status *autoscalingv2.MetricStatus) string {
	var now autoscalingv2.MetricValueStatus
	known := false
	if status == nil {
		status = &autoscalingv2.MetricStatus{}
	}
	switch {
	case m.Type == autoscalingv2.ExternalMetricSourceType && m.External != nil:
		if status.External != nil {
			now, known = status.External.Current, true
		}
		return valueTarget(&m.External.Target, now, known)
	case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
		if status.Object != nil {
			now, known = status.Object.Current, true
		}
		return valueTarget(&m.Object.Target, now, known)
	case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
		if status.Pods != nil {
			now, known = status.Pods.Current, true
		}
		return current(now.AverageValue, known) + "/" + text(m.Pods.Target.AverageValue)
	case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
		if status.Resource != nil {
			now, known = status.Resource.Current, true
		}
		return fmt.Sprintf("%s: %s", m.Resource.Name, resourceTarget(&m.Resource.Target, now, known))
	case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
		if status.ContainerResource != nil {
			now, known = status.ContainerResource.Current, true
		}
		return fmt.Sprintf("%s: %s", m.ContainerResource.Name, resourceTarget(&m.ContainerResource.Target, now, known))
	}
	return "<unknown type>"
}

// text is a quantity as people write it. A quantity keeps its text once it has
// made it, and this one may be shared: a copy makes it.
func text(q *apiresource.Quantity) string {
	if q == nil {
		return q.String()
	}
	v := *q
	return v.String()
}

func current(q *apiresource.Quantity, known bool) string {
	if !known {
		return unknown
	}
	return text(q)
}

func valueTarget(t *autoscalingv2.MetricTarget, now autoscalingv2.MetricValueStatus, known bool) string {
	if t.AverageValue != nil {
		return fmt.Sprintf("%s/%s (avg)", current(now.AverageValue, known && now.AverageValue != nil), text(t.AverageValue))
	}
	return current(now.Value, known) + "/" + text(t.Value)
}

func resourceTarget(t *autoscalingv2.MetricTarget, now autoscalingv2.MetricValueStatus, known bool) string {
	if t.AverageValue != nil {
		return current(now.AverageValue, known) + "/" + text(t.AverageValue)
	}
	is, want := unknown, "<auto>"
	if known && now.AverageUtilization != nil {
		is = fmt.Sprintf("%d%%", *now.AverageUtilization)
	}
	if t.AverageUtilization != nil {
		want = fmt.Sprintf("%d%%", *t.AverageUtilization)
	}
	return is + "/" + want
}
