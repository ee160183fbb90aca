package controller

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Counting without loss (KEP-2307). A pod that ended is counted in three steps, of
// which each may be the last before a crash: its UID is written to the job's
// uncounted pods; its finalizer is removed; with the next write of the status its UID
// goes, and the count goes up by one. A pod with a finalizer is not counted yet; a UID
// without one is counted exactly once.

// track enters the pods that ended, and what ends the job, into the job's status. It
// returns the pods that may lose their finalizer once that is written, whether it must
// be written, and whether there is more than one write may hold.
func (v *jobView) track(p *jobPlan) (release []*corev1.Pod, flush, more bool) {
	s := &v.job.Status
	flush = countReleased(s, v.trackedUIDs())
	pods := slices.Clone(v.pods)
	if jobIndexed(v.job) {
		slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return completionIndex(a) - completionIndex(b) })
	}
	var indexes []int
	u := s.UncountedTerminatedPods
	for _, pod := range pods {
		if !tracked(pod) || !v.mayRelease(p, pod) {
			continue
		}
		release = append(release, pod)
		failed := failedFor(v.job, pod)
		switch {
		case pod.Status.Phase == corev1.PodSucceeded && !p.uncountedFailed[pod.UID]:
			if jobIndexed(v.job) {
				if i := completionIndex(pod); p.done.has(i) && !p.wasDone.has(i) {
					indexes, flush = append(indexes, i), true
				}
			} else if !p.uncountedDone[pod.UID] {
				u.Succeeded, flush = append(u.Succeeded, pod.UID), true
			}
		case failed || p.target != nil && p.target.Type != batchv1.JobSuccessCriteriaMet:
			if p.uncountedFailed[pod.UID] || !v.counts(pod) {
				break
			}
			if _, counted, _ := matchFailure(v.job.Spec.PodFailurePolicy, pod); counted {
				u.Failed, flush = append(u.Failed, pod.UID), true
			}
		}
		if len(indexes)+len(u.Succeeded)+len(u.Failed) >= maxUncounted {
			more = true
			break
		}
	}
	if jobIndexed(v.job) {
		done := p.done.with(indexes...)
		flush = flush || done.String() != s.CompletedIndexes
		s.Succeeded, s.CompletedIndexes = int32(done.total()), done.String()
		if p.failed != nil {
			text := p.failed.String()
			flush = flush || s.FailedIndexes == nil || *s.FailedIndexes != text
			s.FailedIndexes = &text
		}
	}
	return release, v.announce(p) || flush, more
}

// announce writes the condition that says that the job is going to end, and makes the
// target the one that ends it.
func (v *jobView) announce(p *jobPlan) bool {
	t := p.target
	switch {
	case t == nil || t.Type == batchv1.JobFailed:
		return false
	case t.Type == batchv1.JobFailureTarget:
		v.job.Status.Conditions = append(v.job.Status.Conditions, *t)
		p.target = newJobCondition(batchv1.JobFailed, corev1.ConditionTrue, t.Reason, t.Message, v.now)
		return true
	}
	p.target = newJobCondition(batchv1.JobComplete, corev1.ConditionTrue, t.Reason, t.Message, v.now)
	if jobConditionTrue(&v.job.Status, batchv1.JobSuccessCriteriaMet) != nil {
		return false
	}
	v.job.Status.Conditions = append(v.job.Status.Conditions, *t)
	return true
}

// mayRelease tells that nothing more is to be learned from a pod.
func (v *jobView) mayRelease(p *jobPlan, pod *corev1.Pod) bool {
	if v.job.DeletionTimestamp != nil || p.target != nil || pod.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !failedFor(v.job, pod) {
		return false
	}
	last := p.delayed[completionIndex(pod)]
	return last == nil || last.UID != pod.UID
}

func (v *jobView) trackedUIDs() map[types.UID]bool {
	m := map[types.UID]bool{}
	for _, p := range v.pods {
		if tracked(p) {
			m[p.UID] = true
		}
	}
	return m
}

// countReleased counts the uncounted pods that have no finalizer any more; it tells
// whether there were any.
func countReleased(s *batchv1.JobStatus, tracked map[types.UID]bool) bool {
	count := func(uids []types.UID, n *int32) []types.UID {
		var left []types.UID
		for _, u := range uids {
			if tracked[u] {
				left = append(left, u)
			} else {
				*n++
			}
		}
		return left
	}
	u := s.UncountedTerminatedPods
	before := len(u.Succeeded) + len(u.Failed)
	u.Succeeded, u.Failed = count(u.Succeeded, &s.Succeeded), count(u.Failed, &s.Failed)
	return before != len(u.Succeeded)+len(u.Failed)
}

// finish writes the condition that ends the job, when everything is counted and no pod
// is on its way out any more.
func (v *jobView) finish(p *jobPlan) bool {
	s := &v.job.Status
	if p.target == nil || len(s.UncountedTerminatedPods.Succeeded)+len(s.UncountedTerminatedPods.Failed) > 0 || p.counts.terminating > 0 {
		return false
	}
	setJobCondition(s, p.target)
	if p.target.Type == batchv1.JobComplete {
		s.CompletionTime = &p.target.LastTransitionTime
	}
	return true
}

// conclude decides, when pods were made and removed, whether the job is complete, or
// newly suspended or resumed; event is the reason of the event to tell of that.
func (v *jobView) conclude(p *jobPlan) (changed bool, event string) {
	j, s := v.job, &v.job.Status
	done := p.counts.active == 0
	if j.Spec.Completions == nil {
		done = done && p.counts.succeeded > 0
	} else {
		done = done && p.counts.succeeded >= *j.Spec.Completions
	}
	if done {
		p.target = newJobCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods", v.now)
		return false, ""
	}
	if !p.managed {
		return false, ""
	}
	if jobSuspended(j) {
		if !setJobCondition(s, newJobCondition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended", v.now)) {
			return false, ""
		}
		s.StartTime = nil
		return true, "Suspended"
	}
	if !setJobCondition(s, newJobCondition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed", v.now)) {
		return false, ""
	}
	at := metav1.NewTime(v.now)
	s.StartTime = &at
	return true, "Resumed"
}

// countPods writes the numbers of pods; it tells whether any changed.
func (c jobCounts) countPods(s *batchv1.JobStatus) bool {
	same := s.Active == c.active && s.Ready != nil && *s.Ready == c.ready && s.Terminating != nil && *s.Terminating == c.terminating
	s.Active, s.Ready, s.Terminating = c.active, &c.ready, &c.terminating
	return !same
}

// jobEvent is what is told when a job has ended.
type jobEvent struct{ eventType, reason, message string }

func jobEvents(j *batchv1.Job, end *batchv1.JobCondition) []jobEvent {
	if end.Type != batchv1.JobComplete {
		return []jobEvent{{corev1.EventTypeWarning, end.Reason, end.Message}}
	}
	var out []jobEvent
	if j.Spec.Completions != nil && j.Status.Succeeded > *j.Spec.Completions {
		out = append(out, jobEvent{corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached"})
	}
	return append(out, jobEvent{corev1.EventTypeNormal, "Completed", "Job completed"})
}

// jobEnd is when a finished job ended.
func jobEnd(j *batchv1.Job) (time.Time, bool) {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime.Time, true
		}
	}
	return time.Time{}, false
}
