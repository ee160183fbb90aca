package batch

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	_ "time/tzdata" // a cron job's time zone must mean the same on every host

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// mostCronJobName leaves room for the 11 characters that name a job of it.
const mostCronJobName = 63 - 11

// CronJob declares batch/v1 cronjobs.
func CronJob() *resource.Resource {
	spec, status := batchv1.CronJobSpec{}.SwaggerDoc(), batchv1.CronJobStatus{}.SwaggerDoc()
	templatePath := specPath.Child("jobTemplate", "spec", "template")
	return resource.Define(resource.Resource{
		GroupVersion: batchv1.SchemeGroupVersion, Kind: "CronJob", Plural: "cronjobs", Singular: "cronjob",
		ShortNames: []string{"cj"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/cronjobs/",
		New:     func() resource.Object { return &batchv1.CronJob{} },
		NewList: func() runtime.Object { return &batchv1.CronJobList{} },
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Schedule", "string", spec["schedule"], 0),
			resource.Column("Timezone", "string", spec["timeZone"], 0),
			resource.Column("Suspend", "boolean", spec["suspend"], 0),
			resource.Column("Active", "integer", status["active"], 0),
			resource.Column("Last Schedule", "string", status["lastScheduleTime"], 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, batchv1.JobSpec{}.SwaggerDoc()["selector"])...),
		Subresources: []resource.Subresource{
			resource.StatusOf(resource.StrategyOf[*batchv1.CronJob]{
				Default:             defaultCronJob,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate:       func(_ resource.Env, c, old *batchv1.CronJob) { c.Spec = old.Spec },
			}),
		},
	}, resource.StrategyOf[*batchv1.CronJob]{
		Default:             defaultCronJob,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, c *batchv1.CronJob) {
			c.Status = batchv1.CronJobStatus{}
			c.Generation = 1
			dropDisabled(env.Features, &c.Spec.JobTemplate.Spec, nil)
		},
		PrepareUpdate: func(env resource.Env, c, old *batchv1.CronJob) {
			c.Status = old.Status
			dropDisabled(env.Features, &c.Spec.JobTemplate.Spec, &old.Spec.JobTemplate.Spec)
			c.Generation = old.Generation
			if !equal(c.Spec, old.Spec) {
				c.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, c *batchv1.CronJob) field.ErrorList {
			errs := resource.ValidateMeta(c, true, resource.DNSSubdomain)
			errs = append(errs, validateCronJobSpec(&c.Spec, nil, pod.TemplateOptions(env.Features, nil))...)
			if len(c.Name) > mostCronJobName {
				errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), c.Name, fmt.Sprintf("must be no more than %d characters", mostCronJobName)))
			}
			return append(errs, validateScheduled(&c.Spec)...)
		},
		ValidateUpdate: func(env resource.Env, c, old *batchv1.CronJob) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(c, old),
				validateCronJobSpec(&c.Spec, &old.Spec, pod.TemplateOptions(env.Features, &old.Spec.JobTemplate.Spec.Template))...)
			return append(errs, validateScheduled(&c.Spec)...)
		},
		Warnings: func(_ resource.Env, c, old *batchv1.CronJob) []string {
			var out []string
			if old == nil || old.Generation != c.Generation {
				out = pod.WorkloadWarnings(templatePath, c, old == nil, &c.Spec.JobTemplate.Spec.Template)
			}
			if old != nil && strings.Contains(c.Spec.Schedule, "TZ") {
				out = append(out, "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
			}
			return out
		},
		Row: cronJobRow,
	})
}

