package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// onHollowNodes runs do in a namespace whose pods hollow nodes run. The nodes are
// made for it and gone afterwards, so that they never burden the other side's turn.
func onHollowNodes(ctx context.Context, s *side, z sizes, name string, closed bool, do func(ctx context.Context, ns string, h *hollow) error) error {
	return inNamespace(ctx, s, name, func(ns string) error {
		ctx, cancel := context.WithTimeoutCause(ctx, z.Patience, errLate)
		defer cancel()
		h := newHollow(hollowDeps{
			Client: s.slow, NewWriter: func() podWriter { return wireWriter{s.caller()} },
			Run: strconv.FormatInt(time.Now().UnixNano(), 36), Nodes: z.Nodes, Namespace: ns,
			Writers: 32, Heartbeat: 10 * time.Second, Closed: closed, Now: time.Now,
		})
		err := h.register(ctx)
		if err == nil {
			g, gctx := errgroup.WithContext(ctx)
			gctx, stop := context.WithCancel(gctx)
			open := make(chan struct{})
			g.Go(func() error { return h.run(gctx, func() { close(open) }) })
			g.Go(func() error {
				defer stop()
				if err := h.schedulable(gctx, time.Minute); err != nil {
					return err
				}
				select {
				case <-open:
				case <-gctx.Done():
					return context.Cause(gctx)
				}
				return do(gctx, ns, h)
			})
			err = g.Wait()
			stop()
		}
		return errors.Join(err, h.unregister(ctx))
	})
}

// podClients create the pods of the schedule scenario.
const podClients = 64

func prepareSchedule(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = onHollowNodes(ctx, s, z, "schedule", false, func(ctx context.Context, ns string, h *hollow) error {
			fs, err = scheduleRound(ctx, s, z, ns, h)
			return err
		})
		return fs, err
	}}, nil
}

// prepareBind is schedule with pods that exist before the clock starts; of says
// what pod i on n nodes asks for.
func prepareBind(name string, of func(i, n int) shape) func(context.Context, *side, sizes) (runner, error) {
	return func(_ context.Context, s *side, z sizes) (runner, error) {
		return simple{do: func(ctx context.Context) (fs []figure, err error) {
			err = onHollowNodes(ctx, s, z, name, true, func(ctx context.Context, ns string, h *hollow) error {
				fs, err = bindRound(ctx, s, z, ns, h, of)
				return err
			})
			return fs, err
		}}, nil
	}
}

// createPods makes n pods that are to be scheduled.
func createPods(ctx context.Context, s *side, z sizes, ns, prefix string, n int, of func(i, n int) shape) (outcome, error) {
	o, err := load{Clients: podClients, Count: n, For: z.Patience, Request: func(i int) request {
		return request{
			http.MethodPost, "/api/v1/namespaces/" + ns + "/pods", asJSON, asJSON,
			pod(prefix+strconv.Itoa(i), "default-scheduler", of(i, z.Nodes)),
		}
	}}.run(ctx, s)
	if err == nil && o.Done < n {
		err = fmt.Errorf("%d of %d pods made; the first error: %v", o.Done, n, o.First)
	}
	return o, err
}

// openClients open the nodes of the bind scenario.
const openClients = 32

// settleBefore is how long a side is left alone between the last pod that was
// found unschedulable and the opening of the nodes: the first back-off of a
// scheduler, here as upstream, is 1 s.
const settleBefore = 3 * time.Second

