package controller

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

var hpaNow = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// scaler is an autoscaler of Deployment web.
func scaler(least, most int32, metrics ...autoscalingv2.MetricSpec) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "h-uid", Generation: 3},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"},
			MinReplicas:    &least, MaxReplicas: most, Metrics: metrics,
		},
	}
}

func cpuTarget(percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func amountTarget(name corev1.ResourceName, q string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: name, Target: averageTarget(q),
	}}
}

func averageTarget(q string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr.To(apiresource.MustParse(q))}
}

func valueTarget(q string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr.To(apiresource.MustParse(q))}
}

func podsTarget(q string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "qps"}, Target: averageTarget(q),
	}}
}

func objectTarget(t autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "Service", Name: "front"},
		Metric:          autoscalingv2.MetricIdentifier{Name: "qps"}, Target: t,
	}}
}

func externalTarget(t autoscalingv2.MetricTarget) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "waiting"}, Target: t,
	}}
}

// scaledPod is a pod that asks for a core and a GiB, and has been ready for an hour.
func scaledPod(i int, change ...func(*corev1.Pod)) *corev1.Pod {
	long := metav1.NewTime(hpaNow.Add(-time.Hour))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("web-", i), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: apiresource.MustParse("1"), corev1.ResourceMemory: apiresource.MustParse("1Gi"),
		}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &long, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: long},
		}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func phase(ph corev1.PodPhase) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.Phase = ph }
}

func leaving(p *corev1.Pod) { p.DeletionTimestamp = ptr.To(metav1.NewTime(hpaNow)) }

// begun is a pod that started and changed its readiness so long ago.
func begun(start, changed time.Duration, ready bool) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.StartTime = ptr.To(metav1.NewTime(hpaNow.Add(-start)))
		s := corev1.ConditionTrue
		if !ready {
			s = corev1.ConditionFalse
		}
		p.Status.Conditions[0].Status, p.Status.Conditions[0].LastTransitionTime = s, metav1.NewTime(hpaNow.Add(-changed))
	}
}

// seenPods are pods with their readings in thousandths; a negative one is none.
func seenPods(pods []*corev1.Pod, values ...int64) hpaReading {
	r := hpaReading{pods: map[string]podReading{}}
	for i, v := range values {
		if v >= 0 {
			r.pods[pods[i].Name] = podReading{at: hpaNow.Add(-5 * time.Second), window: 15 * time.Second, value: v}
		}
	}
	return r
}

func somePods(n int, change ...func(*corev1.Pod)) []*corev1.Pod {
	var out []*corev1.Pod
	for i := range n {
		out = append(out, scaledPod(i, change...))
	}
	return out
}

func scaleView(h *autoscalingv2.HorizontalPodAutoscaler, current int32, pods []*corev1.Pod, readings ...hpaReading) *hpaView {
	return &hpaView{hpa: h, pods: pods, readings: readings, now: hpaNow, scale: &autoscalingv1.Scale{
		Spec: autoscalingv1.ScaleSpec{Replicas: current}, Status: autoscalingv1.ScaleStatus{Replicas: current, Selector: "app=web"},
	}}
}

