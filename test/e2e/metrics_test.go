package e2e

import (
	"regexp"
	"testing"
)

// What a monitoring system scrapes, as kubectl reads it.
func TestMetrics(t *testing.T) {
	c := start(t, "metrics")
	c.kubectl("create", "configmap", "a")
	c.kubectl("create", "job", "j", "--image=none.invalid/none")
	c.eventually("the job's pod is counted", func() (bool, string) {
		out, err := c.kubectlErr("get", "--raw", "/metrics")
		return err == nil && regexp.MustCompile(`(?m)^job_controller_job_pods_creation_total{reason="new",status="succeeded"} 1$`).MatchString(out) &&
			regexp.MustCompile(`(?m)^scheduler_schedule_attempts_total{.*result="scheduled"} [1-9]`).MatchString(out), ""
	})
	out := c.kubectl("get", "--raw", "/metrics")
	for _, want := range []string{
		`apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} [1-9]`,
		`apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="pods",scope="resource",subresource="binding",verb="POST",version="v1"} [1-9]`,
		`apiserver_request_duration_seconds_bucket{component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1",le="0.005"} `,
		`apiserver_longrunning_requests{component="apiserver",group="",resource="pods",scope="cluster",subresource="",verb="WATCH",version="v1"} [1-9]`,
		`apiserver_storage_objects{resource="jobs.batch"} 1`,
		`etcd_request_duration_seconds_count{group="batch",operation="create",resource="jobs"} 1`,
		`workqueue_adds_total{name="job"} [1-9]`, `workqueue_depth{name="replicaset"} 0`,
		`workqueue_work_duration_seconds_count{name="job"} [1-9]`, `workqueue_queue_duration_seconds_count{name="job"} [1-9]`,
		`job_controller_job_syncs_total{action="pods_created",completion_mode="NonIndexed",result="success"} 1`,
		`horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers 0`,
		`scheduler_pending_pods{queue="active"} 0`,
		`kubernetes_build_info{.*git_version="v1\.37\.2.*} 1`,
		`process_resident_memory_bytes `, `go_goroutines `,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(out) {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	c.refused([]string{"get", "--raw", "/metrics", "--as", "somebody"}, `User "somebody" cannot get path "/metrics"`)
	c.kubectl("get", "--raw", "/metrics", "--as", "somebody", "--as-group", "system:monitoring")
}
