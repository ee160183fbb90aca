package controller

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Bounds of one reconciliation, upstream's.
const (
	maxUncounted = 500
	maxJobPods   = 500
)

func jobIndexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
}

func jobSuspended(j *batchv1.Job) bool { return j.Spec.Suspend != nil && *j.Spec.Suspend }

// replacesFailed tells that a pod on its way out holds its place until it has failed.
func replacesFailed(j *batchv1.Job) bool {
	return j.Spec.PodReplacementPolicy != nil && *j.Spec.PodReplacementPolicy == batchv1.Failed
}

func perIndexLimit(j *batchv1.Job) bool { return j.Spec.BackoffLimitPerIndex != nil }

func jobCondition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func jobConditionTrue(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	if c := jobCondition(s, t); c != nil && c.Status == corev1.ConditionTrue {
		return c
	}
	return nil
}

func jobFinished(j *batchv1.Job) bool {
	return jobConditionTrue(&j.Status, batchv1.JobComplete) != nil || jobConditionTrue(&j.Status, batchv1.JobFailed) != nil
}

func newJobCondition(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) *batchv1.JobCondition {
	at := metav1.NewTime(now)
	return &batchv1.JobCondition{Type: t, Status: status, LastProbeTime: at, LastTransitionTime: at, Reason: reason, Message: message}
}

