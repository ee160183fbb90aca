package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

// bindCounter is an API that tells of bindings that were done.
type bindCounter struct {
	*clienttest.API
	done chan int
}

func (b *bindCounter) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	errs := b.API.Bind(ctx, bindings)
	b.done <- len(bindings)
	return errs
}

func benchScheduler(b *testing.B, nodes int) (*bindCounter, func()) {
	api := &bindCounter{API: clienttest.New(), done: make(chan int, 1<<20)}
	for i := range nodes {
		api.Put(node(fmt.Sprintf("node-%d", i), "cpu", "32", "memory", "64Gi", "pods", "110"))
	}
	c := client.New(api, "bench")
	infs := client.NewInformers(c, slog.New(slog.DiscardHandler))
	s, err := New(Deps{Client: c, Informers: infs, Log: slog.New(slog.DiscardHandler), Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = infs.Run(ctx) })
	wg.Go(func() { _ = s.Run(ctx) })
	if err := infs.WaitSynced(ctx); err != nil {
		b.Fatal(err)
	}
	return api, func() { cancel(); wg.Wait() }
}

// BenchmarkBind creates 10,000 pods on 1,000 nodes, in memory, and waits until
// all are bound: informers, queue, cycle, batches of bindings and what the API in
// memory costs.
func BenchmarkBind(b *testing.B) {
	const pods = 10_000
	for b.Loop() {
		b.StopTimer()
		api, stop := benchScheduler(b, 1000)
		objects := make([]*corev1.Pod, pods)
		for i := range objects {
			objects[i] = pod(fmt.Sprintf("p%d", i), "cpu", "100m", "memory", "64Mi")
		}
		b.StartTimer()
		go func() {
			for _, p := range objects {
				api.Put(p)
			}
		}()
		for n := 0; n < pods; n += <-api.done {
		}
		b.StopTimer()
		stop()
		b.StartTimer()
	}
	b.ReportMetric(pods*float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}

// BenchmarkLatency is the time from one pod's creation to its binding.
func BenchmarkLatency(b *testing.B) {
	api, stop := benchScheduler(b, 1000)
	defer stop()
	i := 0
	var worst time.Duration
	for b.Loop() {
		p := pod(fmt.Sprintf("p%d", i), "cpu", "1m")
		p.UID = types.UID(p.Name)
		i++
		start := time.Now()
		api.Put(p)
		<-api.done
		worst = max(worst, time.Since(start))
	}
	b.ReportMetric(float64(worst.Microseconds()), "worst-us")
}
