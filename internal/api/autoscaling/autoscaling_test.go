package autoscaling

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

func full() *autoscalingv2.HorizontalPodAutoscaler {
	one := apiresource.MustParse("1")
	id := autoscalingv2.MetricIdentifier{Name: "rps", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}
	ref := autoscalingv2.CrossVersionObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "Ingress", Name: "i"}
	h := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "h", Namespace: "default", ResourceVersion: "5", Annotations: map[string]string{"a": "b"}},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "d"}, MaxReplicas: 5,
			Metrics: []autoscalingv2.MetricSpec{
				{Type: "Resource", Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: "AverageValue", AverageValue: &one}}},
				{Type: "ContainerResource", ContainerResource: &autoscalingv2.ContainerResourceMetricSource{Name: corev1.ResourceCPU, Container: "c", Target: autoscalingv2.MetricTarget{Type: "Utilization", AverageUtilization: new(int32(3))}}},
				{Type: "Pods", Pods: &autoscalingv2.PodsMetricSource{Metric: id, Target: autoscalingv2.MetricTarget{Type: "AverageValue", AverageValue: &one}}},
				{Type: "Object", Object: &autoscalingv2.ObjectMetricSource{DescribedObject: ref, Metric: id, Target: autoscalingv2.MetricTarget{Type: "AverageValue", AverageValue: &one}}},
				{Type: "External", External: &autoscalingv2.ExternalMetricSource{Metric: id, Target: autoscalingv2.MetricTarget{Type: "Value", Value: &one}}},
				cpuUtilization(40),
			},
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{Tolerance: &one}},
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			CurrentReplicas: 1, ObservedGeneration: new(int64(2)),
			CurrentMetrics: []autoscalingv2.MetricStatus{{Type: "Resource", Resource: &autoscalingv2.ResourceMetricStatus{
				Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageValue: &one, AverageUtilization: new(int32(9))}}}},
			Conditions: []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: autoscalingv2.AbleToScale, Status: corev1.ConditionTrue, Reason: "R"}},
		},
	}
	defaultAutoscaler(h)
	return h
}

// TestRoundTrip: version 1 loses nothing of version 2.
func TestRoundTrip(t *testing.T) {
	two := full()
	before := two.DeepCopy()
	one := toVersion1(two)
	if !apiequality.Semantic.DeepEqual(two, before) {
		t.Error("the conversion changed what it was given")
	}
	if n := one.Spec.TargetCPUUtilizationPercentage; n == nil || *n != 40 {
		t.Errorf("cpu target %v", n)
	}
	if n := one.Status.CurrentCPUUtilizationPercentage; n == nil || *n != 9 {
		t.Errorf("cpu use %v", n)
	}
	want := []string{"a", keptBehavior, keptConditions, keptStatuses, keptMetrics}
	if got := slices.Sorted(maps.Keys(one.Annotations)); !slices.Equal(got, want) {
		t.Errorf("annotations %q, want %q", got, want)
	}
	// As upstream writes it: the names of the Go fields.
	if !strings.HasPrefix(one.Annotations[keptBehavior], `{"ScaleUp":{"StabilizationWindowSeconds":0,"SelectPolicy":"Max","Policies":[{"Type":"Pods"`) {
		t.Errorf("behavior is kept as %s", one.Annotations[keptBehavior])
	}
	if back := toVersion2(one); !apiequality.Semantic.DeepEqual(back, two) {
		a, _ := json.Marshal(two)
		b, _ := json.Marshal(back)
		t.Errorf("came back as\n%s\nwant\n%s", b, a)
	}
}

