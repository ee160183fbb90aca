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

// PodMetrics declares pods of metrics.k8s.io, in v1 and v1beta1.
func PodMetrics() (stable, beta *resource.Resource) {
	r := resource.Resource{
		GroupVersion: v1, Kind: "PodMetrics", Plural: "pods", Namespaced: true, Verbs: []string{"get", "list"},
		New:     func() resource.Object { return &metricsv1.PodMetrics{} },
		NewList: func() runtime.Object { return &metricsv1.PodMetricsList{} },
		Columns: columns(),
		Live:    live("pods", measurePods),
	}
	stable = resource.Define(r, resource.StrategyOf[*metricsv1.PodMetrics]{
		Row: func(m *metricsv1.PodMetrics, _ time.Time) []any { return podCells(m) },
	})
	r.GroupVersion = v1beta1
	r.New = func() resource.Object { return &metricsv1beta1.PodMetrics{} }
	r.NewList = func() runtime.Object { return &metricsv1beta1.PodMetricsList{} }
	r.Live = live("pods", func(ctx context.Context, env resource.Env, objs []resource.Object) ([]metricsv1beta1.PodMetrics, error) {
		list, err := measurePods(ctx, env, objs)
		return each(list, func(m metricsv1.PodMetrics) metricsv1beta1.PodMetrics {
			return metricsv1beta1.PodMetrics{ObjectMeta: m.ObjectMeta, Timestamp: m.Timestamp, Window: m.Window,
				Containers: each(m.Containers, func(c metricsv1.ContainerMetrics) metricsv1beta1.ContainerMetrics {
					return metricsv1beta1.ContainerMetrics(c)
				})}
		}), err
	})
	beta = resource.Define(r, resource.StrategyOf[*metricsv1beta1.PodMetrics]{
		Row: func(m *metricsv1beta1.PodMetrics, _ time.Time) []any {
			return podCells(&metricsv1.PodMetrics{ObjectMeta: m.ObjectMeta, Window: m.Window,
				Containers: each(m.Containers, func(c metricsv1beta1.ContainerMetrics) metricsv1.ContainerMetrics {
					return metricsv1.ContainerMetrics(c)
				})})
		},
	})
	return stable, beta
}

// podCells show what all of a pod's containers use.
func podCells(m *metricsv1.PodMetrics) []any {
	sum := corev1.ResourceList{}
	for _, c := range m.Containers {
		for n, q := range c.Usage {
			s := sum[n]
			s.Add(q)
			sum[n] = s
		}
	}
	return cells(m.Name, sum, m.Window.Duration)
}

// measurePods leaves out pods of which nothing is known.
func measurePods(ctx context.Context, env resource.Env, objs []resource.Object) ([]metricsv1.PodMetrics, error) {
	pods := each(objs, func(o resource.Object) *corev1.Pod { return o.(*corev1.Pod) })
	used, err := env.Usage.PodUsage(ctx, pods)
	if err != nil {
		return nil, err
	}
	var out []metricsv1.PodMetrics
	for i, u := range used {
		if u.At.IsZero() {
			continue
		}
		out = append(out, metricsv1.PodMetrics{
			ObjectMeta: about(pods[i], env.Now()), Timestamp: metav1.NewTime(u.At), Window: metav1.Duration{Duration: u.Window},
			Containers: each(u.Containers, func(c resource.ContainerUsage) metricsv1.ContainerMetrics {
				return metricsv1.ContainerMetrics{Name: c.Name, Usage: c.Used}
			}),
		})
	}
	return out, nil
}
