package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"

	"skiff/internal/client"
)

const (
	customMetrics   = "custom.metrics.k8s.io"
	externalMetrics = "external.metrics.k8s.io"
	// defaultWindow is the window of a custom metric that does not tell it.
	defaultWindow = time.Minute
	// metricTimeout bounds the reading of one metric: a source that hangs must not hold
	// up the autoscalers of others.
	metricTimeout = 10 * time.Second
)

// hpaMetrics reads metrics from the APIs that have them.
type hpaMetrics struct {
	client *client.Client
	// get asks for a path of the API; nil where no extension can be served.
	get  func(ctx context.Context, path string, q url.Values) (code int, body []byte, err error)
	kind func(ctx context.Context, gk schema.GroupKind) ([]Resource, error)
}

// read reads one metric of pods that selector chooses, or of what the metric says.
func (m *hpaMetrics) read(ctx context.Context, ns string, selector labels.Selector, spec *autoscalingv2.MetricSpec) (r hpaReading) {
	ctx, cancel := context.WithTimeout(ctx, metricTimeout)
	defer cancel()
	switch spec.Type {
	case autoscalingv2.ResourceMetricSourceType:
		r.pods, r.err = m.resource(ctx, ns, selector, spec.Resource.Name, "")
	case autoscalingv2.ContainerResourceMetricSourceType:
		r.pods, r.err = m.resource(ctx, ns, selector, spec.ContainerResource.Name, spec.ContainerResource.Container)
	case autoscalingv2.PodsMetricSourceType:
		var of labels.Selector
		if of, r.invalid = metricSelector(spec.Pods.Metric); r.invalid == nil {
			r.pods, r.err = m.ofPods(ctx, ns, selector, spec.Pods.Metric.Name, of)
		}
	case autoscalingv2.ObjectMetricSourceType:
		var of labels.Selector
		if of, r.invalid = metricSelector(spec.Object.Metric); r.invalid == nil {
			var v int64
			v, r.err = m.ofObject(ctx, ns, spec.Object.DescribedObject, spec.Object.Metric.Name, of)
			r.values = []int64{v}
		}
	case autoscalingv2.ExternalMetricSourceType:
		var of labels.Selector
		if of, r.invalid = metricSelector(spec.External.Metric); r.invalid == nil {
			r.values, r.err = m.external(ctx, ns, spec.External.Metric.Name, of)
		}
	}
	return r
}

// metricSelector chooses all where the metric has none.
func metricSelector(m autoscalingv2.MetricIdentifier) (labels.Selector, error) {
	if m.Selector == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(m.Selector)
}

// resource is what pods use, of all containers or of one. A pod of which a part is not
// known is left out.
func (m *hpaMetrics) resource(ctx context.Context, ns string, selector labels.Selector, name corev1.ResourceName, container string) (map[string]podReading, error) {
	list, _, err := client.For[*metricsv1.PodMetrics](m.client).In(ns).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	out := make(map[string]podReading, len(list))
	for _, p := range list {
		r, known := podReading{at: p.Timestamp.Time, window: p.Window.Duration}, false
		for _, c := range p.Containers {
			if container != "" && c.Name != container {
				continue
			}
			q, ok := c.Usage[name]
			if known = ok; !ok {
				break
			}
			r.value = plus(r.value, q.MilliValue())
		}
		if known {
			out[p.Name] = r
		}
	}
	return out, nil
}

// metricValues are the lists of both APIs, in all their versions.
type metricValues struct {
	Items []struct {
		DescribedObject corev1.ObjectReference `json:"describedObject"`
		Timestamp       metav1.Time            `json:"timestamp"`
		WindowSeconds   *int64                 `json:"windowSeconds"`
		Window          *int64                 `json:"window"`
		Value           apiresource.Quantity   `json:"value"`
	} `json:"items"`
}

func (m *hpaMetrics) ofPods(ctx context.Context, ns string, selector labels.Selector, metric string, of labels.Selector) (map[string]podReading, error) {
	l, err := m.custom(ctx, ns, schema.GroupKind{Kind: "Pod"}, "*", metric, selector, of)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	if len(l.Items) == 0 {
		return nil, errors.New("no metrics returned from custom metrics API")
	}
	out := make(map[string]podReading, len(l.Items))
	for _, i := range l.Items {
		r := podReading{at: i.Timestamp.Time, window: defaultWindow, value: i.Value.MilliValue()}
		for _, seconds := range []*int64{i.Window, i.WindowSeconds} {
			if seconds != nil {
				r.window = time.Duration(*seconds) * time.Second
			}
		}
		out[i.DescribedObject.Name] = r
	}
	return out, nil
}