// bindRound creates the pods while every node is closed, waits until each was
// found unschedulable, and counts from the first node opened.
func bindRound(ctx context.Context, s *side, z sizes, ns string, h *hollow, of func(i, n int) shape) ([]figure, error) {
	if _, err := createPods(ctx, s, z, ns, "pod-", z.Bind, of); err != nil {
		return nil, err
	}
	pods := client.For[*corev1.Pod](s.slow).In(ns)
	var waiting int
	err := poll(ctx, z.Patience, 500*time.Millisecond, func() (bool, error) {
		all, _, err := pods.List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		waiting = 0
		for _, p := range all {
			if refused(p) {
				waiting++
			}
		}
		return waiting == z.Bind, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%d of %d pods were found unschedulable: %w", waiting, z.Bind, err)
	}
	select {
	case <-time.After(settleBefore):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	o, err := load{Clients: openClients, Count: z.Nodes, For: z.Patience, Request: h.open}.run(ctx, s)
	if err == nil && o.Done < z.Nodes {
		err = fmt.Errorf("%d of %d nodes opened; the first error: %v", o.Done, z.Nodes, o.First)
	}
	if err != nil {
		return nil, err
	}
	title := fmt.Sprintf("%d waiting pods on %d nodes", z.Bind, z.Nodes)
	return boundSince(ctx, s, z, h, title, o, figure{title + ", nodes opened", "s", true, o.Took.Seconds()})
}

// boundSince waits until the pods are bound and Ready, and says how many that were
// per second since the first request of a load, after a figure of the load's own.
func boundSince(ctx context.Context, s *side, z sizes, h *hollow, title string, o outcome, own figure) ([]figure, error) {
	boundAt, readyAt, err := h.wait(ctx, z.Bind)
	if err != nil {
		return nil, err
	}
	n := float64(z.Bind)
	return s.costing(o.cpuBefore, title, z.Bind, "pod", own,
		figure{Name: title + ", bound", Unit: "1/s", Value: n / boundAt.Sub(o.Start).Seconds()},
		figure{Name: title + ", Ready", Unit: "1/s", Value: n / readyAt.Sub(o.Start).Seconds()})
}

// refused tells that a scheduler has found no node for a pod.
func refused(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
		}
	}
	return false
}

func scheduleRound(ctx context.Context, s *side, z sizes, ns string, h *hollow) ([]figure, error) {
	o, err := createPods(ctx, s, z, ns, "pod-", z.Bind, basic)
	if err != nil {
		return nil, err
	}
	title := fmt.Sprintf("%d pods on %d nodes", z.Bind, z.Nodes)
	return boundSince(ctx, s, z, h, title, o, figure{Name: title + ", created", Unit: "1/s", Value: o.perSecond()})
}

func prepareDeployment(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = onHollowNodes(ctx, s, z, "deployment", false, func(ctx context.Context, ns string, h *hollow) error {
			fs, err = deploymentRound(ctx, s, z, ns, h)
			return err
		})
		return fs, err
	}}, nil
}

// deploymentRound counts from the unpausing of a Deployment that the controller
// has seen.
func deploymentRound(ctx context.Context, s *side, z sizes, ns string, h *hollow) ([]figure, error) {
	c := s.caller()
	defer c.close()
	at := "/apis/apps/v1/namespaces/" + ns + "/deployments"
	if _, err := must(ctx, c, request{http.MethodPost, at, asJSON, asJSON, deployment("web", z.Replicas)}); err != nil {
		return nil, err
	}
	deployments := client.For[*appsv1.Deployment](s.slow).In(ns)
	err := poll(ctx, z.Patience, 20*time.Millisecond, func() (bool, error) {
		d, err := deployments.Get(ctx, "web")
		return err == nil && d.Status.ObservedGeneration >= d.Generation, err
	})
	if err != nil {
		return nil, fmt.Errorf("the paused Deployment was not observed: %w", err)
	}
	start := time.Now()
	if _, err := deployments.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"paused":false}}`), ""); err != nil {
		return nil, err
	}
	boundAt, readyAt, err := h.wait(ctx, z.Replicas)
	if err != nil {
		return nil, err
	}
	var status appsv1.DeploymentStatus
	err = poll(ctx, z.Patience, 20*time.Millisecond, func() (bool, error) {
		d, err := deployments.Get(ctx, "web")
		if err != nil {
			return false, err
		}
		status = d.Status
		return int(status.ReadyReplicas) == z.Replicas, nil
	})
	if err != nil {
		return nil, fmt.Errorf("the Deployment counts %d of %d replicas ready: %w", status.ReadyReplicas, z.Replicas, err)
	}
	told := time.Since(start)
	title := fmt.Sprintf("Deployment of %d on %d nodes", z.Replicas, z.Nodes)
	return []figure{
		{title + ", all bound", "s", true, boundAt.Sub(start).Seconds()},
		{title + ", all Ready", "s", true, readyAt.Sub(start).Seconds()},
		{title + ", in its status", "s", true, told.Seconds()},
	}, nil
}