// conditionsOf are the conditions in a line each.
func conditionsOf(h *autoscalingv2.HorizontalPodAutoscaler) string {
	var b strings.Builder
	for _, c := range h.Status.Conditions {
		fmt.Fprintf(&b, "%s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
	}
	return b.String()
}

func eventsOf(p *hpaPlan) string {
	var out []string
	for _, e := range p.events {
		out = append(out, e.reason)
	}
	return strings.Join(out, " ")
}

// What the metrics ask for.
func TestScaleProposals(t *testing.T) {
	three, four := somePods(3), somePods(4)
	young := begun(30*time.Second, 3*time.Second, true)
	neverReady := begun(time.Hour, time.Hour-10*time.Second, false)
	wasReady := begun(time.Hour, 10*time.Minute, false)
	mixed := func(n int, f func(*corev1.Pod), at ...int) []*corev1.Pod {
		pods := somePods(n)
		for _, i := range at {
			f(pods[i])
		}
		return pods
	}
	contained := autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
		Name: corev1.ResourceCPU, Container: "c", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To(int32(50))},
	}}
	for name, c := range map[string]struct {
		metric  autoscalingv2.MetricSpec
		current int32
		pods    []*corev1.Pod
		r       hpaReading
		want    int32
		status  string // of the metric's value
		err     string
	}{
		"up":                      {cpuTarget(50), 3, three, seenPods(three, 1000, 1000, 1000), 6, "100% 1", ""},
		"down":                    {cpuTarget(50), 3, three, seenPods(three, 100, 100, 100), 1, "10% 100m", ""},
		"within the tolerance":    {cpuTarget(50), 3, three, seenPods(three, 540, 540, 540), 3, "54% 540m", ""},
		"at the tolerance":        {cpuTarget(50), 3, three, seenPods(three, 550, 550, 550), 3, "55% 550m", ""},
		"beyond the tolerance":    {cpuTarget(50), 3, three, seenPods(three, 560, 560, 560), 4, "56% 560m", ""},
		"of a container":          {contained, 3, three, seenPods(three, 1000, 1000, 1000), 6, "100% 1", ""},
		"an amount":               {amountTarget("memory", "100Mi"), 3, three, seenPods(three, 209715200000, 209715200000, 209715200000), 6, "200Mi", ""},
		"missing, down":           {cpuTarget(100), 4, four, seenPods(four, 100, 100, 100, -1), 2, "10% 100m", ""},
		"missing, up":             {cpuTarget(50), 4, four, seenPods(four, 1000, 1000, 1000, -1), 6, "100% 1", ""},
		"missing turns it":        {cpuTarget(50), 4, four, seenPods(four, 700, 700, -1, -1), 4, "70% 700m", ""},
		"missing, a high target":  {cpuTarget(300), 4, four, seenPods(four, 100, 100, 100, -1), 2, "10% 100m", ""},
		"missing, an amount":      {amountTarget("cpu", "100m"), 4, four, seenPods(four, 10, 10, 10, -1), 2, "10m", ""},
		"unready, up":             {cpuTarget(50), 4, mixed(4, young, 3), seenPods(four, 1000, 1000, 1000, 1000), 6, "100% 1", ""},
		"unready, down":           {cpuTarget(50), 4, mixed(4, young, 3), seenPods(four, 100, 100, 100, 1000), 1, "10% 100m", ""},
		"pending":                 {cpuTarget(50), 4, mixed(4, phase(corev1.PodPending), 3), seenPods(four, 1000, 1000, 1000, -1), 6, "100% 1", ""},
		"failed":                  {cpuTarget(50), 4, mixed(4, phase(corev1.PodFailed), 3), seenPods(four, 1000, 1000, 1000, 1000), 6, "100% 1", ""},
		"going":                   {cpuTarget(50), 4, mixed(4, leaving, 3), seenPods(four, 1000, 1000, 1000, 1000), 6, "100% 1", ""},
		"never ready":             {cpuTarget(50), 4, mixed(4, neverReady, 3), seenPods(four, 1000, 1000, 1000, 1000), 6, "100% 1", ""},
		"was ready":               {cpuTarget(50), 4, mixed(4, wasReady, 3), seenPods(four, 1000, 1000, 1000, 1000), 8, "100% 1", ""},
		"memory of unready ones":  {amountTarget("memory", "1"), 4, mixed(4, young, 3), seenPods(four, 2000, 2000, 2000, 2000), 8, "2", ""},
		"all unready":             {cpuTarget(50), 3, somePods(3, young), seenPods(three, 1000, 1000, 1000), 0, "", "failed to get cpu resource metric value: failed to get cpu utilization: did not receive metrics for targeted pods (pods might be unready)"},
		"no pods":                 {cpuTarget(50), 3, nil, seenPods(three, 1, 1, 1), 0, "", "failed to get cpu resource metric value: failed to get cpu utilization: no pods returned by selector while calculating replica count"},
		"nothing known":           {cpuTarget(50), 3, three, hpaReading{err: errors.New("down")}, 0, "", "failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: down"},
		"nothing asked for":       {cpuTarget(50), 3, mixed(3, func(p *corev1.Pod) { p.Spec.Containers[0].Resources = corev1.ResourceRequirements{} }, 1), seenPods(three, 1, 1, 1), 0, "", "failed to get cpu resource metric value: failed to get cpu utilization: missing request for cpu in container c of Pod web-1"},
		"no such container":       {contained, 3, mixed(3, func(p *corev1.Pod) { p.Spec.Containers[0].Name = "d" }, 0), seenPods(three, 1, 1, 1), 0, "", "failed to get c container metric value: failed to get cpu utilization: container c not found in Pod web-0"},
		"requests of zero":        {cpuTarget(50), 3, somePods(3, func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests["cpu"] = apiresource.MustParse("0") }), seenPods(three, 1, 1, 1), 0, "", "failed to get cpu resource metric value: failed to get cpu utilization: no metrics returned matched known pods"},
		"too much to count":       {amountTarget("cpu", "1m"), 3, three, seenPods(three, math.MaxInt64, math.MaxInt64, 1), math.MaxInt32, "3074457345618258602m", ""},
		"too much of too little":  {cpuTarget(1), 3, three, seenPods(three, math.MaxInt64, 0, 0), math.MaxInt32, "2147483647% 3074457345618258602m", ""},
		"of pods":                 {podsTarget("10"), 3, three, seenPods(three, 20000, 20000, 20000), 6, "20", ""},
		"of pods, unready counts": {podsTarget("10"), 4, mixed(4, young, 3), seenPods(four, 20000, 20000, 20000, 20000), 8, "20", ""},
		"of pods, none":           {podsTarget("10"), 3, three, hpaReading{err: errors.New("no custom metrics API (custom.metrics.k8s.io) registered")}, 0, "", "failed to get pods metric value: unable to get metric qps: no custom metrics API (custom.metrics.k8s.io) registered"},
		"of pods, bad selector":   {podsTarget("10"), 3, three, hpaReading{invalid: errors.New("bad")}, 0, "", "failed to get pods metric value: bad"},
		"of an object":            {objectTarget(valueTarget("10")), 3, three, hpaReading{values: []int64{20000}}, 6, "20", ""},
		"of an object, unready":   {objectTarget(valueTarget("10")), 3, mixed(3, wasReady, 2), hpaReading{values: []int64{20000}}, 4, "20", ""},
		"of an object, from none": {objectTarget(valueTarget("10")), 0, nil, hpaReading{values: []int64{25000}}, 3, "25", ""},
		"of an object, no pods":   {objectTarget(valueTarget("10")), 3, nil, hpaReading{values: []int64{25000}}, 0, "", "failed to get object metric value: unable to calculate ready pods: no pods returned by selector while calculating replica count"},
		"of an object, shared":    {objectTarget(averageTarget("10")), 3, three, hpaReading{values: []int64{60000}}, 6, "20", ""},
		"of an object, none":      {objectTarget(averageTarget("10")), 3, three, hpaReading{err: errors.New("down")}, 0, "", "failed to get object metric value: failed to get qps object metric: unable to get metric qps on Service ns/front: down"},
		"outside":                 {externalTarget(valueTarget("10")), 3, three, hpaReading{values: []int64{5000, 15000}}, 6, "20", ""},
		"outside, shared":         {externalTarget(averageTarget("10")), 3, three, hpaReading{values: []int64{60000}}, 6, "20", ""},
		"outside, nobody there":   {externalTarget(averageTarget("10")), 0, nil, hpaReading{values: []int64{60000}}, 6, "60", ""},
		"outside, nothing there":  {externalTarget(averageTarget("10")), 0, nil, hpaReading{values: []int64{0}}, 0, "0", ""},
		"outside, negative":       {externalTarget(valueTarget("10")), 3, three, hpaReading{values: []int64{-20000}}, -6, "-20", ""},
		"outside, too much":       {externalTarget(averageTarget("1m")), 3, three, hpaReading{values: []int64{math.MaxInt64, 5}}, math.MaxInt32, "9223372036854775807m", ""},
		"outside, down":           {externalTarget(valueTarget("10")), 3, three, hpaReading{err: errors.New("down")}, 0, "", "failed to get waiting external metric value: failed to get external metric waiting: unable to get external metric ns/waiting/nil: down"},
		"no target":               {objectTarget(autoscalingv2.MetricTarget{}), 3, three, hpaReading{values: []int64{1}}, 0, "", "failed to get object metric value: invalid object metric source: neither a value target nor an average value target was set"},
		"unknown":                 {autoscalingv2.MetricSpec{Type: "Moon"}, 3, three, hpaReading{}, 0, "", `unknown metric source type "Moon"`},
	} {
		v := scaleView(scaler(1, 100, c.metric), c.current, c.pods, c.r)
		p, f := defaultHPASettings().propose(v, &c.metric, c.r)
		if f != nil {
			if f.err.Error() != c.err || f.reason == "" {
				t.Errorf("%s: %s: %v", name, f.reason, f.err)
			}
			continue
		}
		var current autoscalingv2.MetricValueStatus
		switch s := p.status; {
		case s.Resource != nil:
			current = s.Resource.Current
		case s.ContainerResource != nil:
			current = s.ContainerResource.Current
		case s.Pods != nil:
			current = s.Pods.Current
		case s.Object != nil:
			current = s.Object.Current
		case s.External != nil:
			current = s.External.Current
		}
		text := ""
		if current.AverageUtilization != nil {
			text = fmt.Sprintf("%d%% ", *current.AverageUtilization)
		}
		for _, q := range []*apiresource.Quantity{current.AverageValue, current.Value} {
			if q != nil {
				text += q.String()
			}
		}
		if p.replicas != c.want || text != c.status || c.err != "" || p.metric == "" {
			t.Errorf("%s: %d replicas for %s, status %s, want %d, %s %s", name, p.replicas, p.metric, text, c.want, c.status, c.err)
		}
	}
}

