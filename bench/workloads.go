package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// The shapes of the pods of the bind scenarios, for pod i on n nodes.

func basic(_, _ int) shape { return shape{Placement: onHollow} }

func inZones(_, _ int) shape {
	return shape{Placement: onHollow + `"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[` +
		`{"matchExpressions":[{"key":"topology.kubernetes.io/zone","operator":"In","values":["zone-0","zone-1"]}]}]}}},`}
}

func spread(_, _ int) shape {
	return shape{Placement: onHollow + `"topologySpreadConstraints":[{"maxSkew":5,"topologyKey":"topology.kubernetes.io/zone",` +
		`"whenUnsatisfiable":"DoNotSchedule","labelSelector":{"matchLabels":{"app":"bench"}}}],`}
}

// near has three groups, so that together they can fill all zones.
func near(i, _ int) shape {
	g := "g" + strconv.Itoa(i%zones)
	return shape{Group: g, Placement: onHollow + `"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[` +
		`{"topologyKey":"topology.kubernetes.io/zone","labelSelector":{"matchLabels":{"group":"` + g + `"}}}]}},`}
}

// apart has as many groups as half of the nodes, one after the other, hold.
func apart(i, n int) shape {
	g := "g" + strconv.Itoa(i/max(n/2, 1))
	return shape{Group: g, Placement: onHollow + `"affinity":{"podAntiAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[` +
		`{"topologyKey":"kubernetes.io/hostname","labelSelector":{"matchLabels":{"group":"` + g + `"}}}]}},`}
}

// ranked is a pod that takes a fillers-th part of a node, with a priority class; there
// is no room for one more.
func ranked(class string, fillers int) func(i, n int) shape {
	return func(_, _ int) shape {
		return shape{CPU: strconv.Itoa(30_000/fillers) + "m", Placement: `"priorityClassName":"` + class + `",` + onHollow}
	}
}

func preparePreempt(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = onHollowNodes(ctx, s, z, "preempt", false, func(ctx context.Context, ns string, h *hollow) error {
			fs, err = preemptRound(ctx, s, z, ns, h)
			return err
		})
		return fs, err
	}}, nil
}

// preemptRound fills the nodes, and counts from the first of as many pods of high
// priority as there are nodes, each of which has to take another's place.
func preemptRound(ctx context.Context, s *side, z sizes, ns string, h *hollow) (fs []figure, err error) {
	c := s.caller()
	defer c.close()
	const at = "/apis/scheduling.k8s.io/v1/priorityclasses"
	low, high := ns+"-low", ns+"-high"
	for name, value := range map[string]int{low: 1, high: 1000} {
		if _, err := must(ctx, c, request{http.MethodPost, at, asJSON, asJSON, priorityClass(name, value)}); err != nil {
			return nil, err
		}
		defer func() {
			if _, derr := must(context.WithoutCancel(ctx), c, request{http.MethodDelete, at + "/" + name, asJSON, asJSON, nil}); err == nil {
				err = derr
			}
		}()
	}
	filled := z.Fillers * z.Nodes
	if _, err := createPods(ctx, s, z, ns, "low-", filled, ranked(low, z.Fillers)); err != nil {
		return nil, err
	}
	if _, _, err := h.wait(ctx, filled); err != nil {
		return nil, err
	}
	o, err := createPods(ctx, s, z, ns, "high-", z.Nodes, ranked(high, z.Fillers))
	if err != nil {
		return nil, err
	}
	boundAt, readyAt, err := h.wait(ctx, filled+z.Nodes)
	if err != nil {
		return nil, err
	}
	title := fmt.Sprintf("%d pods that preempt on %d nodes", z.Nodes, z.Nodes)
	return s.costing(o.cpuBefore, title, z.Nodes, "pod",
		figure{Name: title + ", created", Unit: "1/s", Value: o.perSecond()},
		figure{Name: title + ", bound", Unit: "1/s", Value: float64(z.Nodes) / boundAt.Sub(o.Start).Seconds()},
		figure{Name: title + ", Ready", Unit: "1/s", Value: float64(z.Nodes) / readyAt.Sub(o.Start).Seconds()})
}

