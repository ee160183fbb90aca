package controller

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	podGCPeriod = 20 * time.Second
	// quarantine is how long a node must be missing before its pods go.
	quarantine = 40 * time.Second
	// terminatedPods is how many ended pods are kept.
	terminatedPods = 12500
)

// podGC removes pods that nobody else removes: those whose node is gone, those
// that are to be deleted before they ever had a node, those that terminate on a
// node that is out of service, ended ones of skiff run --rm, and other ended ones where
// there are too many.
type podGC struct {
	*control.Controller
	now   func() time.Time
	keep  int
	nodes *client.Informer[*corev1.Node]
	pods  *client.Informer[*corev1.Pod]
	// missing nodes, since when.
	missing map[string]time.Time
}

func newPodGC(d Deps) *control.Controller {
	c := control.New("pod-garbage-collector", d.Deps)
	g := &podGC{Controller: c, now: d.Clock(), keep: terminatedPods, missing: map[string]time.Time{}}
	if d.TerminatedPods != 0 {
		g.keep = d.TerminatedPods
	}
	g.nodes = control.Watch[*corev1.Node](c, nil)
	g.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if ch.Deleted() {
			return
		}
		if _, wanted := runRemoval(ch.New); wanted {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	c.Reconcile = g.reconcile
	c.Writes = append(c.Writes,
		control.Rule("", []string{"pods"}, "list", "watch", "delete"),
		control.Rule("", []string{"nodes"}, "get", "list"),
		control.Rule("", []string{"pods/status"}, "patch"),
	)
	c.Loop = func(ctx context.Context) error {
		t := time.NewTicker(podGCPeriod)
		defer t.Stop()
		for {
			g.collect(ctx)
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
		}
	}
	return c
}

func (g *podGC) collect(ctx context.Context) {
	pods := g.pods.List("", nil)
	gone := g.goneNodes(ctx, pods)
	plan := planPodGC(pods, func(name string) *corev1.Node { n, _ := g.nodes.Get("", name); return n }, gone, g.keep)
	_, err := parallel(len(plan), func(i int) error {
		p := plan[i]
		if !podTerminal(p.pod) {
			err := patchPodStatus(ctx, g.Client, p.pod, func(s *corev1.PodStatus) {
				s.Phase = corev1.PodFailed
				if p.orphaned {
					disrupt(s, p.pod.Generation, g.now(), "DeletionByPodGC", "PodGC: node no longer exists")
				}
			})
			if err != nil {
				return ignoreGone(err)
			}
		}
		zero, uid := int64(0), p.pod.UID
		err := client.For[*corev1.Pod](g.Client).In(p.pod.Namespace).Delete(ctx, p.pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid},
		})
		return ignoreGone(err)
	})
	if err != nil && ctx.Err() == nil {
		g.Log.Warn("pods could not be collected", "err", err)
	}
}

// goneNodes are the nodes that pods are on and that have been missing long enough;
// each is looked up live before its pods are given up.
func (g *podGC) goneNodes(ctx context.Context, pods []*corev1.Pod) map[string]bool {
	gone, named := map[string]bool{}, map[string]bool{}
	for _, p := range pods {
		name := p.Spec.NodeName
		if name == "" || named[name] {
			continue
		}
		if _, ok := g.nodes.Get("", name); ok {
			continue
		}
		named[name] = true
		since, ok := g.missing[name]
		if !ok {
			g.missing[name] = g.now()
			continue
		}
		if g.now().Sub(since) < quarantine {
			continue
		}
		if _, err := client.For[*corev1.Node](g.Client).Get(ctx, name); apierrors.IsNotFound(err) {
			gone[name] = true
		}
	}
	for name := range g.missing {
		if !named[name] {
			delete(g.missing, name)
		}
	}
	return gone
}

type collectable struct {
	pod      *corev1.Pod
	orphaned bool
}

// planPodGC says which pods to remove.
func planPodGC(pods []*corev1.Pod, node func(string) *corev1.Node, gone map[string]bool, keep int) []collectable {
	var out []collectable
	var ended []*corev1.Pod
	for _, p := range pods {
		n := node(p.Spec.NodeName)
		switch {
		case gone[p.Spec.NodeName]:
			out = append(out, collectable{p, true})
		case p.DeletionTimestamp != nil && p.Spec.NodeName == "":
			out = append(out, collectable{p, false})
		case p.DeletionTimestamp != nil && n != nil && nodeReady(n) != corev1.ConditionTrue &&
			slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService }):
			out = append(out, collectable{p, false})
		case podTerminal(p):
			ended = append(ended, p)
		}
	}
	if keep <= 0 || len(ended) <= keep {
		return out
	}
	evicted := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" }
	slices.SortFunc(ended, func(a, b *corev1.Pod) int {
		if x, y := evicted(a), evicted(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, p := range ended[:len(ended)-keep] {
		out = append(out, collectable{p, false})
	}
	return out
}
