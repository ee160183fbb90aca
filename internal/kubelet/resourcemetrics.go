package kubelet

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// serveResourceMetrics answers with the metrics of upstream's /metrics/resource. Each
// value has the time at which it was measured; where nothing could be measured,
// resource_scrape_error says so.
func (k *Kubelet) serveResourceMetrics(w http.ResponseWriter, r *http.Request) {
	s, err := k.summarize(r.Context())
	if err != nil {
		k.d.Log.Warn("measure pods", "err", err)
		s = &summary{}
	}
	m := exposition{w}
	// each writes one metric of all containers or pods; f returns nil for none.
	type line struct {
		v  float64
		at time.Time
	}
	bytes := func(n *uint64, at metav1.Time) *line {
		if n == nil {
			return nil
		}
		return &line{float64(*n), at.Time}
	}
	seconds := func(c *cpuStats) *line {
		if c == nil || c.UsageCoreNanoSeconds == nil {
			return nil
		}
		return &line{float64(*c.UsageCoreNanoSeconds) / 1e9, c.Time.Time}
	}
	set := func(c *memoryStats) *line {
		if c == nil {
			return nil
		}
		return bytes(c.WorkingSetBytes, c.Time)
	}
	swap := func(c *swapStats) *line {
		if c == nil {
			return nil
		}
		return bytes(c.SwapUsageBytes, c.Time)
	}
	containers := func(name, kind, help string, f func(c *containerStats) *line) {
		m.head(name, kind, help)
		for i := range s.Pods {
			p := &s.Pods[i]
			for j := range p.Containers {
				if l := f(&p.Containers[j]); l != nil {
					m.at(name, l.v, l.at, "container", p.Containers[j].Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name)
				}
			}
		}
	}
	pods := func(name, kind, help string, f func(p *podStats) *line) {
		m.head(name, kind, help)
		for i := range s.Pods {
			if l := f(&s.Pods[i]); l != nil {
				m.at(name, l.v, l.at, "namespace", s.Pods[i].PodRef.Namespace, "pod", s.Pods[i].PodRef.Name)
			}
		}
	}
	node := func(name, kind, help string, l *line) {
		if l != nil {
			m.head(name, kind, help)
			m.at(name, l.v, l.at)
		}
	}
	containers("container_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
		func(c *containerStats) *line { return seconds(c.CPU) })
	containers("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes",
		func(c *containerStats) *line { return set(c.Memory) })
	containers("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds",
		func(c *containerStats) *line {
			if c.StartTime.Unix() <= 0 {
				return nil
			}
			return &line{v: float64(c.StartTime.UnixNano()) / 1e9}
		})
	containers("container_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
		func(c *containerStats) *line { return swap(c.Swap) })
	node("node_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds", seconds(s.Node.CPU))
	node("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes", set(s.Node.Memory))
	node("node_swap_usage_bytes", "gauge", "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems", swap(s.Node.Swap))
	pods("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
		func(p *podStats) *line { return seconds(p.CPU) })
	pods("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes",
		func(p *podStats) *line { return set(p.Memory) })
	pods("pod_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
		func(p *podStats) *line { return swap(p.Swap) })
	failed := 0.0
	if err != nil {
		failed = 1
	}
	m.head("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise")
	m.value("resource_scrape_error", failed)
}

// exposition writes Prometheus' text format.
type exposition struct{ w io.Writer }

func (m exposition) head(name, kind, help string) {
	if w, ok := m.w.(http.ResponseWriter); ok {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	}
	fmt.Fprintf(m.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (m exposition) value(name string, v float64, labels ...string) {
	m.at(name, v, time.Time{}, labels...)
}

// at writes a value with the time of its measurement, where that is not zero.
func (m exposition) at(name string, v float64, at time.Time, labels ...string) {
	var l []string
	for i := 0; i+1 < len(labels); i += 2 {
		l = append(l, labels[i]+"="+strconv.Quote(labels[i+1]))
	}
	set, stamp := "", ""
	if len(l) > 0 {
		set = "{" + strings.Join(l, ",") + "}"
	}
	if !at.IsZero() {
		stamp = " " + strconv.FormatInt(at.UnixMilli(), 10)
	}
	fmt.Fprintf(m.w, "%s%s %s%s\n", name, set, strconv.FormatFloat(v, 'g', -1, 64), stamp)
}
