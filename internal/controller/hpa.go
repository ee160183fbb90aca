package controller

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	// hpaPeriod is how often an autoscaler looks at its metrics.
	hpaPeriod = 15 * time.Second
	// scaleTries is how often a scale is written that others write at the same time.
	scaleTries = 5
)

// autoscalers keep the number of replicas of what each HorizontalPodAutoscaler is for.
type autoscalers struct {
	*control.Controller
	d        Deps
	now      func() time.Time
	settings hpaSettings
	all      *client.Informer[*autoscalingv2.HorizontalPodAutoscaler]
	pods     *client.Informer[*corev1.Pod]
	metrics  *hpaMetrics
	told     *autoscalerMetrics

	mu sync.Mutex
	// known are the autoscalers that there are, with what is remembered of each.
	known map[control.Key]*hpaMemory
}

// hpaMemory is what is remembered of one autoscaler; selector chooses nothing until its
// target's is read.
type hpaMemory struct {
	selector labels.Selector
	past     hpaPast
}

func newAutoscaler(d Deps) *control.Controller {
	c := control.New("horizontal-pod-autoscaler", d.Deps)
	r := &autoscalers{Controller: c, d: d, now: d.Clock(), settings: defaultHPASettings(), known: map[control.Key]*hpaMemory{}}
	r.metrics = &hpaMetrics{client: c.Client, kind: d.kindsOf}
	if d.Get != nil {
		r.metrics.get = func(ctx context.Context, path string, q url.Values) (int, []byte, error) {
			return d.Get(ctx, c.Name, path, q)
		}
	}
	r.all = control.Watch(c, r.changed)
	r.told = newAutoscalerMetrics(r.all)
	c.Metrics = append(c.Metrics, r.told)
	r.pods = control.Watch[*corev1.Pod](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("autoscaling", []string{"horizontalpodautoscalers/status"}, "update"),
		control.Rule("*", []string{"*/scale"}, "get", "update"),
		control.Rule("metrics.k8s.io", []string{"pods"}, "list", "watch"),
		control.Rule(customMetrics, []string{"*"}, "get", "list", "watch"),
		control.Rule(externalMetrics, []string{"*"}, "get", "list", "watch"),
	)
	c.Reconcile = r.reconcile
	return c
}

// changed brings back an autoscaler that is new or wants something else; its status is
// its own.
func (r *autoscalers) changed(ch client.Change[*autoscalingv2.HorizontalPodAutoscaler]) {
	k := control.KeyOf(ch.Object())
	r.mu.Lock()
	switch {
	case ch.Deleted():
		delete(r.known, k)
	case r.known[k] == nil || ch.Old != nil && ch.Old.UID != ch.New.UID:
		r.known[k] = &hpaMemory{selector: labels.Nothing()}
	}
	r.mu.Unlock()
	if ch.Old == nil || ch.New != nil && ch.Old.Generation != ch.New.Generation {
		r.Queue.Add(k)
	}
}

func (r *autoscalers) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	h, ok := r.all.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	r.mu.Lock()
	m := r.known[k]
	r.mu.Unlock()
	if m == nil {
		return control.Result{}, nil
	}
	// An error is told in the status; the next look is at the usual time.
	since := time.Now()
	p := r.look(ctx, h, m)
	if ctx.Err() != nil {
		return control.Result{}, ctx.Err()
	}
	r.told.decided(p, time.Since(since))
	r.mu.Lock()
	m.past = p.past
	r.mu.Unlock()
	if p.err != nil {
		r.Log.Debug("autoscaler", "key", k.String(), "err", p.err)
	}
	for _, e := range p.events {
		r.Events.Event(h, e.kind, e.reason, "%s", e.message)
	}
	if !equality.Semantic.DeepEqual(h.Status, p.hpa.Status) {
		got, err := client.For[*autoscalingv2.HorizontalPodAutoscaler](r.Client).UpdateStatus(ctx, p.hpa)
		switch {
		case err == nil:
			control.Wrote(r.Pending, k, r.all, got)
		case !apierrors.IsNotFound(err):
			r.Events.Event(h, corev1.EventTypeWarning, "FailedUpdateStatus", "%s", err.Error())
			r.Log.Debug("autoscaler status", "key", k.String(), "err", err)
		}
	}
	return control.Result{After: hpaPeriod}, nil
}

