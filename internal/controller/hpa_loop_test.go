package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// scaledWorld has Deployment web of three pods, each of which uses cores.
func scaledWorld(t *testing.T, get func(ctx context.Context, controller, path string, q url.Values) (int, []byte, error)) *world {
	w := newWorld(t, func(d Deps) []*control.Controller {
		d.Get = get
		return []*control.Controller{newAutoscaler(d)}
	})
	d := deployment("web", 3, "i")
	d.Status.Replicas = 3
	w.api.Put(d)
	for i := range 3 {
		long := metav1.NewTime(time.Now().Add(-time.Hour))
		w.api.Put(scaledPod(i, func(p *corev1.Pod) { p.Status.StartTime, p.Status.Conditions[0].LastTransitionTime = &long, long }))
	}
	return w
}

func (w *world) uses(cpu string) {
	for _, p := range list[*corev1.Pod](w, "ns") {
		w.api.Put(&metricsv1.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: p.Name, Labels: p.Labels}, Timestamp: metav1.NewTime(time.Now()), Window: metav1.Duration{Duration: 15 * time.Second},
			Containers: []metricsv1.ContainerMetrics{{Name: "c", Usage: corev1.ResourceList{"cpu": apiresource.MustParse(cpu), "memory": apiresource.MustParse("1Mi")}}},
		})
	}
}

func (w *world) replicas() int32 { return *get[*appsv1.Deployment](w, "ns", "web").Spec.Replicas }

func (w *world) scaler(name string) *autoscalingv2.HorizontalPodAutoscaler {
	return get[*autoscalingv2.HorizontalPodAutoscaler](w, "ns", name)
}

func reasonOf(h *autoscalingv2.HorizontalPodAutoscaler, t autoscalingv2.HorizontalPodAutoscalerConditionType) string {
	for _, c := range h.Status.Conditions {
		if c.Type == t {
			return c.Reason
		}
	}
	return ""
}

// A target follows its load, up in a period and down when the larger recommendations
// are old; where nothing changes nothing is written.
func TestAutoscalerFollowsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scaledWorld(t, nil)
		defer w.stop()
		w.uses("1")
		synctest.Wait() // the pods are known when the autoscaler comes
		w.api.Put(scaler(1, 9, cpuTarget(50)))
		begin := time.Now()
		w.until("up", func() bool { return w.replicas() == 6 })
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the first look took %v", took)
		}
		w.until("the status is told", func() bool {
			s := w.scaler("web").Status
			return s.DesiredReplicas == 6 && s.LastScaleTime != nil && *s.ObservedGeneration == 3 && *s.CurrentMetrics[0].Resource.Current.AverageUtilization == 100
		})
		w.until("six is right", func() bool { return w.scaler("web").Status.CurrentReplicas == 6 })
		w.uses("100m")
		begin = time.Now()
		w.until("down", func() bool { return w.replicas() < 6 })
		if took := time.Since(begin); took < 4*time.Minute || took > 6*time.Minute {
			t.Errorf("down after %v", took)
		}
		w.until("down to one", func() bool { return w.replicas() == 1 })
		reasons := ""
		for _, e := range list[*corev1.Event](w, "ns") {
			if e.InvolvedObject.Kind != "HorizontalPodAutoscaler" || e.InvolvedObject.APIVersion != "autoscaling/v2" {
				t.Errorf("event about %+v", e.InvolvedObject)
			}
			reasons += e.Reason + ": " + e.Message + "\n"
		}
		if !strings.Contains(reasons, "SuccessfulRescale: New size: 6; reason: cpu resource utilization (percentage of request) above target\n") ||
			!strings.Contains(reasons, "SuccessfulRescale: New size: 1; reason: All metrics below target\n") {
			t.Errorf("events\n%s", reasons)
		}
		time.Sleep(10 * time.Minute)
		writes := func() (n int) {
			for _, r := range w.api.Requests() {
				if r.Verb != "list" && r.Verb != "get" && r.Verb != "watch" {
					n++
				}
			}
			return n
		}
		before := writes()
		time.Sleep(time.Hour)
		if n := writes() - before; n != 0 {
			t.Errorf("%d writes while nothing changes", n)
		}
		if err := client.For[*autoscalingv2.HorizontalPodAutoscaler](w.c).In("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		asked := len(w.api.Requests())
		time.Sleep(time.Hour)
		if n := len(w.api.Requests()) - asked; n != 0 {
			t.Errorf("%d requests for an autoscaler that is gone", n)
		}
	})
}