func behaving(up, down *autoscalingv2.HPAScalingRules) *autoscalingv2.HorizontalPodAutoscalerBehavior {
	return &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: up, ScaleDown: down}
}

func rule(window int32, which autoscalingv2.ScalingPolicySelect, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	return &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &which, Policies: policies}
}

func podsPolicy(n, seconds int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: n, PeriodSeconds: seconds}
}

func percentPolicy(n, seconds int32) autoscalingv2.HPAScalingPolicy {
	return autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: n, PeriodSeconds: seconds}
}

func ago(seconds int, n int32) scaleEvent {
	return scaleEvent{hpaNow.Add(-time.Duration(seconds) * time.Second), n}
}

func recommended(seconds int, n int32) recommendation {
	return recommendation{hpaNow.Add(-time.Duration(seconds) * time.Second), n}
}

// What the limits make of it. The metric asks for want replicas.
func TestScaleLimits(t *testing.T) {
	const largest, least, off = autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect
	for name, c := range map[string]struct {
		behaviour     *autoscalingv2.HorizontalPodAutoscalerBehavior
		past          hpaPast
		current, want int32
		replicas      int32
		able, limited string // reasons
	}{
		"as it is":                    {nil, hpaPast{}, 5, 5, 5, "ReadyForNewScale", "DesiredWithinRange"},
		"up":                          {nil, hpaPast{}, 5, 8, 8, "ReadyForNewScale", "DesiredWithinRange"},
		"no more than double":         {nil, hpaPast{}, 5, 30, 10, "ReadyForNewScale", "ScaleUpLimit"},
		"too many":                    {nil, hpaPast{}, 30, 90, 50, "ReadyForNewScale", "TooManyReplicas"},
		"too few":                     {nil, hpaPast{recommended: []recommendation{recommended(400, 9)}}, 5, 1, 2, "ReadyForNewScale", "TooFewReplicas"},
		"down, not at once":           {nil, hpaPast{recommended: []recommendation{recommended(290, 9), recommended(20, 4)}}, 5, 3, 9, "ScaleDownStabilized", "DesiredWithinRange"},
		"down, first seen at five":    {nil, hpaPast{}, 5, 3, 5, "ScaleDownStabilized", "DesiredWithinRange"},
		"defaults, up":                {behaving(nil, nil), hpaPast{}, 3, 30, 7, "ReadyForNewScale", "ScaleUpLimit"},
		"defaults, double":            {behaving(nil, nil), hpaPast{}, 8, 30, 16, "ReadyForNewScale", "ScaleUpLimit"},
		"defaults, down":              {behaving(nil, nil), hpaPast{recommended: []recommendation{recommended(200, 7)}}, 8, 3, 7, "ScaleDownStabilized", "DesiredWithinRange"},
		"pods, up":                    {behaving(rule(0, largest, podsPolicy(2, 60)), nil), hpaPast{}, 10, 30, 12, "ReadyForNewScale", "ScaleUpLimit"},
		"pods, some used up":          {behaving(rule(0, largest, podsPolicy(5, 60)), nil), hpaPast{ups: []scaleEvent{ago(59, 3), ago(61, 9)}}, 10, 30, 12, "ReadyForNewScale", "ScaleUpLimit"},
		"pods, all used up":           {behaving(rule(0, largest, podsPolicy(5, 60)), nil), hpaPast{ups: []scaleEvent{ago(10, 8)}}, 10, 30, 10, "ReadyForNewScale", "ScaleUpLimit"},
		"pods, given back":            {behaving(rule(0, largest, podsPolicy(5, 60)), nil), hpaPast{downs: []scaleEvent{ago(10, 4)}}, 10, 30, 19, "ReadyForNewScale", "ScaleUpLimit"},
		"percent is rounded up":       {behaving(rule(0, largest, percentPolicy(1, 60)), nil), hpaPast{}, 10, 30, 11, "ReadyForNewScale", "ScaleUpLimit"},
		"the largest of two":          {behaving(rule(0, largest, podsPolicy(2, 60), percentPolicy(50, 60)), nil), hpaPast{}, 10, 30, 15, "ReadyForNewScale", "ScaleUpLimit"},
		"the least of two":            {behaving(rule(0, least, podsPolicy(2, 60), percentPolicy(50, 60)), nil), hpaPast{}, 10, 30, 12, "ReadyForNewScale", "ScaleUpLimit"},
		"up is off":                   {behaving(rule(0, off, podsPolicy(2, 60)), nil), hpaPast{}, 10, 30, 10, "ReadyForNewScale", "ScaleUpLimit"},
		"too many, by rules":          {behaving(rule(0, largest, podsPolicy(90, 60)), nil), hpaPast{}, 10, 70, 50, "ReadyForNewScale", "TooManyReplicas"},
		"up, not at once":             {behaving(rule(60, largest, podsPolicy(90, 60)), nil), hpaPast{recommended: []recommendation{recommended(59, 12), recommended(61, 9)}}, 10, 30, 12, "ScaleUpStabilized", "DesiredWithinRange"},
		"pods, down":                  {behaving(nil, rule(0, largest, podsPolicy(2, 60))), hpaPast{}, 10, 2, 8, "ReadyForNewScale", "ScaleDownLimit"},
		"pods, some gone":             {behaving(nil, rule(0, largest, podsPolicy(5, 60))), hpaPast{downs: []scaleEvent{ago(59, 3), ago(61, 9)}}, 10, 2, 8, "ReadyForNewScale", "ScaleDownLimit"},
		"pods, all gone":              {behaving(nil, rule(0, largest, podsPolicy(5, 60))), hpaPast{downs: []scaleEvent{ago(10, 8)}}, 10, 2, 10, "ReadyForNewScale", "ScaleDownLimit"},
		"percent is rounded down":     {behaving(nil, rule(0, largest, percentPolicy(25, 60))), hpaPast{}, 10, 2, 7, "ReadyForNewScale", "ScaleDownLimit"},
		"the largest of two, down":    {behaving(nil, rule(0, largest, podsPolicy(2, 60), percentPolicy(50, 60))), hpaPast{}, 10, 2, 5, "ReadyForNewScale", "ScaleDownLimit"},
		"the least of two, down":      {behaving(nil, rule(0, least, podsPolicy(2, 60), percentPolicy(50, 60))), hpaPast{}, 10, 2, 8, "ReadyForNewScale", "ScaleDownLimit"},
		"down is off":                 {behaving(nil, rule(0, off, podsPolicy(2, 60))), hpaPast{}, 10, 2, 10, "ReadyForNewScale", "ScaleDownLimit"},
		"too few, by rules":           {behaving(nil, rule(0, largest, percentPolicy(100, 60))), hpaPast{}, 10, 1, 2, "ReadyForNewScale", "TooFewReplicas"},
		"a step beyond all numbers":   {behaving(rule(0, largest, podsPolicy(math.MaxInt32, 60)), nil), hpaPast{}, 10, 60, 50, "ReadyForNewScale", "TooManyReplicas"},
		"a step below all numbers":    {behaving(nil, rule(0, largest, podsPolicy(math.MaxInt32, 60))), hpaPast{ups: []scaleEvent{ago(1, math.MaxInt32)}}, 10, 1, 2, "ReadyForNewScale", "TooFewReplicas"},
		"a clock that was set back":   {behaving(rule(0, largest, podsPolicy(5, 60)), nil), hpaPast{ups: []scaleEvent{ago(-3600, 3)}}, 10, 30, 12, "ReadyForNewScale", "ScaleUpLimit"},
		"recommended in time to come": {nil, hpaPast{recommended: []recommendation{recommended(-3600, 9)}}, 5, 3, 9, "ScaleDownStabilized", "DesiredWithinRange"},
	} {
		h := scaler(2, 50, externalTarget(averageTarget("1")))
		h.Spec.Behavior = c.behaviour
		p := defaultHPASettings().plan(func() *hpaView {
			v := scaleView(h, c.current, nil, hpaReading{values: []int64{int64(c.want) * 1000}})
			v.past = c.past
			return v
		}())
		reasons := map[autoscalingv2.HorizontalPodAutoscalerConditionType]string{}
		for _, x := range p.hpa.Status.Conditions {
			reasons[x.Type] = x.Reason
		}
		if p.to != c.replicas || p.rescale != (c.replicas != c.current) || reasons[autoscalingv2.AbleToScale] != c.able || reasons[autoscalingv2.ScalingLimited] != c.limited {
			t.Errorf("%s: %d, %v, want %d, %s %s", name, p.to, reasons, c.replicas, c.able, c.limited)
		}
	}
}