func prepareRollout(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = onHollowNodes(ctx, s, z, "rollout", false, func(ctx context.Context, ns string, h *hollow) error {
			fs, err = rolloutRound(ctx, s, z, ns, h)
			return err
		})
		return fs, err
	}}, nil
}

// rolloutRound counts from a change of the template of a Deployment that is all
// Ready until its status says that all replicas are the new ones, and no others are
// left.
func rolloutRound(ctx context.Context, s *side, z sizes, ns string, h *hollow) ([]figure, error) {
	if _, err := deploymentRound(ctx, s, z, ns, h); err != nil {
		return nil, err
	}
	before, err := s.cpu()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	changed, err := client.For[*appsv1.Deployment](s.slow).In(ns).Patch(ctx, "web", types.MergePatchType,
		[]byte(`{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`), "")
	if err != nil {
		return nil, err
	}
	var last appsv1.DeploymentStatus
	err = seen(ctx, s, ns, func(d *appsv1.Deployment) bool {
		last = d.Status
		n := int32(z.Replicas)
		return last.ObservedGeneration >= changed.Generation && last.UpdatedReplicas == n && last.Replicas == n && last.AvailableReplicas == n
	})
	if err != nil {
		return nil, fmt.Errorf("the Deployment counts %d of %d replicas updated, %d in all: %w", last.UpdatedReplicas, z.Replicas, last.Replicas, err)
	}
	title := fmt.Sprintf("rolling update of %d on %d nodes", z.Replicas, z.Nodes)
	return s.costing(before, title, z.Replicas, "pod", figure{title, "s", true, time.Since(start).Seconds()})
}

func prepareJobs(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = onHollowNodes(ctx, s, z, "jobs", false, func(ctx context.Context, ns string, _ *hollow) error {
			fs, err = jobsRound(ctx, s, z, ns)
			return err
		})
		return fs, err
	}}, nil
}

// jobsRound counts from the first Job's creation to the last one's completion.
func jobsRound(ctx context.Context, s *side, z sizes, ns string) ([]figure, error) {
	complete := map[types.UID]bool{}
	done := make(chan error, 1)
	go func() {
		done <- seen(ctx, s, ns, func(j *batchv1.Job) bool {
			for _, c := range j.Status.Conditions {
				if c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue {
					complete[j.UID] = true
				}
			}
			return len(complete) == z.Jobs
		})
	}()
	o, err := load{Clients: podClients, Count: z.Jobs, For: z.Patience, Request: func(i int) request {
		return request{http.MethodPost, "/apis/batch/v1/namespaces/" + ns + "/jobs", asJSON, asJSON, job("job-" + strconv.Itoa(i))}
	}}.run(ctx, s)
	if err == nil && o.Done < z.Jobs {
		err = fmt.Errorf("%d of %d Jobs made; the first error: %v", o.Done, z.Jobs, o.First)
	}
	if err != nil {
		return nil, err
	}
	if err := <-done; err != nil {
		return nil, fmt.Errorf("%d of %d Jobs complete: %w", len(complete), z.Jobs, err)
	}
	title := fmt.Sprintf("%d Jobs on %d nodes", z.Jobs, z.Nodes)
	return s.costing(o.cpuBefore, title, z.Jobs, "Job",
		figure{Name: title + ", created", Unit: "1/s", Value: o.perSecond()},
		figure{title + ", complete", "s", true, time.Since(o.Start).Seconds()})
}

// seen shows every state of the objects of a kind in a namespace, those that exist
// first, until enough is true.
func seen[T client.Object](ctx context.Context, s *side, ns string, enough func(T) bool) error {
	ctx, cancel := context.WithCancel(ctx) // ends the watch
	defer cancel()
	objects := client.For[T](s.slow).In(ns)
	for {
		all, meta, err := objects.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, o := range all {
			if enough(o) {
				return nil
			}
		}
		w, err := objects.Watch(ctx, metav1.ListOptions{ResourceVersion: meta.ResourceVersion})
		if err != nil {
			return err
		}
		for e := range w.Events() {
			if e.Err != nil {
				break
			}
			if o, ok := e.Object.(T); ok && e.Type != watch.Deleted && enough(o) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
