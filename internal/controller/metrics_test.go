package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// told lists the series of collectors with what they count.
func told(t *testing.T, cs ...prometheus.Collector) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	for _, c := range cs {
		if err := reg.Register(c); err != nil {
			t.Fatal(err)
		}
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			n := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			out = append(out, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), n))
		}
	}
	return strings.Join(out, "\n")
}

func TestJobMetrics(t *testing.T) {
	job := func(succeeded, failed int32, cs ...batchv1.JobCondition) *batchv1.Job {
		return &batchv1.Job{Status: batchv1.JobStatus{Succeeded: succeeded, Failed: failed, Conditions: cs}}
	}
	done := batchv1.JobCondition{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}
	broken := batchv1.JobCondition{Type: batchv1.JobFailed, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonBackoffLimitExceeded}
	indexed := batchv1.IndexedCompletion
	m := newJobMetrics()
	m.counted(job(0, 0), job(2, 1))
	m.counted(job(2, 1), job(3, 1, done))
	m.counted(job(3, 1, done), job(3, 1, done)) // told already
	ended := job(0, 2, broken)
	ended.Spec.CompletionMode = &indexed
	m.counted(job(0, 0), ended)
	m.created(false, true)
	m.created(true, false)
	for _, p := range []*jobPlan{nil, {}, {create: []int{-1}}, {remove: []*corev1.Pod{{}}}, {target: &broken, active: []*corev1.Pod{{}}}} {
		m.synced(job(0, 0), p, nil, time.Second)
	}
	m.synced(job(0, 0), &jobPlan{}, fmt.Errorf("no"), time.Second)
	want := `job_controller_job_pods_creation_total{reason=new,status=succeeded} 1
job_controller_job_pods_creation_total{reason=recreate_terminating_or_failed,status=failed} 1
job_controller_job_pods_finished_total{completion_mode=Indexed,result=failed} 2
job_controller_job_pods_finished_total{completion_mode=NonIndexed,result=failed} 1
job_controller_job_pods_finished_total{completion_mode=NonIndexed,result=succeeded} 3
job_controller_job_syncs_total{action=pods_created,completion_mode=NonIndexed,result=success} 1
job_controller_job_syncs_total{action=pods_deleted,completion_mode=NonIndexed,result=success} 2
job_controller_job_syncs_total{action=reconciling,completion_mode=NonIndexed,result=success} 1
job_controller_job_syncs_total{action=tracking,completion_mode=NonIndexed,result=error} 1
job_controller_job_syncs_total{action=tracking,completion_mode=NonIndexed,result=success} 1
job_controller_jobs_finished_total{completion_mode=Indexed,reason=BackoffLimitExceeded,result=failed} 1
job_controller_jobs_finished_total{completion_mode=NonIndexed,reason=CompletionsReached,result=succeeded} 1`
	if got := told(t, m.syncs, m.finished, m.pods, m.made); got != want {
		t.Errorf("metrics are\n%s\nwant\n%s", got, want)
	}
}

func TestAutoscalerMetrics(t *testing.T) {
	m := newAutoscalerMetrics(nil)
	plan := func(from, to int32, err error, reason string) *hpaPlan {
		h := &autoscalingv2.HorizontalPodAutoscaler{}
		h.Status.Conditions = []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: autoscalingv2.ScalingActive, Reason: reason}}
		return &hpaPlan{hpa: h, from: from, to: to, rescale: from != to, err: err}
	}
	failed := fmt.Errorf("no")
	for _, p := range []*hpaPlan{
		plan(1, 1, nil, ""), plan(1, 2, nil, ""), plan(3, 2, nil, ""), plan(1, 1, failed, "FailedGetResourceMetric"), plan(1, 1, failed, "InvalidSelector"),
	} {
		m.decided(p, time.Second)
	}
	got := strings.Split(told(t, m.total), "\n")
	const name = "horizontal_pod_autoscaler_controller_reconciliations_total"
	want := []string{
		name + "{action=none,error=internal} 1", name + "{action=none,error=none} 1", name + "{action=none,error=spec} 1",
		name + "{action=scale_down,error=none} 1", name + "{action=scale_up,error=none} 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("metrics are %q, want %q", got, want)
	}
}
