package kubelet

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Usage is what the counters grew by in a window that is neither too short nor too
// long; a counter that went back gives none.
func TestCPURates(t *testing.T) {
	begin := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration, node, container uint64, told *uint64) *summary {
		c := func(n uint64) *cpuStats {
			return &cpuStats{Time: metav1.NewTime(begin.Add(d)), UsageCoreNanoSeconds: &n}
		}
		s := &summary{Node: nodeStats{CPU: c(node)}, Pods: []podStats{{CPU: &cpuStats{}, Containers: []containerStats{{id: "x", CPU: c(container)}}}}}
		s.Pods[0].Containers[0].CPU.UsageNanoCores = told
		return s
	}
	var r cpuRates
	for _, step := range []struct {
		after           time.Duration
		node, container uint64
		whole           bool
		wantNode, want  int64 // -1 for none
	}{
		{0, 100e9, 10e9, false, -1, -1},
		{2 * time.Second, 101e9, 10.5e9, true, 5e8, 25e7},
		{2*time.Second + 100*time.Millisecond, 101.1e9, 10.5e9, false, -1, -1}, // too short: the base stays
		{4 * time.Second, 102e9, 11.5e9, true, 5e8, 5e8},
		{5 * time.Second, 103e9, 1e9, false, 1e9, -1}, // restarted
		{6 * time.Second, 103e9, 1.5e9, true, 0, 5e8},
		{10 * time.Minute, 200e9, 2e9, false, -1, -1}, // too long ago
		{9 * time.Minute, 200e9, 2e9, false, -1, -1},  // a clock that was set back
	} {
		s := at(step.after, step.node, step.container, nil)
		whole := r.fill(s)
		got := func(n *uint64) int64 {
			if n == nil {
				return -1
			}
			return int64(*n)
		}
		if n, c, p := got(s.Node.CPU.UsageNanoCores), got(s.Pods[0].Containers[0].CPU.UsageNanoCores), got(s.Pods[0].CPU.UsageNanoCores); whole != step.whole || n != step.wantNode || c != step.want || p != step.want {
			t.Errorf("at %v: whole %v, node %d, container %d, pod %d", step.after, whole, n, c, p)
		}
	}
	told := uint64(7)
	if s := at(time.Hour, 1, 1, &told); r.fill(s) || *s.Pods[0].CPU.UsageNanoCores != 7 {
		t.Error("what the runtime tells is not taken")
	}
	if len(r.last) != 2 {
		t.Errorf("%d readings are kept", len(r.last))
	}
}

// Of a container that was started anew the last attempt counts.
func TestLatestAttempts(t *testing.T) {
	stats := func(uid, name string, attempt uint32) *runtimeapi.ContainerStats {
		return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
			Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}, Labels: map[string]string{labelPodUID: uid, labelContainerName: name},
		}}
	}
	got := latest([]*runtimeapi.ContainerStats{stats("u", "c", 1), stats("u", "c", 3), stats("u", "c", 2), stats("u", "d", 0), stats("", "stray", 0)})
	sum := uint32(0)
	for _, c := range got {
		sum += c.Attributes.Metadata.Attempt
	}
	if len(got) != 2 || sum != 3 {
		t.Errorf("%v", got)
	}
}

// Both endpoints tell times: the summary a rate at its first answer, the metrics when
// each value was measured.
func TestStatsEndpoints(t *testing.T) {
	l := newLive(t, nil)
	l.runPod("web")
	if _, body := l.get("/stats/summary"); !strings.Contains(body, `"usageNanoCores":0`) || !strings.Contains(body, `"usageCoreNanoSeconds":1000000000`) {
		t.Errorf("summary: %s", body)
	}
	_, body := l.get("/metrics/resource")
	for _, want := range []string{
		`container_cpu_usage_seconds_total{container="a",namespace="default",pod="web"} 1 1`,
		`container_memory_working_set_bytes{container="a",namespace="default",pod="web"} 1.048576e+06 1`,
		`container_start_time_seconds{container="a",namespace="default",pod="web"} 1`,
		`pod_cpu_usage_seconds_total{namespace="default",pod="web"} 1 1`, `pod_memory_working_set_bytes{namespace="default",pod="web"} 1.048576e+06 1`,
		"node_cpu_usage_seconds_total ", "node_memory_working_set_bytes ", "resource_scrape_error 0\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}
