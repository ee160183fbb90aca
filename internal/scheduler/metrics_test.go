package scheduler

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client/clienttest"
)

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := runWith(t, clienttest.New(node("a")), func(d *Deps) { d.Metrics = reg })
	value := func(name string, labels ...string) float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != name {
				continue
			}
		metric:
			for _, m := range f.Metric {
				for i, l := range m.Label {
					if l.GetValue() != labels[i] {
						continue metric
					}
				}
				if h := m.Histogram; h != nil {
					return float64(h.GetSampleCount())
				}
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return 0
	}
	r.api.Put(pod("fits", "cpu", "1"))
	r.api.Put(pod("large", "cpu", "9"))
	gated := pod("gated")
	gated.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}}
	r.api.Put(gated)
	r.until("all are counted", func() bool {
		return value("scheduler_schedule_attempts_total", "default-scheduler", "scheduled") == 1 &&
			value("scheduler_schedule_attempts_total", "default-scheduler", "unschedulable") == 1 &&
			value("scheduler_pod_scheduling_sli_duration_seconds", "1") == 1 &&
			value("scheduler_pod_scheduling_attempts") == 1 &&
			value("scheduler_queue_incoming_pods_total", "ScheduleAttemptFailure", "unschedulable") == 1 &&
			value("scheduler_unschedulable_pods", "NodeResourcesFit", "default-scheduler") == 1 &&
			value("scheduler_cache_size", "pods") == 1 &&
			value("scheduler_pending_pods", "unschedulable") == 1 &&
			value("scheduler_pending_pods", "gated") == 1 &&
			value("scheduler_pending_pods", "active") == 0
	})
	if _, err := New(Deps{Client: r.api.Client(), Informers: r.sched.d.Informers, Metrics: reg}); err == nil {
		t.Error("metrics registered twice")
	}
}
