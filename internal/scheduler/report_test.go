package scheduler

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

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
