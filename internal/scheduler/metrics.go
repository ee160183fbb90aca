package scheduler

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are upstream's, by name and meaning.
type metrics struct {
	attempts  *prometheus.CounterVec
	pending   *prometheus.GaugeVec
	latency   prometheus.Histogram
	victims   prometheus.Histogram
	schedName string
}

func newMetrics(reg prometheus.Registerer, name string) (*metrics, error) {
	m := &metrics{
		schedName: name,
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scheduler_schedule_attempts_total",
			Help: "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem.",
		}, []string{"result", "profile"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "scheduler_pending_pods",
			Help: "Number of pending pods, by where they wait: active, backoff, unschedulable, gated.",
		}, []string{"queue"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "scheduler_pod_scheduling_sli_duration_seconds",
			Help:    "Time from when a pod was first seen to when it was bound.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 22),
		}),
		victims: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "scheduler_preemption_victims",
			Help:    "Number of pods that one preemption ends.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 7),
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.attempts, m.pending, m.latency, m.victims} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("scheduler: register metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) attempt(result string) { m.attempts.WithLabelValues(result, m.schedName).Inc() }

func (m *metrics) queue(qu *queue) {
	unsched := 0
	for _, pods := range qu.waiting {
		unsched += len(pods)
	}
	m.pending.WithLabelValues("active").Set(float64(len(qu.active)))
	m.pending.WithLabelValues("backoff").Set(float64(len(qu.backoff)))
	m.pending.WithLabelValues("unschedulable").Set(float64(unsched))
	m.pending.WithLabelValues("gated").Set(float64(qu.gated))
}
