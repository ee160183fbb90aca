package controller

import (
	"cmp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client"
)

// queueNames are what upstream's metrics call the queues of controllers, where
// that is not the controller's name.
func queueNames() map[string]string {
	return map[string]string{
		"bootstrap-signer":                            "bootstrap_signer_queue",
		"clusterrole-aggregation-controller":          "ClusterRoleAggregator",
		"cronjob-controller":                          "cronjob",
		"daemon-set-controller":                       "daemonset",
		"deployment-controller":                       "deployment",
		"disruption-controller":                       "disruption",
		"endpoint-controller":                         "endpoint",
		"endpointslice-controller":                    "endpoint_slice",
		"endpointslicemirroring-controller":           "endpoint_slice_mirroring",
		"ephemeral-volume-controller":                 "ephemeral_volume",
		"expand-controller":                           "volume_expand",
		"horizontal-pod-autoscaler":                   "horizontalpodautoscaler",
		"job-controller":                              "job",
		"namespace-controller":                        "namespace",
		"persistent-volume-binder":                    "claims",
		"podgroup-protection-controller":              "podgroupprotection",
		"pv-protection-controller":                    "pvprotection",
		"pvc-protection-controller":                   "pvcprotection",
		"replicaset-controller":                       "replicaset",
		"replication-controller":                      "replicationmanager",
		"resource-claim-controller":                   "resource_claim",
		"resourcequota-controller":                    "resourcequota_primary",
		"root-ca-cert-publisher":                      "root_ca_cert_publisher",
		"service-account-controller":                  "serviceaccount",
		"service-cidrs-controller":                    "ipaddresses",
		"service-controller":                          "service",
		"statefulset-controller":                      "statefulset",
		"token-cleaner":                               "token_cleaner",
		"ttl-after-finished-controller":               "ttl_jobs_to_delete",
		"volumeattributesclass-protection-controller": "vacprotection",
	}
}

// autoscalerMetrics are the horizontal pod autoscaler's, by upstream's names. Each
// autoscaler there is has a gauge, which goes with it.
type autoscalerMetrics struct {
	total   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	all     *client.Informer[*autoscalingv2.HorizontalPodAutoscaler]

	number, desired *prometheus.Desc
}

func newAutoscalerMetrics(all *client.Informer[*autoscalingv2.HorizontalPodAutoscaler]) *autoscalerMetrics {
	const subsystem = "horizontal_pod_autoscaler_controller"
	labels := []string{"action", "error"}
	return &autoscalerMetrics{
		all: all,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Subsystem: subsystem, Name: "reconciliations_total",
			Help: "Number of decisions about autoscalers, by what they were (scale_up, scale_down, none) and by what was wrong (spec, internal, none).",
		}, labels),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: subsystem, Name: "reconciliation_duration_seconds", Help: "Time that a decision about an autoscaler took, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, labels),
		number:  prometheus.NewDesc(subsystem+"_num_horizontal_pod_autoscalers", "Number of autoscalers.", nil, nil),
		desired: prometheus.NewDesc(subsystem+"_desired_replicas", "Number of replicas that an autoscaler wants.", []string{"namespace", "hpa_name"}, nil),
	}
}

// decided counts a plan that took so long to make and to do.
func (m *autoscalerMetrics) decided(p *hpaPlan, took time.Duration) {
	action, failure := "none", "none"
	switch {
	case p.rescale && p.to > p.from:
		action = "scale_up"
	case p.rescale && p.to < p.from:
		action = "scale_down"
	}
	if p.err != nil {
		failure = "internal"
		for _, c := range p.hpa.Status.Conditions {
			if c.Type == autoscalingv2.ScalingActive && (c.Reason == "InvalidSelector" || c.Reason == "InvalidMetricSourceType") {
				failure = "spec"
			}
		}
	}
	m.total.WithLabelValues(action, failure).Inc()
	m.seconds.WithLabelValues(action, failure).Observe(took.Seconds())
}

