package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestEventWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		api := clienttest.New()
		w := NewEventWriter(EventWriterDeps{Client: api.Client(), Log: slog.New(slog.DiscardHandler)})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		get := func() []*eventsv1.Event {
			time.Sleep(2 * eventQuiet)
			synctest.Wait()
			l, _, err := client.For[*eventsv1.Event](api.Client()).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		p, other := pod("p"), pod("other")
		p.ResourceVersion = "7"
		w.Event(p, other, "Normal", "Preempted", "Preempting", "a note")
		l := get()
		if len(l) != 1 {
			t.Fatalf("%d events, want 1", len(l))
		}
		e := l[0]
		if e.Namespace != "default" || e.Reason != "Preempted" || e.Action != "Preempting" || e.Type != "Normal" || e.Note != "a note" ||
			e.ReportingController != "default-scheduler" || e.ReportingInstance == "" || e.EventTime.IsZero() || e.Series != nil ||
			e.Regarding.Name != "p" || e.Regarding.Kind != "Pod" || e.Regarding.APIVersion != "v1" || e.Regarding.UID != p.UID || e.Regarding.ResourceVersion != "7" ||
			e.Related == nil || e.Related.Name != "other" {
			t.Errorf("event %+v", e)
		}
		for range 3 {
			w.Event(p, other, "Normal", "Preempted", "Preempting", "a note")
		}
		if l = get(); len(l) != 1 || l[0].Series == nil || l[0].Series.Count != 2 {
			t.Fatalf("after the same again: %+v, want one event in a series of 2", l)
		}
		time.Sleep(eventSeries)
		w.Event(p, other, "Normal", "Preempted", "Preempting", "a note")
		if l = get(); len(l) != 2 {
			t.Fatalf("%d events after a series ended, want 2", len(l))
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// While events keep coming none is written, but none waits longer than a second.
func TestEventsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		api := clienttest.New()
		w := NewEventWriter(EventWriterDeps{Client: api.Client(), Log: slog.New(slog.DiscardHandler)})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		burst := func(d time.Duration) int {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(eventQuiet / 2) {
				w.Event(pod(fmt.Sprint(time.Now().UnixNano())), nil, "Normal", "Scheduled", "Binding", "")
			}
			synctest.Wait()
			l, _, err := client.For[*eventsv1.Event](api.Client()).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return len(l)
		}
		if n := burst(eventLatest * 9 / 10); n != 0 {
			t.Errorf("%d events were written in the middle of a burst", n)
		}
		if n := burst(eventLatest / 5); n == 0 {
			t.Error("a burst of more than a second holds up its first event")
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// What is remembered is bounded, and the newest are remembered.
func TestEventsForgotten(t *testing.T) {
	w := NewEventWriter(EventWriterDeps{Client: clienttest.New().Client(), Log: slog.New(slog.DiscardHandler)})
	now := time.Unix(0, 0)
	w.d.Now = func() time.Time { now = now.Add(time.Millisecond); return now }
	for i := range 3 * eventsKnown {
		w.Event(pod(fmt.Sprint(i)), nil, "Normal", "Scheduled", "Binding", "")
		if len(w.known) > eventsKnown {
			t.Fatalf("%d are remembered", len(w.known))
		}
	}
	w.mu.Lock()
	before := len(w.queue)
	w.mu.Unlock()
	w.Event(pod(fmt.Sprint(3*eventsKnown-1)), nil, "Normal", "Scheduled", "Binding", "")
	if last := w.queue[len(w.queue)-1]; before < eventsWaiting && last.Series == nil {
		t.Error("the newest event was forgotten")
	}
}
