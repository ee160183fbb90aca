package metrics

import (
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type one struct {
	h *Histogram
	d *prometheus.Desc
}

func (c one) Describe(out chan<- *prometheus.Desc) { out <- c.d }
func (c one) Collect(out chan<- prometheus.Metric) { out <- c.h.Metric(c.d, "x") }

func TestHistogram(t *testing.T) {
	h := NewHistogram([]float64{1, 2, 5})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, v := range []float64{0.5, 1, 1.5, 5, 7} {
				h.Observe(v)
			}
		})
	}
	wg.Wait()
	sum := NewHistogram([]float64{1, 2, 5})
	sum.Observe(2)
	sum.Add(h)
	reg := prometheus.NewRegistry()
	if err := reg.Register(one{sum, prometheus.NewDesc("h", "Help.", []string{"l"}, nil)}); err != nil {
		t.Fatal(err)
	}
	all, err := reg.Gather()
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	got := all[0].Metric[0].Histogram
	if got.GetSampleCount() != 21 || got.GetSampleSum() != 62 || sum.Count() != 21 {
		t.Errorf("%d observations of together %v, want 21 of 62", got.GetSampleCount(), got.GetSampleSum())
	}
	for i, want := range []struct {
		bound float64
		n     uint64
	}{{1, 8}, {2, 13}, {5, 17}} {
		if b := got.Bucket[i]; b.GetUpperBound() != want.bound || b.GetCumulativeCount() != want.n {
			t.Errorf("%d up to %v, want %d up to %v", b.GetCumulativeCount(), b.GetUpperBound(), want.n, want.bound)
		}
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(3) }); n != 0 {
		t.Errorf("an observation allocates %v times", n)
	}
}

func TestRegistry(t *testing.T) {
	reg, err := NewRegistry(Build{Major: "1", GitVersion: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range all {
		have[f.GetName()] = true
	}
	for _, name := range []string{"kubernetes_build_info", "process_resident_memory_bytes", "process_cpu_seconds_total", "go_goroutines", "go_memstats_heap_inuse_bytes"} {
		if !have[name] {
			t.Errorf("%s is missing", name)
		}
	}
}
