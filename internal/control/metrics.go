package control

import (
	"cmp"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"skiff/internal/metrics"
)

// queueSeconds are upstream's bounds of the times that keys wait and are worked
// on, seconds: 10 ns to 10 s.
var queueSeconds = prometheus.ExponentialBuckets(10e-9, 10, 10)

type namedQueue struct {
	name  string
	stats func() QueueStats
}

// Measure makes metrics of a queue that c has beside its own.
func Measure[K comparable](c *Controller, name string, q *Queue[K]) {
	c.more = append(c.more, namedQueue{name, q.Stats})
}

// queues are all of c's.
func (c *Controller) queues() []namedQueue {
	if c.Reconcile == nil {
		return c.more
	}
	return append([]namedQueue{{cmp.Or(c.QueueName, c.Name), c.Queue.Stats}}, c.more...)
}

// Register registers the metrics of the controllers: their own, and of their
// queues under upstream's names (workqueue_*).
func Register(reg prometheus.Registerer, cs []*Controller) error {
	all := []prometheus.Collector{newQueueMetrics(cs)}
	for _, c := range cs {
		all = append(all, c.Metrics...)
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics of controllers: %w", err)
		}
	}
	return nil
}

// newQueueMetrics makes the figures of the controllers' queues; queues of one name
// count together.
func newQueueMetrics(cs []*Controller) *queueMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("workqueue_"+name, help, []string{"name"}, nil)
	}
	return &queueMetrics{
		cs:         cs,
		depth:      desc("depth", "Number of keys that wait."),
		adds:       desc("adds_total", "Number of keys that were added."),
		retries:    desc("retries_total", "Number of keys that were added again after an error."),
		waited:     desc("queue_duration_seconds", "Time that a key waited before it was worked on, in seconds."),
		worked:     desc("work_duration_seconds", "Time that the work on a key took, in seconds."),
		unfinished: desc("unfinished_work_seconds", "Time that the work that goes on has taken so far, of all keys together, in seconds."),
		longest:    desc("longest_running_processor_seconds", "Time that the key that has been worked on for longest has taken so far, in seconds."),
	}
}

type queueMetrics struct {
	cs                                                        []*Controller
	depth, adds, retries, waited, worked, unfinished, longest *prometheus.Desc
}

func (m *queueMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.depth, m.adds, m.retries, m.waited, m.worked, m.unfinished, m.longest} {
		out <- d
	}
}

func (m *queueMetrics) Collect(out chan<- prometheus.Metric) {
	byName := map[string]*QueueStats{}
	for _, c := range m.cs {
		for _, q := range c.queues() {
			s := q.stats()
			sum := byName[q.name]
			if sum == nil {
				sum = &QueueStats{Waited: metrics.NewHistogram(queueSeconds), Worked: metrics.NewHistogram(queueSeconds)}
				byName[q.name] = sum
			}
			sum.Depth += s.Depth
			sum.Adds += s.Adds
			sum.Retries += s.Retries
			sum.Unfinished += s.Unfinished
			sum.Longest = max(sum.Longest, s.Longest)
			sum.Waited.Add(s.Waited)
			sum.Worked.Add(s.Worked)
		}
	}
	for name, s := range byName {
		for _, v := range []struct {
			desc  *prometheus.Desc
			kind  prometheus.ValueType
			value float64
		}{
			{m.depth, prometheus.GaugeValue, float64(s.Depth)},
			{m.adds, prometheus.CounterValue, float64(s.Adds)},
			{m.retries, prometheus.CounterValue, float64(s.Retries)},
			{m.unfinished, prometheus.GaugeValue, s.Unfinished},
			{m.longest, prometheus.GaugeValue, s.Longest},
		} {
			out <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value, name)
		}
		out <- s.Waited.Metric(m.waited, name)
		out <- s.Worked.Metric(m.worked, name)
	}
}
