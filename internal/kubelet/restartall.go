package kubelet

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// A container whose end matches a rule with the action RestartAllContainers
// (KEP-5532) has the whole pod begin anew, in the sandbox it has: all of its
// containers but the ephemeral ones are ended, without grace, and forgotten by the
// runtime; then the pod starts as it did at first. While that lasts the condition
// AllContainersRestarting is true, and it carries the decision over a restart of
// the kubelet: once it is true all goes, whether the container that asked for it
// is known any more or not.

const (
	reasonRestartingAll   = "RestartingAllContainers"
	messageRestartingAll  = "The container is removed because RestartAllContainers in place"
	reasonRestartAllBegun = "RestartAllContainersStarted"
)

// couldRestartAll tells of pods that have the condition at all.
func couldRestartAll(pod *corev1.Pod) bool {
	for _, c := range restartable(pod) {
		for _, r := range c.RestartPolicyRules {
			if r.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
				return true
			}
		}
	}
	return false
}

// restartable are the containers that begin anew.
func restartable(pod *corev1.Pod) []*corev1.Container {
	return append(ptrs(pod.Spec.InitContainers), ptrs(pod.Spec.Containers)...)
}

// asksForAll tells that a container ended such that all are to be restarted.
func asksForAll(c *corev1.Container, have *container) bool {
	return have.exited() && restartRule(c, have.exitCode) == corev1.ContainerRestartRuleActionRestartAllContainers
}

// restartsAll tells that the pod's containers are to begin anew, or just did, by the
// conditions it had and what the runtime has.
func restartsAll(pod *corev1.Pod, o *observed, had []corev1.PodCondition) bool {
	if !couldRestartAll(pod) {
		return false
	}
	if c := condition(had, corev1.AllContainersRestarting); c != nil && c.Status == corev1.ConditionTrue {
		return true
	}
	for _, c := range restartable(pod) {
		if have := o.latest(c.Name); have != nil && asksForAll(c, have) {
			return true
		}
	}
	return false
}

// reset is a container to remove, with its log where a newer one's is kept.
type reset struct {
	have *container
	kill bool
	log  bool
}

// planReset says what to remove, in this order: those that only have to go with the
// others, regular ones first, and those that asked for it last, so that a kubelet
// that ends in between finds them.
func planReset(pod *corev1.Pod, o *observed) []reset {
	var targets, sources []reset
	seen := map[string]bool{}
	for _, list := range [][]*corev1.Container{ptrs(pod.Spec.Containers), ptrs(pod.Spec.InitContainers)} {
		for _, c := range list {
			for i := range o.containers {
				have := &o.containers[i]
				if have.name != c.Name {
					continue
				}
				r := reset{have: have, kill: !have.exited(), log: seen[c.Name]}
				seen[c.Name] = true
				if asksForAll(c, have) {
					sources = append(sources, r)
				} else {
					targets = append(targets, r)
				}
			}
		}
	}
	return append(targets, sources...)
}

// resetAll carries planReset out: the runtime kills what it is to remove. The newest
// log of each container stays: it tells how often the container ran.
func (w *worker) resetAll(ctx context.Context, pod *corev1.Pod, all []reset) error {
	for _, r := range all {
		if r.kill && w.noteKilled(r.have.id) {
			w.containerEvent(pod, r.have.name, corev1.EventTypeNormal, "Killing", "killing")
		}
		if err := w.k.d.Runtime.RemoveContainer(ctx, r.have.id); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove container %s: %w", r.have.name, err)
		}
		if r.log {
			w.k.removeLogs(r.have.logPath)
		}
		// It begins anew: no back-off holds it up.
		delete(w.blocked, r.have.name)
		delete(w.waiting, r.have.name)
	}
	return nil
}

// restartingAll is the condition. removed tells that nothing is left to remove.
func restartingAll(phase corev1.PodPhase, all, removed bool) (status bool, reason, message string) {
	switch {
	case phase == corev1.PodSucceeded:
		return false, "PodCompleted", ""
	case phase == corev1.PodFailed:
		return false, "PodFailed", ""
	case !all || removed:
		return false, "", ""
	}
	return true, reasonRestartAllBegun, "container exited with restart policy rule"
}
