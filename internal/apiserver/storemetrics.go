package apiserver

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
	"skiff/internal/metrics"
	"skiff/internal/store"
)

// measuredStore times the operations of a store by the resource whose keys they
// are about, under upstream's names of both.
type measuredStore struct {
	store.Store
	// by has the resources by the prefix of their keys; other is of what has none.
	by    map[string]*storeTimes
	other *storeTimes
	all   []*storeTimes

	total, failed, seconds *prometheus.Desc
}

// Operations as etcd_request_duration_seconds calls them.
const (
	opGet = iota
	opList
	opCreate
	opUpdate
	opDelete
	opRevision
	storeOps
)

func opNames() [storeOps]string {
	return [...]string{"get", "listWithCount", "create", "update", "delete", "getCurrentResourceVersion"}
}

type storeTimes struct {
	schema.GroupResource
	bounds  []float64
	seconds [storeOps]atomic.Pointer[metrics.Histogram]
	failed  [storeOps]atomic.Uint64
}

func measureStore(s store.Store, all []*resource.Resource) *measuredStore {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("etcd_"+name, help, []string{"operation", "group", "resource"}, nil)
	}
	m := &measuredStore{
		Store: s, by: map[string]*storeTimes{}, other: &storeTimes{bounds: metrics.RequestSeconds()},
		total:   desc("requests_total", "Number of requests to the store."),
		failed:  desc("request_errors_total", "Number of requests to the store that failed, those among them that found another revision than they expected."),
		seconds: desc("request_duration_seconds", "Time of requests to the store, in seconds."),
	}
	m.all = append(m.all, m.other)
	for _, r := range all {
		if r.Prefix != "" && r.Twin == nil && m.by[r.Prefix] == nil {
			t := &storeTimes{GroupResource: r.GVR().GroupResource(), bounds: m.other.bounds}
			m.by[r.Prefix] = t
			m.all = append(m.all, t)
		}
	}
	return m
}

// of finds the resource of a key, or of a prefix of keys.
func (m *measuredStore) of(key string) *storeTimes {
	for i := len(key) - 1; i > 0; i-- {
		if key[i] == '/' {
			if t := m.by[key[:i+1]]; t != nil {
				return t
			}
		}
	}
	return m.other
}

func (t *storeTimes) done(op int, since time.Time, err error) {
	h := t.seconds[op].Load()
	if h == nil {
		t.seconds[op].CompareAndSwap(nil, metrics.NewHistogram(t.bounds))
		h = t.seconds[op].Load()
	}
	h.Observe(time.Since(since).Seconds())
	if err != nil {
		t.failed[op].Add(1)
	}
}

func (m *measuredStore) Get(ctx context.Context, key string, rev int64) (store.KV, error) {
	since := time.Now()
	kv, err := m.Store.Get(ctx, key, rev)
	m.of(key).done(opGet, since, err)
	return kv, err
}

func (m *measuredStore) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	since := time.Now()
	p, err := m.Store.List(ctx, prefix, o)
	m.of(prefix).done(opList, since, err)
	return p, err
}

func (m *measuredStore) Create(ctx context.Context, key string, value []byte, o store.WriteOptions) (int64, error) {
	since := time.Now()
	rev, err := m.Store.Create(ctx, key, value, o)
	m.of(key).done(opCreate, since, err)
	return rev, err
}

func (m *measuredStore) Update(ctx context.Context, key string, value []byte, expectRev int64, o store.WriteOptions) (int64, error) {
	since := time.Now()
	rev, err := m.Store.Update(ctx, key, value, expectRev, o)
	m.of(key).done(opUpdate, since, err)
	return rev, err
}

func (m *measuredStore) Delete(ctx context.Context, key string, expectRev int64) (int64, error) {
	since := time.Now()
	rev, err := m.Store.Delete(ctx, key, expectRev)
	m.of(key).done(opDelete, since, err)
	return rev, err
}

func (m *measuredStore) Batch(ctx context.Context, ops []store.Op) ([]store.OpResult, error) {
	since := time.Now()
	out, err := m.Store.Batch(ctx, ops)
	for i, o := range ops {
		op, failed := opUpdate, err
		switch {
		case o.Value == nil:
			op = opDelete
		case o.ExpectRev == 0:
			op = opCreate
		}
		if failed == nil && i < len(out) {
			failed = out[i].Err
		}
		m.of(o.Key).done(op, since, failed)
	}
	return out, err
}

func (m *measuredStore) Revision(ctx context.Context) (int64, error) {
	since := time.Now()
	rev, err := m.Store.Revision(ctx)
	m.other.done(opRevision, since, err)
	return rev, err
}

// Describe is prometheus.Collector's.
func (m *measuredStore) Describe(out chan<- *prometheus.Desc) {
	out <- m.total
	out <- m.failed
	out <- m.seconds
}

// Collect is prometheus.Collector's.
func (m *measuredStore) Collect(out chan<- prometheus.Metric) {
	names := opNames()
	for _, t := range m.all {
		for op := range names {
			h := t.seconds[op].Load()
			if h == nil {
				continue
			}
			labels := []string{names[op], t.Group, t.Resource}
			out <- h.Metric(m.seconds, labels...)
			out <- prometheus.MustNewConstMetric(m.total, prometheus.CounterValue, float64(h.Count()), labels...)
			if n := t.failed[op].Load(); n > 0 {
				out <- prometheus.MustNewConstMetric(m.failed, prometheus.CounterValue, float64(n), labels...)
			}
		}
	}
}
