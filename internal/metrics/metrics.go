// Package metrics is what the parts of skiff tell their figures with, in
// Prometheus' text format: the registry with what a process tells of itself, and
// a histogram that is small enough to have one for every route.
package metrics

import (
	"fmt"
	"math"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Build is what kubernetes_build_info says.
type Build struct {
	Major, Minor, GitVersion, GitCommit, GitTreeState, BuildDate, GoVersion, Compiler, Platform string
}

// NewRegistry returns a registry that has the figures of the process (process_*,
// go_*) and kubernetes_build_info.
func NewRegistry(b Build) (*prometheus.Registry, error) {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "kubernetes_build_info", Help: "What this program was built from, and with what. The value is always 1.",
	}, []string{"major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler", "platform"})
	info.WithLabelValues(b.Major, b.Minor, b.GitVersion, b.GitCommit, b.GitTreeState, b.BuildDate, b.GoVersion, b.Compiler, b.Platform).Set(1)
	for _, c := range []prometheus.Collector{
		info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the process's metrics: %w", err)
		}
	}
	return reg, nil
}

// Handler serves what is registered.
func Handler(g prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{})
}

// RequestSeconds are upstream's bounds of apiserver_request_duration_seconds and
// etcd_request_duration_seconds.
func RequestSeconds() []float64 {
	return []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60}
}

// Histogram counts observations by their size. It takes eight bytes a bound, so
// that there can be thousands, and an observation takes no lock and no memory.
// Who has it makes a metric of it when it is collected.
type Histogram struct {
	bounds []float64
	counts []atomic.Uint64 // of each bucket alone; the last is of what exceeds every bound
	sum    atomic.Uint64   // the bits of a float64
}

// NewHistogram returns a histogram whose buckets have these upper bounds, which
// ascend; it keeps the slice.
func NewHistogram(bounds []float64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts v.
func (h *Histogram) Observe(v float64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.add(v)
}

// Count is the number of observations.
func (h *Histogram) Count() uint64 {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// Add counts what o has observed, whose bounds are the same.
func (h *Histogram) Add(o *Histogram) {
	for i := range o.counts {
		h.counts[i].Add(o.counts[i].Load())
	}
	h.add(math.Float64frombits(o.sum.Load()))
}

func (h *Histogram) add(v float64) {
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Metric is the state as of now, with the label values of desc.
func (h *Histogram) Metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(h.bounds))
	var n uint64
	for i, b := range h.bounds {
		n += h.counts[i].Load()
		buckets[b] = n
	}
	n += h.counts[len(h.bounds)].Load()
	return prometheus.MustNewConstHistogram(desc, n, math.Float64frombits(h.sum.Load()), buckets, labels...)
}
