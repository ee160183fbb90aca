package metrics

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"skiff/internal/api/resource"
)

// NodeMetrics declares nodes of metrics.k8s.io, in v1 and v1beta1.
func NodeMetrics() (stable, beta *resource.Resource) {
	r := resource.Resource{
		GroupVersion: v1, Kind: "NodeMetrics", Plural: "nodes", Verbs: []string{"get", "list"},
		New:     func() resource.Object { return &metricsv1.NodeMetrics{} },
		NewList: func() runtime.Object { return &metricsv1.NodeMetricsList{} },
		Columns: columns(),
		Live:    live("nodes", measureNodes),
	}
	stable = resource.Define(r, resource.StrategyOf[*metricsv1.NodeMetrics]{
		Row: func(m *metricsv1.NodeMetrics, _ time.Time) []any { return cells(m.Name, m.Usage, m.Window.Duration) },
	})
	r.GroupVersion = v1beta1
	r.New = func() resource.Object { return &metricsv1beta1.NodeMetrics{} }
	r.NewList = func() runtime.Object { return &metricsv1beta1.NodeMetricsList{} }
	r.Live = live("nodes", func(ctx context.Context, env resource.Env, objs []resource.Object) ([]metricsv1beta1.NodeMetrics, error) {
		list, err := measureNodes(ctx, env, objs)
		return each(list, func(m metricsv1.NodeMetrics) metricsv1beta1.NodeMetrics { return metricsv1beta1.NodeMetrics(m) }), err
	})
	beta = resource.Define(r, resource.StrategyOf[*metricsv1beta1.NodeMetrics]{
		Row: func(m *metricsv1beta1.NodeMetrics, _ time.Time) []any {
			return cells(m.Name, m.Usage, m.Window.Duration)
		},
	})
	return stable, beta
}

// measureNodes leaves out nodes of which nothing is known.
func measureNodes(ctx context.Context, env resource.Env, objs []resource.Object) ([]metricsv1.NodeMetrics, error) {
	nodes := each(objs, func(o resource.Object) *corev1.Node { return o.(*corev1.Node) })
	used, err := env.Usage.NodeUsage(ctx, nodes)
	if err != nil {
		return nil, err
	}
	var out []metricsv1.NodeMetrics
	for i, u := range used {
		if u.At.IsZero() {
			continue
		}
		out = append(out, metricsv1.NodeMetrics{
			ObjectMeta: about(nodes[i], env.Now()), Timestamp: metav1.NewTime(u.At), Window: metav1.Duration{Duration: u.Window}, Usage: u.Used,
		})
	}
	return out, nil
}
