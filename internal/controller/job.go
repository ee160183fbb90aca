package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

var jobKind = batchv1.SchemeGroupVersion.WithKind("Job")

// jobs runs every Job's pods to completion. What is to be done is decided in
// job_plan.go, what counts in job_track.go.
type jobs struct {
	*control.Controller
	now  func() time.Time
	all  *client.Informer[*batchv1.Job]
	pods *client.Informer[*corev1.Pod]
	// strays are pods that may hold the finalizer of a job that no longer counts.
	strays *control.Queue[control.Key]
	told   *jobMetrics

	mu       sync.Mutex
	backoffs map[control.Key]jobBackoff
}

func newJob(d Deps) *control.Controller {
	c := control.New("job-controller", d.Deps)
	r := &jobs{Controller: c, now: d.Clock(), strays: control.NewQueue[control.Key](), backoffs: map[control.Key]jobBackoff{}, told: newJobMetrics()}
	c.Metrics = append(c.Metrics, r.told.collectors()...)
	control.Measure(c, "job_orphan_pod", r.strays)
	r.all = control.Watch(c, r.jobChanged)
	owners := enqueueOwners[*corev1.Pod](c, r.all, "Job", func(j *batchv1.Job) (labels.Selector, error) {
		return metav1.LabelSelectorAsSelector(j.Spec.Selector)
	})
	r.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		owners(ch)
		if !ch.Deleted() && tracked(ch.New) && r.stray(ch.New) {
			r.strays.Add(control.KeyOf(ch.New))
		}
	})
	indexOwners(r.pods)
	c.Workers = 32
	c.Writes = append(c.Writes,
		control.Rule("batch", []string{"jobs"}, "get", "list", "watch", "update", "patch"),
		control.Rule("batch", []string{"jobs/status"}, "update"),
		control.Rule("batch", []string{"jobs/finalizers"}, "update"),
		control.Rule("", []string{"pods"}, "list", "watch", "create", "delete", "patch"),
	)
	c.Reconcile = r.reconcile
	c.Loop = func(ctx context.Context) error {
		r.strays.Work(ctx, 3, r.releaseStray)
		return nil
	}
	return c
}

func externallyManaged(j *batchv1.Job) bool {
	return j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName
}

func (r *jobs) jobChanged(ch client.Change[*batchv1.Job]) {
	j := ch.Object()
	k := control.KeyOf(j)
	if ch.Deleted() || jobFinished(j) {
		r.mu.Lock()
		delete(r.backoffs, k)
		r.mu.Unlock()
		for _, p := range r.pods.ByIndex(byController, string(j.UID)) {
			if tracked(p) {
				r.strays.Add(control.KeyOf(p))
			}
		}
	}
	r.Queue.Add(k)
}

// stray tells that a tracked pod is of no job that will count it.
func (r *jobs) stray(p *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return true
	}
	if ref.Kind != jobKind.Kind || ref.APIVersion != jobKind.GroupVersion().String() {
		return false
	}
	j, ok := r.all.Get(p.Namespace, ref.Name)
	if !ok || j.UID != ref.UID {
		return true
	}
	return jobFinished(j) && !externallyManaged(j)
}

func (r *jobs) releaseStray(ctx context.Context, k control.Key) (time.Duration, error) {
	p, ok := r.pods.Get(k.Namespace, k.Name)
	if !ok || !tracked(p) || !r.stray(p) {
		return 0, nil
	}
	_, err := r.untrack(ctx, p, false)
	return 0, err
}

// untrack removes a pod's finalizer; one that is gone is returned as it was. A job that
// still counts lets a pod that has not ended go only as it was seen: what it has come
// to since would be lost.
func (r *jobs) untrack(ctx context.Context, p *corev1.Pod, counting bool) (*corev1.Pod, error) {
	meta := map[string]any{"uid": p.UID, "$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer}}
	if counting && !podTerminal(p) {
		meta["resourceVersion"] = p.ResourceVersion
	}
	patch, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return nil, err
	}
	got, err := client.For[*corev1.Pod](r.Client).In(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, "")
	if apierrors.IsNotFound(err) {
		return p, nil
	}
	return got, err
}

// jobWork is one reconciliation of a Job.
type jobWork struct {
	*jobs
	key control.Key
	v   *jobView
	p   *jobPlan
	out podWrites
	// stored is the job as it was last written; it is not changed.
	stored *batchv1.Job
}