// The memory of an autoscaler does not grow.
func TestPastIsBounded(t *testing.T) {
	h := scaler(1, 1000, externalTarget(averageTarget("1")))
	h.Spec.Behavior = behaving(rule(0, autoscalingv2.MaxChangePolicySelect, podsPolicy(1000, 60)), rule(60, autoscalingv2.MaxChangePolicySelect, podsPolicy(1000, 60)))
	past, now, current := hpaPast{}, hpaNow, int32(5)
	for i := range 1000 {
		v := scaleView(h, current, nil, hpaReading{values: []int64{int64(5+i%7) * 1000}})
		v.past, v.now = past, now
		p := defaultHPASettings().plan(v)
		if p.rescale {
			p.rescaled(nil, now)
			current = p.to
		}
		past, now = p.past, now.Add(hpaPeriod)
	}
	if len(past.recommended) > 6 || len(past.ups) > 6 || len(past.downs) > 6 {
		t.Errorf("%d recommendations, %d and %d changes are remembered", len(past.recommended), len(past.ups), len(past.downs))
	}
}

// Whole decisions: conditions, events, status.
func TestScalePlans(t *testing.T) {
	three := somePods(3)
	busy := seenPods(three, 1000, 1000, 1000)
	lazy := seenPods(three, 100, 100, 100)
	down := hpaReading{err: errors.New("down")}
	const able = "AbleToScale=True SucceededGetScale: the HPA controller was able to get the target's current scale\n"
	const ready = "AbleToScale=True ReadyForNewScale: recommended size matches current size\n"
	const inside = "ScalingLimited=False DesiredWithinRange: the desired count is within the acceptable range\n"
	const found = "ScalingActive=True ValidMetricFound: the HPA was able to successfully calculate a replica count from "
	for name, c := range map[string]struct {
		h          *autoscalingv2.HorizontalPodAutoscaler
		current    int32
		selection  *selectionFailure
		readings   []hpaReading
		to         int32
		why        string
		conditions string
		events     string
		err        string
	}{
		"above the range": {scaler(1, 2, cpuTarget(50)), 3, nil, nil, 2, "Current number of replicas above Spec.MaxReplicas", able, "", ""},
		"below the range": {scaler(4, 9, cpuTarget(50)), 3, nil, nil, 4, "Current number of replicas below Spec.MinReplicas", able, "", ""},
		"switched off":    {scaler(1, 9, cpuTarget(50)), 0, nil, nil, 0, "", able + "ScalingActive=False ScalingDisabled: scaling is disabled since the replica count of the target is zero\n", "", ""},
		"up": {scaler(1, 9, cpuTarget(50)), 3, nil, []hpaReading{busy}, 6, "cpu resource utilization (percentage of request) above target",
			ready + found + "cpu resource utilization (percentage of request)\n" + inside, "", ""},
		"the larger of two": {scaler(1, 90, cpuTarget(50), podsTarget("100m")), 3, nil, []hpaReading{busy, seenPods(three, 200, 200, 200)}, 6, "cpu resource utilization (percentage of request) above target",
			ready + found + "cpu resource utilization (percentage of request)\n" + inside, "", ""},
		"one down, up": {scaler(1, 9, cpuTarget(50), podsTarget("1")), 3, nil, []hpaReading{busy, down}, 6, "cpu resource utilization (percentage of request) above target",
			ready + found + "cpu resource utilization (percentage of request)\n" + inside, "FailedGetPodsMetric",
			"invalid metrics (1 invalid out of 2), first error is: failed to get pods metric value: unable to get metric qps: down"},
		"one down, down": {scaler(1, 9, cpuTarget(50), podsTarget("1")), 3, nil, []hpaReading{lazy, down}, 3, "",
			able + "ScalingActive=False FailedGetPodsMetric: the HPA was unable to compute the replica count: unable to get metric qps: down\n", "FailedGetPodsMetric FailedComputeMetricsReplicas",
			"invalid metrics (1 invalid out of 2), first error is: failed to get pods metric value: unable to get metric qps: down"},
		"all down": {scaler(1, 9, cpuTarget(50), podsTarget("1")), 3, nil, []hpaReading{down, down}, 3, "",
			able + "ScalingActive=False FailedGetResourceMetric: the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: down\n",
			"FailedGetResourceMetric FailedGetPodsMetric FailedComputeMetricsReplicas",
			"invalid metrics (2 invalid out of 2), first error is: failed to get cpu resource metric value: failed to get cpu utilization: unable to get metrics for resource cpu: down"},
		"no pods to be told": {scaler(1, 9, cpuTarget(50)), 3, &selectionFailure{"SelectorRequired", "InvalidSelector", "the HPA target's scale is missing a selector", "selector is required"}, nil, 3, "",
			able + "ScalingActive=False InvalidSelector: the HPA target's scale is missing a selector\n", "SelectorRequired FailedComputeMetricsReplicas", "selector is required"},
	} {
		c.h.Status.DesiredReplicas = 7
		before := c.h.DeepCopy()
		v := scaleView(c.h, c.current, three, c.readings...)
		v.selection = c.selection
		// Nothing of before holds a decision back.
		v.past.recommended = []recommendation{recommended(4000, 1)}
		p := defaultHPASettings().plan(v)
		err := ""
		if p.err != nil {
			err = p.err.Error()
		}
		got := conditionsOf(p.hpa)
		if p.to != c.to || p.why != c.why || got != c.conditions || eventsOf(p) != c.events || err != c.err {
			t.Errorf("%s: to %d since %q\n%sevents %s, error %q", name, p.to, p.why, got, eventsOf(p), err)
		}
		s := p.hpa.Status
		desired := c.to
		if strings.Contains(c.events, "FailedCompute") {
			desired = 7
		}
		if s.CurrentReplicas != c.current || s.DesiredReplicas != desired || *s.ObservedGeneration != 3 || s.LastScaleTime != nil {
			t.Errorf("%s: status %+v", name, s)
		}
		if !equalObjects(before, c.h) {
			t.Errorf("%s: the plan changed its autoscaler", name)
		}
		if p.rescale {
			failed := *p
			failed.hpa = p.hpa.DeepCopy()
			failed.rescaled(errors.New("conflict"), hpaNow)
			if s := failed.hpa.Status; s.DesiredReplicas != 7 || s.LastScaleTime != nil || s.Conditions[0].Reason != "FailedUpdateScale" ||
				s.Conditions[0].Message != "the HPA controller was unable to update the target scale: conflict" || !strings.HasSuffix(eventsOf(&failed), "FailedRescale") {
				t.Errorf("%s: status %+v after a failed write", name, s)
			}
			p.rescaled(nil, hpaNow)
			if s := p.hpa.Status; s.DesiredReplicas != c.to || !s.LastScaleTime.Time.Equal(hpaNow) || s.Conditions[0].Reason != "SucceededRescale" ||
				p.events[len(p.events)-1].message != fmt.Sprintf("New size: %d; reason: %s", c.to, c.why) {
				t.Errorf("%s: status %+v, events %v", name, s, p.events)
			}
		}
	}
}

