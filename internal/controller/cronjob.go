package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

var cronJobKind = batchv1.SchemeGroupVersion.WithKind("CronJob")

// scheduleSlack is how long after its time a job is started, so that clocks that
// differ a little do not start it early.
const scheduleSlack = 100 * time.Millisecond

// cronJobs starts Jobs at their times.
type cronJobs struct {
	*control.Controller
	now  func() time.Time
	all  *client.Informer[*batchv1.CronJob]
	jobs *client.Informer[*batchv1.Job]
}

func newCronJob(d Deps) *control.Controller {
	c := control.New("cronjob-controller", d.Deps)
	r := &cronJobs{Controller: c, now: d.Clock()}
	r.all = control.Watch(c, control.Enqueue[*batchv1.CronJob](c))
	r.jobs = control.Watch(c, r.jobChanged)
	indexOwners(r.jobs)
	c.Writes = append(c.Writes,
		control.Rule("batch", []string{"cronjobs"}, "get", "list", "update", "watch"),
		control.Rule("batch", []string{"jobs"}, "create", "delete", "get", "list", "patch", "update", "watch"),
		control.Rule("batch", []string{"cronjobs/status"}, "update"),
		control.Rule("batch", []string{"cronjobs/finalizers"}, "update"),
		control.Rule("", []string{"pods"}, "delete", "list"),
	)
	c.Reconcile = r.reconcile
	return c
}

func (r *cronJobs) jobChanged(ch client.Change[*batchv1.Job]) {
	for _, j := range []*batchv1.Job{ch.Old, ch.New} {
		if j == nil {
			continue
		}
		ref := metav1.GetControllerOfNoCopy(j)
		if ref == nil || ref.Kind != cronJobKind.Kind {
			continue
		}
		if cj, ok := r.all.Get(j.Namespace, ref.Name); ok && cj.UID == ref.UID {
			r.Queue.Add(control.KeyOf(cj))
		}
	}
}

// cronWork is one reconciliation of a CronJob. cj is a copy of which the status is
// written.
type cronWork struct {
	*cronJobs
	key  control.Key
	cj   *batchv1.CronJob
	time time.Time
}

func (w *cronWork) tell(eventType, reason, format string, args ...any) {
	w.Events.Event(w.cj, eventType, reason, format, args...)
}

func (r *cronJobs) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	cj, ok := r.all.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	w := &cronWork{r, k, cj.DeepCopy(), r.now()}
	jobs := r.jobs.ByIndex(byController, string(cj.UID))
	w.trim(ctx, jobs)
	after, err := w.sync(ctx, jobs)
	if !reflect.DeepEqual(w.cj.Status, cj.Status) {
		got, writeErr := client.For[*batchv1.CronJob](r.Client).UpdateStatus(ctx, w.cj)
		switch {
		case writeErr == nil:
			control.Wrote(r.Pending, k, r.all, got)
		case !apierrors.IsNotFound(writeErr):
			err = errors.Join(err, writeErr)
		}
	}
	return control.Result{After: after}, err
}

func jobOutcome(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

// trim deletes the oldest finished jobs beyond the history limits.
func (w *cronWork) trim(ctx context.Context, jobs []*batchv1.Job) {
	for outcome, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: w.cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: w.cj.Spec.FailedJobsHistoryLimit,
	} {
		if limit == nil {
			continue
		}
		for _, j := range beyondJobLimit(jobs, outcome, int(*limit)) {
			w.delete(ctx, j)
		}
	}
}

// beyondJobLimit are the jobs of an outcome that a limit does not cover: those that
// started first; one that never started is the last.
func beyondJobLimit(jobs []*batchv1.Job, outcome batchv1.JobConditionType, limit int) []*batchv1.Job {
	var ended []*batchv1.Job
	for _, j := range jobs {
		if jobOutcome(j) == outcome && j.DeletionTimestamp == nil {
			ended = append(ended, j)
		}
	}
	slices.SortFunc(ended, func(a, b *batchv1.Job) int {
		x, y := a.Status.StartTime, b.Status.StartTime
		switch {
		case x == nil && y == nil || x.Equal(y):
			return strings.Compare(a.Name, b.Name)
		case x == nil:
			return 1
		case y == nil:
			return -1
		}
		return x.Compare(y.Time)
	})
	return ended[:max(0, len(ended)-limit)]
}

