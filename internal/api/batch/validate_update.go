package batch

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

const immutable = "field is immutable"

func validateJobUpdate(env resource.Env, j, old *batchv1.Job) field.ErrorList {
	s, was := &j.Spec, &old.Spec
	errs := resource.ValidateMetaUpdate(j, old)
	errs = append(errs, validateSelectingSpec(s, pod.TemplateOptions(env.Features, &was.Template),
		metavalidation.LabelSelectorHasInvalidLabelValue(was.Selector))...)
	errs = append(errs, validateCompletions(s, was)...)
	same := func(name string, is, was any) {
		if !equal(is, was) {
			errs = append(errs, field.Invalid(specPath.Child(name), resource.Shown(is), immutable))
		}
	}
	errs = append(errs, apivalidation.ValidateImmutableField(s.Selector, was.Selector, specPath.Child("selector"))...)
	errs = append(errs, validateTemplateUpdate(env.Features, j, old)...)
	errs = append(errs, apivalidation.ValidateImmutableField(s.CompletionMode, was.CompletionMode, specPath.Child("completionMode"))...)
	same("podFailurePolicy", s.PodFailurePolicy, was.PodFailurePolicy)
	errs = append(errs, apivalidation.ValidateImmutableField(s.BackoffLimitPerIndex, was.BackoffLimitPerIndex, specPath.Child("backoffLimitPerIndex"))...)
	errs = append(errs, apivalidation.ValidateImmutableField(s.ManagedBy, was.ManagedBy, specPath.Child("managedBy"))...)
	same("successPolicy", s.SuccessPolicy, was.SuccessPolicy)
	return append(errs, validateJobName(j)...)
}

// validateCompletions: only an indexed job's may change, together with its
// parallelism.
func validateCompletions(s, old *batchv1.JobSpec) field.ErrorList {
	p := specPath.Child("completions")
	if !indexed(s) {
		return apivalidation.ValidateImmutableField(s.Completions, old.Completions, p)
	}
	if equal(s.Completions, old.Completions) || s.Completions == nil || *s.Completions == *s.Parallelism {
		return nil
	}
	return field.ErrorList{field.Invalid(p, *s.Completions, "can only be modified in tandem with spec.parallelism")}
}

// validateTemplateUpdate: of a suspended job without pods, what decides where its
// pods run may change, and how much they request.
func validateTemplateUpdate(f resource.Features, j, old *batchv1.Job) field.ErrorList {
	t, was := &j.Spec.Template, &old.Spec.Template
	suspended := old.Spec.Suspend != nil && *old.Spec.Suspend
	free := suspended && (old.Status.StartTime == nil || is(old, batchv1.JobSuspended)) && old.Status.Active == 0
	placeable := suspended && old.Status.StartTime == nil
	if f.Enabled("MutableSchedulingDirectivesForSuspendedJobs") {
		placeable = free
	}
	if placeable {
		was = placedAs(was, t)
	}
	p := specPath.Child("template")
	if !suspended || !free || !f.Enabled("MutablePodResourcesForSuspendedJobs") {
		if equal(t, was) {
			return nil
		}
		return field.ErrorList{field.Invalid(p, resource.Shown(t), immutable)}
	}
	spec := was.Spec.DeepCopy()
	requested(spec.Containers, t.Spec.Containers)
	requested(spec.InitContainers, t.Spec.InitContainers)
	if equal(t.Spec, *spec) {
		return nil
	}
	return field.ErrorList{field.Invalid(specPath.Child("template.spec"), resource.Shown(t.Spec), immutable)}
}

// placedAs is the old template with what places its pods taken from the new one.
func placedAs(old, t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	out := old.DeepCopy()
	switch is, was := t.Spec.Affinity, out.Spec.Affinity; {
	case is == nil && was != nil:
		if was.NodeAffinity = nil; *was == (corev1.Affinity{}) {
			out.Spec.Affinity = nil
		}
	case is != nil && was == nil:
		out.Spec.Affinity = &corev1.Affinity{NodeAffinity: is.NodeAffinity}
	case is != nil:
		was.NodeAffinity = is.NodeAffinity
	}
	out.Spec.NodeSelector, out.Spec.Tolerations, out.Spec.SchedulingGates = t.Spec.NodeSelector, t.Spec.Tolerations, t.Spec.SchedulingGates
	out.Annotations, out.Labels = t.Annotations, t.Labels
	return out
}

// requested gives list the resources of the containers of the same names.
func requested(list, from []corev1.Container) {
	if len(list) != len(from) {
		return
	}
	for i := range list {
		if list[i].Name == from[i].Name {
			list[i].Resources = from[i].Resources
		}
	}
}

