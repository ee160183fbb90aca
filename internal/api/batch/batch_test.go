package batch

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func testEnv() resource.Env {
	return resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
}

func same(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	var got []string
	for _, e := range errs {
		got = append(got, e.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func job(change ...func(*batchv1.Job)) *batchv1.Job {
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "pi", Namespace: "default", UID: "u1", ResourceVersion: "5", Generation: 3},
		Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c", Image: "i"}},
		}}},
	}
	for _, f := range change {
		f(j)
	}
	defaultJob(j)
	return j
}

func indexedJob(j *batchv1.Job) {
	j.Spec.CompletionMode, j.Spec.Completions, j.Spec.Parallelism = new(batchv1.IndexedCompletion), new(int32(5)), new(int32(2))
}

func TestOwnPods(t *testing.T) {
	r := Job()
	j := job(func(j *batchv1.Job) { j.Spec.Template.Labels = map[string]string{"a": "b"} })
	r.PrepareCreate(testEnv(), j)
	want := map[string]string{"a": "b", "job-name": "pi", "batch.kubernetes.io/job-name": "pi", "controller-uid": "u1", "batch.kubernetes.io/controller-uid": "u1"}
	if !reflect.DeepEqual(j.Spec.Template.Labels, want) || !reflect.DeepEqual(j.Labels, want) {
		t.Errorf("labels %v, of the job %v", j.Spec.Template.Labels, j.Labels)
	}
	if !reflect.DeepEqual(j.Spec.Selector.MatchLabels, map[string]string{"batch.kubernetes.io/controller-uid": "u1"}) || j.Generation != 1 {
		t.Errorf("selector %v, generation %d", j.Spec.Selector, j.Generation)
	}
	same(t, r.ValidateCreate(testEnv(), j), nil)

	j = job(func(j *batchv1.Job) {
		j.Labels = map[string]string{"x": "y"}
		j.Spec.Template.Labels = map[string]string{"job-name": "other"}
	})
	r.PrepareCreate(testEnv(), j)
	if len(j.Labels) != 1 {
		t.Errorf("the job's own labels became %v", j.Labels)
	}
	same(t, r.ValidateCreate(testEnv(), j), []string{
		`spec.template.metadata.labels[job-name]: Invalid value: {"batch.kubernetes.io/controller-uid":"u1","batch.kubernetes.io/job-name":"pi","controller-uid":"u1","job-name":"other"}: must be 'pi'`})
}

