package controller

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// matchFailure applies a pod failure policy (KEP-3329) to a failed pod. message is set
// where the job fails; counted tells whether the failure counts towards back-off
// limits; action is empty where no rule matches.
func matchFailure(policy *batchv1.PodFailurePolicy, p *corev1.Pod) (message string, counted bool, action batchv1.PodFailurePolicyAction) {
	if policy == nil {
		return "", true, ""
	}
	for i, r := range policy.Rules {
		var what string
		switch {
		case r.OnExitCodes != nil:
			c := exitedAs(p, r.OnExitCodes)
			if c == nil {
				continue
			}
			what = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d", c.Name, p.Namespace, p.Name, c.State.Terminated.ExitCode, r.Action, i)
		case r.OnPodConditions != nil:
			c := conditionOf(p, r.OnPodConditions)
			if c == nil {
				continue
			}
			what = fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", p.Namespace, p.Name, c.Type, r.Action, i)
		default:
			continue
		}
		switch r.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return "", false, r.Action
		case batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionCount:
			return "", true, r.Action
		case batchv1.PodFailurePolicyActionFailJob:
			return what, true, r.Action
		}
	}
	return "", true, ""
}

func exitedAs(p *corev1.Pod, r *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			c := &list[i]
			if c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 || r.ContainerName != nil && *r.ContainerName != c.Name {
				continue
			}
			in := slices.Contains(r.Values, c.State.Terminated.ExitCode)
			if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && in || r.Operator == batchv1.PodFailurePolicyOnExitCodesOpNotIn && !in {
				return c
			}
		}
	}
	return nil
}

func conditionOf(p *corev1.Pod, patterns []batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		c := &p.Status.Conditions[i]
		for _, want := range patterns {
			if c.Type == want.Type && c.Status == want.Status {
				return c
			}
		}
	}
	return nil
}

// matchSuccess is the message of the first rule of a success policy (KEP-3998) that
// the succeeded indexes meet.
func matchSuccess(policy *batchv1.SuccessPolicy, completions int, done indexSet) (string, bool) {
	if policy == nil || len(done) == 0 {
		return "", false
	}
	for i, r := range policy.Rules {
		met := false
		if r.SucceededIndexes != nil {
			want := parseIndexes(*r.SucceededIndexes, completions)
			n := want.common(done)
			met = len(want) > 0 && n == want.total() || r.SucceededCount != nil && n >= int(*r.SucceededCount)
		} else if r.SucceededCount != nil {
			met = done.total() >= int(*r.SucceededCount)
		}
		if met {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}

// Back-off between failures.
const (
	firstJobRetry = 10 * time.Second
	lastJobRetry  = 10 * time.Minute
)

// jobBackoff counts a job's failures since its last success.
type jobBackoff struct {
	failures int32
	last     time.Time
}

// after counts what finished since: failures after the last success.
func (b jobBackoff) after(succeeded, failed []*corev1.Pod) jobBackoff {
	var success time.Time
	if len(succeeded) > 0 {
		b = jobBackoff{}
		for _, p := range succeeded {
			if t := finishedAt(p); t.After(success) {
				success = t
			}
		}
	}
	for _, p := range failed {
		t := finishedAt(p)
		if len(succeeded) > 0 && !t.After(success) {
			continue
		}
		b.failures++
		if t.After(b.last) {
			b.last = t
		}
	}
	return b
}

// wait is how long the next pod must wait.
func (b jobBackoff) wait(now time.Time) time.Duration {
	if b.failures == 0 {
		return 0
	}
	d := firstJobRetry
	for i := int32(1); i < b.failures && d < lastJobRetry; i++ {
		d *= 2
	}
	return max(0, min(d, lastJobRetry)-now.Sub(b.last))
}

// finishedAt is when a pod ended, as near as can be told: the end of its last
// container (or sidecar), the end of its readiness, the request to delete it, its
// creation.
func finishedAt(p *corev1.Pod) time.Time {
	if t, ok := containersEnd(p); ok {
		return t
	}
	if c := podCondition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if p.DeletionTimestamp != nil {
		grace := int64(0)
		if p.DeletionGracePeriodSeconds != nil {
			grace = *p.DeletionGracePeriodSeconds
		}
		return p.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return p.CreationTimestamp.Time
}

func containersEnd(p *corev1.Pod) (time.Time, bool) {
	var end time.Time
	list := slices.Clone(p.Status.ContainerStatuses)
	for _, c := range p.Status.InitContainerStatuses {
		for i := range p.Spec.InitContainers {
			ic := &p.Spec.InitContainers[i]
			if ic.Name == c.Name && ic.RestartPolicy != nil && *ic.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				list = append(list, c)
			}
		}
	}
	for _, c := range list {
		if c.State.Terminated == nil || c.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}, false
		}
		if t := c.State.Terminated.FinishedAt.Time; t.After(end) {
			end = t
		}
	}
	return end, len(list) > 0
}
