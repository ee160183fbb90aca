package controller

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestCronTimes(t *testing.T) {
	for name, c := range map[string]struct {
		schedule, zone, created, last, now string
		deadline                           int64
		due                                string
		many                               bool
		next                               time.Duration
	}{
		"not yet":              {schedule: "0 * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T10:59:59Z", next: 1100 * time.Millisecond},
		"due":                  {schedule: "0 * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T11:00:10Z", due: "2024-05-01T11:00:00Z", next: 59*time.Minute + 50100*time.Millisecond},
		"done":                 {schedule: "0 * * * *", created: "2024-05-01T10:20:00Z", last: "2024-05-01T11:00:00Z", now: "2024-05-01T11:00:10Z", next: 59*time.Minute + 50100*time.Millisecond},
		"a few missed":         {schedule: "0 * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T15:00:10Z", due: "2024-05-01T15:00:00Z", next: 59*time.Minute + 50100*time.Millisecond},
		"many missed":          {schedule: "* * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T15:00:10Z", due: "2024-05-01T15:00:00Z", many: true, next: 50100 * time.Millisecond},
		"many, but a deadline": {schedule: "* * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T15:00:10Z", deadline: 120, due: "2024-05-01T15:00:00Z", next: 50100 * time.Millisecond},
		"before the deadline":  {schedule: "0 * * * *", created: "2024-05-01T10:20:00Z", now: "2024-05-01T11:30:00Z", deadline: 60, next: 30*time.Minute + 100*time.Millisecond},
		"a time zone":          {schedule: "30 9 * * *", zone: "Asia/Kolkata", created: "2024-05-01T01:00:00Z", now: "2024-05-01T04:00:01Z", due: "2024-05-01T04:00:00Z", next: 24*time.Hour - 900*time.Millisecond},
		"never":                {schedule: "0 0 30 2 *", created: "2024-05-01T01:00:00Z", now: "2024-05-01T04:00:01Z"},
	} {
		cj := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(at(c.created))}, Spec: batchv1.CronJobSpec{Schedule: c.schedule}}
		if c.zone != "" {
			cj.Spec.TimeZone = &c.zone
		}
		if c.last != "" {
			cj.Status.LastScheduleTime = ptr.To(metav1.NewTime(at(c.last)))
		}
		if c.deadline > 0 {
			cj.Spec.StartingDeadlineSeconds = &c.deadline
		}
		s, err := parseSchedule(cj)
		if err != nil {
			t.Fatal(err)
		}
		due, many, err := dueTime(cj, s, at(c.now))
		text := ""
		if !due.IsZero() {
			text = due.UTC().Format(time.RFC3339)
		}
		if next := untilNext(cj, s, at(c.now)); err != nil || text != c.due || many != c.many || next != c.next {
			t.Errorf("%s: due %q, many %v, next %v, %v", name, text, many, next, err)
		}
	}
	for _, bad := range []string{"", "TZ=UTC", "61 * * * *", "* * * *"} {
		if _, err := parseSchedule(&batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: bad}}); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func cronControllers(d Deps) []*control.Controller {
	return []*control.Controller{newCronJob(d), newJob(d), newTTLAfterFinished(d)}
}

