package controller

import (
	"slices"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestIndexSets(t *testing.T) {
	for _, c := range []struct{ from, take, want string }{
		{"0-9", "", "0-9"}, {"", "1-3", ""}, {"0-9", "3-5", "0-2,6-9"}, {"0-9", "0,1,9", "2-8"}, {"2-4,6-8", "0-2,4-6", "3,7,8"}, {"5", "5", ""}, {"5", "0-9", ""},
	} {
		if got := parseIndexes(c.from, 10).without(parseIndexes(c.take, 10)).String(); got != c.want {
			t.Errorf("%s without %s is %s, want %s", c.from, c.take, got, c.want)
		}
	}
	for _, c := range []struct{ in, out string }{
		{"", ""}, {"1", "1"}, {"1,2", "1,2"}, {"1-2", "1,2"}, {"1-3", "1-3"}, {"1,2,3", "1-3"}, {"0,2-4,9", "0,2-4,9"}, {"x,3,y-z,5", "3,5"}, {"7-20", "7-9"}, {"12", ""},
	} {
		if got := parseIndexes(c.in, 10).String(); got != c.out {
			t.Errorf("%q reads as %q, want %q", c.in, got, c.out)
		}
	}
	s := parseIndexes("1-3,7", 10)
	if s.total() != 4 || !s.has(2) || s.has(0) || s.has(4) || !s.has(7) || s.has(8) {
		t.Errorf("%v has the wrong members", s)
	}
	if got := s.with(5, 4, 0).String(); got != "0-5,7" {
		t.Errorf("union is %q", got)
	}
	if got := s.firstFree(4, 10); !slices.Equal(got, []int{0, 4, 5, 6}) {
		t.Errorf("free are %v", got)
	}
	if got := s.firstFree(20, 10); !slices.Equal(got, []int{0, 4, 5, 6, 8, 9}) {
		t.Errorf("all free are %v", got)
	}
	if got := s.common(parseIndexes("0-1,3-9", 10)); got != 3 {
		t.Errorf("%d in common", got)
	}
}

func aJob(name string, parallelism, completions int32) *batchv1.Job {
	labels := map[string]string{"job": name}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), Generation: 1},
		Spec: batchv1.JobSpec{
			Parallelism: &parallelism, Completions: &completions, BackoffLimit: ptr.To(int32(6)),
			Selector:             &metav1.LabelSelector{MatchLabels: labels},
			CompletionMode:       ptr.To(batchv1.NonIndexedCompletion),
			PodReplacementPolicy: ptr.To(batchv1.TerminatingOrFailed),
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}}},
		},
		Status: batchv1.JobStatus{UncountedTerminatedPods: &batchv1.UncountedTerminatedPods{}},
	}
}

func indexedJob(name string, parallelism, completions int32) *batchv1.Job {
	j := aJob(name, parallelism, completions)
	j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion)
	return j
}

var jobEpoch = time.Unix(1_700_000_000, 0)

// jobTestPod is a pod of j in a phase; index -1 for none.
func jobTestPod(j *batchv1.Job, n, index int, phase corev1.PodPhase, change ...func(*corev1.Pod)) *corev1.Pod {
	p := jobPod(j, index, nil)
	p.Name, p.UID = j.Name+"-"+strconv.Itoa(n), types.UID("pod-"+strconv.Itoa(n))
	p.CreationTimestamp = metav1.NewTime(jobEpoch)
	p.Status.Phase = phase
	for _, f := range change {
		f(p)
	}
	return p
}

func exited(code int32, ago time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: metav1.NewTime(jobEpoch.Add(time.Hour - ago))}}}}
	}
}

func deleted(p *corev1.Pod) { at := metav1.NewTime(jobEpoch); p.DeletionTimestamp = &at }

func viewOf(j *batchv1.Job, pods ...*corev1.Pod) *jobView {
	return &jobView{job: j, pods: pods, now: jobEpoch.Add(time.Hour)}
}

