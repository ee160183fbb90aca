package controller

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// recordedLook is a random situation of an autoscaler, and what upstream's controller
// (1.37.2) did in it: it was run on these very inputs.
type recordedLook struct {
	HPA   *autoscalingv2.HorizontalPodAutoscaler
	Scale *autoscalingv1.Scale
	Pods  []*corev1.Pod
	// Pod, Values and Errs are the readings of each metric; ages are in seconds.
	Pod []map[string]struct {
		Age, Window float64
		Value       int64
	}
	Values          [][]int64
	Errs            []string
	Rec, Ups, Downs []struct {
		Age float64
		N   int32
	}
	Now time.Time

	To      int32
	Rescale bool
	Out     *autoscalingv2.HorizontalPodAutoscaler
	Events  []string
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (c *recordedLook) view() *hpaView {
	v := &hpaView{hpa: c.HPA, scale: c.Scale, pods: c.Pods, now: c.Now}
	for i := range c.HPA.Spec.Metrics {
		r := hpaReading{values: c.Values[i], pods: map[string]podReading{}}
		if c.Errs[i] != "" {
			r.err = errors.New(c.Errs[i])
		}
		for name, p := range c.Pod[i] {
			r.pods[name] = podReading{at: c.Now.Add(-seconds(p.Age)), window: seconds(p.Window), value: p.Value}
		}
		v.readings = append(v.readings, r)
	}
	for _, e := range c.Rec {
		v.past.recommended = append(v.past.recommended, recommendation{c.Now.Add(-seconds(e.Age)), e.N})
	}
	for _, e := range c.Ups {
		v.past.ups = append(v.past.ups, scaleEvent{c.Now.Add(-seconds(e.Age)), e.N})
	}
	for _, e := range c.Downs {
		v.past.downs = append(v.past.downs, scaleEvent{c.Now.Add(-seconds(e.Age)), e.N})
	}
	return v
}

// Upstream decides as skiff does: replicas, conditions, status and events.
func TestScaleAsRecorded(t *testing.T) {
	f, err := os.Open("testdata/autoscalers.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []recordedLook
	if err := json.NewDecoder(z).Decode(&all); err != nil {
		t.Fatal(err)
	}
	// Of several pods that fail upstream tells any.
	pod := regexp.MustCompile(`Pod web-[0-9]+`)
	told := func(h *autoscalingv2.HorizontalPodAutoscaler, events []string) string {
		h = h.DeepCopy()
		lines := conditionsOf(h)
		h.Status.Conditions = nil
		if h.Status.LastScaleTime != nil {
			h.Status.LastScaleTime.Time = time.Time{} // a moment of then
		}
		b, err := json.Marshal(h.Status)
		if err != nil {
			t.Fatal(err)
		}
		events = slices.Clone(events)
		for i := range events {
			events[i] = pod.ReplaceAllString(events[i], "Pod web-N")
		}
		slices.Sort(events)
		return pod.ReplaceAllString(lines, "Pod web-N") + string(b) + "\n" + strings.Join(events, "\n")
	}
	for i := range all {
		c := &all[i]
		p := defaultHPASettings().plan(c.view())
		if p.rescale {
			p.rescaled(nil, c.Now)
		}
		var events []string
		for _, e := range p.events {
			events = append(events, e.kind+" "+e.reason+" "+e.message)
		}
		if got, want := told(p.hpa, events), told(c.Out, c.Events); p.to != c.To || p.rescale != c.Rescale || got != want {
			t.Errorf("situation %d: to %d, %v\n%s\nupstream: to %d, %v\n%s", i, p.to, p.rescale, got, c.To, c.Rescale, want)
		}
	}
	if len(all) < 500 {
		t.Errorf("%d situations", len(all))
	}
}