// A new wish is looked at when it comes, not at the next period.
func TestAutoscalerSeesItsSpec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scaledWorld(t, nil)
		defer w.stop()
		w.uses("500m")
		w.api.Put(scaler(1, 9, cpuTarget(50)))
		w.until("looked at", func() bool { return w.scaler("web").Status.CurrentReplicas == 3 })
		begin := time.Now()
		edit(w, "ns", "web", "", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MinReplicas = ptr.To(int32(5)) })
		w.until("raised", func() bool { return w.replicas() == 5 })
		if took := time.Since(begin); took > time.Second {
			t.Errorf("after %v", took)
		}
	})
}

func TestAutoscalerTargets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scaledWorld(t, nil)
		defer w.stop()
		w.uses("500m")
		at := func(name, version, kind, target string) {
			h := scaler(1, 9, cpuTarget(50))
			h.Name, h.UID = name, "u-"+h.UID
			h.Spec.ScaleTargetRef = autoscalingv2.CrossVersionObjectReference{APIVersion: version, Kind: kind, Name: target}
			w.api.Put(h)
		}
		at("gone", "apps/v1", "Deployment", "gone")
		at("nowhere", "example.com/v1", "Thing", "x")
		at("bad", "a/b/c", "Thing", "x")
		at("pod", "v1", "Pod", "web-0")
		rc := &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "old"}, Spec: corev1.ReplicationControllerSpec{Replicas: ptr.To(int32(1))}}
		w.api.Put(rc)
		at("choosing-nothing", "v1", "ReplicationController", "old")
		sts := statefulSet("db", 12, "i")
		w.api.Put(sts)
		at("above", "apps/v1", "StatefulSet", "db")
		for name, want := range map[string]string{
			"gone":             `AbleToScale=False FailedGetScale: the HPA controller was unable to get the target's current scale: deployments.apps "gone" not found`,
			"nowhere":          `AbleToScale=False FailedGetScale: the HPA controller was unable to get the target's current scale: no matches for kind "Thing" in group "example.com"`,
			"bad":              `AbleToScale=False FailedGetScale: the HPA controller was unable to get the target's current scale: unexpected GroupVersion string: a/b/c`,
			"pod":              `AbleToScale=False FailedGetScale: the HPA controller was unable to get the target's current scale: the server could not find the requested resource`,
			"choosing-nothing": "ScalingActive=False InvalidSelector: the HPA target's scale is missing a selector",
			"above":            "AbleToScale=True SucceededRescale: the HPA controller was able to update the target scale to 9",
		} {
			w.until(name, func() bool { return strings.Contains(conditionsOf(w.scaler(name)), want) })
		}
		w.until("a stateful set is scaled", func() bool { return *get[*appsv1.StatefulSet](w, "ns", "db").Spec.Replicas == 9 })
	})
}

// Two autoscalers of the same pods do nothing, until one of them goes.
func TestAutoscalersOfTheSamePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scaledWorld(t, nil)
		defer w.stop()
		w.uses("1")
		one, two := scaler(1, 9, cpuTarget(50)), scaler(1, 9, cpuTarget(50))
		two.Name, two.UID = "other", "o-uid"
		twin := deployment("twin", 3, "i")
		twin.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
		w.api.Put(twin)
		two.Spec.ScaleTargetRef.Name = "twin"
		quiet := amountTarget("cpu", "1") // which is what they use
		one.Spec.Metrics, two.Spec.Metrics = []autoscalingv2.MetricSpec{quiet}, []autoscalingv2.MetricSpec{quiet}
		w.api.Put(one)
		w.api.Put(two)
		const want = "ScalingActive=False AmbiguousSelector: pods by selector app=web are controlled by more than one HPA (e.g. [{other ns} {web ns}])"
		for _, n := range []string{"web", "other"} {
			w.until(n+" is told", func() bool { return strings.Contains(conditionsOf(w.scaler(n)), want) })
		}
		if err := client.For[*autoscalingv2.HorizontalPodAutoscaler](w.c).In("ns").Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the one that is left", func() bool { return reasonOf(w.scaler("web"), autoscalingv2.ScalingActive) == "ValidMetricFound" })
	})
}

