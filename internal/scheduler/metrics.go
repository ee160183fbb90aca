package scheduler

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"skiff/internal/scheduler/framework"
)

// metrics are upstream's, by name and meaning.
type metrics struct {
	attempts          *prometheus.CounterVec
	duration          *prometheus.HistogramVec
	algorithm         prometheus.Histogram
	pending           *prometheus.GaugeVec
	refused           *prometheus.GaugeVec
	size              *prometheus.GaugeVec
	latency           *prometheus.HistogramVec
	tries             prometheus.Histogram
	incoming          *prometheus.CounterVec
	preemptions       prometheus.Counter
	victims           prometheus.Histogram
	violations        *prometheus.CounterVec
	scheduledOnceLeft prometheus.Counter
}

// Places of the queue as metrics call them.
var placeNames = map[place]string{active: "active", backingOff: "backoff", unschedulable: "unschedulable", gated: "gated"}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "scheduler", Name: name, Help: help}, labels)
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "scheduler", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "scheduler", Name: name, Help: help, Buckets: buckets}
	}
	from1ms := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := &metrics{
		attempts: counters("schedule_attempts_total",
			"Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem.", "result", "profile"),
		duration: prometheus.NewHistogramVec(histogram("scheduling_attempt_duration_seconds",
			"Time that an attempt took, the binding included.", from1ms), []string{"result", "profile"}),
		algorithm: prometheus.NewHistogram(histogram("scheduling_algorithm_duration_seconds", "Time to decide on a pod.", from1ms)),
		pending:   gauges("pending_pods", "Number of pending pods, by where they wait: active, backoff, unschedulable, gated.", "queue"),
		refused:   gauges("unschedulable_pods", "Number of unschedulable pods by the plugins that refused them; a pod counts for each.", "plugin", "profile"),
		size:      gauges("cache_size", "Number of nodes, pods and assumed pods that the scheduler counts with.", "type"),
		latency: prometheus.NewHistogramVec(histogram("pod_scheduling_sli_duration_seconds",
			"Time from when a pod was first seen to when it was bound.", prometheus.ExponentialBuckets(0.01, 2, 20)), []string{"attempts"}),
		tries:       prometheus.NewHistogram(histogram("pod_scheduling_attempts", "Number of attempts to bind a pod.", prometheus.ExponentialBuckets(1, 2, 5))),
		incoming:    counters("queue_incoming_pods_total", "Number of pods that came to a queue, by what brought them there.", "queue", "event"),
		preemptions: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "scheduler", Name: "preemption_attempts_total", Help: "Number of attempts to preempt."}),
		victims:     prometheus.NewHistogram(histogram("preemption_victims", "Number of pods that one preemption ends.", prometheus.ExponentialBuckets(1, 2, 7))),
		violations:  counters("preemption_pdb_violations_total", "Number of victims that a disruption budget would have kept.", "preemptor_type"),
		scheduledOnceLeft: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "scheduler", Name: "pod_scheduled_after_flush_total",
			Help: "Number of pods bound after they were tried only because they had waited long: a hint may be missing."}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.attempts, m.duration, m.algorithm, m.pending, m.refused, m.size, m.latency, m.tries, m.incoming, m.preemptions, m.victims, m.violations, m.scheduledOnceLeft,
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("scheduler: register metrics: %w", err)
	}
	return m, nil
}

// attempt counts one that took so many seconds.
func (m *metrics) attempt(result, profile string, seconds float64) {
	m.attempts.WithLabelValues(result, profile).Inc()
	m.duration.WithLabelValues(result, profile).Observe(seconds)
}

// bound counts a pod that was bound so many seconds after it was first seen.
func (m *metrics) bound(q *queued, seconds float64) {
	tries := q.attempts + q.errors + 1
	label := strconv.Itoa(tries)
	if tries > 15 {
		label = "15+"
	}
	m.latency.WithLabelValues(label).Observe(seconds)
	m.tries.Observe(float64(tries))
	if q.leftover {
		m.scheduledOnceLeft.Inc()
	}
}

// queue takes the state of a queue and what the scheduler counts with.
func (m *metrics) queue(qu *queue, nodes, pods, assumed int) {
	waiting := 0
	m.refused.Reset()
	for _, all := range qu.waiting {
		waiting += len(all)
		for _, q := range all {
			for _, name := range q.refused {
				m.refused.WithLabelValues(name, q.pod.Spec.SchedulerName).Add(float64(len(all)))
			}
			break // those that are alike were refused by the same
		}
	}
	m.pending.WithLabelValues("active").Set(float64(len(qu.active)))
	m.pending.WithLabelValues("backoff").Set(float64(len(qu.backoff)))
	m.pending.WithLabelValues("unschedulable").Set(float64(waiting))
	m.pending.WithLabelValues("gated").Set(float64(qu.gated))
	m.size.WithLabelValues("nodes").Set(float64(nodes))
	m.size.WithLabelValues("pods").Set(float64(pods))
	m.size.WithLabelValues("assumed_pods").Set(float64(assumed))
}

// eventName is what upstream's metrics call a change.
func eventName(k framework.EventKind) string {
	for _, n := range [...]struct {
		kind framework.EventKind
		name string
	}{
		{framework.NodeAdded, "NodeAdd"}, {framework.NodeRemoved, "NodeDelete"}, {framework.NodeAllocatable, "NodeUpdateNodeAllocatable"},
		{framework.NodeLabels, "NodeUpdateNodeLabel"}, {framework.NodeTaints, "NodeUpdateNodeTaint"}, {framework.NodeFeatures, "NodeUpdateNodeDeclaredFeature"},
		{framework.PodAdded, "AssignedPodAdd"}, {framework.PodDeleted, "AssignedPodDelete"}, {framework.PodShrunk, "AssignedPodUpdatePodScaleDown"},
		{framework.PodRelabeled, "AssignedPodUpdatePodLabel"}, {framework.ClaimChanged, "PersistentVolumeClaimUpdate"},
		{framework.VolumeChanged, "PersistentVolumeUpdate"}, {framework.StorageClassChanged, "StorageClassUpdate"},
		{framework.CSINodeChanged, "CSINodeUpdate"}, {framework.CSIDriverChanged, "CSIDriverUpdate"},
		{framework.CapacityChanged, "CSIStorageCapacityUpdate"}, {framework.AttachmentGone, "VolumeAttachmentDelete"},
		{framework.DeviceClaims, "ResourceClaimUpdate"}, {framework.Devices, "ResourceSliceUpdate"}, {framework.DeviceClasses, "DeviceClassUpdate"},
	} {
		if k&n.kind != 0 {
			return n.name
		}
	}
	return "Unknown"
}
