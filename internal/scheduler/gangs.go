package scheduler

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// tryGang decides on the pods of a group, as one.
func (s *Scheduler) tryGang(g *gang, tried []*queued) []binding {
	if err := s.alike(g, tried); err != nil {
		s.gangError(g, tried, err)
		return nil
	}
	pods := make([]*framework.Pod, len(tried))
	waited := make([]string, len(tried))
	for i, q := range tried {
		pods[i] = q.pod
		waited[i] = s.snapshot.NominatedNode(q.pod.UID)
	}
	v := s.profileOf(pods[0]).cycle.Together(s.snapshot, pods, Team{
		Least: g.least(), Placed: g.underway() - len(tried), Priority: g.priority(), Of: s.unitOf,
	})
	if v.Err != nil {
		s.gangError(g, tried, v.Err)
		return nil
	}
	var out []binding
	for i, d := range v.Decisions {
		if d.Failure != nil {
			s.fail(tried[i], d.Failure, waited[i])
			continue
		}
		s.reporter.drop(d.Pod.UID)
		out = append(out, binding{pod: d.Pod, node: d.Node})
	}
	if v.Placed {
		s.judged(g, metav1.ConditionTrue, "Scheduled", "")
	} else {
		s.judged(g, metav1.ConditionFalse, schedulingv1beta1.PodGroupReasonUnschedulable, v.Message)
	}
	return out
}

// gangError returns the pods of a group for which nothing could be decided.
func (s *Scheduler) gangError(g *gang, tried []*queued, err error) {
	for _, q := range tried {
		s.error(q, err)
	}
	s.judged(g, metav1.ConditionFalse, schedulingv1beta1.PodGroupReasonSchedulerError, err.Error())
}

// alike says what must be the same for the pods of a group and is not.
func (s *Scheduler) alike(g *gang, tried []*queued) error {
	pods := make([]*framework.Pod, 0, len(tried)+len(g.placed))
	for _, q := range tried {
		pods = append(pods, q.pod)
	}
	for _, p := range g.placed {
		pods = append(pods, p)
	}
	for _, p := range pods {
		if p.Spec.SchedulerName != pods[0].Spec.SchedulerName {
			return fmt.Errorf("all pods in a single pod group should have the same .spec.schedulerName set, got: %q and %q", p.Spec.SchedulerName, pods[0].Spec.SchedulerName)
		}
		if p.Class.Priority != g.priority() {
			return fmt.Errorf("all pods in a single pod group should have the same priority as the pod group's priority, got %d and %d", p.Class.Priority, g.priority())
		}
		if first := policyOf(pods[0]); policyOf(p) != first {
			return fmt.Errorf("all pods in a single pod group should have the same preemption policy, got %v and %v", policyOf(p), first)
		}
	}
	return nil
}

func policyOf(p *framework.Pod) corev1.PreemptionPolicy {
	if v := p.Spec.PreemptionPolicy; v != nil {
		return *v
	}
	return corev1.PreemptLowerPriority
}

// unitOf is the group of a pod on a node as preemption sees it.
func (s *Scheduler) unitOf(p *framework.Pod) *Unit {
	k, ok := gangOf(p.Pod)
	if !ok {
		return nil
	}
	g := s.queue.gangs[k]
	if g == nil || g.obj == nil {
		return nil
	}
	u := &Unit{Priority: g.priority()}
	if g.together() {
		for _, o := range g.placed {
			u.Pods = append(u.Pods, o)
		}
		for _, q := range g.pending {
			if q.place == inFlight && s.snapshot.Assumed(q.pod.UID) {
				u.Pods = append(u.Pods, q.pod)
			}
		}
	}
	return u
}

// tellWaiting tells the pods of incomplete groups what they wait for.
func (s *Scheduler) tellWaiting() {
	for _, g := range s.queue.told(s.d.Now()) {
		why := g.refusal()
		if why == "" {
			continue
		}
		for _, q := range g.members() {
			if q.place != gated || q.held || q.message == why {
				continue
			}
			q.message = why
			s.reporter.put(report{pod: q.pod.Pod, reason: corev1.PodReasonUnschedulable, message: why})
		}
	}
}

// groupState is what is to be written about a group.
type groupState struct {
	group     *schedulingv1beta1.PodGroup
	condition metav1.Condition
}

// judged has a group told what became of it.
func (s *Scheduler) judged(g *gang, status metav1.ConditionStatus, reason, message string) {
	if g.obj == nil {
		return
	}
	c := metav1.Condition{
		Type: schedulingv1beta1.PodGroupInitiallyScheduled, Status: status, Reason: reason, Message: message,
		ObservedGeneration: g.obj.Generation, LastTransitionTime: metav1.NewTime(s.d.Now()),
	}
	if groupSays(g.obj, c) {
		return
	}
	s.groupStates.put(groupState{g.obj, c})
}

// groupSays tells that there is nothing new in a condition; once a group was
// scheduled, that stays.
func groupSays(g *schedulingv1beta1.PodGroup, c metav1.Condition) bool {
	old := apimeta.FindStatusCondition(g.Status.Conditions, c.Type)
	if old == nil {
		return false
	}
	return old.Status == metav1.ConditionTrue && c.Status != metav1.ConditionTrue ||
		old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message && old.ObservedGeneration == c.ObservedGeneration
}

// writeGroups writes what groups are told, the newest of each.
func (s *Scheduler) writeGroups(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.groupStates.wake:
		}
		newest := map[types.UID]groupState{}
		var order []types.UID
		for _, g := range s.groupStates.take() {
			if _, ok := newest[g.group.UID]; !ok {
				order = append(order, g.group.UID)
			}
			newest[g.group.UID] = g
		}
		for _, uid := range order {
			g := newest[uid]
			if err := s.writeGroup(ctx, g); err != nil && ctx.Err() == nil {
				s.d.Log.Warn("condition of a pod group not written", "ns", g.group.Namespace, "podgroup", g.group.Name, "err", err)
			}
		}
	}
}

func (s *Scheduler) writeGroup(ctx context.Context, g groupState) error {
	now, ok := s.podGroups.Get(g.group.Namespace, g.group.Name)
	if !ok || now.UID != g.group.UID || groupSays(now, g.condition) {
		return nil
	}
	if old := apimeta.FindStatusCondition(now.Status.Conditions, g.condition.Type); old != nil && old.Status == g.condition.Status {
		g.condition.LastTransitionTime = old.LastTransitionTime
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": now.UID},
		"status":   map[string]any{"conditions": []metav1.Condition{g.condition}},
	})
	if err != nil {
		return fmt.Errorf("encode the condition: %w", err)
	}
	_, err = client.For[*schedulingv1beta1.PodGroup](s.d.Client).In(now.Namespace).Patch(ctx, now.Name, types.StrategicMergePatchType, patch, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another by now
	}
	return err
}