// Describe is prometheus.Collector's.
func (m *autoscalerMetrics) Describe(out chan<- *prometheus.Desc) {
	m.total.Describe(out)
	m.seconds.Describe(out)
	out <- m.number
	out <- m.desired
}

// Collect is prometheus.Collector's.
func (m *autoscalerMetrics) Collect(out chan<- prometheus.Metric) {
	m.total.Collect(out)
	m.seconds.Collect(out)
	all := m.all.List("", nil)
	out <- prometheus.MustNewConstMetric(m.number, prometheus.GaugeValue, float64(len(all)))
	for _, h := range all {
		out <- prometheus.MustNewConstMetric(m.desired, prometheus.GaugeValue, float64(h.Status.DesiredReplicas), h.Namespace, h.Name)
	}
}

// jobMetrics are the job controller's, by upstream's names.
type jobMetrics struct {
	syncs, finished, pods, made *prometheus.CounterVec
	seconds                     *prometheus.HistogramVec
}

func newJobMetrics() *jobMetrics {
	const subsystem = "job_controller"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}, labels)
	}
	return &jobMetrics{
		syncs:    counter("job_syncs_total", "Number of reconciliations of jobs, by what they did.", "completion_mode", "result", "action"),
		finished: counter("jobs_finished_total", "Number of jobs that ended.", "completion_mode", "result", "reason"),
		pods:     counter("job_pods_finished_total", "Number of pods of jobs that ended and were counted.", "completion_mode", "result"),
		made:     counter("job_pods_creation_total", "Number of pods that were made for jobs.", "reason", "status"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Subsystem: subsystem, Name: "job_sync_duration_seconds", Help: "Time that a reconciliation of a job took, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.004, 2, 15),
		}, []string{"completion_mode", "result", "action"}),
	}
}

func (m *jobMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.syncs, m.finished, m.pods, m.made, m.seconds}
}

func completionMode(j *batchv1.Job) string {
	if jobIndexed(j) {
		return string(batchv1.IndexedCompletion)
	}
	return string(batchv1.NonIndexedCompletion)
}

// synced counts a reconciliation by what its plan was.
func (m *jobMetrics) synced(j *batchv1.Job, p *jobPlan, err error, took time.Duration) {
	result, action := "success", "tracking"
	if err != nil {
		result = "error"
	}
	switch {
	case p == nil:
		action = "reconciling"
	case p.target != nil && len(p.active) > 0 || len(p.remove) > 0:
		action = "pods_deleted"
	case len(p.create) > 0:
		action = "pods_created"
	}
	mode := completionMode(j)
	m.syncs.WithLabelValues(mode, result, action).Inc()
	m.seconds.WithLabelValues(mode, result, action).Observe(took.Seconds())
}

// created counts pods that were made, or not, for the first time or in the place
// of one that failed.
func (m *jobMetrics) created(replaces, ok bool) {
	reason, status := "new", "succeeded"
	if replaces {
		reason = "recreate_terminating_or_failed"
	}
	if !ok {
		status = "failed"
	}
	m.made.WithLabelValues(reason, status).Inc()
}

// counted counts what a write of the status newly tells: pods that ended, and the
// end of the job.
func (m *jobMetrics) counted(old, now *batchv1.Job) {
	mode := completionMode(now)
	if n := now.Status.Succeeded - old.Status.Succeeded; n > 0 {
		m.pods.WithLabelValues(mode, "succeeded").Add(float64(n))
	}
	if n := now.Status.Failed - old.Status.Failed; n > 0 {
		m.pods.WithLabelValues(mode, "failed").Add(float64(n))
	}
	if jobFinished(old) {
		return
	}
	for _, c := range now.Status.Conditions {
		switch {
		case c.Status != corev1.ConditionTrue:
		case c.Type == batchv1.JobComplete:
			m.finished.WithLabelValues(mode, "succeeded", cmp.Or(c.Reason, batchv1.JobReasonCompletionsReached)).Inc()
		case c.Type == batchv1.JobFailed:
			m.finished.WithLabelValues(mode, "failed", c.Reason).Inc()
		}
	}
}
