package scheduler

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

// The first report is written at once, a burst of later ones as one, a second
// later; a nomination does not wait.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := pod("p")
		api := clienttest.New(p)
		r := newReporter(Deps{Client: api.Client(), Events: noEvents{}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		done := make(chan error)
		go func() { done <- r.run(ctx) }()
		check := func(when string, writes int, message, nominated string) {
			t.Helper()
			synctest.Wait()
			now, err := client.For[*corev1.Pod](api.Client()).In("default").Get(ctx, "p")
			if err != nil {
				t.Fatal(err)
			}
			if got := len(api.Requests()); got != writes {
				t.Errorf("%s: %d writes, want %d", when, got, writes)
			}
			if got := now.Status.Conditions[0].Message; got != message || now.Status.NominatedNodeName != nominated {
				t.Errorf("%s: message %q nominated %q, want %q and %q", when, got, now.Status.NominatedNodeName, message, nominated)
			}
		}
		tell := func(message string, nominated *string) {
			r.put(report{pod: p, reason: corev1.PodReasonUnschedulable, message: message, nominated: nominated})
		}
		tell("one", nil)
		check("first", 1, "one", "")
		tell("two", nil)
		tell("three", nil)
		check("within a second", 1, "one", "")
		time.Sleep(2 * reportEvery)
		check("a second later", 2, "three", "")
		a := "a"
		tell("four", nil)
		tell("five", &a)
		check("nominated", 3, "five", "a")
		time.Sleep(10 * reportEvery)
		check("much later", 3, "five", "a")
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A pod that was bound while its report waited is not told that it is pending; one
// that changed otherwise is.
func TestReportOfAnOlderState(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*corev1.Pod)
		want   int // conditions
	}{
		{"bound", func(p *corev1.Pod) { p.Spec.NodeName = "a" }, 0},
		{"labelled", func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }, 1},
		{"made anew", func(p *corev1.Pod) { p.UID = "another" }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := clienttest.New(pod("p"))
			pods := client.For[*corev1.Pod](api.Client()).In("default")
			seen, err := pods.Get(t.Context(), "p")
			if err != nil {
				t.Fatal(err)
			}
			now := seen.DeepCopy()
			tt.change(now)
			api.Put(now)
			r := newReporter(Deps{Client: api.Client(), Events: noEvents{}, Log: slog.New(slog.DiscardHandler), Now: time.Now})
			r.write(t.Context(), report{pod: seen, reason: corev1.PodReasonUnschedulable, message: "no"})
			if now, err = pods.Get(t.Context(), "p"); err != nil {
				t.Fatal(err)
			}
			if got := len(now.Status.Conditions); got != tt.want {
				t.Errorf("%d conditions, want %d: %+v", got, tt.want, now.Status.Conditions)
			}
		})
	}
}

// A report is dropped when the pod gets a node before it was written.
func TestReportDropped(t *testing.T) {
	r := newReporter(Deps{})
	p := pod("p")
	r.put(report{pod: p, message: "one"})
	r.drop(p.UID)
	r.put(report{pod: pod("q"), message: "two"})
	if got := r.take(9); len(got) != 1 || got[0].pod.Name != "q" {
		t.Errorf("left %+v", got)
	}
}

// A condition that the API cannot take now is written when it can; the event is
// told once.
func TestReportAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		api := clienttest.New(pod("p"))
		pods := client.For[*corev1.Pod](api.Client()).In("default")
		seen, err := pods.Get(ctx, "p")
		if err != nil {
			t.Fatal(err)
		}
		down := time.Now().Add(10 * time.Second)
		api.Intercept = func(string, client.Ref, client.Object) error {
			if time.Now().Before(down) {
				return apierrors.NewServiceUnavailable("restarting")
			}
			return nil
		}
		events := &recorder{}
		r := newReporter(Deps{Client: api.Client(), Events: events, Log: slog.New(slog.DiscardHandler), Now: time.Now})
		done := make(chan error)
		go func() { done <- r.run(ctx) }()
		r.put(report{pod: seen, reason: corev1.PodReasonUnschedulable, message: "no"})
		time.Sleep(13 * time.Second)
		synctest.Wait()
		now, err := pods.Get(ctx, "p")
		if err != nil {
			t.Fatal(err)
		}
		if len(now.Status.Conditions) != 1 || now.Status.Conditions[0].Message != "no" {
			t.Errorf("conditions %+v", now.Status.Conditions)
		}
		if len(events.list) != 1 {
			t.Errorf("%d events, want 1", len(events.list))
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
