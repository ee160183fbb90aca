// Package batch declares the resources of the batch group.
package batch

import (
	"fmt"
	"math"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

// Labels that a job gives its pods, beside those with the prefix of batch.
const (
	oldUIDLabel  = "controller-uid"
	oldNameLabel = "job-name"
)

// Job declares batch/v1 jobs.
func Job() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: batchv1.SchemeGroupVersion, Kind: "Job", Plural: "jobs", Singular: "job",
		Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/jobs/",
		New:          func() resource.Object { return &batchv1.Job{} },
		UnknownField: func(name string) string { return fmt.Sprintf("field label %q not supported for Job", name) },
		NewList:      func() runtime.Object { return &batchv1.JobList{} },
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Status", "string", "Status of the job.", 0),
			resource.Column("Completions", "string", batchv1.JobStatus{}.SwaggerDoc()["succeeded"], 0),
			resource.Column("Duration", "string", "Time required to complete the job.", 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, batchv1.JobSpec{}.SwaggerDoc()["selector"])...),
		Subresources: []resource.Subresource{
			resource.StatusOf(resource.StrategyOf[*batchv1.Job]{
				Default:             defaultJob,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate:       func(_ resource.Env, j, old *batchv1.Job) { j.Spec = old.Spec },
				ValidateUpdate: func(_ resource.Env, j, old *batchv1.Job) field.ErrorList {
					return append(resource.ValidateMetaUpdate(j, old), validateJobStatus(j, old)...)
				},
			}),
		},
	}, resource.StrategyOf[*batchv1.Job]{
		Default:             defaultJob,
		UnconditionalUpdate: true,
		OrphanByDefault:     true,
		DeleteWarnings:      deleteWarnings,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, j *batchv1.Job) {
			if !*j.Spec.ManualSelector {
				selectOwnPods(j)
			}
			j.Status = batchv1.JobStatus{}
			j.Generation = 1
			dropDisabled(env.Features, &j.Spec, nil)
		},
		PrepareUpdate: func(env resource.Env, j, old *batchv1.Job) {
			j.Status = old.Status
			dropDisabled(env.Features, &j.Spec, &old.Spec)
			j.Generation = old.Generation
			if !equal(j.Spec, old.Spec) {
				j.Generation++
			}
		},
		ValidateCreate: validateJobCreate,
		ValidateUpdate: validateJobUpdate,
		Warnings: func(_ resource.Env, j, old *batchv1.Job) []string {
			if old != nil && old.Generation == j.Generation {
				return nil
			}
			return pod.WorkloadWarnings(specPath.Child("template"), j, old == nil, &j.Spec.Template)
		},
		Selectable: func(j *batchv1.Job) fields.Set {
			return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
		},
		Row: jobRow,
	})
}

func deleteWarnings(o *metav1.DeleteOptions) []string {
	if o.PropagationPolicy != nil || o.OrphanDependents != nil { //nolint:staticcheck // still accepted, as upstream
		return nil
	}
	return []string{"child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"}
}

func unset[T any](v **T, def T) {
	if *v == nil {
		*v = &def
	}
}

func defaultJob(j *batchv1.Job) {
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		s.Completions = new(int32(1))
	}
	unset(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		unset(&s.BackoffLimit, math.MaxInt32)
	}
	unset(&s.BackoffLimit, 6)
	if s.Template.Labels != nil && len(j.Labels) == 0 {
		// The same map: labels that selectOwnPods adds become the job's too.
		j.Labels = s.Template.Labels
	}
	unset(&s.CompletionMode, batchv1.NonIndexedCompletion)
	unset(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		unset(&s.PodReplacementPolicy, batchv1.Failed)
	}
	unset(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	unset(&s.ManualSelector, false)
	defaultTemplate(s)
}

// defaultTemplate fills in what a job's spec leaves out also where it is a cron
// job's template.
func defaultTemplate(s *batchv1.JobSpec) {
	if s.PodFailurePolicy != nil {
		for _, r := range s.PodFailurePolicy.Rules {
			for i := range r.OnPodConditions {
				if c := &r.OnPodConditions[i]; c.Status == "" {
					c.Status = corev1.ConditionTrue
				}
			}
		}
	}
	pod.DefaultSpec(&s.Template.Spec)
}

// selectOwnPods makes selector and labels that no other job's pods have. Labels
// that the author set stay, for validation to refuse.
func selectOwnPods(j *batchv1.Job) {
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	put := func(m map[string]string, k, v string) {
		if _, ok := m[k]; !ok {
			m[k] = v
		}
	}
	put(t.Labels, oldNameLabel, j.Name)
	put(t.Labels, batchv1.JobNameLabel, j.Name)
	put(t.Labels, oldUIDLabel, string(j.UID))
	put(t.Labels, batchv1.ControllerUidLabel, string(j.UID))
	if j.Spec.Selector == nil {
		j.Spec.Selector = &metav1.LabelSelector{}
	}
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	put(j.Spec.Selector.MatchLabels, batchv1.ControllerUidLabel, string(j.UID))
}

func dropDisabled(f resource.Features, s, old *batchv1.JobSpec) {
	if !f.Enabled("WorkloadWithJob") && (old == nil || old.Scheduling == nil) {
		s.Scheduling = nil
	}
	var template *corev1.PodTemplateSpec
	if old != nil {
		template = &old.Template
	}
	pod.DropDisabled(f, &s.Template, template)
}

func has(j *batchv1.Job, t batchv1.JobConditionType, s corev1.ConditionStatus) bool {
	for _, c := range j.Status.Conditions {
		if c.Type == t && c.Status == s {
			return true
		}
	}
	return false
}

func is(j *batchv1.Job, t batchv1.JobConditionType) bool { return has(j, t, corev1.ConditionTrue) }

func finished(j *batchv1.Job) bool { return is(j, batchv1.JobComplete) || is(j, batchv1.JobFailed) }

func jobRow(j *batchv1.Job, now time.Time) []any {
	completions := fmt.Sprintf("%d/1", j.Status.Succeeded)
	switch n, p := j.Spec.Completions, j.Spec.Parallelism; {
	case n != nil:
		completions = fmt.Sprintf("%d/%d", j.Status.Succeeded, *n)
	case p != nil && *p > 1:
		completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, *p)
	}
	took := ""
	if start, end := j.Status.StartTime, j.Status.CompletionTime; start != nil && end != nil {
		took = duration.HumanDuration(end.Sub(start.Time))
	} else if start != nil {
		took = duration.HumanDuration(now.Sub(start.Time))
	}
	return append(append([]any{j.Name, jobState(j), completions, took, resource.Age(j.CreationTimestamp, now)},
		pod.TemplateCells(&j.Spec.Template)...), metav1.FormatLabelSelector(j.Spec.Selector))
}

// jobState says in a word how far a job is. Of several conditions of a type the
// first counts.
func jobState(j *batchv1.Job) string {
	first := func(t batchv1.JobConditionType) bool {
		for _, c := range j.Status.Conditions {
			if c.Type == t {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	}
	switch {
	case first(batchv1.JobComplete):
		return "Complete"
	case first(batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case first(batchv1.JobSuspended):
		return "Suspended"
	case first(batchv1.JobFailureTarget):
		return "FailureTarget"
	case first(batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}