func TestCronJobRuns(t *testing.T) {
	for _, policy := range []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, cronControllers)
				defer w.stop()
				finish := w.jobKubelet(newRand(1), 0)
				labels := map[string]string{"job": "tick"}
				cj := &batchv1.CronJob{
					ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tick", UID: "c-uid", Generation: 1, CreationTimestamp: metav1.NewTime(time.Now())},
					Spec: batchv1.CronJobSpec{
						Schedule: "* * * * *", ConcurrencyPolicy: policy, Suspend: ptr.To(false), SuccessfulJobsHistoryLimit: ptr.To(int32(2)), FailedJobsHistoryLimit: ptr.To(int32(1)),
						JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
							Parallelism: ptr.To(int32(1)), Completions: ptr.To(int32(1)), BackoffLimit: ptr.To(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: labels}, PodReplacementPolicy: ptr.To(batchv1.TerminatingOrFailed),
							Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
						}},
					},
				}
				w.api.Put(cj)
				time.Sleep(10*time.Minute + 30*time.Second)
				synctest.Wait()
				if n := finish(); n != 10 {
					t.Errorf("%d runs in ten minutes", n)
				}
				got := get[*batchv1.CronJob](w, "ns", "tick")
				jobs := list[*batchv1.Job](w, "ns")
				if len(jobs) != 2 || len(got.Status.Active) != 0 || got.Status.LastSuccessfulTime == nil || got.Status.LastScheduleTime == nil {
					t.Errorf("%d jobs are kept, status %+v", len(jobs), got.Status)
				}
				for _, j := range jobs {
					due := at(j.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
					if j.Name != scheduledName(got, due) || due.Second() != 0 {
						t.Errorf("job %s is for %v", j.Name, due)
					}
				}
				edit(w, "ns", "tick", "", func(c *batchv1.CronJob) { c.Spec.Suspend = ptr.To(true) })
				time.Sleep(5 * time.Minute)
				if n := finish(); n != 10 {
					t.Errorf("%d runs, two of them suspended", n)
				}
			})
		})
	}
}

// What outlives the next time: it runs beside, holds back, or makes room.
func TestCronConcurrency(t *testing.T) {
	for policy, want := range map[batchv1.ConcurrencyPolicy]int{batchv1.AllowConcurrent: 3, batchv1.ForbidConcurrent: 1, batchv1.ReplaceConcurrent: 1} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newCronJob(d)} })
			defer w.stop()
			w.api.Put(&batchv1.CronJob{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tick", UID: "c-uid", CreationTimestamp: metav1.NewTime(time.Now())},
				Spec:       batchv1.CronJobSpec{Schedule: "* * * * *", ConcurrencyPolicy: policy},
			})
			time.Sleep(3*time.Minute + 30*time.Second)
			synctest.Wait()
			jobs := list[*batchv1.Job](w, "ns")
			active := get[*batchv1.CronJob](w, "ns", "tick").Status.Active
			if len(jobs) != want || len(active) != want {
				t.Errorf("%s: %d jobs, %d active, want %d", policy, len(jobs), len(active), want)
			}
			reasons := map[string]bool{}
			for _, e := range list[*corev1.Event](w, "ns") {
				reasons[e.Reason] = true
			}
			if reasons["JobAlreadyActive"] != (policy == batchv1.ForbidConcurrent) || reasons["SuccessfulDelete"] != (policy == batchv1.ReplaceConcurrent) {
				t.Errorf("%s: events %v", policy, reasons)
			}
		})
	}
}

// A job that was made by a controller which was killed before it could note that is
// one of the schedule all the same; one that a user made of the template is not.
func TestCronJobRecallsWhatItMade(t *testing.T) {
	for _, manual := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newCronJob(d)} })
			defer w.stop()
			cj := &batchv1.CronJob{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tick", UID: "c-uid", CreationTimestamp: metav1.NewTime(time.Now())},
				Spec:       batchv1.CronJobSpec{Schedule: "* * * * *", ConcurrencyPolicy: batchv1.ForbidConcurrent},
			}
			left, err := scheduledJob(cj, time.Now().Truncate(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			if left.UID = "j-uid"; manual {
				left.Name, left.Annotations = "by-hand", map[string]string{"cronjob.kubernetes.io/instantiate": "manual"}
			}
			w.api.Put(left)
			w.api.Put(cj)
			time.Sleep(3*time.Minute + 30*time.Second)
			synctest.Wait()
			want := 1
			if manual {
				want = 2
			}
			status := get[*batchv1.CronJob](w, "ns", "tick").Status
			if n := len(list[*batchv1.Job](w, "ns")); n != want || len(status.Active) != 1 {
				t.Errorf("by hand %v: %d jobs, want %d; status %+v", manual, n, want, status)
			}
		})
	}
}

func TestJobsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newTTLAfterFinished(d)} })
		defer w.stop()
		for name, ttl := range map[string]*int32{"soon": ptr.To(int32(10)), "later": ptr.To(int32(3600)), "never": nil} {
			j := aJob(name, 1, 1)
			j.Spec.TTLSecondsAfterFinished = ttl
			j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now())}}
			w.api.Put(j)
		}
		running := aJob("running", 1, 1)
		running.Spec.TTLSecondsAfterFinished = ptr.To(int32(0))
		w.api.Put(running)
		time.Sleep(9 * time.Second)
		if n := len(list[*batchv1.Job](w, "ns")); n != 4 {
			t.Errorf("%d jobs before the time", n)
		}
		time.Sleep(time.Minute)
		if n := len(list[*batchv1.Job](w, "ns")); n != 3 {
			t.Errorf("%d jobs after it", n)
		}
		time.Sleep(time.Hour)
		if n := len(list[*batchv1.Job](w, "ns")); n != 2 {
			t.Errorf("%d jobs after an hour", n)
		}
	})
}

func TestBudgetStatus(t *testing.T) {
	now := at("2024-05-01T10:00:00Z")
	pods := []*corev1.Pod{webPod(0, true), webPod(1, true), webPod(2, true), webPod(3, false)}
	gone := webPod(4, true)
	gone.DeletionTimestamp = ptr.To(metav1.NewTime(now))
	pods = append(pods, gone)
	s := policyv1.PodDisruptionBudgetStatus{DisruptedPods: map[string]metav1.Time{
		pods[0].Name: metav1.NewTime(now.Add(-30 * time.Second)), pods[1].Name: metav1.NewTime(now.Add(-3 * time.Minute)), "nobody": metav1.NewTime(now),
	}}
	late, after := budgetStatus(&s, pods, 5, 1, now)
	if len(late) != 1 || late[0] != pods[1] || after != 90*time.Second {
		t.Errorf("late %v, after %v", late, after)
	}
	if s.CurrentHealthy != 2 || s.DisruptionsAllowed != 1 || s.DesiredHealthy != 1 || s.ExpectedPods != 5 || len(s.DisruptedPods) != 1 {
		t.Errorf("status %+v", s)
	}
	if budgetStatus(&s, nil, 0, -1, now); s.DisruptionsAllowed != 0 {
		t.Error("nothing expected, and disruptions allowed")
	}
}

func TestBudgetFollowsItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller {
			return []*control.Controller{newReplicaSet(d), newReplicationController(d), newDisruption(d)}
		})
		defer w.stop()
		w.kubelet(time.Second, newRand(1), nil)
		budget := func(name string, max intstr.IntOrString) *policyv1.PodDisruptionBudget {
			return &policyv1.PodDisruptionBudget{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "b-uid", Generation: 1},
				Spec:       policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &max, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}},
			}
		}
		w.api.Put(replicaSet("web", 4))
		w.api.Put(budget("web", intstr.FromString("30%")))
		w.api.Put(budget("alone", intstr.FromInt32(1)))
		labels := map[string]string{"app": "old"}
		w.api.Put(&corev1.ReplicationController{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "old", UID: "rc-uid", Generation: 1},
			Spec:       corev1.ReplicationControllerSpec{Replicas: ptr.To(int32(2)), Selector: labels, Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}},
		})
		w.api.Put(budget("old", intstr.FromInt32(1)))
		status := func(name string) policyv1.PodDisruptionBudgetStatus {
			return get[*policyv1.PodDisruptionBudget](w, "ns", name).Status
		}
		w.until("counted", func() bool {
			s, o := status("web"), status("old")
			return s.CurrentHealthy == 4 && s.ExpectedPods == 4 && s.DesiredHealthy == 2 && s.DisruptionsAllowed == 2 && s.Conditions[0].Reason == "SufficientPods" &&
				o.ExpectedPods == 2 && o.DisruptionsAllowed == 1
		})
		w.until("the replication controller's own status", func() bool {
			return get[*corev1.ReplicationController](w, "ns", "old").Status.AvailableReplicas == 2
		})
		stray := webPod(9, true)
		stray.Labels = map[string]string{"app": "alone"}
		stray.OwnerReferences = []metav1.OwnerReference{{APIVersion: "example.com/v1", Kind: "Thing", Name: "x", UID: "x", Controller: ptr.To(true)}}
		w.api.Put(stray)
		w.until("what cannot be counted is not disrupted", func() bool {
			s := status("alone")
			return len(s.Conditions) == 1 && s.Conditions[0].Reason == "SyncFailed" && strings.Contains(s.Conditions[0].Message, `no matches for kind "Thing" in version "example.com/v1"`)
		})
		time.Sleep(time.Minute)
		before := len(w.api.Requests())
		time.Sleep(time.Hour)
		if after := len(w.api.Requests()); after != before {
			t.Errorf("%d writes while nothing happens, the first %+v", after-before, w.api.Requests()[before])
		}
	})
}

func TestQuotaIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newResourceQuota(d)} })
		defer w.stop()
		hard := corev1.ResourceList{"pods": apiresource.MustParse("5"), "requests.cpu": apiresource.MustParse("2"), "count/leases.coordination.k8s.io": apiresource.MustParse("1"), "secrets": apiresource.MustParse("3")}
		p := webPod(0, true)
		p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": apiresource.MustParse("500m")}}}}
		w.api.Put(p)
		w.api.Put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}})
		w.api.Put(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q", UID: "q-uid"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}})
		used := func(n corev1.ResourceName) string {
			v, ok := get[*corev1.ResourceQuota](w, "ns", "q").Status.Used[n]
			if !ok {
				return ""
			}
			return v.String()
		}
		w.until("counted", func() bool {
			return used("pods") == "1" && used("requests.cpu") == "500m" && used("secrets") == "1" && used("count/leases.coordination.k8s.io") == "0"
		})
		// Two more are let in, of which one is there: nothing is taken back.
		edit(w, "ns", "q", "status", func(q *corev1.ResourceQuota) { q.Status.Used["pods"] = apiresource.MustParse("3") })
		second := webPod(1, true)
		w.api.Put(second)
		time.Sleep(time.Second)
		if n := used("pods"); n != "3" {
			t.Errorf("%s pods are used, admission let in 3", n)
		}
		w.api.Put(webPod(2, true))
		edit(w, "ns", p.Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		w.until("what ended is given back", func() bool { return used("pods") == "2" && used("requests.cpu") == "0" })
		if err := client.For[*corev1.Secret](w.c).In("ns").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("and what is deleted", func() bool { return used("secrets") == "0" })
	})
}

// Every built-in kind that is stored is in the collector's graph: owners of a kind
// that it does not follow would never be freed of their finalizers.
func TestCollectorFollowsEveryKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, collectorAlone)
		defer w.stop()
		g := map[string]bool{}
		for _, r := range newCollector(w.deps).Rules() {
			for _, res := range r.Resources {
				for _, group := range r.APIGroups {
					g[group+"/"+res] = true
				}
			}
		}
		for _, k := range client.Kinds {
			switch k.GVR.Resource {
			case "events", "tokenreviews", "subjectaccessreviews": // not stored, or upstream's collector ignores them
				continue
			}
			if k.GVR.Group == "metrics.k8s.io" { // measured, not stored
				continue
			}
			if !g[k.GVR.Group+"/"+k.GVR.Resource] {
				t.Errorf("%s is not followed", k.GVR)
			}
		}
	})
}

// What was admitted a moment ago, and is reserved in the quota's status, is not given
// back because its object is not there yet.
func TestQuotaKeepsReservations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newResourceQuota(d)} })
		defer w.stop()
		hard := corev1.ResourceList{corev1.ResourcePods: apiresource.MustParse("2")}
		w.api.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "first", UID: "1"}})
		w.api.Put(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "q", UID: "q-uid"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}})
		used := func() int64 { q := get[*corev1.ResourceQuota](w, "ns", "q").Status.Used["pods"]; return q.Value() }
		w.until("counted", func() bool { return used() == 1 })
		time.Sleep(10 * time.Second)
		edit(w, "ns", "q", "status", func(q *corev1.ResourceQuota) { q.Status.Used["pods"] = apiresource.MustParse("2") })
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), "first", metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		w.api.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "second", UID: "2"}})
		time.Sleep(time.Minute)
		if n := used(); n != 1 {
			t.Errorf("%d used, there is one", n)
		}
	})
}