// Others write the target at the same time; a write that is refused is told.
func TestAutoscalerWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := scaledWorld(t, nil)
		defer w.stop()
		w.uses("1")
		conflicts, forbidden := 3, false
		w.api.refuse(func(verb string, ref client.Ref) error {
			gr := schema.GroupResource{Group: "apps", Resource: "deployments"}
			switch {
			case verb != "update" || ref.Subresource != "scale":
			case forbidden:
				return apierrors.NewForbidden(gr, ref.Name, errors.New("no"))
			case conflicts > 0:
				conflicts--
				return apierrors.NewConflict(gr, ref.Name, errors.New("changed"))
			}
			return nil
		})
		w.api.Put(scaler(1, 9, cpuTarget(50)))
		w.until("through the conflicts", func() bool { return w.replicas() == 6 })
		w.api.refuse(func(verb string, ref client.Ref) error {
			if verb == "update" && ref.Subresource == "scale" {
				return apierrors.NewForbidden(schema.GroupResource{Group: "apps", Resource: "deployments"}, ref.Name, errors.New("no"))
			}
			return nil
		})
		edit(w, "ns", "web", "", func(h *autoscalingv2.HorizontalPodAutoscaler) { h.Spec.MinReplicas = ptr.To(int32(8)) })
		w.until("it is told", func() bool { return reasonOf(w.scaler("web"), autoscalingv2.AbleToScale) == "FailedUpdateScale" })
		if s := w.scaler("web").Status; s.DesiredReplicas != 6 || w.replicas() != 6 {
			t.Errorf("status %+v, %d replicas", s, w.replicas())
		}
	})
}

// extension serves metrics as an adapter does.
type extension struct {
	mu     sync.Mutex
	paths  []string
	values map[string]string // by path: the values of an answer
	hangs  bool
}

