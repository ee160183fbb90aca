package controller

import (
	"errors"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
)

// hpaProposal is what one metric asks for.
type hpaProposal struct {
	replicas int32
	// metric names it in messages.
	metric string
	status autoscalingv2.MetricStatus
}

// metricFailure says why a metric has no say: the reason and cause that event and
// condition tell, and the error with what was being done.
type metricFailure struct {
	reason     string
	cause, err error
}

// propose is the number of replicas that one metric asks for.
func (s hpaSettings) propose(v *hpaView, m *autoscalingv2.MetricSpec, r hpaReading) (hpaProposal, *metricFailure) {
	var p hpaProposal
	var err error
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		status := autoscalingv2.ResourceMetricStatus{Name: m.Resource.Name}
		p.replicas, p.metric, status.Current, err = s.ofResource(v, m.Resource.Name, "", m.Resource.Target, r)
		if err != nil {
			return p, &metricFailure{"FailedGetResourceMetric", err, fmt.Errorf("failed to get %s resource metric value: %w", m.Resource.Name, err)}
		}
		p.status = autoscalingv2.MetricStatus{Type: m.Type, Resource: &status}
	case autoscalingv2.ContainerResourceMetricSourceType:
		c := m.ContainerResource
		status := autoscalingv2.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container}
		p.replicas, p.metric, status.Current, err = s.ofResource(v, c.Name, c.Container, c.Target, r)
		if err != nil {
			return p, &metricFailure{"FailedGetContainerResourceMetric", err, fmt.Errorf("failed to get %s container metric value: %w", c.Container, err)}
		}
		p.status = autoscalingv2.MetricStatus{Type: m.Type, ContainerResource: &status}
	case autoscalingv2.PodsMetricSourceType:
		status := autoscalingv2.PodsMetricStatus{Metric: m.Pods.Metric}
		p.metric = "pods metric " + m.Pods.Metric.Name
		p.replicas, status.Current, err = s.ofPods(v, m.Pods, r)
		if err != nil {
			return p, &metricFailure{"FailedGetPodsMetric", err, fmt.Errorf("failed to get pods metric value: %w", err)}
		}
		p.status = autoscalingv2.MetricStatus{Type: m.Type, Pods: &status}
	case autoscalingv2.ObjectMetricSourceType:
		status := autoscalingv2.ObjectMetricStatus{Metric: m.Object.Metric, DescribedObject: m.Object.DescribedObject}
		var detail error
		p.replicas, p.metric, status.Current, detail, err = s.ofObject(v, m.Object, r)
		if err != nil {
			return p, &metricFailure{"FailedGetObjectMetric", err, fmt.Errorf("failed to get object metric value: %w", detail)}
		}
		p.status = autoscalingv2.MetricStatus{Type: m.Type, Object: &status}
	case autoscalingv2.ExternalMetricSourceType:
		status := autoscalingv2.ExternalMetricStatus{Metric: m.External.Metric}
		var detail error
		p.metric = fmt.Sprintf("external metric %s(%+v)", m.External.Metric.Name, m.External.Metric.Selector)
		p.replicas, status.Current, detail, err = s.ofExternal(v, m.External, r)
		if err != nil {
			return p, &metricFailure{"FailedGetExternalMetric", err, fmt.Errorf("failed to get %s external metric value: %w", m.External.Metric.Name, detail)}
		}
		p.status = autoscalingv2.MetricStatus{Type: m.Type, External: &status}
	default:
		err = fmt.Errorf("unknown metric source type %q", string(m.Type))
		return p, &metricFailure{"InvalidMetricSourceType", err, err}
	}
	return p, nil
}

