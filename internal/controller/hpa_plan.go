package controller

import (
	"errors"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hpaView is all that a decision is made of. Nothing of it is changed.
type hpaView struct {
	hpa   *autoscalingv2.HorizontalPodAutoscaler
	scale *autoscalingv1.Scale
	// selection says why the target's pods cannot be told; else pods are they.
	selection *selectionFailure
	pods      []*corev1.Pod
	// readings are what the metrics of the spec were, in their order; they are read
	// only where needsMetrics says so.
	readings []hpaReading
	past     hpaPast
	now      time.Time
}

// hpaReading is what a metrics API said of one metric: of each pod, or values of an
// object or of something outside, in thousandths.
type hpaReading struct {
	pods   map[string]podReading
	values []int64
	err    error
	// invalid is an error of the spec itself: the metric's selector.
	invalid error
}

// selectionFailure is a selector by which no pods can be chosen: an event of its own,
// and a reason and a message for the condition.
type selectionFailure struct{ event, reason, message, text string }

// hpaEvent is an event about the autoscaler.
type hpaEvent struct{ kind, reason, message string }

// hpaPlan is what to do: write the target's scale where rescale says so, then (after
// rescaled) the status of hpa, and the events.
type hpaPlan struct {
	hpa      *autoscalingv2.HorizontalPodAutoscaler
	from, to int32
	// wanted is the number that the status told before.
	wanted   int32
	rescale  bool
	why      string
	statuses []autoscalingv2.MetricStatus
	events   []hpaEvent
	past     hpaPast
	// err is why the metrics, or some of them, had no say.
	err error
}

func (p *hpaPlan) warn(reason, message string) {
	p.events = append(p.events, hpaEvent{corev1.EventTypeWarning, reason, message})
}

func (p *hpaPlan) condition(t autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) {
	s := &p.hpa.Status
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == t {
			if c.Status != status {
				c.LastTransitionTime = metav1.NewTime(now)
			}
			c.Status, c.Reason, c.Message = status, reason, message
			return
		}
	}
	s.Conditions = append(s.Conditions, autoscalingv2.HorizontalPodAutoscalerCondition{
		Type: t, Status: status, LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: message,
	})
}

// status fills in the status but for its conditions.
func (p *hpaPlan) status(desired int32, rescaled bool, now time.Time) {
	generation := p.hpa.Generation
	old := p.hpa.Status
	p.hpa.Status = autoscalingv2.HorizontalPodAutoscalerStatus{
		ObservedGeneration: &generation, LastScaleTime: old.LastScaleTime, CurrentReplicas: p.from, DesiredReplicas: desired,
		CurrentMetrics: p.statuses, Conditions: old.Conditions,
	}
	if rescaled {
		at := metav1.NewTime(now)
		p.hpa.Status.LastScaleTime = &at
	}
}

func minReplicas(h *autoscalingv2.HorizontalPodAutoscaler) int32 {
	if h.Spec.MinReplicas != nil {
		return *h.Spec.MinReplicas
	}
	return 1
}

