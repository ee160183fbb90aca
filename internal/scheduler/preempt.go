package scheduler

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// eviction is one pod that has to make room for another.
type eviction struct {
	victim    *framework.Pod
	preemptor *framework.Pod
	node      string
}

// nominate has the victims evicted whose end a nominated pod waits for; or ends the
// nomination where the failure names no node.
func (s *Scheduler) nominate(p *framework.Pod, f *Failure) {
	if f.Nominated == "" {
		s.unwait(p)
		return
	}
	n := s.snapshot.Node(f.Nominated)
	if n == nil {
		return
	}
	// Those of lower priority that waited here wait in vain.
	var waiting []*framework.Pod
	for _, o := range n.Nominated {
		if o.Class.Priority < p.Class.Priority {
			waiting = append(waiting, o)
		}
	}
	for _, o := range waiting {
		s.snapshot.Nominate(o, "")
		s.reporter.put(report{pod: o.Pod, nominated: new(string)})
		if q := s.queue.pods[o.UID]; q != nil {
			q.waits = ""
			if q.place == unschedulable {
				s.queue.requeue(q, s.d.Now())
			}
		}
	}
	var todo []eviction
	for _, v := range f.Victims {
		if v.Ending || v.DeletionTimestamp != nil {
			v.Ending = true
			continue
		}
		v.Ending = true
		todo = append(todo, eviction{victim: v, preemptor: p, node: f.Nominated})
	}
	s.evictor.put(todo...)
}

// applyKept takes note of an eviction that failed: the preemptor chooses anew.
func (s *Scheduler) applyKept(e eviction) {
	if now, _, ok := s.snapshot.Placed(e.victim.UID); ok {
		now.Ending = false
	}
	q := s.queue.pods[e.preemptor.UID]
	if q == nil || q.place == inFlight {
		return
	}
	s.unwait(q.pod)
	if q.place == unschedulable {
		s.queue.requeue(q, s.d.Now())
	}
}

// evictors is how many victims are told at once.
const evictors = 16

func (s *Scheduler) evictAll(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.evictor.wake:
		}
		var g errgroup.Group
		g.SetLimit(evictors)
		for _, e := range s.evictor.take() {
			g.Go(func() error {
				if err := s.evict(ctx, e); err != nil && ctx.Err() == nil {
					s.d.Log.Warn("preemption failed", "ns", e.victim.Namespace, "pod", e.victim.Name, "node", e.node, "err", err)
					s.in.put(input{kept: &e})
				}
				return nil
			})
		}
		_ = g.Wait()
	}
}

// evict says in the victim's status why it ends, and deletes it.
func (s *Scheduler) evict(ctx context.Context, e eviction) error {
	pods := client.For[*corev1.Pod](s.d.Client).In(e.victim.Namespace)
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": e.victim.UID},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
			Message:            fmt.Sprintf("%s: preempting to accommodate a higher priority pod", e.preemptor.Spec.SchedulerName),
			ObservedGeneration: e.victim.Generation, LastTransitionTime: metav1.NewTime(s.d.Now()),
		}}},
	})
	if err != nil {
		return fmt.Errorf("encode the condition of pod %q: %w", e.victim.Name, err)
	}
	if _, err := pods.Patch(ctx, e.victim.Name, types.StrategicMergePatchType, patch, "status"); err != nil {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			// Gone, or another pod by now.
			return nil
		}
		return fmt.Errorf("mark pod %q: %w", e.victim.Name, err)
	}
	uid := e.victim.UID
	err = pods.Delete(ctx, e.victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %q: %w", e.victim.Name, err)
	}
	s.d.Events.Event(e.victim.Pod, e.preemptor.Pod, corev1.EventTypeNormal, "Preempted", "Preempting",
		fmt.Sprintf("Preempted by pod %s on node %s", e.preemptor.UID, e.node))
	return nil
}