// ofResource is for what pods, or one of their containers, use of a resource.
func (s hpaSettings) ofResource(v *hpaView, name corev1.ResourceName, container string, t autoscalingv2.MetricTarget, r hpaReading) (n int32, metric string, current autoscalingv2.MetricValueStatus, err error) {
	if r.err != nil {
		r.err = fmt.Errorf("unable to get metrics for resource %s: %w", name, r.err)
	}
	if t.AverageValue != nil {
		used := int64(0)
		if err = r.err; err == nil {
			n, used, err = s.average(v, r.pods, name == corev1.ResourceCPU, t.AverageValue.MilliValue())
		}
		if err != nil {
			return 0, "", current, fmt.Errorf("failed to get %s usage: %w", name, err)
		}
		current.AverageValue = amountOf(name, used)
		return n, fmt.Sprintf("%s resource", name), current, nil
	}
	if t.AverageUtilization == nil {
		return 0, "", current, errors.New("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
	}
	used, average := int32(0), int64(0)
	if err = r.err; err == nil {
		n, used, average, err = s.utilization(v, r.pods, name, container, *t.AverageUtilization)
	}
	if err != nil {
		return 0, "", current, fmt.Errorf("failed to get %s utilization: %w", name, err)
	}
	current.AverageUtilization, current.AverageValue = &used, amountOf(name, average)
	if container != "" {
		return n, fmt.Sprintf("%s container resource utilization (percentage of request)", name), current, nil
	}
	return n, fmt.Sprintf("%s resource utilization (percentage of request)", name), current, nil
}

// ofPods is for a metric that each pod has.
func (s hpaSettings) ofPods(v *hpaView, m *autoscalingv2.PodsMetricSource, r hpaReading) (n int32, current autoscalingv2.MetricValueStatus, err error) {
	switch {
	case r.invalid != nil:
		return 0, current, r.invalid
	case r.err != nil:
		return 0, current, fmt.Errorf("unable to get metric %s: %w", m.Metric.Name, r.err)
	case m.Target.AverageValue == nil:
		return 0, current, errors.New("invalid pods metric source: no average value target was set")
	}
	n, used, err := s.average(v, r.pods, false, m.Target.AverageValue.MilliValue())
	current.AverageValue = milli(used)
	return n, current, err
}

// ofObject is for a metric of one object; detail is err with what was being done.
func (s hpaSettings) ofObject(v *hpaView, m *autoscalingv2.ObjectMetricSource, r hpaReading) (n int32, metric string, current autoscalingv2.MetricValueStatus, detail, err error) {
	whole := m.Target.Type == autoscalingv2.ValueMetricType && m.Target.Value != nil
	shared := m.Target.Type == autoscalingv2.AverageValueMetricType && m.Target.AverageValue != nil
	switch {
	case r.invalid != nil:
		return 0, "", current, r.invalid, r.invalid
	case !whole && !shared:
		err = errors.New("invalid object metric source: neither a value target nor an average value target was set")
		return 0, "", current, err, err
	case r.err != nil:
		err = fmt.Errorf("unable to get metric %s on %s %s/%s: %w", m.Metric.Name, m.DescribedObject.Kind, v.hpa.Namespace, m.DescribedObject.Name, r.err)
		if whole {
			return 0, "", current, err, err
		}
		return 0, "", current, fmt.Errorf("failed to get %s object metric: %w", m.Metric.Name, err), err
	}
	used := r.values[0]
	if whole {
		n, err = s.total(v, used, m.Target.Value.MilliValue())
		current.Value = milli(used)
		return n, fmt.Sprintf("%s metric %s", m.DescribedObject.Kind, m.Metric.Name), current, err, err
	}
	n, share := s.perPod(v, used, m.Target.AverageValue.MilliValue())
	current.AverageValue = milli(share)
	// The name is upstream's.
	return n, fmt.Sprintf("external metric %s(%+v)", m.Metric.Name, m.Metric.Selector), current, nil, nil
}

// ofExternal is for a metric of what is not in the cluster; detail is err with what was
// being done.
func (s hpaSettings) ofExternal(v *hpaView, m *autoscalingv2.ExternalMetricSource, r hpaReading) (n int32, current autoscalingv2.MetricValueStatus, detail, err error) {
	shared, whole := m.Target.AverageValue != nil, m.Target.Value != nil
	if !shared && !whole {
		err = errors.New("invalid external metric source: neither a value target nor an average value target was set")
		return 0, current, err, err
	}
	doing := fmt.Sprintf("failed to get external metric %s", m.Metric.Name)
	if shared {
		doing = fmt.Sprintf("failed to get %s external metric", m.Metric.Name)
	}
	used := int64(0)
	for _, value := range r.values {
		used = plus(used, value)
	}
	switch {
	case r.invalid != nil:
		err = r.invalid
	case r.err != nil:
		err = fmt.Errorf("unable to get external metric %s/%s/%+v: %w", v.hpa.Namespace, m.Metric.Name, m.Metric.Selector, r.err)
	case shared:
		var share int64
		n, share = s.perPod(v, used, m.Target.AverageValue.MilliValue())
		current.AverageValue = milli(share)
	default:
		n, err = s.total(v, used, m.Target.Value.MilliValue())
		current.Value = milli(used)
	}
	if err != nil {
		return 0, current, fmt.Errorf("%s: %w", doing, err), err
	}
	return n, current, nil, nil
}

func milli(n int64) *apiresource.Quantity {
	return apiresource.NewMilliQuantity(n, apiresource.DecimalSI)
}
