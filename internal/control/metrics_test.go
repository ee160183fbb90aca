package control

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"skiff/internal/client/clienttest"
)

func TestQueueMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := deps(clienttest.New())
		c, twin := New("one", d), New("one", d)
		extra := NewQueue[string]()
		Measure(twin, "more", extra)
		for _, x := range []*Controller{c, twin} {
			x.QueueName = "named"
			x.Reconcile = func(context.Context, Key) (Result, error) { return Result{}, nil }
		}
		reg := prometheus.NewRegistry()
		if err := Register(reg, []*Controller{c, twin}); err != nil {
			t.Fatal(err)
		}
		value := func(name, queue string) float64 {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				for _, m := range f.Metric {
					if f.GetName() != name || m.Label[0].GetValue() != queue {
						continue
					}
					if h := m.Histogram; h != nil {
						return h.GetSampleSum()
					}
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
			t.Fatalf("no %s of %s", name, queue)
			return 0
		}
		want := func(name string, v float64) {
			t.Helper()
			if got := value("workqueue_"+name, "named"); got != v {
				t.Errorf("%s is %v, want %v", name, got, v)
			}
		}
		c.Queue.Add(Key{Name: "a"})
		twin.Queue.Add(Key{Name: "b"})
		extra.Add("x")
		time.Sleep(2 * time.Second)
		want("depth", 2)
		want("adds_total", 2)
		k, _ := c.Queue.Get()
		c.Queue.Add(k) // while it is worked on
		time.Sleep(3 * time.Second)
		want("depth", 1)
		want("queue_duration_seconds", 2)
		want("unfinished_work_seconds", 3)
		want("longest_running_processor_seconds", 3)
		c.Queue.Done(k, time.Second)
		want("work_duration_seconds", 3)
		want("unfinished_work_seconds", 0) // it rests
		time.Sleep(2 * time.Second)
		want("depth", 2)
		c.Queue.Get()
		want("queue_duration_seconds", 2+5)
		c.Queue.Retry(k)
		want("retries_total", 1)
		if got := value("workqueue_depth", "more"); got != 1 {
			t.Errorf("depth of the other queue is %v, want 1", got)
		}
		if err := Register(reg, []*Controller{c}); err == nil {
			t.Error("registered twice")
		}
		c.Queue.Close()
		twin.Queue.Close()
	})
}