func TestJobPlans(t *testing.T) {
	failPolicy := func(a batchv1.PodFailurePolicyAction) *batchv1.PodFailurePolicy {
		return &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: a, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}}}}
	}
	perIndex := func(j *batchv1.Job) {
		j.Spec.BackoffLimitPerIndex = ptr.To(int32(0))
		j.Spec.BackoffLimit = ptr.To(int32(1 << 30))
	}
	for name, c := range map[string]struct {
		job    *batchv1.Job
		change func(*batchv1.Job)
		pods   func(*batchv1.Job) []*corev1.Pod
		create []int
		remove int
		target string // type/reason
		active int
		after  time.Duration
	}{
		"a new job":                {job: aJob("j", 2, 5), create: []int{-1, -1}},
		"a new indexed job":        {job: indexedJob("j", 3, 2), create: []int{0, 1}},
		"no more than are missing": {job: aJob("j", 3, 2), pods: func(j *batchv1.Job) []*corev1.Pod { return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodSucceeded)} }, create: []int{-1}},
		"suspended":                {job: aJob("j", 2, 5), change: func(j *batchv1.Job) { j.Spec.Suspend = ptr.To(true) }, pods: func(j *batchv1.Job) []*corev1.Pod { return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodRunning)} }, remove: 1, active: 1},
		"parallelism lowered": {job: aJob("j", 1, 5), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodRunning), jobTestPod(j, 2, -1, corev1.PodRunning)}
		}, remove: 1, active: 2},
		"two of an index": {job: indexedJob("j", 2, 2), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodRunning), jobTestPod(j, 2, 0, corev1.PodRunning), jobTestPod(j, 3, 1, corev1.PodRunning)}
		}, remove: 1, active: 3},
		"an index beyond": {job: indexedJob("j", 2, 2), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodRunning), jobTestPod(j, 2, 7, corev1.PodRunning), jobTestPod(j, 3, 1, corev1.PodRunning)}
		}, remove: 1, active: 3},
		"a failure waits": {job: aJob("j", 1, 1), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed, exited(1, 4*time.Second))}
		}, after: 6 * time.Second},
		"two failures wait longer": {job: aJob("j", 1, 1), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed, exited(1, time.Minute)), jobTestPod(j, 2, -1, corev1.PodFailed, exited(1, 4*time.Second))}
		}, after: 16 * time.Second},
		"and then no more": {job: aJob("j", 1, 1), pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed, exited(1, time.Minute))}
		}, create: []int{-1}},
		"a terminating pod is replaced at once": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {}, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodRunning, deleted)}
		}, create: []int{-1}},
		"or when it has failed": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) { j.Spec.PodReplacementPolicy = ptr.To(batchv1.Failed) }, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodRunning, deleted)}
		}},
		"back-off limit": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) { j.Spec.BackoffLimit = ptr.To(int32(0)) }, pods: func(j *batchv1.Job) []*corev1.Pod { return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed)} }, target: "FailureTarget/BackoffLimitExceeded"},
		"restarts in place count": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {
			j.Spec.BackoffLimit = ptr.To(int32(2))
			j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		}, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodRunning, func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 2}} })}
		}, target: "FailureTarget/BackoffLimitExceeded", active: 1},
		"deadline": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {
			j.Spec.ActiveDeadlineSeconds = ptr.To(int64(3600))
			j.Status.StartTime = ptr.To(metav1.NewTime(jobEpoch))
		}, target: "FailureTarget/DeadlineExceeded"},
		"before the deadline": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {
			j.Spec.ActiveDeadlineSeconds = ptr.To(int64(3700))
			j.Status.StartTime = ptr.To(metav1.NewTime(jobEpoch))
		}, create: []int{-1}, after: 100 * time.Second},
		"policy fails the job": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) { j.Spec.PodFailurePolicy = failPolicy(batchv1.PodFailurePolicyActionFailJob) }, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed, exited(42, time.Minute))}
		}, target: "FailureTarget/PodFailurePolicy"},
		"policy ignores": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {
			j.Spec.BackoffLimit = ptr.To(int32(0))
			j.Spec.PodFailurePolicy = failPolicy(batchv1.PodFailurePolicyActionIgnore)
		}, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodFailed, exited(42, time.Minute))}
		}, create: []int{-1}},
		"policy fails the index": {job: indexedJob("j", 2, 2), change: func(j *batchv1.Job) {
			perIndex(j)
			j.Spec.BackoffLimitPerIndex = ptr.To(int32(9))
			j.Spec.PodFailurePolicy = failPolicy(batchv1.PodFailurePolicyActionFailIndex)
		}, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodFailed, exited(42, time.Minute))}
		}, create: []int{1}},
		"an index fails, the others go on": {job: indexedJob("j", 2, 3), change: perIndex, pods: func(j *batchv1.Job) []*corev1.Pod { return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodFailed)} }, create: []int{1, 2}},
		"all indexes done or failed": {job: indexedJob("j", 2, 2), change: perIndex, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodFailed), jobTestPod(j, 2, 1, corev1.PodSucceeded)}
		}, target: "FailureTarget/FailedIndexes"},
		"too many failed indexes": {job: indexedJob("j", 2, 9), change: func(j *batchv1.Job) { perIndex(j); j.Spec.MaxFailedIndexes = ptr.To(int32(1)) }, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 0, corev1.PodFailed), jobTestPod(j, 2, 1, corev1.PodFailed)}
		}, target: "FailureTarget/MaxFailedIndexesExceeded"},
		"success policy": {job: indexedJob("j", 2, 9), change: func(j *batchv1.Job) {
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0-3"), SucceededCount: ptr.To(int32(1))}}}
		}, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, 3, corev1.PodSucceeded), jobTestPod(j, 2, 1, corev1.PodRunning)}
		}, target: "SuccessCriteriaMet/SuccessPolicy", active: 1},
		"FailureTarget stays what it was": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) {
			j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobFailureTarget, Status: corev1.ConditionTrue, Reason: "DeadlineExceeded"}}
		}, target: "Failed/DeadlineExceeded"},
		"a job being deleted makes nothing": {job: aJob("j", 1, 1), change: func(j *batchv1.Job) { j.DeletionTimestamp = ptr.To(metav1.NewTime(jobEpoch)) }},
		"a job without completions follows its first": {job: aJob("j", 2, 1), change: func(j *batchv1.Job) { j.Spec.Completions = nil }, pods: func(j *batchv1.Job) []*corev1.Pod {
			return []*corev1.Pod{jobTestPod(j, 1, -1, corev1.PodSucceeded), jobTestPod(j, 2, -1, corev1.PodRunning)}
		}, active: 1},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change != nil {
				c.change(c.job)
			}
			var pods []*corev1.Pod
			if c.pods != nil {
				pods = c.pods(c.job)
			}
			p := planJob(viewOf(c.job, pods...))
			target := ""
			if p.target != nil {
				target = string(p.target.Type) + "/" + p.target.Reason
			}
			if !slices.Equal(p.create, c.create) || len(p.remove) != c.remove || target != c.target || len(p.active) != c.active || p.after != c.after {
				t.Errorf("create %v, remove %d, target %q, active %d, after %v", p.create, len(p.remove), target, len(p.active), p.after)
			}
		})
	}
}