// look reads what a decision needs, decides, and writes the target's scale.
func (r *autoscalers) look(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler, m *hpaMemory) *hpaPlan {
	r.mu.Lock()
	past := m.past
	r.mu.Unlock()
	door, scale, err := r.scaleOf(ctx, h)
	if err != nil {
		return noScale(h, past, err, r.now())
	}
	v := &hpaView{hpa: h, scale: scale, past: past}
	if needsMetrics(h, scale.Spec.Replicas) {
		var selector labels.Selector
		if selector, v.pods, v.selection = r.choose(h, m, scale.Status.Selector); v.selection == nil {
			v.readings = make([]hpaReading, len(h.Spec.Metrics))
			for i := range h.Spec.Metrics {
				v.readings[i] = r.metrics.read(ctx, h.Namespace, selector, &h.Spec.Metrics[i])
			}
		}
	}
	v.now = r.now()
	p := r.settings.plan(v)
	if p.rescale && ctx.Err() == nil {
		p.rescaled(r.rescale(ctx, door, scale, p.to), r.now())
	}
	return p
}

// scaleOf reads the scale of an autoscaler's target, and returns the way to it: that of
// the first version that has one.
func (r *autoscalers) scaleOf(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler) (client.Ref, *autoscalingv1.Scale, error) {
	t := h.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(t.APIVersion)
	if err != nil {
		return client.Ref{}, nil, err
	}
	kinds, err := r.d.kindsOf(ctx, schema.GroupKind{Group: gv.Group, Kind: t.Kind})
	if err != nil {
		return client.Ref{}, nil, err
	}
	var first error
	for _, k := range kinds {
		door := client.Ref{GVR: k.GVR, Namespace: h.Namespace, Name: t.Name, Subresource: "scale"}
		s, err := r.getScale(ctx, door)
		if err == nil {
			return door, s, nil
		}
		if first == nil {
			first = err
		}
	}
	return client.Ref{}, nil, first
}

func (r *autoscalers) getScale(ctx context.Context, door client.Ref) (*autoscalingv1.Scale, error) {
	o, err := r.Client.Transport().Get(ctx, door, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	s, ok := o.(*autoscalingv1.Scale)
	if !ok {
		return nil, fmt.Errorf("scale of %s %q is a %T", door.GVR.GroupResource(), door.Name, o)
	}
	return s, nil
}

// rescale writes a target's scale; where somebody else wrote the target meanwhile, it
// is read and written again.
func (r *autoscalers) rescale(ctx context.Context, door client.Ref, scale *autoscalingv1.Scale, n int32) error {
	for try := 1; ; try++ {
		next := scale.DeepCopy()
		next.Spec.Replicas = n
		_, err := r.Client.Transport().Update(ctx, door, next, metav1.UpdateOptions{FieldManager: r.Name})
		if !apierrors.IsConflict(err) || try == scaleTries {
			return err
		}
		if latest, err := r.getScale(ctx, door); err == nil {
			scale = latest
		}
	}
}

// choose are the pods of a target, where they are nobody else's.
func (r *autoscalers) choose(h *autoscalingv2.HorizontalPodAutoscaler, m *hpaMemory, text string) (labels.Selector, []*corev1.Pod, *selectionFailure) {
	if text == "" {
		return nil, nil, &selectionFailure{"SelectorRequired", "InvalidSelector", "the HPA target's scale is missing a selector", "selector is required"}
	}
	selector, err := labels.Parse(text)
	if err != nil {
		message := fmt.Sprintf("couldn't convert selector into a corresponding internal selector object: %v", err)
		return nil, nil, &selectionFailure{"InvalidSelector", "InvalidSelector", message, message}
	}
	// In one order, so that of several pods the same one is told every time.
	pods := slices.SortedFunc(slices.Values(r.pods.List(h.Namespace, selector)), func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	r.mu.Lock()
	m.selector = selector
	rivals := r.selecting(h.Namespace, pods)
	r.mu.Unlock()
	if len(rivals) > 1 {
		message := fmt.Sprintf("pods by selector %v are controlled by more than one HPA (e.g. [%s])", text, strings.Join(rivals[:2], " "))
		return nil, nil, &selectionFailure{"AmbiguousSelector", "AmbiguousSelector", message, message}
	}
	return selector, pods, nil
}

// selecting are the autoscalers of a namespace that choose one of pods, sorted, as
// upstream writes their keys; under r.mu.
func (r *autoscalers) selecting(ns string, pods []*corev1.Pod) []string {
	var sets []labels.Set
	for _, p := range pods {
		if s := labels.Set(p.Labels); !slices.ContainsFunc(sets, func(o labels.Set) bool { return labels.Equals(o, s) }) {
			sets = append(sets, s)
		}
	}
	var out []string
	for k, m := range r.known {
		if k.Namespace == ns && slices.ContainsFunc(sets, func(s labels.Set) bool { return m.selector.Matches(s) }) {
			out = append(out, fmt.Sprintf("{%s %s}", k.Name, k.Namespace))
		}
	}
	slices.Sort(out)
	return out
}
