package sim

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/testcluster"
)

// requests of the control processes, of kinds that end in suffix.
func (w *world) requests(suffix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for k, c := range w.reqs {
		if strings.HasSuffix(k, suffix) && !strings.HasPrefix(k, "lease ") {
			n += c
		}
	}
	return n
}

func plain(app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
	}
}

// TestFinishedJobs: thousands of jobs that ended long ago cost a new leader no
// write, and no request for each.
func TestFinishedJobs(t *testing.T) {
	const many = 10_000
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		defer w.stop()
		w.hist.unchecked() // no pod did what these jobs count
		put(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
		put(w, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "default"}})
		jobs := client.For[*batchv1.Job](w.user).In("a")
		at := metav1.NewTime(w.now())
		for i := range many {
			tpl := plain("x")
			tpl.Labels = nil
			tpl.Spec.RestartPolicy = corev1.RestartPolicyNever
			j, err := jobs.Create(w.ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprint("j", i)}, Spec: batchv1.JobSpec{Template: tpl}})
			if err != nil {
				t.Fatal(err)
			}
			j = j.DeepCopy()
			j.Status = batchv1.JobStatus{Succeeded: 1, StartTime: &at, CompletionTime: &at, Conditions: []batchv1.JobCondition{
				{Type: batchv1.JobSuccessCriteriaMet, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonCompletionsReached, LastTransitionTime: at},
				{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, Reason: batchv1.JobReasonCompletionsReached, LastTransitionTime: at},
			}}
			if _, err := jobs.UpdateStatus(w.ctx, j); err != nil {
				t.Fatal(err)
			}
		}
		w.begin()
		w.sleep(time.Minute)
		w.kill(0)
		w.kill(1)
		w.sleep(10 * time.Minute)
		for _, s := range []string{" jobs", " pods"} {
			if n := w.requests(s); n > 10 {
				t.Errorf("%d requests for%s", n, s)
			}
		}
	})
}

// TestNeverStarting: what cannot start is tried with ever longer pauses, and says so.
func TestNeverStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.stop()
		w.begin()
		w.populate()
		// Pods that never start are pods all the same: there are as many as asked for.
		never := plain("never")
		never.Annotations[testcluster.Never] = "start"
		put(w, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "never"}, Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(3)), Selector: selector("never"), Template: never,
		}})
		// No pod fits into this quota.
		put(w, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "none"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}})
		w.sleep(5 * time.Second)
		put(w, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "refused"}, Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To(int32(50)), Selector: selector("refused"), Template: plain("refused"),
		}})
		// These end as soon as they run.
		fails := plain("fails")
		fails.Annotations[testcluster.Runs], fails.Annotations[testcluster.Fails] = "1ms", "100"
		fails.Spec.RestartPolicy = corev1.RestartPolicyNever
		put(w, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "c", Name: "fails"}, Spec: batchv1.JobSpec{BackoffLimit: ptr.To(int32(1_000_000)), Template: fails}})
		// This one fits on no node.
		huge := plain("huge")
		huge.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000")}
		put(w, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "c", Name: "huge"}, Spec: appsv1.ReplicaSetSpec{Replicas: ptr.To(int32(5)), Selector: selector("huge"), Template: huge}})

		w.sleep(time.Hour)
		if d, _ := get[*appsv1.Deployment](w, "a", "never"); d != nil {
			late := false
			for _, c := range d.Status.Conditions {
				late = late || c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded"
			}
			if !late {
				t.Errorf("conditions %+v", d.Status.Conditions)
			}
		}
		if n := len(w.pods("a")); n != 3 {
			t.Errorf("%d pods of 3", n)
		}
		if j, _ := get[*batchv1.Job](w, "c", "fails"); j != nil && (j.Status.Failed < 5 || j.Status.Failed > 20) {
			t.Errorf("a job that fails at once was tried %d times in an hour", j.Status.Failed)
		}
		if n := w.requests("replicaset-controller create pods"); n > 50 {
			t.Errorf("%d pods were asked for in an hour of which none could be", n)
		}
		if n := w.requests("scheduler update pods") + w.requests("scheduler patch pods"); n > 50 {
			t.Errorf("%d writes about pods that fit nowhere", n)
		}
	})
}

// TestOverlap: two controllers whose selectors are the same divide the pods and rest.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		defer w.stop()
		w.begin()
		w.populate()
		for _, name := range replicaSets {
			put(w, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: appsv1.ReplicaSetSpec{
				Replicas: ptr.To(int32(5)), Selector: selector("twin"), Template: plain("twin"),
			}})
		}
		for _, name := range []string{"left", "right"} {
			put(w, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: name}, Spec: appsv1.DeploymentSpec{
				Replicas: ptr.To(int32(4)), Selector: selector("same"), Template: plain("same"),
			}})
		}
		w.settle()
		w.quiet()
		if n, _, _ := w.hist.counts(); n > 400 {
			t.Errorf("%d steps for 18 pods", n)
		}
	})
}