func equalObjects(a, b any) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// To zero and back: only where the autoscaler itself went there.
func TestScaleToZero(t *testing.T) {
	s := defaultHPASettings()
	look := func(h *autoscalingv2.HorizontalPodAutoscaler, current int32, waiting int64) *hpaPlan {
		v := scaleView(h, current, nil, hpaReading{values: []int64{waiting * 1000}})
		v.past.recommended = []recommendation{recommended(4000, 1)}
		p := s.plan(v)
		if p.rescale {
			p.rescaled(nil, hpaNow)
		}
		return p
	}
	h := scaler(0, 9, externalTarget(averageTarget("10")))
	p := look(h, 3, 0)
	if p.to != 0 || !scaledToZero(p.hpa) || p.why != "All metrics below target" {
		t.Fatalf("to %d: %s", p.to, conditionsOf(p.hpa))
	}
	idle := look(p.hpa, 0, 0)
	if idle.rescale || !scaledToZero(idle.hpa) || strings.Contains(conditionsOf(idle.hpa), "ScalingDisabled") {
		t.Errorf("at zero: to %d: %s", idle.to, conditionsOf(idle.hpa))
	}
	back := look(idle.hpa, 0, 25)
	if back.to != 3 || scaledToZero(back.hpa) || !strings.Contains(conditionsOf(back.hpa), "ScaledToZero=False NotScaledToZero: the HPA controller did not scale the workload to zero") {
		t.Errorf("back: to %d: %s", back.to, conditionsOf(back.hpa))
	}
	// Somebody else set it to zero.
	if p := look(back.hpa, 0, 25); p.rescale || !strings.Contains(conditionsOf(p.hpa), "ScalingActive=False ScalingDisabled") {
		t.Errorf("switched off: to %d: %s", p.to, conditionsOf(p.hpa))
	}
	// At zero, the least number was raised.
	raised := idle.hpa.DeepCopy()
	raised.Spec.MinReplicas = ptr.To(int32(2))
	if p := look(raised, 0, 0); p.to != 2 || scaledToZero(p.hpa) {
		t.Errorf("raised: to %d: %s", p.to, conditionsOf(p.hpa))
	}
}