// A pod is counted once, whichever step was the last before a crash.
func TestJobCountsOverCrashes(t *testing.T) {
	j := aJob("j", 1, 2)
	pod := jobTestPod(j, 1, -1, corev1.PodSucceeded)
	v := viewOf(j, pod)
	p := planJob(v)
	release, flush, _ := v.track(p)
	if len(release) != 1 || !flush || j.Status.Succeeded != 0 || len(j.Status.UncountedTerminatedPods.Succeeded) != 1 {
		t.Fatalf("release %d, flush %v, status %+v", len(release), flush, j.Status)
	}
	// Killed before the finalizer went: the UID is there already.
	v = viewOf(j.DeepCopy(), pod)
	p = planJob(v)
	if release, flush, _ = v.track(p); len(release) != 1 || flush || len(v.job.Status.UncountedTerminatedPods.Succeeded) != 1 || p.counts.succeeded != 1 {
		t.Errorf("again: release %d, flush %v, status %+v", len(release), flush, v.job.Status)
	}
	// Killed after it: with the finalizer away, or the pod gone, it is counted.
	free := pod.DeepCopy()
	free.Finalizers = nil
	for _, pods := range [][]*corev1.Pod{{free}, nil} {
		v = viewOf(j.DeepCopy(), pods...)
		p = planJob(v)
		if release, flush, _ = v.track(p); len(release) != 0 || !flush || v.job.Status.Succeeded != 1 || len(v.job.Status.UncountedTerminatedPods.Succeeded) != 0 {
			t.Errorf("counted: release %d, flush %v, status %+v", len(release), flush, v.job.Status)
		}
		if p.counts.succeeded != 1 {
			t.Errorf("%d known to have succeeded", p.counts.succeeded)
		}
	}
}