func (r *jobs) reconcile(ctx context.Context, k control.Key) (_ control.Result, err error) {
	shared, ok := r.all.Get(k.Namespace, k.Name)
	if !ok || externallyManaged(shared) || jobFinished(shared) {
		return control.Result{}, nil
	}
	if m := shared.Spec.CompletionMode; m != nil && *m != batchv1.NonIndexedCompletion && *m != batchv1.IndexedCompletion {
		r.Events.Event(shared, corev1.EventTypeWarning, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return control.Result{}, nil
	}
	since := time.Now()
	var plan *jobPlan
	defer func() { r.told.synced(shared, plan, err, time.Since(since)) }()
	job := shared.DeepCopy()
	if job.Status.UncountedTerminatedPods == nil {
		job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	pods, err := r.claim(ctx, k, job)
	if err != nil {
		return control.Result{}, err
	}
	r.mu.Lock()
	backoff := r.backoffs[k]
	r.mu.Unlock()
	w := &jobWork{jobs: r, key: k, stored: shared, v: &jobView{job: job, pods: pods, backoff: backoff, now: r.now()}, out: podWrites{c: r.Controller, key: k, inf: r.pods, owner: shared}}
	w.p = planJob(w.v)
	plan = w.p
	actErr := w.act(ctx)
	changed := false
	if w.p.target == nil {
		var event string
		if changed, event = w.v.conclude(w.p); changed {
			r.Events.Event(shared, corev1.EventTypeNormal, event, "%s", jobConditionMessage[event])
		}
	}
	if w.p.counts.countPods(&job.Status) {
		changed = true
	}
	if err := w.settle(ctx, changed); err != nil {
		return control.Result{}, errors.Join(actErr, err)
	}
	return control.Result{After: w.p.after}, actErr
}

var jobConditionMessage = map[string]string{"Suspended": "Job suspended", "Resumed": "Job resumed"}

func (r *jobs) claim(ctx context.Context, k control.Key, job *batchv1.Job) ([]*corev1.Pod, error) {
	sel, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("couldn't convert Job selector: %w", err)
	}
	m := &claimer[*corev1.Pod]{
		c: r.Controller, key: k, inf: r.pods, owner: job, gvk: jobKind,
		fresh: func(ctx context.Context) (metav1.Object, error) {
			return client.For[*batchv1.Job](r.Client).In(job.Namespace).Get(ctx, job.Name)
		},
		change: func(_ *corev1.Pod, adopted bool) map[string]any {
			finalizers := []string{batchv1.JobTrackingFinalizer}
			if adopted {
				return map[string]any{"finalizers": finalizers}
			}
			return map[string]any{"$deleteFromPrimitiveList/finalizers": finalizers}
		},
	}
	return m.claim(ctx, append(r.pods.ByIndex(byController, string(job.UID)), r.pods.ByIndex(orphans, job.Namespace)...), sel)
}

// act makes and deletes pods, and counts what came of it.
func (w *jobWork) act(ctx context.Context) error {
	p := w.p
	if p.target != nil {
		n, err := w.remove(ctx, p.active, false)
		if n != len(p.active) {
			p.target = nil // not before all are on their way
		}
		return err
	}
	if len(p.remove) > 0 {
		_, err := w.remove(ctx, p.remove, true)
		return err
	}
	made, err := slowStart(len(p.create), func() bool { return true }, func(i int) error {
		_, err := w.out.create(ctx, jobPod(w.v.job, p.create[i], p.delayed[p.create[i]]))
		w.told.created(p.delayed[p.create[i]] != nil, err == nil)
		return err
	})
	p.counts.active += int32(made)
	return err
}

// remove deletes active pods. Those that are not to be counted lose their finalizer
// first.
func (w *jobWork) remove(ctx context.Context, pods []*corev1.Pod, uncounted bool) (int, error) {
	var mu sync.Mutex
	n, err := parallel(len(pods), func(i int) error {
		p := pods[i]
		if uncounted && tracked(p) {
			got, err := w.untrack(ctx, p, true)
			if err != nil {
				return fmt.Errorf("removing completion finalizer: %w", err)
			}
			control.Wrote(w.Pending, w.key, w.pods, got)
		}
		if err := w.out.delete(ctx, p); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		w.p.counts.active--
		w.p.counts.terminating++
		if podReady(p) {
			w.p.counts.ready--
		}
		return nil
	})
	return n, err
}

// settle counts what ended: status, finalizers, status.
func (w *jobWork) settle(ctx context.Context, changed bool) error {
	release, flush, more := w.v.track(w.p)
	if flush || changed {
		if err := w.write(ctx); err != nil {
			return fmt.Errorf("adding uncounted pods to status: %w", err)
		}
		w.mu.Lock()
		w.backoffs[w.key] = w.p.backoff
		w.mu.Unlock()
	}
	left := w.v.trackedUIDs()
	var mu sync.Mutex
	_, err := parallel(len(release), func(i int) error {
		got, err := w.untrack(ctx, release[i], true)
		if err != nil {
			return fmt.Errorf("removing tracking finalizer: %w", err)
		}
		control.Wrote(w.Pending, w.key, w.pods, got)
		mu.Lock()
		delete(left, release[i].UID)
		mu.Unlock()
		return nil
	})
	counted := countReleased(&w.v.job.Status, left)
	finished := err == nil && !more && w.v.finish(w.p)
	if counted || finished {
		if writeErr := w.write(ctx); writeErr != nil {
			return errors.Join(err, fmt.Errorf("removing uncounted pods from status: %w", writeErr))
		}
	}
	if finished {
		for _, e := range jobEvents(w.v.job, w.p.target) {
			w.Events.Event(w.v.job, e.eventType, e.reason, "%s", e.message)
		}
	}
	if err == nil && more {
		w.Queue.Add(w.key)
	}
	return err
}

func (w *jobWork) write(ctx context.Context) error {
	got, err := client.For[*batchv1.Job](w.Client).UpdateStatus(ctx, w.v.job)
	if err != nil {
		return err
	}
	control.Wrote(w.Pending, w.key, w.all, got)
	w.told.counted(w.stored, got)
	w.stored = got
	w.v.job = got.DeepCopy()
	if w.v.job.Status.UncountedTerminatedPods == nil {
		w.v.job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	return nil
}
