package etcd

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skiff/internal/store"
)

func openBench(b *testing.B) *Store {
	b.Helper()
	s, err := Open(b.Context(), Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// BenchmarkCreate: 1 KiB creations, each synced to disk before it returns.
func BenchmarkCreate(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s := openBench(b)
			value := make([]byte, 1024)
			var n atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						i := n.Add(1)
						if i > int64(b.N) {
							return
						}
						if _, err := s.Create(b.Context(), fmt.Sprintf("/registry/pods/default/%08d", i), value, store.WriteOptions{}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
		})
	}
}

// BenchmarkBatch: creations of 1 KiB, 256 in a batch.
func BenchmarkBatch(b *testing.B) {
	s := openBench(b)
	value := make([]byte, 1024)
	ops := make([]store.Op, 256)
	round := 0
	for b.Loop() {
		for i := range ops {
			ops[i] = store.Op{Key: fmt.Sprintf("/registry/pods/default/%06d-%04d", round, i), Value: value}
		}
		round++
		if _, err := s.Batch(b.Context(), ops); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(round*len(ops))/b.Elapsed().Seconds(), "writes/s")
}

func BenchmarkGet(b *testing.B) {
	s := openBench(b)
	if _, err := s.Create(b.Context(), "/registry/a", make([]byte, 1024), store.WriteOptions{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Get(b.Context(), "/registry/a", 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStart: from nothing to the first acknowledged write, and the same from
// a directory with data.
func BenchmarkStart(b *testing.B) {
	measure := func(b *testing.B, dir func() string) {
		var took []time.Duration
		for i := 0; b.Loop(); i++ {
			d := dir()
			begin := time.Now()
			s, err := Open(b.Context(), Config{Dir: d})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Create(b.Context(), fmt.Sprintf("/registry/%d", time.Now().UnixNano()), []byte("v"), store.WriteOptions{}); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	}
	b.Run("new", func(b *testing.B) { measure(b, b.TempDir) })
	b.Run("again", func(b *testing.B) {
		d := b.TempDir()
		measure(b, func() string { return d })
	})
	for _, keys := range []int{10_000, 50_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) { measure(b, filled(b, keys)) })
	}
}

// filled returns what names a directory with that many keys.
func filled(b *testing.B, keys int) func() string {
	d := b.TempDir()
	s, err := Open(b.Context(), Config{Dir: d})
	if err != nil {
		b.Fatal(err)
	}
	ops := make([]store.Op, keys)
	for i := range ops {
		ops[i] = store.Op{Key: fmt.Sprintf("/registry/pods/default/%06d", i), Value: make([]byte, 1024)}
	}
	if _, err := s.Batch(b.Context(), ops); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return func() string { return d }
}