// validateJobStatus holds that states which ended a job stay, and that a status
// agrees with itself, whoever manages the job. What the write does not touch is
// not complained about.
func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	c := statusChange{j: j, old: old, s: &j.Status, was: &old.Status}
	c.numbers()
	c.conditions()
	c.indexes()
	c.transitions()
	return c.errs
}

type statusChange struct {
	j, old *batchv1.Job
	s, was *batchv1.JobStatus
	errs   field.ErrorList
}

func (c *statusChange) required(name, detail string) {
	c.errs = append(c.errs, field.Required(statusPath.Child(name), detail))
}

func (c *statusChange) invalid(name string, v any, format string, args ...any) {
	c.errs = append(c.errs, field.Invalid(statusPath.Child(name), v, fmt.Sprintf(format, args...)))
}

// bad says something about the conditions together.
func (c *statusChange) bad(wrong bool, format string, args ...any) {
	if wrong {
		c.invalid("conditions", field.OmitValueType{}, format, args...)
	}
}

// turned tells that a condition became true, or is not any more.
func (c *statusChange) turned(t batchv1.JobConditionType) bool { return is(c.j, t) != is(c.old, t) }

func (c *statusChange) numbers() {
	c.errs = append(c.errs, resource.NotNegative(statusPath, resource.N("active", c.s.Active), resource.N("succeeded", c.s.Succeeded), resource.N("failed", c.s.Failed))...)
	if c.s.Ready != nil {
		c.errs = append(c.errs, resource.NotNegative(statusPath, resource.N("ready", *c.s.Ready))...)
	}
	if c.s.Terminating != nil {
		c.errs = append(c.errs, resource.NotNegative(statusPath, resource.N("terminating", *c.s.Terminating))...)
	}
	if c.s.UncountedTerminatedPods == nil {
		return
	}
	seen := map[string]bool{}
	p := statusPath.Child("uncountedTerminatedPods")
	for i, uid := range c.s.UncountedTerminatedPods.Succeeded {
		c.uncounted(p.Child("succeeded").Index(i), string(uid), seen)
	}
	for i, uid := range c.s.UncountedTerminatedPods.Failed {
		c.uncounted(p.Child("failed").Index(i), string(uid), seen)
	}
}

func (c *statusChange) uncounted(p *field.Path, uid string, seen map[string]bool) {
	switch {
	case uid == "":
		c.errs = append(c.errs, field.Invalid(p, uid, "must not be empty"))
	case seen[uid]:
		c.errs = append(c.errs, field.Duplicate(p, uid))
	default:
		seen[uid] = true
	}
}