func TestVersion1(t *testing.T) {
	env := resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
	v2, v1 := HorizontalPodAutoscalers()
	h := &autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Name: "h", Namespace: "default", Annotations: map[string]string{keptMetrics: "[", "a": "b"}},
		Spec:       autoscalingv1.HorizontalPodAutoscalerSpec{MaxReplicas: -1, ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{Kind: "Deployment"}},
		Status:     autoscalingv1.HorizontalPodAutoscalerStatus{CurrentReplicas: 7},
	}
	v1.Default(h)
	if *h.Spec.MinReplicas != 1 || *h.Spec.TargetCPUUtilizationPercentage != usualUtilization || len(h.Annotations) != 1 {
		t.Errorf("defaulted to %+v, annotations %v", h.Spec, h.Annotations)
	}
	v1.PrepareCreate(env, h)
	if h.Status.CurrentReplicas != 0 || h.Generation != 1 {
		t.Errorf("prepared as %+v, generation %d", h.Status, h.Generation)
	}
	var got []string
	for _, e := range v1.ValidateCreate(env, h) {
		got = append(got, e.Error())
	}
	want := []string{
		"spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`",
		"spec.scaleTargetRef.name: Required value",
		`spec.scaleTargetRef.apiVersion: Invalid value: "": apiVersion must specify API group`,
		"spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if v1.Twin.Of != v2 {
		t.Error("version 1 shows other objects than version 2")
	}
}

func TestRules(t *testing.T) {
	env := resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
	v2, _ := HorizontalPodAutoscalers()
	for _, c := range []struct {
		name string
		set  func(*autoscalingv2.HorizontalPodAutoscaler)
		want []string
	}{
		{"valid", func(*autoscalingv2.HorizontalPodAutoscaler) {}, nil},
		{"to zero", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MinReplicas = new(int32(0)) }, nil},
		{"to zero by cpu", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.MinReplicas, h.Spec.Metrics = new(int32(0)), []autoscalingv2.MetricSpec{cpuUtilization(1)}
		}, []string{"spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas"}},
		{"sources", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.Metrics[5].Type = "Pods"
			h.Spec.Metrics[4].Resource = h.Spec.Metrics[0].Resource
			h.Spec.Metrics[0].Type = "X"
		}, []string{
			`spec.metrics[0].type: Unsupported value: "X": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"`,
			`spec.metrics[4].resource: Forbidden: must populate the given metric source only`,
			`spec.metrics[5].pods: Required value: must populate information for the given metric source`,
		}},
		{"targets", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.Metrics = []autoscalingv2.MetricSpec{cpuUtilization(0)}
			h.Spec.Metrics[0].Resource.Target.Type = "X"
		}, []string{
			`spec.metrics[0].resource.target.type: Invalid value: "X": must be either Utilization, Value, or AverageValue`,
			`spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0`,
		}},
		{"behavior", func(h *autoscalingv2.HorizontalPodAutoscaler) {
			h.Spec.Behavior.ScaleUp = &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: new(int32(3601)), SelectPolicy: new(autoscalingv2.ScalingPolicySelect("X"))}
			h.Spec.Behavior.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{{Type: "X", PeriodSeconds: 1801}}
		}, []string{
			`spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600`,
			`spec.behavior.scaleUp.selectPolicy: Unsupported value: "X": supported values: "Disabled", "Max", "Min"`,
			`spec.behavior.scaleUp.policies: Required value: must specify at least one Policy`,
			`spec.behavior.scaleDown.policies[0].type: Unsupported value: "X": supported values: "Percent", "Pods"`,
			`spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero`,
			`spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := full()
			c.set(h)
			var got []string
			for _, e := range v2.ValidateCreate(env, h) {
				got = append(got, e.Error())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
	shared := full()
	q := shared.Spec.Metrics[0].Resource.Target.AverageValue
	*q = *apiresource.NewQuantity(1, apiresource.DecimalSI)
	before := *q
	if targets(shared); !reflect.DeepEqual(*q, before) {
		t.Error("showing an autoscaler changed it")
	}
	if got, want := targets(full()), "memory: 1/1, cpu: <unknown>/3% + 4 more..."; got != want {
		t.Errorf("targets %q, want %q", got, want)
	}
}