func TestJobRules(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*batchv1.Job)
		want []string
	}{
		{"valid", func(*batchv1.Job) {}, nil},
		{"restart", func(j *batchv1.Job) { j.Spec.Template.Spec.RestartPolicy = "" }, []string{
			`spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`}},
		{"not indexed", func(j *batchv1.Job) {
			j.Spec.MaxFailedIndexes, j.Spec.SuccessPolicy = new(int32(1)), &batchv1.SuccessPolicy{}
		}, []string{
			`spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified`,
			`spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode`,
			`spec.successPolicy: Invalid value: {"Rules":null}: requires indexed completion mode`}},
		{"many indexes", func(j *batchv1.Job) {
			indexedJob(j)
			j.Spec.Completions, j.Spec.Parallelism, j.Spec.BackoffLimitPerIndex = new(int32(100_001)), new(int32(10_001)), new(int32(1))
		}, []string{
			`spec.maxFailedIndexes: Required value: must be specified when completions is above 100000`,
			`spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 when completions are above 100000 and used with backoff limit per index`}},
		{"failure policy", func(j *batchv1.Job) {
			j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
				{Action: "FailIndex", OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{ContainerName: new("x"), Operator: "In", Values: []int32{1, 0, 1}}},
				{OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: "a b"}}},
			}}
			j.Spec.PodReplacementPolicy = new(batchv1.TerminatingOrFailed)
		}, []string{
			`spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set`,
			`spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: "x": must be one of the container or initContainer names in the pod template`,
			`spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator`,
			`spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 1`,
			`spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [1,0,1]: must be ordered`,
			`spec.podFailurePolicy.rules[1].action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]`,
			`spec.podFailurePolicy.rules[1].onPodConditions[0].type: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`,
			`spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed"`}},
		{"success policy", func(j *batchv1.Job) {
			indexedJob(j)
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{
				{}, {SucceededIndexes: new("0,2-4"), SucceededCount: new(int32(5))}, {SucceededIndexes: new("3,1")}, {SucceededIndexes: new("1-9")}}}
		}, []string{
			`spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified`,
			`spec.successPolicy.rules[1].succeededCount: Invalid value: 5: must be less than or equal to 4 (the number of indexes in the specified succeededIndexes field)`,
			`spec.successPolicy.rules[2].succeededIndexes: Invalid value: "3,1": error parsing succeededIndexes: non-increasing order, previous: 3, current: 1`,
			`spec.successPolicy.rules[3].succeededIndexes: Invalid value: "1-9": error parsing succeededIndexes: too large index: "9"`}},
		{"no completions", func(j *batchv1.Job) {
			indexedJob(j)
			j.Spec.Completions = nil
			j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: new(int32(1))}}}
		}, []string{
			`spec.completions: Required value: when completion mode is Indexed`,
			`spec.successPolicy.rules[0].succeededCount: Invalid value: 1: must be less than or equal to 0 (the number of specified completions)`}},
		{"name", func(j *batchv1.Job) { indexedJob(j); j.Name = strings.Repeat("x", 62) }, []string{
			`metadata.name: Invalid value: "` + strings.Repeat("x", 62) + `": will not able to create pod with invalid DNS label: ` + strings.Repeat("x", 62) + `-4`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := job(c.set)
			r := Job()
			r.PrepareCreate(testEnv(), j)
			same(t, r.ValidateCreate(testEnv(), j), c.want)
		})
	}
}

func TestJobUpdate(t *testing.T) {
	suspended := func(j *batchv1.Job) { j.Spec.Suspend = new(true) }
	place := func(j *batchv1.Job) { j.Spec.Template.Spec.NodeSelector = map[string]string{"a": "b"} }
	request := func(j *batchv1.Job) {
		j.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: apiresource.MustParse("1")}
	}
	fixed := func(j *batchv1.Job) {}
	for _, c := range []struct {
		name       string
		old, set   func(*batchv1.Job)
		refused    string
		detail     string
		generation int64
	}{
		{name: "nothing", old: fixed, set: fixed, generation: 3},
		{name: "parallelism", old: fixed, set: func(j *batchv1.Job) { j.Spec.Parallelism = new(int32(9)) }, generation: 4},
		{name: "running", old: fixed, set: place, refused: "spec.template", generation: 4},
		{name: "suspended", old: suspended, set: func(j *batchv1.Job) { place(j); request(j) }, generation: 4},
		{name: "suspended again", generation: 4, set: place, old: func(j *batchv1.Job) {
			suspended(j)
			j.Status.StartTime, j.Status.Conditions = &metav1.Time{}, []batchv1.JobCondition{{Type: batchv1.JobSuspended, Status: corev1.ConditionTrue}}
		}},
		{name: "still active", generation: 4, set: place, refused: "spec.template", old: func(j *batchv1.Job) { suspended(j); j.Status.Active = 1 }},
		{name: "image", old: suspended, set: func(j *batchv1.Job) { j.Spec.Template.Spec.Containers[0].Image = "x" }, refused: "spec.template.spec", generation: 4},
		{name: "elastic", old: indexedJob, set: func(j *batchv1.Job) { j.Spec.Completions, j.Spec.Parallelism = new(int32(3)), new(int32(3)) }, generation: 4},
		{name: "not in tandem", old: indexedJob, set: func(j *batchv1.Job) { j.Spec.Completions = new(int32(3)) },
			refused: "spec.completions", detail: "can only be modified in tandem with spec.parallelism", generation: 4},
		{name: "completions", old: fixed, set: func(j *batchv1.Job) { j.Spec.Completions = new(int32(3)) }, refused: "spec.completions", generation: 4},
		{name: "manager", old: fixed, set: func(j *batchv1.Job) { j.Spec.ManagedBy = new("a.b/c") }, refused: "spec.managedBy", generation: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Job()
			old := job(c.old)
			selectOwnPods(old)
			before, j := old.DeepCopy(), old.DeepCopy()
			c.set(j)
			r.PrepareUpdate(testEnv(), j, old)
			errs := r.ValidateUpdate(testEnv(), j, old)
			detail := c.detail
			if detail == "" {
				detail = "field is immutable"
			}
			switch {
			case c.refused == "" && len(errs) > 0:
				t.Errorf("refused: %v", errs)
			case c.refused != "" && (len(errs) != 1 || errs[0].Field != c.refused || errs[0].Detail != detail):
				t.Errorf("got %v, want %s: %s", errs, c.refused, detail)
			}
			if j.Generation != c.generation || !equal(before, old) {
				t.Errorf("generation %d, want %d; old changed: %v", j.Generation, c.generation, !equal(before, old))
			}
		})
	}
}