func TestScaleTolerance(t *testing.T) {
	three := somePods(3)
	h := scaler(1, 9, cpuTarget(50))
	h.Spec.Behavior = behaving(&autoscalingv2.HPAScalingRules{Tolerance: ptr.To(apiresource.MustParse("0.5"))}, &autoscalingv2.HPAScalingRules{Tolerance: ptr.To(apiresource.MustParse("0")), StabilizationWindowSeconds: ptr.To(int32(0))})
	for used, want := range map[int64]int32{740: 3, 760: 5, 500: 3, 490: 3, 330: 2} {
		if p := defaultHPASettings().plan(scaleView(h, 3, three, seenPods(three, used, used, used))); p.to != want {
			t.Errorf("%d: to %d, want %d", used, p.to, want)
		}
	}
}

func TestScaleArithmetic(t *testing.T) {
	for x, want := range map[float64]int32{0: 0, 1.2: 2, -1.2: -1, 1e30: math.MaxInt32, -1e30: math.MinInt32, math.Inf(1): math.MaxInt32, math.Inf(-1): math.MinInt32} {
		if got := ceiling(x); got != want {
			t.Errorf("ceiling(%v) = %d", x, got)
		}
	}
	if got := ceiling(math.NaN()); got != 0 {
		t.Errorf("ceiling(NaN) = %d", got)
	}
	if got := within(1, 30, 1, 50); got.replicas != 4 || got.reason != "ScaleUpLimit" {
		t.Errorf("one is scaled to %+v at once", got)
	}
	for _, c := range [][4]int64{{7, 100, 3, 233}, {-7, 100, 3, -233}, {math.MaxInt64, 100, 100, math.MaxInt64}, {math.MaxInt64, 100, 1, math.MaxInt64}, {math.MinInt64, 100, 1, -math.MaxInt64}, {0, 1, 1, 0}} {
		if got := scaled(c[0], c[1], c[2]); got != c[3] {
			t.Errorf("scaled(%d, %d, %d) = %d", c[0], c[1], c[2], got)
		}
	}
	for _, c := range [][3]int64{{1, 2, 3}, {math.MaxInt64, 1, math.MaxInt64}, {math.MinInt64, -1, math.MinInt64}, {math.MaxInt64, math.MinInt64, -1}} {
		if got := plus(c[0], c[1]); got != c[2] {
			t.Errorf("plus(%d, %d) = %d", c[0], c[1], got)
		}
	}
}