func defaultCronJob(c *batchv1.CronJob) {
	if c.Spec.ConcurrencyPolicy == "" {
		c.Spec.ConcurrencyPolicy = batchv1.AllowConcurrent
	}
	unset(&c.Spec.Suspend, false)
	unset(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	unset(&c.Spec.FailedJobsHistoryLimit, 1)
	defaultTemplate(&c.Spec.JobTemplate.Spec)
}

// validateCronJobSpec: old is nil for a new object.
func validateCronJobSpec(s, old *batchv1.CronJobSpec, o pod.Options) field.ErrorList {
	var errs field.ErrorList
	if s.Schedule != "" {
		errs = append(errs, validateSchedule(s, old != nil && strings.Contains(old.Schedule, "TZ"))...)
	}
	if n := s.StartingDeadlineSeconds; n != nil {
		errs = append(errs, apivalidation.ValidateNonnegativeField(*n, specPath.Child("startingDeadlineSeconds"))...)
	}
	if s.TimeZone != nil && (old == nil || !samePointer(old.TimeZone, s.TimeZone)) {
		errs = append(errs, validateTimeZone(specPath.Child("timeZone"), *s.TimeZone)...)
	}
	switch cp := specPath.Child("concurrencyPolicy"); s.ConcurrencyPolicy {
	case batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent:
	case "":
		errs = append(errs, field.Required(cp, ""))
	default:
		errs = append(errs, field.NotSupported(cp, s.ConcurrencyPolicy,
			[]batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}))
	}
	job, jp := &s.JobTemplate.Spec, specPath.Child("jobTemplate", "spec")
	errs = append(errs, validateSpec(jp, job, o)...)
	if job.Selector != nil {
		errs = append(errs, field.Invalid(jp.Child("selector"), job.Selector, "`selector` will be auto-generated"))
	}
	if m := job.ManualSelector; m != nil && *m {
		errs = append(errs, field.NotSupported(jp.Child("manualSelector"), *m, []string{"nil", "false"}))
	}
	for _, l := range []struct {
		name string
		n    *int32
	}{{"successfulJobsHistoryLimit", s.SuccessfulJobsHistoryLimit}, {"failedJobsHistoryLimit", s.FailedJobsHistoryLimit}} {
		if l.n != nil {
			errs = append(errs, resource.NotNegative(specPath, resource.N(l.name, *l.n))...)
		}
	}
	return errs
}

// validateScheduled: upstream's rule is declared with the field, and comes last.
func validateScheduled(s *batchv1.CronJobSpec) field.ErrorList {
	if s.Schedule == "" {
		return field.ErrorList{field.Required(specPath.Child("schedule"), "")}
	}
	return nil
}

// ParseSchedule parses the schedule of a cron job: the five fields, or one of the
// names (@hourly).
func ParseSchedule(text string) (s cron.Schedule, err error) {
	// The parser panics on a time zone without fields after it.
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	return cron.ParseStandard(text)
}

// validateSchedule: with zoned, the schedule names a time zone already and may go
// on to.
func validateSchedule(s *batchv1.CronJobSpec, zoned bool) field.ErrorList {
	var errs field.ErrorList
	p := specPath.Child("schedule")
	if _, err := ParseSchedule(s.Schedule); err != nil {
		errs = append(errs, field.Invalid(p, s.Schedule, err.Error()))
	}
	switch names := strings.Contains(s.Schedule, "TZ"); {
	case names && zoned && s.TimeZone != nil:
		errs = append(errs, field.Invalid(p, s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule"))
	case names && !zoned:
		errs = append(errs, field.Invalid(p, s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
	}
	return errs
}

// zonePart is a part of a time zone's name, as the IANA's rules have it.
var zonePart = regexp.MustCompile(`^[A-Za-z\.\-_0-9+]{1,14}$`)

func validateTimeZone(p *field.Path, zone string) field.ErrorList {
	if zone == "" {
		return field.ErrorList{field.Invalid(p, zone, "timeZone must be nil or non-empty string")}
	}
	for part := range strings.SplitSeq(zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !zonePart.MatchString(part) {
			return field.ErrorList{field.Invalid(p, zone, "unknown time zone "+zone)}
		}
	}
	var errs field.ErrorList
	if strings.EqualFold(zone, "Local") {
		errs = append(errs, field.Invalid(p, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"))
	}
	if _, err := time.LoadLocation(zone); err != nil {
		errs = append(errs, field.Invalid(p, zone, err.Error()))
	}
	return errs
}

func cronJobRow(c *batchv1.CronJob, now time.Time) []any {
	last, zone, suspend := "<none>", "<none>", "<unset>"
	if t := c.Status.LastScheduleTime; t != nil {
		last = resource.Age(*t, now)
	}
	if c.Spec.TimeZone != nil {
		zone = *c.Spec.TimeZone
	}
	if c.Spec.Suspend != nil {
		suspend = "False"
		if *c.Spec.Suspend {
			suspend = "True"
		}
	}
	job := &c.Spec.JobTemplate.Spec
	return append(append([]any{c.Name, c.Spec.Schedule, zone, suspend, int64(len(c.Status.Active)), last, resource.Age(c.CreationTimestamp, now)},
		pod.TemplateCells(&job.Template)...), metav1.FormatLabelSelector(job.Selector))
}