// An index is done or failed, never both: the API server refuses a status that says
// so, and nothing would be counted any more.
func TestJobIndexFailsOnce(t *testing.T) {
	perIndex := func(j *batchv1.Job) *batchv1.Job {
		j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit = ptr.To(int32(0)), ptr.To(int32(1<<30))
		return j
	}
	// Its pod was on its way out, so that its index failed; then it ended well.
	j := perIndex(indexedJob("j", 1, 3))
	v := viewOf(j, jobTestPod(j, 1, 0, corev1.PodSucceeded), jobTestPod(j, 2, 1, corev1.PodRunning, deleted))
	v.track(planJob(v))
	if s := v.job.Status; s.CompletedIndexes != "0" || *s.FailedIndexes != "1" || len(s.UncountedTerminatedPods.Failed) != 1 {
		t.Fatalf("status %+v", s)
	}
	v = viewOf(v.job, jobTestPod(j, 2, 1, corev1.PodSucceeded, deleted))
	p := planJob(v)
	release, _, _ := v.track(p)
	if s := v.job.Status; s.CompletedIndexes != "0" || *s.FailedIndexes != "1" || s.Succeeded != 1 || len(s.UncountedTerminatedPods.Failed) != 1 || len(release) != 1 || !slices.Equal(p.create, []int{2}) {
		t.Errorf("release %d, create %v, status %+v", len(release), p.create, s)
	}
	// Two pods of one index: one has done it, and the other's failure changes nothing.
	j = perIndex(indexedJob("k", 1, 2))
	v = viewOf(j, jobTestPod(j, 1, 0, corev1.PodSucceeded), jobTestPod(j, 2, 0, corev1.PodFailed))
	v.track(planJob(v))
	if s := v.job.Status; s.CompletedIndexes != "0" || *s.FailedIndexes != "" || s.Succeeded != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestJobBackoff(t *testing.T) {
	now := jobEpoch.Add(time.Hour)
	for failures, want := range map[int32]time.Duration{0: 0, 1: 10 * time.Second, 2: 20 * time.Second, 3: 40 * time.Second, 7: 10 * time.Minute, 1 << 30: 10 * time.Minute} {
		if got := (jobBackoff{failures, now}).wait(now); got != want {
			t.Errorf("%d failures wait %v, want %v", failures, got, want)
		}
	}
	j := aJob("j", 1, 1)
	at := func(phase corev1.PodPhase, ago time.Duration) *corev1.Pod {
		return jobTestPod(j, 1, -1, phase, exited(1, ago))
	}
	got := jobBackoff{5, now}.after([]*corev1.Pod{at(corev1.PodSucceeded, time.Minute)}, []*corev1.Pod{at(corev1.PodFailed, 2*time.Minute), at(corev1.PodFailed, 30*time.Second)})
	if got.failures != 1 || !got.last.Equal(now.Add(-30*time.Second)) {
		t.Errorf("a success ends the count: %+v", got)
	}
}

func TestIndexedPod(t *testing.T) {
	j := indexedJob("j", 1, 3)
	j.Spec.BackoffLimitPerIndex = ptr.To(int32(2))
	last := jobTestPod(j, 1, 2, corev1.PodFailed)
	p := jobPod(j, 2, last)
	if p.Annotations[batchv1.JobCompletionIndexAnnotation] != "2" || p.Labels[batchv1.JobCompletionIndexAnnotation] != "2" || p.Spec.Hostname != "j-2" || p.GenerateName != "j-2-" ||
		p.Annotations[batchv1.JobIndexFailureCountAnnotation] != "1" || !tracked(p) {
		t.Errorf("pod is %+v", p.ObjectMeta)
	}
	if e := p.Spec.Containers[0].Env; len(e) != 1 || e[0].Name != "JOB_COMPLETION_INDEX" || e[0].ValueFrom.FieldRef.FieldPath != "metadata.labels['batch.kubernetes.io/job-completion-index']" {
		t.Errorf("env is %v", e)
	}
	if len(j.Spec.Template.Spec.Containers[0].Env) != 0 {
		t.Error("the template was changed")
	}
}