func (e *extension) get(ctx context.Context, controller, path string, q url.Values) (int, []byte, error) {
	if controller != "horizontal-pod-autoscaler" {
		return 0, nil, fmt.Errorf("asked by %s", controller)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hangs {
		e.mu.Unlock()
		<-ctx.Done()
		e.mu.Lock()
		return 0, nil, ctx.Err()
	}
	if path == "/apis/custom.metrics.k8s.io" {
		return http.StatusOK, []byte(`{"kind":"APIGroup","versions":[{"version":"v1"},{"version":"v1beta1"},{"version":"v1beta2"}],"preferredVersion":{"version":"v1beta2"}}`), nil
	}
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	e.paths = append(e.paths, path)
	values, ok := e.values[path]
	if !ok {
		s := apierrors.NewNotFound(schema.GroupResource{Group: "adapter", Resource: "metrics"}, path).Status()
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		b, err := json.Marshal(s)
		return http.StatusNotFound, b, err
	}
	return http.StatusOK, []byte(values), nil
}

func TestAutoscalerOfOtherMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &extension{values: map[string]string{
			"/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/pods/*/qps?labelSelector=app%3Dweb&metricLabelSelector=verb%3Dget": `{"items":[
				{"describedObject":{"name":"web-0"},"timestamp":"2000-01-01T00:00:00Z","windowSeconds":30,"value":"20"},
				{"describedObject":{"name":"web-1"},"timestamp":"2000-01-01T00:00:00Z","window":30,"value":"20"},
				{"describedObject":{"name":"web-2"},"timestamp":"2000-01-01T00:00:00Z","value":"20"}]}`,
			"/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/services/front/qps":    `{"items":[{"value":"50"}]}`,
			"/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/metrics/qps":           `{"items":[{"value":"70"}]}`,
			"/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/waiting":             `{"items":[{"value":"30"},{"value":"50"}]}`,
			"/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/none":                `{"items":[]}`,
			"/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/nan":                 `{"items":[{"value":"NaN"}]}`,
			"/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/text":                `hello`,
			"/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/services/front/two":    `{"items":[{"value":"50"},{"value":"50"}]}`,
			"/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/deployments.apps/d/up": `{"items":[{"value":"90"}]}`,
		}}
		w := scaledWorld(t, e.get)
		defer w.stop()
		m := &hpaMetrics{client: w.deps.ClientFor("horizontal-pod-autoscaler"), kind: w.deps.kindsOf, get: func(ctx context.Context, path string, q url.Values) (int, []byte, error) {
			return e.get(ctx, "horizontal-pod-autoscaler", path, q)
		}}
		ofPods := podsTarget("10")
		ofPods.Pods.Metric.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"verb": "get"}}
		read := func(s autoscalingv2.MetricSpec) hpaReading {
			return m.read(t.Context(), "ns", labels.SelectorFromSet(labels.Set{"app": "web"}), &s)
		}
		object := func(version, kind, name, metric string) autoscalingv2.MetricSpec {
			s := objectTarget(valueTarget("10"))
			s.Object.DescribedObject, s.Object.Metric.Name = autoscalingv2.CrossVersionObjectReference{APIVersion: version, Kind: kind, Name: name}, metric
			return s
		}
		external := func(metric string) autoscalingv2.MetricSpec {
			s := externalTarget(valueTarget("10"))
			s.External.Metric.Name = metric
			return s
		}
		if r := read(ofPods); r.err != nil || len(r.pods) != 3 || r.pods["web-0"].window != 30*time.Second || r.pods["web-1"].window != 30*time.Second || r.pods["web-2"].window != time.Minute || r.pods["web-2"].value != 20000 {
			t.Errorf("%+v: %v", r, r.err)
		}
		for name, c := range map[string]struct {
			spec autoscalingv2.MetricSpec
			sum  int64
			err  string
		}{
			"an object":            {object("v1", "Service", "front", "qps"), 50000, ""},
			"of a group":           {object("apps/v1", "Deployment", "d", "up"), 90000, ""},
			"the namespace":        {object("v1", "Namespace", "another", "qps"), 70000, ""},
			"an unknown kind":      {object("v1", "Moon", "m", "qps"), 0, `unable to fetch metrics from custom metrics API: unable to map kind Moon to resource: no matches for kind "Moon" in group ""`},
			"two where one is":     {object("v1", "Service", "front", "two"), 0, "unable to fetch metrics from custom metrics API: the custom metrics API server returned 2 results when we asked for exactly one"},
			"an unknown metric":    {object("v1", "Service", "front", "x"), 0, `unable to fetch metrics from custom metrics API: metrics.adapter "/apis/custom.metrics.k8s.io/v1beta2/namespaces/ns/services/front/x" not found`},
			"outside":              {external("waiting"), 80000, ""},
			"outside, nothing":     {external("none"), 0, "no metrics returned from external metrics API"},
			"outside, not a value": {external("nan"), 0, "unable to fetch metrics from external metrics API: the answer for nan.external.metrics.k8s.io cannot be read: "},
			"outside, not JSON":    {external("text"), 0, "unable to fetch metrics from external metrics API: the answer for text.external.metrics.k8s.io cannot be read: "},
		} {
			r, sum := read(c.spec), int64(0)
			for _, v := range r.values {
				sum += v
			}
			if c.err == "" && (r.err != nil || sum != c.sum) || c.err != "" && (r.err == nil || !strings.HasPrefix(r.err.Error(), c.err)) {
				t.Errorf("%s: %+v", name, r)
			}
		}
		bad := external("waiting")
		bad.External.Metric.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Of"}}}
		if r := read(bad); r.invalid == nil {
			t.Error("a bad selector is read")
		}
		// And all the way.
		h := scaler(1, 50, external("waiting"))
		h.Spec.Metrics[0].External.Target = averageTarget("10")
		w.api.Put(h)
		w.until("scaled", func() bool { return w.replicas() == 6 })
	})
}

// A source that hangs is told of, and holds up nobody for ever.
func TestAutoscalerOfWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &extension{hangs: true}
		w := scaledWorld(t, e.get)
		defer w.stop()
		w.uses("1")
		for i := range 20 {
			h := scaler(1, 9, externalTarget(valueTarget("1")))
			h.Name = fmt.Sprint("hangs-", i)
			h.Spec.ScaleTargetRef.Name = "idle"
			w.api.Put(h)
		}
		idle := deployment("idle", 1, "i")
		w.api.Put(idle)
		w.api.Put(scaler(1, 9, cpuTarget(50)))
		begin := time.Now()
		w.until("the one that does not hang", func() bool { return w.replicas() == 6 })
		if took := time.Since(begin); took > 5*metricTimeout {
			t.Errorf("after %v", took)
		}
		w.until("it is told", func() bool {
			return strings.Contains(conditionsOf(w.scaler("hangs-0")), "FailedGetExternalMetric: the HPA was unable to compute the replica count: unable to get external metric ns/waiting/nil: unable to fetch metrics from external metrics API: context deadline exceeded")
		})
	})
}
