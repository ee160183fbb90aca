package explain

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/explanation"
)

// explainJob says why a job fails or does not come to its end.
func (w *World) explainJob(j *batchv1.Job) *explanation.Explanation {
	out := begin("Job", "batch/v1", j)
	ref := &out.Regarding
	pods := w.podsOf(j)
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			out.State, out.Summary = explanation.Fine, fmt.Sprintf("it is complete: %s succeeded", count(int(j.Status.Succeeded), "pod"))
			return out
		case batchv1.JobFailed, batchv1.JobFailureTarget:
			if out.Summary == "" {
				w.jobFailed(out, j, c)
			}
		case batchv1.JobSuspended:
			out.State, out.Summary = explanation.Waiting, "it is suspended"
			cause(out, "JobSuspended", "spec.suspend is true")
			advise(out, "resume it", ref, fmt.Sprintf(`kubectl patch job %s -n %s --type merge -p '{"spec":{"suspend":false}}'`, j.Name, j.Namespace))
			return out
		}
	}
	if out.State == explanation.Failing {
		w.firstFailure(out, pods)
		note(out, "A failed job does not start again: create it anew.")
		return out
	}
	if by := ptr.Deref(j.Spec.ManagedBy, batchv1.JobControllerName); by != batchv1.JobControllerName {
		note(out, "It is managed by %s, not by the job controller.", by)
	}
	for _, text := range said(w, "Job", j.Namespace, j.Name, "FailedCreate") {
		if j.Status.Active < ptr.Deref(j.Spec.Parallelism, 1) {
			out.State, out.Summary = explanation.Failing, "the API refuses to create its pods"
			w.refused(out, j.Namespace, text)
		}
	}
	done := fmt.Sprintf("%d of %d are done", j.Status.Succeeded, ptr.Deref(j.Spec.Completions, 1))
	if bad, why := w.worst(pods); bad != nil && why.State != explanation.Fine && bad.Status.Phase != corev1.PodFailed {
		if out.Summary == "" {
			out.State, out.Summary = why.State, fmt.Sprintf("%s; pod %s: %s", done, bad.Name, why.Summary)
		}
		out.Because = append(out.Because, *why)
	}
	if j.Status.Failed > 0 {
		left := ptr.Deref(j.Spec.BackoffLimit, 6) - j.Status.Failed
		cause(out, "PodsFailed", "%s failed; it gives up after %d more (backoffLimit %d)", count(int(j.Status.Failed), "pod"), max(left+1, 1), ptr.Deref(j.Spec.BackoffLimit, 6))
		if out.Summary == "" {
			out.State, out.Summary = explanation.Failing, fmt.Sprintf("%s, and its pods fail", done)
		}
		w.firstFailure(out, pods)
	}
	if out.Summary == "" {
		out.State, out.Summary = explanation.Waiting, fmt.Sprintf("%s, %s at work", done, areIs(int(j.Status.Active), "pod"))
		if j.Status.Active == 0 && ptr.Deref(j.Spec.Parallelism, 1) == 0 {
			out.Summary = done + ", and its parallelism is 0"
			advise(out, "parallelism of at least 1", ref, fmt.Sprintf(`kubectl patch job %s -n %s --type merge -p '{"spec":{"parallelism":1}}'`, j.Name, j.Namespace))
		}
	}
	return out
}

func areIs(n int, what string) string {
	if n == 1 {
		return "1 " + what + " is"
	}
	return fmt.Sprintf("%d %ss are", n, what)
}

// jobFailed says by which limit or rule a job failed.
func (w *World) jobFailed(out *explanation.Explanation, j *batchv1.Job, c batchv1.JobCondition) {
	out.State = explanation.Failing
	ref := &out.Regarding
	switch c.Reason {
	case batchv1.JobReasonBackoffLimitExceeded:
		out.Summary = fmt.Sprintf("it has failed: %s, more than backoffLimit %d allows", count(int(j.Status.Failed), "pod")+" failed", ptr.Deref(j.Spec.BackoffLimit, 6))
		cause(out, c.Reason, "backoffLimit is %d", ptr.Deref(j.Spec.BackoffLimit, 6))
	case batchv1.JobReasonDeadlineExceeded:
		out.Summary = fmt.Sprintf("it has failed: it ran longer than its %ds (activeDeadlineSeconds)", ptr.Deref(j.Spec.ActiveDeadlineSeconds, 0))
		cause(out, c.Reason, "activeDeadlineSeconds is %d; %s had succeeded", ptr.Deref(j.Spec.ActiveDeadlineSeconds, 0), count(int(j.Status.Succeeded), "pod"))
		advise(out, "a longer activeDeadlineSeconds, more parallelism, or less work", ref)
	case batchv1.JobReasonPodFailurePolicy:
		out.Summary = "it has failed by a rule of its podFailurePolicy"
		cause(out, c.Reason, "%s", c.Message)
		if p := j.Spec.PodFailurePolicy; p != nil {
			for i, r := range p.Rules {
				if r.Action == batchv1.PodFailurePolicyActionFailJob && r.OnExitCodes != nil {
					note(out, "Rule %d fails the job on exit codes %s %v.", i, r.OnExitCodes.Operator, r.OnExitCodes.Values)
				}
			}
		}
	case batchv1.JobReasonMaxFailedIndexesExceeded:
		out.Summary = fmt.Sprintf("it has failed: indexes %s failed, more than maxFailedIndexes %d", ptr.Deref(j.Status.FailedIndexes, ""), ptr.Deref(j.Spec.MaxFailedIndexes, 0))
		cause(out, c.Reason, "%s", orElse(c.Message, out.Summary))
	case batchv1.JobReasonFailedIndexes:
		out.Summary = fmt.Sprintf("it has failed: indexes %s failed", ptr.Deref(j.Status.FailedIndexes, ""))
		cause(out, c.Reason, "%s", orElse(c.Message, out.Summary))
	default:
		out.Summary = "it has failed"
		cause(out, orElse(c.Reason, "Failed"), "%s", orElse(c.Message, "no reason is given"))
	}
}

// firstFailure says how the first pod that failed did.
func (w *World) firstFailure(out *explanation.Explanation, pods []*corev1.Pod) {
	var failed []*corev1.Pod
	for _, p := range pods {
		if p.Status.Phase == corev1.PodFailed || slices.ContainsFunc(p.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
			return s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.ExitCode != 0
		}) {
			failed = append(failed, p)
		}
	}
	if len(failed) == 0 {
		return
	}
	slices.SortStableFunc(failed, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	if slices.ContainsFunc(out.Because, func(e explanation.Explanation) bool { return e.Name == failed[0].Name }) {
		return
	}
	out.Because = append(out.Because, *w.explainPod(failed[0]))
}