func TestJobStatus(t *testing.T) {
	at := func(minute int) *metav1.Time {
		return &metav1.Time{Time: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
	cond := func(list ...batchv1.JobConditionType) []batchv1.JobCondition {
		var out []batchv1.JobCondition
		for _, t := range list {
			out = append(out, batchv1.JobCondition{Type: t, Status: corev1.ConditionTrue})
		}
		return out
	}
	running := batchv1.JobStatus{StartTime: at(1), Active: 1, Failed: 2, Succeeded: 2}
	complete := batchv1.JobStatus{StartTime: at(1), CompletionTime: at(2), Succeeded: 3, Failed: 2, Conditions: cond(batchv1.JobSuccessCriteriaMet, batchv1.JobComplete)}
	for _, c := range []struct {
		name    string
		spec    func(*batchv1.Job)
		was, is batchv1.JobStatus
		want    []string
	}{
		{name: "completes", was: running, is: complete},
		{name: "goes on", was: complete, is: running, want: []string{
			`status.conditions: Invalid value: cannot disable the terminal Complete=True condition`,
			`status.succeeded: Invalid value: 2: cannot decrease the succeeded counter`,
			`status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition`}},
		{name: "ends badly", was: running, is: batchv1.JobStatus{Active: 1, Failed: 1, Succeeded: 2, Conditions: cond(batchv1.JobComplete, batchv1.JobFailed)}, want: []string{
			`status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions`,
			`status.completionTime: Required value: completionTime is required for Complete jobs`,
			`status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition`,
			`status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition`,
			`status.active: Invalid value: 1: active>0 is invalid for finished job`,
			`status.startTime: Required value: startTime is required for finished job`,
			`status.failed: Invalid value: 1: cannot decrease the failed counter`,
			`status.startTime: Invalid value: null: field is immutable for unsuspended job once set`}},
		{name: "indexes", spec: indexedJob, was: running,
			is: batchv1.JobStatus{StartTime: at(1), Active: 1, Ready: new(int32(2)), Failed: 2, Succeeded: 2, CompletedIndexes: "1-3", FailedIndexes: new("2")}, want: []string{
				`status.failedIndexes: Invalid value: "2": cannot set non-null failedIndexes when backoffLimitPerIndex is null`,
				`status.failedIndexes: Invalid value: "2": failedIndexes and completedIndexes overlap at index: 2`,
				`status.ready: Invalid value: 2: cannot set more ready pods than active`}},
		{name: "scaled down", spec: func(j *batchv1.Job) { indexedJob(j); j.Spec.Parallelism = new(int32(5)) }, was: running, is: batchv1.JobStatus{StartTime: at(1), Active: 1, Failed: 2}},
		{name: "uncounted", was: running, is: batchv1.JobStatus{StartTime: at(1), Active: 1, Failed: 2, Succeeded: 2,
			UncountedTerminatedPods: &batchv1.UncountedTerminatedPods{Succeeded: nil, Failed: []types.UID{"a", "", "a"}}}, want: []string{
			`status.uncountedTerminatedPods.failed[1]: Invalid value: "": must not be empty`,
			`status.uncountedTerminatedPods.failed[2]: Duplicate value: "a"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set := func(j *batchv1.Job) {}
			if c.spec != nil {
				set = c.spec
			}
			old := job(set)
			old.Status = c.was
			j := old.DeepCopy()
			j.Status = c.is
			same(t, Job().Subresource("status").Status.ValidateUpdate(testEnv(), j, old), c.want)
		})
	}
}

func TestIndexes(t *testing.T) {
	for list, want := range map[string]string{
		"": "", "0": "", "0-3,4": "", "1,3-5,7": "",
		"x": `cannot convert string to integer for index: "x"`, "1-2-3": `the fragment "1-2-3" violates the requirement that an index interval can have at most two parts separated by '-'`,
		"9": `too large index: "9"`, "3-1": "non-increasing order, previous: 3, current: 1", "2,2": "non-increasing order, previous: 2, current: 2",
	} {
		_, err := countIndexes(list, 9)
		if got := ""; err != nil && err.Error() != want || err == nil && want != got {
			t.Errorf("%q: %v, want %q", list, err, want)
		}
	}
}

func TestCronJob(t *testing.T) {
	cron := func(schedule string, zone *string) *batchv1.CronJob {
		c := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}, Spec: batchv1.CronJobSpec{Schedule: schedule, TimeZone: zone}}
		c.Spec.JobTemplate.Spec.Template = job().Spec.Template
		defaultCronJob(c)
		return c
	}
	for _, c := range []struct {
		schedule string
		zone     *string
		want     []string
	}{
		{"*/5 * * * *", new("Europe/Zurich"), nil},
		{"@hourly", nil, nil},
		{"", nil, []string{`spec.schedule: Required value`}},
		{"* * * *", nil, []string{`spec.schedule: Invalid value: "* * * *": expected exactly 5 fields, found 4: [* * * *]`}},
		{"TZ=UTC @daily", nil, []string{`spec.schedule: Invalid value: "TZ=UTC @daily": cannot use TZ or CRON_TZ in schedule, use timeZone field instead`}},
		{"TZ=0", nil, []string{`spec.schedule: Invalid value: "TZ=0": invalid schedule format: runtime error: slice bounds out of range [:-1]`,
			`spec.schedule: Invalid value: "TZ=0": cannot use TZ or CRON_TZ in schedule, use timeZone field instead`}},
		{"@daily", new(""), []string{`spec.timeZone: Invalid value: "": timeZone must be nil or non-empty string`}},
		{"@daily", new("local"), []string{`spec.timeZone: Invalid value: "local": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones`,
			`spec.timeZone: Invalid value: "local": unknown time zone local`}},
		{"@daily", new("../UTC"), []string{`spec.timeZone: Invalid value: "../UTC": unknown time zone ../UTC`}},
	} {
		obj := cron(c.schedule, c.zone)
		same(t, CronJob().ValidateCreate(testEnv(), obj), c.want)
	}
	old := cron("TZ=UTC @daily", nil)
	same(t, CronJob().ValidateUpdate(testEnv(), old.DeepCopy(), old), []string{`metadata.resourceVersion: Invalid value: "": must be specified for an update`})
	if w := CronJob().Warnings(testEnv(), old, old); len(w) != 1 || !strings.Contains(w[0], "use timeZone instead") {
		t.Errorf("warnings %q", w)
	}
}

func TestRows(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	j := job(func(j *batchv1.Job) {
		j.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute))
		j.Status.StartTime = &j.CreationTimestamp
		j.Spec.Parallelism = new(int32(3))
	})
	if got, want := Job().Row(j, now), []any{"pi", "Running", "0/1 of 3", "60s", "60s", "c", "i", "<none>"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