// setJobCondition tells whether it changed anything; False is not added.
func setJobCondition(s *batchv1.JobStatus, c *batchv1.JobCondition) bool {
	old := jobCondition(s, c.Type)
	switch {
	case old == nil && c.Status == corev1.ConditionFalse:
		return false
	case old == nil:
		s.Conditions = append(s.Conditions, *c)
		return true
	case old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message:
		return false
	}
	*old = *c
	return true
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// failedFor tells that p counts as failed for j: a terminating pod does, where it is
// replaced at once.
func failedFor(j *batchv1.Job, p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !replacesFailed(j) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// jobView is what a job's next steps follow from. job is a copy of which the status is
// written; UncountedTerminatedPods is set.
type jobView struct {
	job     *batchv1.Job
	pods    []*corev1.Pod
	backoff jobBackoff // before what finished since
	now     time.Time
}

// jobPlan is what is to be done, and what is known on the way.
type jobPlan struct {
	active  []*corev1.Pod
	backoff jobBackoff
	// target is the condition that ends the job: FailureTarget, SuccessCriteriaMet, or
	// Failed where FailureTarget is written already. With it all active pods are
	// deleted, and what they come to still counts.
	target *batchv1.JobCondition
	// remove are pods that are not wanted any more: they are deleted uncounted.
	remove  []*corev1.Pod
	create  []int // by index; -1 for a job without indexes
	managed bool
	after   time.Duration

	counts                         jobCounts
	wasDone, done                  indexSet
	failed                         *indexSet
	delayed                        map[int]*corev1.Pod // the last failed pod of an index, until it is replaced
	uncountedDone, uncountedFailed map[types.UID]bool
}

type jobCounts struct{ active, ready, terminating, succeeded, failed int32 }

func (v *jobView) completions() int {
	if v.job.Spec.Completions == nil {
		return 0
	}
	return int(*v.job.Spec.Completions)
}

// counts tells that a pod is one of the job's count: it is tracked, and of an index
// that there is.
func (v *jobView) counts(p *corev1.Pod) bool {
	if !tracked(p) {
		return false
	}
	i := completionIndex(p)
	return !jobIndexed(v.job) || i >= 0 && i < v.completions()
}

func uidSet(uids []types.UID) map[types.UID]bool {
	m := make(map[types.UID]bool, len(uids))
	for _, u := range uids {
		m[u] = true
	}
	return m
}

// planJob decides what a job needs now.
func planJob(v *jobView) *jobPlan {
	j := v.job
	p := &jobPlan{uncountedDone: uidSet(j.Status.UncountedTerminatedPods.Succeeded), uncountedFailed: uidSet(j.Status.UncountedTerminatedPods.Failed)}
	var succeeded, failed []*corev1.Pod
	ignored := 0
	for _, pod := range v.pods {
		switch {
		case podActive(pod):
			p.active = append(p.active, pod)
			if podReady(pod) {
				p.counts.ready++
			}
		case podTerminating(pod):
			p.counts.terminating++
		}
		if !v.counts(pod) {
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded && !p.uncountedDone[pod.UID] {
			succeeded = append(succeeded, pod)
		}
		if failedFor(j, pod) && !p.uncountedFailed[pod.UID] {
			failed = append(failed, pod)
			if _, counted, _ := matchFailure(j.Spec.PodFailurePolicy, pod); !counted {
				ignored++
			}
		}
	}
	p.counts.active = int32(len(p.active))
	p.counts.succeeded = j.Status.Succeeded + int32(len(succeeded)+len(p.uncountedDone))
	p.counts.failed = j.Status.Failed + int32(len(failed)-ignored+len(p.uncountedFailed))
	p.backoff = v.backoff.after(succeeded, failed)
	if j.Status.StartTime == nil && !jobSuspended(j) {
		at := metav1.NewTime(v.now)
		j.Status.StartTime = &at
	}
	p.target = v.failure(p)
	if jobIndexed(j) {
		v.countIndexes(p)
	}
	if p.target == nil && j.DeletionTimestamp == nil {
		v.manage(p)
	}
	return p
}

// failure is the condition that ends the job, where it is not for its indexes.
func (v *jobView) failure(p *jobPlan) *batchv1.JobCondition {
	j := v.job
	if c := jobConditionTrue(&j.Status, batchv1.JobSuccessCriteriaMet); c != nil {
		return c
	}
	if c := jobConditionTrue(&j.Status, batchv1.JobFailureTarget); c != nil {
		return newJobCondition(batchv1.JobFailed, corev1.ConditionTrue, c.Reason, c.Message, v.now)
	}
	fail := func(reason, message string) *batchv1.JobCondition {
		return newJobCondition(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, message, v.now)
	}
	if j.Spec.PodFailurePolicy != nil {
		for _, pod := range v.pods {
			if !failedFor(j, pod) {
				continue
			}
			if m, _, _ := matchFailure(j.Spec.PodFailurePolicy, pod); m != "" {
				return fail(batchv1.JobReasonPodFailurePolicy, m)
			}
		}
	}
	if p.counts.failed > *j.Spec.BackoffLimit || v.restartsSpent() {
		return fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	}
	if d := j.Spec.ActiveDeadlineSeconds; d != nil && j.Status.StartTime != nil && !jobSuspended(j) {
		left := j.Status.StartTime.Add(time.Duration(*d) * time.Second).Sub(v.now)
		if left <= 0 {
			return fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
		}
		p.after = left
	}
	return nil
}

// restartsSpent: containers that restart in place count towards the limit.
func (v *jobView) restartsSpent() bool {
	if v.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := int32(0)
	for _, p := range v.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, c := range p.Status.InitContainerStatuses {
			n += c.RestartCount
		}
		for _, c := range p.Status.ContainerStatuses {
			n += c.RestartCount
		}
	}
	limit := *v.job.Spec.BackoffLimit
	return limit == 0 && n > 0 || limit > 0 && n >= limit
}

// countIndexes finds which indexes are done and which failed, and what that means.
func (v *jobView) countIndexes(p *jobPlan) {
	j, n := v.job, v.completions()
	p.wasDone = parseIndexes(j.Status.CompletedIndexes, n)
	var done, failed []int
	for _, pod := range v.pods {
		if !v.counts(pod) {
			continue
		}
		if pod.Status.Phase == corev1.PodSucceeded {
			done = append(done, completionIndex(pod))
		}
		if perIndexLimit(j) && v.failsIndex(pod) {
			failed = append(failed, completionIndex(pod))
		}
	}
	// An index is done or failed, once and for all, and never both: a pod that was on
	// its way out has failed its index, even if it ends well after that.
	var lost indexSet
	if perIndexLimit(j) && j.Status.FailedIndexes != nil {
		lost = parseIndexes(*j.Status.FailedIndexes, n)
	}
	p.done = p.wasDone.with(done...).without(lost)
	p.counts.succeeded = int32(p.done.total())
	if perIndexLimit(j) {
		all := lost.with(failed...).without(p.done)
		p.failed = &all
		failures := all.total()
		switch {
		case p.target != nil:
		case j.Spec.MaxFailedIndexes != nil && failures > int(*j.Spec.MaxFailedIndexes):
			p.target = newJobCondition(batchv1.JobFailureTarget, corev1.ConditionTrue, batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes", v.now)
		case failures > 0 && failures+p.done.total() >= n:
			p.target = newJobCondition(batchv1.JobFailureTarget, corev1.ConditionTrue, batchv1.JobReasonFailedIndexes, "Job has failed indexes", v.now)
		}
		v.delay(p)
	}
	if p.target == nil {
		if m, ok := matchSuccess(j.Spec.SuccessPolicy, n, p.done); ok {
			p.target = newJobCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonSuccessPolicy, m, v.now)
		}
	}
}

func (v *jobView) failsIndex(pod *corev1.Pod) bool {
	if !failedFor(v.job, pod) {
		return false
	}
	_, counted, action := matchFailure(v.job.Spec.PodFailurePolicy, pod)
	return action == batchv1.PodFailurePolicyActionFailIndex || counted && countedFailures(pod) >= *v.job.Spec.BackoffLimitPerIndex
}

// delay finds the last failed pod of every index that is to be tried again. It keeps
// its finalizer until its successor exists, which counts on from it.
func (v *jobView) delay(p *jobPlan) {
	p.delayed = map[int]*corev1.Pod{}
	var active indexSet
	active = active.with(indexesOf(p.active)...)
	for _, pod := range v.pods {
		i := completionIndex(pod)
		if !v.counts(pod) || !failedFor(v.job, pod) || p.done.has(i) || p.failed.has(i) || active.has(i) {
			continue
		}
		if last := p.delayed[i]; last == nil ||
			countedFailures(last)+ignoredFailures(last) <= countedFailures(pod)+ignoredFailures(pod) && !finishedAt(pod).Before(finishedAt(last)) {
			p.delayed[i] = pod
		}
	}
}

// manage finds the pods to make or to remove.
func (v *jobView) manage(p *jobPlan) {
	p.managed = true
	j, active := v.job, int32(len(p.active))
	if jobSuspended(j) {
		p.remove = p.active
		return
	}
	want := *j.Spec.Parallelism
	if j.Spec.Completions != nil {
		want = max(0, min(want, *j.Spec.Completions-p.counts.succeeded))
	} else if p.counts.succeeded > 0 {
		want = active
	}
	p.remove = v.surplus(p.active, int(max(0, active-want)))
	if len(p.remove) > 0 {
		p.remove = p.remove[:min(len(p.remove), maxJobPods)]
		return
	}
	n := want - active
	if replacesFailed(j) {
		n -= p.counts.terminating
	}
	if n <= 0 {
		return
	}
	if !perIndexLimit(j) {
		if wait := p.backoff.wait(v.now); wait > 0 {
			p.wakeIn(wait)
			return
		}
	}
	n = min(n, maxJobPods)
	if !jobIndexed(j) {
		for range n {
			p.create = append(p.create, -1)
		}
		return
	}
	taken := p.done.with(indexesOf(p.active)...)
	if replacesFailed(j) {
		var ending []*corev1.Pod
		for _, pod := range v.pods {
			if podTerminating(pod) {
				ending = append(ending, pod)
			}
		}
		taken = taken.with(indexesOf(ending)...)
	}
	if p.failed != nil {
		taken = taken.union(*p.failed)
	}
	first := time.Duration(0)
	for _, i := range taken.firstFree(int(n), v.completions()) {
		if last := p.delayed[i]; last != nil {
			b := jobBackoff{countedFailures(last) + ignoredFailures(last) + 1, finishedAt(last)}
			if wait := b.wait(v.now); wait > 0 {
				if first == 0 || wait < first {
					first = wait
				}
				continue
			}
		}
		p.create = append(p.create, i)
	}
	if first > 0 {
		p.wakeIn(first)
	}
}

func (p *jobPlan) wakeIn(d time.Duration) {
	if p.after == 0 || d < p.after {
		p.after = d
	}
}

// surplus are at least n active pods to remove; of an indexed job first those of an
// index that another pod has, or that there is not.
func (v *jobView) surplus(active []*corev1.Pod, n int) []*corev1.Pod {
	var rm []*corev1.Pod
	left := active
	if jobIndexed(v.job) {
		left = nil
		byIndex := map[int][]*corev1.Pod{}
		for _, p := range active {
			i := completionIndex(p)
			if i < 0 || i >= v.completions() {
				rm = append(rm, p)
				continue
			}
			byIndex[i] = append(byIndex[i], p)
		}
		for _, pods := range byIndex {
			dropped := chooseVictims(pods, nil, len(pods)-1, v.now)
			rm = append(rm, dropped...)
			for _, p := range pods {
				if !slices.Contains(dropped, p) {
					left = append(left, p)
				}
			}
		}
		// The order of a map must not choose.
		slices.SortFunc(left, func(a, b *corev1.Pod) int { return cmp.Compare(completionIndex(a), completionIndex(b)) })
	}
	if len(rm) < n {
		rm = append(rm, chooseVictims(left, nil, n-len(rm), v.now)...)
	}
	return rm
}

// jobPod is a new pod of a job.
func jobPod(j *batchv1.Job, index int, replaces *corev1.Pod) *corev1.Pod {
	p := podFromTemplate(&j.Spec.Template, j, jobKind)
	if !tracked(p) {
		p.Finalizers = append(p.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if index < 0 {
		return p
	}
	indexedPod(j, p, index)
	if perIndexLimit(j) {
		var counted, ignored int32
		if replaces != nil {
			counted, ignored = countedFailures(replaces), ignoredFailures(replaces)
			if _, counts, _ := matchFailure(j.Spec.PodFailurePolicy, replaces); counts {
				counted++
			} else {
				ignored++
			}
		}
		p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(counted))
		if ignored > 0 {
			p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(ignored))
		}
	}
	return p
}