func (c *statusChange) conditions() {
	complete, failed := is(c.j, batchv1.JobComplete), is(c.j, batchv1.JobFailed)
	completeTurned, failedTurned := c.turned(batchv1.JobComplete), c.turned(batchv1.JobFailed)
	target, met := is(c.j, batchv1.JobFailureTarget), is(c.j, batchv1.JobSuccessCriteriaMet)
	started := !c.s.StartTime.Equal(c.was.StartTime)
	ended := !c.s.CompletionTime.Equal(c.was.CompletionTime)
	failedIndexes := !samePointer(c.s.FailedIndexes, c.was.FailedIndexes)

	c.bad((completeTurned || failedTurned) && complete && failed, "cannot set Complete=True and Failed=true conditions")
	c.bad((completeTurned || c.turned(batchv1.JobFailureTarget)) && complete && target, "cannot set Complete=True and FailureTarget=true conditions")
	if completeTurned || ended {
		if c.s.CompletionTime != nil && !complete {
			c.invalid("completionTime", c.s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
		}
		if c.s.CompletionTime == nil && complete {
			c.required("completionTime", "completionTime is required for Complete jobs")
		}
	}
	if (started || ended) && c.s.StartTime != nil && c.s.CompletionTime != nil && c.s.CompletionTime.Before(c.s.StartTime) {
		c.invalid("completionTime", c.s.CompletionTime, "must be equal to or after `startTime`")
	}
	c.bad((failedTurned || failedIndexes) && failed && !target, "cannot set Failed=True condition without the FailureTarget=true condition")
	c.bad((completeTurned || c.turned(batchv1.JobSuccessCriteriaMet)) && complete && !met, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")

	done := finished(c.j)
	turned := done != finished(c.old)
	if (turned || c.s.Active != c.was.Active) && c.s.Active > 0 && done {
		c.invalid("active", c.s.Active, "active>0 is invalid for finished job")
	}
	n := c.j.Spec.Completions
	nothingToDo := c.j.Spec.Suspend != nil && *c.j.Spec.Suspend && n != nil && *n == 0
	if (turned || started) && !nothingToDo && c.s.StartTime == nil && done {
		c.required("startTime", "startTime is required for finished job")
	}
	if u := c.s.UncountedTerminatedPods; (turned || !equal(u, c.was.UncountedTerminatedPods)) && done && u != nil && len(u.Failed)+len(u.Succeeded) > 0 {
		c.invalid("uncountedTerminatedPods", resource.Shown(u), "must be empty for finished job")
	}
}

func (c *statusChange) indexes() {
	s, spec := c.s, &c.j.Spec
	completed, failed := s.CompletedIndexes != c.was.CompletedIndexes, !samePointer(s.FailedIndexes, c.was.FailedIndexes)
	if completed && spec.Completions != nil {
		if _, err := countIndexes(s.CompletedIndexes, *spec.Completions); err != nil {
			c.invalid("completedIndexes", s.CompletedIndexes, "error parsing completedIndexes: %s", err)
		}
	}
	if failed && spec.Completions != nil && spec.BackoffLimitPerIndex != nil && s.FailedIndexes != nil {
		if _, err := countIndexes(*s.FailedIndexes, *spec.Completions); err != nil {
			c.invalid("failedIndexes", *s.FailedIndexes, "error parsing failedIndexes: %s", err)
		}
	}
	if completed && s.CompletedIndexes != "" && !indexed(spec) {
		c.invalid("completedIndexes", s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode")
	}
	if failed && spec.BackoffLimitPerIndex == nil && s.FailedIndexes != nil {
		c.invalid("failedIndexes", *s.FailedIndexes, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
	}
	if (failed || completed) && spec.Completions != nil && s.FailedIndexes != nil {
		if err := disjoint(s.CompletedIndexes, *s.FailedIndexes, *spec.Completions); err != nil {
			c.invalid("failedIndexes", *s.FailedIndexes, "%s", err)
		}
	}
	done := finished(c.j)
	terminating := !samePointer(s.Terminating, c.was.Terminating)
	if (done != finished(c.old) || terminating) && s.Terminating != nil && *s.Terminating > 0 && done {
		c.invalid("terminating", *s.Terminating, "terminating>0 is invalid for finished job")
	}
	if (!samePointer(s.Ready, c.was.Ready) || s.Active != c.was.Active) && s.Ready != nil && *s.Ready > s.Active {
		c.invalid("ready", *s.Ready, "cannot set more ready pods than active")
	}
	met := is(c.j, batchv1.JobSuccessCriteriaMet)
	c.bad(met && is(c.j, batchv1.JobFailed), "cannot set SuccessCriteriaMet=True and Failed=true conditions")
	c.bad(met && is(c.j, batchv1.JobFailureTarget), "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	c.bad(spec.SuccessPolicy != nil && !met && is(c.j, batchv1.JobComplete), "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True")
}

// transitions compares with what was.
func (c *statusChange) transitions() {
	for _, t := range []batchv1.JobConditionType{batchv1.JobFailed, batchv1.JobComplete, batchv1.JobFailureTarget} {
		c.bad(is(c.old, t) && !is(c.j, t), "cannot disable the terminal %s=True condition", t)
	}
	if c.s.Failed < c.was.Failed {
		c.invalid("failed", c.s.Failed, "cannot decrease the failed counter")
	}
	// An indexed job whose parallelism is its completions may be scaled down.
	if !(indexed(&c.j.Spec) && samePointer(c.j.Spec.Completions, c.j.Spec.Parallelism)) && c.s.Succeeded < c.was.Succeeded {
		c.invalid("succeeded", c.s.Succeeded, "cannot decrease the succeeded counter")
	}
	if c.s.CompletionTime != nil && c.was.CompletionTime != nil && !c.s.CompletionTime.Equal(c.was.CompletionTime) {
		c.invalid("completionTime", c.s.CompletionTime, immutable)
	}
	resuming := is(c.old, batchv1.JobSuspended) && has(c.j, batchv1.JobSuspended, corev1.ConditionFalse)
	suspended := c.j.Spec.Suspend != nil && *c.j.Spec.Suspend
	if c.was.StartTime != nil && !c.s.StartTime.Equal(c.was.StartTime) && !resuming && !suspended {
		c.invalid("startTime", c.s.StartTime, "field is immutable for unsuspended job once set")
	}
	was, met := is(c.old, batchv1.JobSuccessCriteriaMet), is(c.j, batchv1.JobSuccessCriteriaMet)
	c.bad(was && !met, "cannot disable the SuccessCriteriaMet=True condition")
	c.bad(is(c.old, batchv1.JobComplete) && !was && met, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions")
}

func samePointer[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