// scaledToZero tells that the autoscaler, and nobody else, took the target to zero.
func scaledToZero(h *autoscalingv2.HorizontalPodAutoscaler) bool {
	for _, c := range h.Status.Conditions {
		if c.Type == autoscalingv2.ScaledToZero {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// measurable tells that a metric of the spec has a value without any pod.
func measurable(h *autoscalingv2.HorizontalPodAutoscaler) bool {
	for _, m := range h.Spec.Metrics {
		if m.Type == autoscalingv2.ObjectMetricSourceType || m.Type == autoscalingv2.ExternalMetricSourceType {
			return true
		}
	}
	return false
}

// needsMetrics tells whether the metrics decide: not where the number of replicas is
// out of the range, nor where somebody set it to zero.
func needsMetrics(h *autoscalingv2.HorizontalPodAutoscaler, current int32) bool {
	if current == 0 {
		return scaledToZero(h) && (minReplicas(h) != 0 || measurable(h))
	}
	return current <= h.Spec.MaxReplicas && current >= minReplicas(h)
}

// noScale is the plan where the target's scale cannot be read.
func noScale(h *autoscalingv2.HorizontalPodAutoscaler, past hpaPast, err error, now time.Time) *hpaPlan {
	p := &hpaPlan{hpa: h.DeepCopy(), past: past, err: err}
	p.warn("FailedGetScale", err.Error())
	p.condition(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", fmt.Sprintf("the HPA controller was unable to get the target's current scale: %v", err), now)
	return p
}

// plan decides how many replicas the target is to have.
func (s hpaSettings) plan(v *hpaView) *hpaPlan {
	h, current := v.hpa, v.scale.Spec.Replicas
	p := &hpaPlan{hpa: h.DeepCopy(), from: current, to: current, wanted: h.Status.DesiredReplicas, past: v.past}
	p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the HPA controller was able to get the target's current scale", v.now)
	if len(p.past.recommended) == 0 {
		p.past.recommended = []recommendation{{v.now, current}}
	}
	least := minReplicas(h)
	switch {
	case needsMetrics(h, current):
		if !s.follow(v, p, least) {
			p.status(p.wanted, false, v.now)
			return p
		}
	case current == 0:
		p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero", v.now)
	case current > h.Spec.MaxReplicas:
		p.to, p.why = h.Spec.MaxReplicas, "Current number of replicas above Spec.MaxReplicas"
	default:
		p.to, p.why = least, "Current number of replicas below Spec.MinReplicas"
	}
	p.rescale = p.to != current
	p.status(p.to, false, v.now)
	return p
}

// follow sets p.to to what the metrics ask for and the limits allow; false where the
// metrics have no say.
func (s hpaSettings) follow(v *hpaView, p *hpaPlan, least int32) bool {
	h, current := v.hpa, v.scale.Spec.Replicas
	want, metric, ok := s.wanted(v, p)
	if !ok {
		if p.err != nil {
			p.warn("FailedComputeMetricsReplicas", p.err.Error())
		}
		return false
	}
	desired := max(want, 0)
	switch {
	case desired > current:
		p.why = metric + " above target"
	case desired < current:
		p.why = "All metrics below target"
	}
	var stable, final verdict
	if b := h.Spec.Behavior; b == nil {
		stable = p.past.stabilize(desired, v.now, s.downscaleWindow)
		final = within(current, stable.replicas, least, h.Spec.MaxReplicas)
		p.past = p.past.recommend(desired, v.now, s.downscaleWindow)
	} else {
		rules := behaviourOf(b, s.downscaleWindow)
		stable = p.past.stabilizeBoth(rules, current, desired, v.now)
		final = p.past.withinRate(rules, current, stable.replicas, least, h.Spec.MaxReplicas, v.now)
		p.past = p.past.recommend(desired, v.now, max(windowOf(rules.up), windowOf(rules.down)))
	}
	if stable.replicas != desired {
		p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, stable.reason, stable.message, v.now)
	} else {
		p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ReadyForNewScale", "recommended size matches current size", v.now)
	}
	limited := corev1.ConditionFalse
	if final.replicas != stable.replicas {
		limited = corev1.ConditionTrue
	}
	p.condition(autoscalingv2.ScalingLimited, limited, final.reason, final.message, v.now)
	p.to = final.replicas
	if current == 0 && p.to < least {
		// The least number was raised since the target was taken to zero.
		p.to = least
		if p.why == "" {
			p.why = "Current number of replicas below Spec.MinReplicas"
		}
	}
	return true
}

// wanted is the largest number that a metric asks for, and that metric. Where all have
// failed, or some and the others ask for less, nothing is to be done.
func (s hpaSettings) wanted(v *hpaView, p *hpaPlan) (n int32, metric string, ok bool) {
	if f := v.selection; f != nil {
		p.warn(f.event, f.text)
		p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, f.reason, f.message, v.now)
		p.err = errors.New(f.text)
		return 0, "", false
	}
	specs := v.hpa.Spec.Metrics
	p.statuses = make([]autoscalingv2.MetricStatus, len(specs))
	var first *metricFailure
	failed := 0
	for i := range specs {
		proposal, f := s.propose(v, &specs[i], v.readings[i])
		if f != nil {
			p.warn(f.reason, f.cause.Error())
			if failed++; first == nil {
				first = f
			}
			continue
		}
		p.statuses[i] = proposal.status
		if n == 0 || proposal.replicas > n {
			n, metric = proposal.replicas, proposal.metric
		}
	}
	if first != nil {
		p.err = fmt.Errorf("invalid metrics (%v invalid out of %v), first error is: %w", failed, len(specs), first.err)
	}
	if failed >= len(specs) || failed > 0 && n < v.scale.Spec.Replicas {
		if first != nil {
			p.condition(autoscalingv2.ScalingActive, corev1.ConditionFalse, first.reason, fmt.Sprintf("the HPA was unable to compute the replica count: %v", first.cause), v.now)
		}
		return 0, "", false
	}
	p.condition(autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from "+metric, v.now)
	return n, metric, true
}

// rescaled completes a plan after the target's scale was written, or was not.
func (p *hpaPlan) rescaled(err error, now time.Time) {
	if err != nil {
		p.warn("FailedRescale", fmt.Sprintf("New size: %d; reason: %s; error: %v", p.to, p.why, err))
		p.condition(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedUpdateScale", fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err), now)
		p.err = err
		p.status(p.wanted, false, now)
		return
	}
	p.condition(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", p.to), now)
	p.events = append(p.events, hpaEvent{corev1.EventTypeNormal, "SuccessfulRescale", fmt.Sprintf("New size: %d; reason: %s", p.to, p.why)})
	p.past = p.past.scaled(p.hpa.Spec.Behavior, p.from, p.to, now)
	if p.from > 0 && p.to == 0 && minReplicas(p.hpa) == 0 && measurable(p.hpa) {
		p.condition(autoscalingv2.ScaledToZero, corev1.ConditionTrue, "ScaledToZero", "the HPA controller scaled the workload to zero", now)
	} else {
		p.condition(autoscalingv2.ScaledToZero, corev1.ConditionFalse, "NotScaledToZero", "the HPA controller did not scale the workload to zero", now)
	}
	p.status(p.to, true, now)
}

// tolerances are those of the autoscaler, or the controller's.
func (v *hpaView) tolerances(s hpaSettings) tolerances {
	t := tolerances{s.tolerance, s.tolerance}
	if b := v.hpa.Spec.Behavior; b != nil {
		if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
			t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
		}
		if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
			t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
		}
	}
	return t
}

// amountOf is an amount in thousandths, as metrics.k8s.io writes the resource's.
func amountOf(name corev1.ResourceName, milli int64) *apiresource.Quantity {
	if name == corev1.ResourceMemory {
		return apiresource.NewMilliQuantity(milli, apiresource.BinarySI)
	}
	return apiresource.NewMilliQuantity(milli, apiresource.DecimalSI)
}