func (w *cronWork) delete(ctx context.Context, j *batchv1.Job) bool {
	background, uid := metav1.DeletePropagationBackground, j.UID
	err := client.For[*batchv1.Job](w.Client).In(j.Namespace).Delete(ctx, j.Name, metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		w.tell(corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
		return false
	}
	control.Removed(w.Pending, w.key, w.jobs, j)
	w.forget(j.UID)
	w.tell(corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", j.Name)
	return true
}

func (w *cronWork) forget(uid types.UID) {
	w.cj.Status.Active = slices.DeleteFunc(w.cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

func (w *cronWork) isActive(uid types.UID) bool {
	return slices.ContainsFunc(w.cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == uid })
}

// sync brings the status up to date and starts the job that is due; it returns when
// to look again.
func (w *cronWork) sync(ctx context.Context, jobs []*batchv1.Job) (time.Duration, error) {
	if err := w.observe(ctx, jobs); err != nil {
		return 0, err
	}
	cj := w.cj
	if cj.DeletionTimestamp != nil {
		return 0, nil
	}
	if z := cj.Spec.TimeZone; z != nil {
		if _, err := time.LoadLocation(*z); err != nil {
			w.tell(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", *z, err)
			return 0, nil
		}
	}
	if cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return 0, nil
	}
	if strings.Contains(cj.Spec.Schedule, "TZ") {
		w.tell(corev1.EventTypeWarning, "UnsupportedSchedule", "CRON_TZ or TZ used in schedule %q is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", cj.Spec.Schedule)
	}
	schedule, err := parseSchedule(cj)
	if err != nil {
		w.tell(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return 0, nil
	}
	due, many, err := dueTime(cj, schedule, w.time)
	if err != nil {
		w.tell(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", cj.Spec.Schedule, err)
		return 0, nil
	}
	next := func() time.Duration { return untilNext(cj, schedule, w.time) }
	if due.IsZero() {
		return next(), nil
	}
	if many {
		w.tell(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if d := cj.Spec.StartingDeadlineSeconds; d != nil && due.Add(time.Duration(*d)*time.Second).Before(w.time) {
		w.tell(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return next(), nil
	}
	name := scheduledName(cj, due)
	started := slices.ContainsFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.Name == name && r.Namespace == cj.Namespace })
	if started || cj.Status.LastScheduleTime != nil && cj.Status.LastScheduleTime.Time.Equal(due) {
		return next(), nil
	}
	switch cj.Spec.ConcurrencyPolicy {
	case batchv1.ForbidConcurrent:
		if len(cj.Status.Active) > 0 {
			w.tell(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
			return next(), nil
		}
	case batchv1.ReplaceConcurrent:
		if err := w.replaceActive(ctx); err != nil {
			return 0, err
		}
	}
	if started, err := w.start(ctx, due); err != nil || !started {
		return 0, err
	}
	return next(), nil
}

// observe takes jobs that ended, or are gone, off the list of active ones.
func (w *cronWork) observe(ctx context.Context, jobs []*batchv1.Job) error {
	s := &w.cj.Status
	mine := map[types.UID]bool{}
	for _, j := range jobs {
		mine[j.UID] = true
		outcome := jobOutcome(j)
		active := w.isActive(j.UID)
		if outcome == "" {
			if !active {
				w.tell(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
				w.recall(j)
			}
			continue
		}
		if active {
			w.forget(j.UID)
			w.tell(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, outcome)
		}
		if t := j.Status.CompletionTime; outcome == batchv1.JobComplete && t != nil && (s.LastSuccessfulTime == nil || t.After(s.LastSuccessfulTime.Time)) {
			s.LastSuccessfulTime = t
		}
	}
	for _, ref := range slices.Clone(s.Active) {
		if mine[ref.UID] {
			continue
		}
		_, err := client.For[*batchv1.Job](w.Client).In(ref.Namespace).Get(ctx, ref.Name)
		switch {
		case apierrors.IsNotFound(err):
			w.tell(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", ref.Name)
			w.forget(ref.UID)
		case err != nil:
			return err
		}
	}
	return nil
}

// recall takes a job up that a controller made for a time of the schedule and had no
// time to note, since it was killed: without that the next one would start beside it,
// whatever the policy says. Jobs that users make of the template are not meant.
func (w *cronWork) recall(j *batchv1.Job) {
	at, err := time.Parse(time.RFC3339, j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
	if err != nil || j.Name != scheduledName(w.cj, at) {
		return
	}
	s := &w.cj.Status
	s.Active = append(s.Active, control.Reference(j))
	if s.LastScheduleTime == nil || s.LastScheduleTime.Time.Before(at) {
		s.LastScheduleTime = &metav1.Time{Time: at}
	}
}

func (w *cronWork) replaceActive(ctx context.Context) error {
	for _, ref := range slices.Clone(w.cj.Status.Active) {
		j, err := client.For[*batchv1.Job](w.Client).In(ref.Namespace).Get(ctx, ref.Name)
		if err != nil {
			w.tell(corev1.EventTypeWarning, "FailedGet", "Get job: %v", err)
			return err
		}
		if !w.delete(ctx, j) {
			return fmt.Errorf("could not replace job %s/%s", j.Namespace, j.Name)
		}
	}
	return nil
}

// start makes the job of a time. Its name follows from the time: it cannot be made
// twice.
func (w *cronWork) start(ctx context.Context, due time.Time) (bool, error) {
	want, err := scheduledJob(w.cj, due)
	if err != nil {
		return false, err
	}
	all := client.For[*batchv1.Job](w.Client).In(w.cj.Namespace)
	j, err := all.Create(ctx, want)
	switch {
	case err == nil:
		control.Wrote(w.Pending, w.key, w.jobs, j)
		w.tell(corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", j.Name)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return false, err
	case apierrors.IsAlreadyExists(err):
		if j, err = all.Get(ctx, want.Name); err != nil {
			return false, err
		}
		if !metav1.IsControlledBy(j, w.cj) || w.isActive(j.UID) {
			return false, nil
		}
	default:
		w.tell(corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return false, err
	}
	w.cj.Status.Active = append(w.cj.Status.Active, control.Reference(j))
	w.cj.Status.LastScheduleTime = &metav1.Time{Time: due}
	return true, nil
}

// parseSchedule reads the schedule in the time zone of the spec, or the one that the
// schedule itself names.
func parseSchedule(cj *batchv1.CronJob) (s cron.Schedule, err error) {
	defer func() { // the parser panics on a zone without a schedule
		if p := recover(); p != nil {
			err = fmt.Errorf("invalid schedule format: %v", p)
		}
	}()
	text := cj.Spec.Schedule
	if cj.Spec.TimeZone != nil && !strings.Contains(text, "TZ") {
		text = "TZ=" + *cj.Spec.TimeZone + " " + text
	}
	return cron.ParseStandard(text)
}

// manyMissed is the number of missed times beyond which a warning is due.
const manyMissed = 100

// lastTime is the newest time of the schedule that has passed since the last run (or,
// with deadline, within it), zero where there is none; missed is how many have passed.
func lastTime(cj *batchv1.CronJob, s cron.Schedule, now time.Time, deadline bool) (from, last time.Time, missed int64, err error) {
	from = cj.CreationTimestamp.Time
	if cj.Status.LastScheduleTime != nil {
		from = cj.Status.LastScheduleTime.Time
	}
	if d := cj.Spec.StartingDeadlineSeconds; deadline && d != nil {
		if t := now.Add(-time.Duration(*d) * time.Second); t.After(from) {
			from = t
		}
	}
	first := s.Next(from)
	second := s.Next(first)
	switch {
	case first.IsZero() || now.Before(first):
		return from, time.Time{}, 0, nil
	case second.IsZero() || now.Before(second):
		return from, first, 0, nil
	}
	every := int64(second.Sub(first).Round(time.Second).Seconds())
	if every < 1 {
		return from, time.Time{}, 0, errors.New("time difference between two schedules is less than 1 second")
	}
	// Skip what was missed: a schedule is near enough to regular for that.
	missed = int64(now.Sub(first).Seconds())/every + 1
	for t := s.Next(first.Add(time.Duration((missed-2)*every) * time.Second)); !t.IsZero() && !t.After(now); t = s.Next(t) {
		last = t
	}
	return from, last, missed, nil
}

// dueTime is the time for which a job should be there, zero where none is due.
func dueTime(cj *batchv1.CronJob, s cron.Schedule, now time.Time) (due time.Time, many bool, err error) {
	_, due, missed, err := lastTime(cj, s, now, true)
	return due, missed > manyMissed, err
}

// untilNext is how long it is to the next time.
func untilNext(cj *batchv1.CronJob, s cron.Schedule, now time.Time) time.Duration {
	from, last, missed, err := lastTime(cj, s, now, false)
	switch {
	case err != nil || last.IsZero() && missed > 0:
		last = now
	case last.IsZero():
		last = from
	}
	next := s.Next(last)
	if next.IsZero() {
		return 0 // never, such as on 30 February
	}
	return max(next.Add(scheduleSlack).Sub(now), time.Millisecond)
}

func scheduledName(cj *batchv1.CronJob, due time.Time) string {
	return fmt.Sprintf("%s-%d", cj.Name, due.Unix()/60)
}

func scheduledJob(cj *batchv1.CronJob, due time.Time) (*batchv1.Job, error) {
	t := cj.Spec.JobTemplate.DeepCopy()
	zone := ""
	if cj.Spec.TimeZone != nil {
		zone = *cj.Spec.TimeZone
	}
	at, err := time.LoadLocation(zone)
	if err != nil {
		return nil, err
	}
	annotations := map[string]string{}
	maps.Copy(annotations, t.Annotations)
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(at).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: scheduledName(cj, due), Namespace: cj.Namespace, Labels: t.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, cronJobKind)},
		},
		Spec: t.Spec,
	}, nil
}