func (m *hpaMetrics) ofObject(ctx context.Context, ns string, ref autoscalingv2.CrossVersionObjectReference, metric string, of labels.Selector) (int64, error) {
	gk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
	l, err := m.custom(ctx, ns, gk, ref.Name, metric, labels.Everything(), of)
	if err == nil && len(l.Items) != 1 {
		err = fmt.Errorf("the custom metrics API server returned %v results when we asked for exactly one", len(l.Items))
	}
	if err != nil {
		return 0, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	return l.Items[0].Value.MilliValue(), nil
}

// custom asks custom.metrics.k8s.io, in the version that it prefers.
func (m *hpaMetrics) custom(ctx context.Context, ns string, gk schema.GroupKind, name, metric string, selector, of labels.Selector) (*metricValues, error) {
	version, err := m.customVersion(ctx)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	if s := selector.String(); s != "" {
		q.Set("labelSelector", s)
	}
	if s := of.String(); s != "" {
		q.Set("metricLabelSelector", s)
	}
	at := "/apis/" + customMetrics + "/" + version + "/namespaces/" + ns
	if gk == (schema.GroupKind{Kind: "Namespace"}) {
		// The autoscaler's own: it reaches no other.
		return m.values(ctx, schema.GroupResource{Group: customMetrics, Resource: "metrics"}, at+"/metrics/"+metric, q)
	}
	rs, err := m.kind(ctx, gk)
	if err != nil {
		return nil, fmt.Errorf("unable to map kind %s to resource: %w", gk, err)
	}
	gr := rs[0].GVR.GroupResource().String()
	return m.values(ctx, schema.GroupResource{Group: customMetrics, Resource: gr}, at+"/"+gr+"/"+name+"/"+metric, q)
}

var customVersions = []string{"v1beta2", "v1beta1"}

func (m *hpaMetrics) customVersion(ctx context.Context) (string, error) {
	none := fmt.Errorf("no custom metrics API (%s) registered", customMetrics)
	if m.get == nil {
		return "", none
	}
	code, body, err := m.get(ctx, "/apis/"+customMetrics, nil)
	if err != nil {
		return "", err
	}
	if code == http.StatusNotFound {
		return "", none
	}
	var g metav1.APIGroup
	if err := decodeAnswer(code, body, schema.GroupResource{}, &g); err != nil {
		return "", err
	}
	for _, v := range append([]metav1.GroupVersionForDiscovery{g.PreferredVersion}, g.Versions...) {
		if slices.Contains(customVersions, v.Version) {
			return v.Version, nil
		}
	}
	return "", errors.New("no known available metric versions found")
}

func (m *hpaMetrics) external(ctx context.Context, ns, metric string, of labels.Selector) ([]int64, error) {
	q := url.Values{}
	if s := of.String(); s != "" {
		q.Set("labelSelector", s)
	}
	l, err := m.values(ctx, schema.GroupResource{Group: externalMetrics, Resource: metric},
		"/apis/"+externalMetrics+"/v1beta1/namespaces/"+ns+"/"+metric, q)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)
	}
	if len(l.Items) == 0 {
		return nil, errors.New("no metrics returned from external metrics API")
	}
	out := make([]int64, len(l.Items))
	for i := range l.Items {
		out[i] = l.Items[i].Value.MilliValue()
	}
	return out, nil
}

func (m *hpaMetrics) values(ctx context.Context, of schema.GroupResource, path string, q url.Values) (*metricValues, error) {
	if m.get == nil {
		return nil, apierrors.NewGenericServerResponse(http.StatusNotFound, http.MethodGet, of, "", "", 0, true)
	}
	code, body, err := m.get(ctx, path, q)
	if err != nil {
		return nil, err
	}
	l := &metricValues{}
	return l, decodeAnswer(code, body, of, l)
}

// decodeAnswer reads an answer in JSON, or makes an error of it.
func decodeAnswer(code int, body []byte, of schema.GroupResource, into any) error {
	if code != http.StatusOK {
		var s metav1.Status
		if json.Unmarshal(body, &s) == nil && s.Status == metav1.StatusFailure {
			return &apierrors.StatusError{ErrStatus: s}
		}
		return apierrors.NewGenericServerResponse(code, http.MethodGet, of, "", string(body[:min(len(body), 2048)]), 0, true)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the answer for %s cannot be read: %w", of, err)
	}
	return nil
}

// kindsOf are the resources of a kind, in all versions that are served.
func (d Deps) kindsOf(ctx context.Context, gk schema.GroupKind) ([]Resource, error) {
	all, err := d.resources(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r Resource) bool { return r.Kind != gk.Kind || r.GVR.Group != gk.Group })
	if len(all) == 0 {
		return nil, &meta.NoKindMatchError{GroupKind: gk}
	}
	return all, nil
}
