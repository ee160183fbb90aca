package controller

import (
	"context"
	"reflect"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	// batch is how many pods are made or deleted before a look at whether that is
	// still wanted.
	batch = 512
	// writers is how many of those writes are under way at a time.
	writers = 64
	// statusPause is the least time between two writes of a ReplicaSet's counts
	// while pods are still on their way: changes within it share one write.
	statusPause = 20 * time.Millisecond
	// restPerPod is how long a ReplicaSet rests after a reconciliation, for each of
	// its pods and for each ReplicaSet that is busy, up to longestRest: all pods are
	// looked at each time, and together that must leave the processors to others.
	restPerPod  = 4 * time.Microsecond
	longestRest = time.Second
)

var replicaSetKind = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")

// replicaSets keeps the number of pods of every object of kind T at spec.replicas: of
// ReplicaSets, and of ReplicationControllers, which are seen as ReplicaSets.
type replicaSets[T client.Object] struct {
	*control.Controller
	now  func() time.Time
	kind schema.GroupVersionKind
	// as is a T as a ReplicaSet, of which the parts may be shared; withStatus is a
	// copy of a T with a status.
	as         func(T) *appsv1.ReplicaSet
	withStatus func(T, appsv1.ReplicaSetStatus) T
	// counted tells which parts of a status T has.
	counted func(appsv1.ReplicaSetStatus) appsv1.ReplicaSetStatus
	sets    *client.Informer[T]
	pods    *client.Informer[*corev1.Pod]

	mu      sync.Mutex
	written map[control.Key]time.Time // last status write
	skipped map[control.Key]bool      // the last reconciliation left the status to the next
}

func newReplicaSet(d Deps) *control.Controller {
	r := &replicaSets[*appsv1.ReplicaSet]{
		Controller: control.New("replicaset-controller", d.Deps), kind: replicaSetKind,
		as: func(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet { return rs },
		withStatus: func(rs *appsv1.ReplicaSet, s appsv1.ReplicaSetStatus) *appsv1.ReplicaSet {
			rs = rs.DeepCopy()
			rs.Status = s
			return rs
		},
		counted: func(s appsv1.ReplicaSetStatus) appsv1.ReplicaSetStatus { return s },
	}
	return r.declare(d, "apps", "replicasets")
}

// declare is the declaration that both kinds share.
func (r *replicaSets[T]) declare(d Deps, group, resource string) *control.Controller {
	c := r.Controller
	r.now, r.written, r.skipped = d.Clock(), map[control.Key]time.Time{}, map[control.Key]bool{}
	r.sets = control.Watch(c, r.changed)
	indexOwners(r.sets)
	r.pods = control.Watch(c, enqueueOwners[*corev1.Pod](c, r.sets, r.kind.Kind, func(o T) (labels.Selector, error) {
		return metav1.LabelSelectorAsSelector(r.as(o).Spec.Selector)
	}))
	indexOwners(r.pods)
	c.Workers = 32
	c.Writes = append(c.Writes,
		control.Rule(group, []string{resource}, "get", "list", "watch", "update"),
		control.Rule(group, []string{resource + "/status"}, "update"),
		control.Rule(group, []string{resource + "/finalizers"}, "update"),
		control.Rule("", []string{"pods"}, "list", "watch", "create", "patch", "delete"),
	)
	c.Reconcile = r.reconcile
	return c
}

func (r *replicaSets[T]) changed(ch client.Change[T]) {
	k := control.KeyOf(ch.Object())
	if ch.Deleted() {
		r.mu.Lock()
		delete(r.written, k)
		delete(r.skipped, k)
		r.mu.Unlock()
	}
	r.Queue.Add(k)
}

func (r *replicaSets[T]) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	o, ok := r.sets.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	owned := r.pods.ByIndex(byController, string(o.GetUID()))
	res, err := r.settle(ctx, k, o, owned)
	res.Rest = min(time.Duration(len(owned)*r.Queue.Busy())*restPerPod, longestRest)
	return res, err
}

// settle is one reconciliation of o, whose pods are owned.
func (r *replicaSets[T]) settle(ctx context.Context, k control.Key, o T, owned []*corev1.Pod) (control.Result, error) {
	rs := r.as(o)
	sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		r.Log.Error("invalid selector", "ns", k.Namespace, "name", k.Name, "err", err)
		return control.Result{}, nil
	}
	var active, terminating []*corev1.Pod
	for _, p := range owned {
		switch {
		case podActive(p):
			active = append(active, p)
		case podTerminating(p) && sel.Matches(labels.Set(p.Labels)):
			terminating = append(terminating, p)
		}
	}
	for _, p := range r.pods.ByIndex(orphans, rs.Namespace) {
		if podActive(p) {
			active = append(active, p)
		}
	}
	m := &claimer[*corev1.Pod]{
		c: r.Controller, key: k, inf: r.pods, owner: rs, gvk: r.kind,
		fresh: func(ctx context.Context) (metav1.Object, error) {
			return client.For[T](r.Client).In(rs.Namespace).Get(ctx, rs.Name)
		},
	}
	active, err = m.claim(ctx, active, sel)
	if err != nil {
		return control.Result{}, err
	}
	var manageErr error
	changed := false
	if rs.DeletionTimestamp == nil {
		changed, manageErr = r.manage(ctx, k, o, active)
	}
	now := r.now()
	status := r.counted(replicaSetStatus(rs, active, terminating, manageErr, now))
	if !reflect.DeepEqual(status, rs.Status) {
		if changed && manageErr == nil && r.skip(k) {
			return control.Result{After: time.Second}, nil
		}
		if wait := r.statusDue(k, now); wait > 0 && manageErr == nil && onlyCounts(rs.Status, status) && unsettled(rs, status) {
			return control.Result{After: wait}, nil
		}
		if err := r.writeStatus(ctx, k, o, status); err != nil {
			return control.Result{}, err
		}
	}
	if manageErr != nil {
		return control.Result{}, manageErr
	}
	if !changed && rs.Spec.MinReadySeconds > 0 && status.ReadyReplicas != status.AvailableReplicas {
		if d := nextAvailable(active, rs.Spec.MinReadySeconds, now); d > 0 {
			return control.Result{After: d}, nil
		}
		return control.Result{After: time.Duration(rs.Spec.MinReadySeconds) * time.Second}, nil
	}
	return control.Result{}, nil
}

// manage makes or deletes pods; it tells whether it did.
func (r *replicaSets[T]) manage(ctx context.Context, k control.Key, o T, active []*corev1.Pod) (bool, error) {
	rs := r.as(o)
	diff := len(active) - int(*rs.Spec.Replicas)
	w := podWrites{c: r.Controller, key: k, inf: r.pods, owner: o}
	still := func() bool {
		now, ok := r.sets.Get(k.Namespace, k.Name)
		return ok && now.GetUID() == rs.UID && now.GetGeneration() == rs.Generation && now.GetDeletionTimestamp() == nil
	}
	switch {
	case diff < 0:
		_, err := slowStart(-diff, still, func(int) error {
			_, err := w.create(ctx, podFromTemplate(&rs.Spec.Template, o, r.kind))
			return err
		})
		return true, err
	case diff > 0:
		var related []*corev1.Pod
		if diff < len(active) {
			related = r.related(o)
		}
		chosen := chooseVictims(active, related, diff, r.now())
		chosen = chosen[:min(len(chosen), batch)] // the rest with the next reconciliation
		_, err := parallel(len(chosen), func(i int) error { return w.delete(ctx, chosen[i]) })
		return true, err
	}
	return false, nil
}

// related are the pods of all ReplicaSets with the same controller: where they
// crowd a node, its pods are deleted first.
func (r *replicaSets[T]) related(o T) []*corev1.Pod {
	sets := []T{o}
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
		sets = r.sets.ByIndex(byController, string(ref.UID))
	}
	var all []*corev1.Pod
	for _, s := range sets {
		all = append(all, r.pods.ByIndex(byController, string(s.GetUID()))...)
	}
	return all
}

// skip tells whether the status may be left to the next reconciliation, which the
// pods just made or deleted bring about; never twice in a row.
func (r *replicaSets[T]) skip(k control.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped[k] = !r.skipped[k]
	return r.skipped[k]
}

func (r *replicaSets[T]) statusDue(k control.Key, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.written[k].Add(statusPause).Sub(now)
}

// onlyCounts tells that nothing but counts of pods differs.
func onlyCounts(a, b appsv1.ReplicaSetStatus) bool {
	return a.ObservedGeneration == b.ObservedGeneration && reflect.DeepEqual(a.Conditions, b.Conditions)
}

func unsettled(rs *appsv1.ReplicaSet, s appsv1.ReplicaSetStatus) bool {
	return s.Replicas != *rs.Spec.Replicas || s.AvailableReplicas != s.Replicas || s.TerminatingReplicas != nil && *s.TerminatingReplicas > 0
}

func (r *replicaSets[T]) writeStatus(ctx context.Context, k control.Key, o T, s appsv1.ReplicaSetStatus) error {
	sets := client.For[T](r.Client).In(k.Namespace)
	got, err := sets.UpdateStatus(ctx, r.withStatus(o, s))
	if apierrors.IsConflict(err) {
		// The generation acted on stays what it was: a newer spec is not observed.
		fresh, getErr := sets.Get(ctx, k.Name)
		if getErr != nil {
			return getErr
		}
		if fresh.GetUID() != o.GetUID() {
			return err
		}
		got, err = sets.UpdateStatus(ctx, r.withStatus(fresh, s))
	}
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	control.Wrote(r.Pending, k, r.sets, got)
	r.mu.Lock()
	r.written[k] = r.now()
	r.mu.Unlock()
	return nil
}

// replicaSetStatus is the status that follows from the pods.
func replicaSetStatus(rs *appsv1.ReplicaSet, active, terminating []*corev1.Pod, manageErr error, now time.Time) appsv1.ReplicaSetStatus {
	s := *rs.Status.DeepCopy()
	var labeled, ready, available int32
	template := matcher{sel: labels.Set(rs.Spec.Template.Labels).AsSelectorPreValidated()}
	for _, p := range active {
		if template.matches(p.Labels) {
			labeled++
		}
		if podReady(p) {
			ready++
			if podAvailable(p, rs.Spec.MinReadySeconds, now) {
				available++
			}
		}
	}
	gone := int32(len(terminating))
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = int32(len(active)), labeled, ready, available
	s.TerminatingReplicas = &gone
	s.ObservedGeneration = rs.Generation
	failing := -1
	for i, c := range s.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			failing = i
		}
	}
	switch {
	case manageErr != nil && failing < 0:
		reason := ""
		if diff := len(active) - int(*rs.Spec.Replicas); diff < 0 {
			reason = "FailedCreate"
		} else if diff > 0 {
			reason = "FailedDelete"
		}
		s.Conditions = append(s.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: manageErr.Error(),
		})
	case manageErr == nil && failing >= 0:
		var rest []appsv1.ReplicaSetCondition
		for i, c := range s.Conditions {
			if i != failing {
				rest = append(rest, c)
			}
		}
		s.Conditions = rest
	}
	return s
}

// slowStart calls f for 0..n-1, in batches of 1, 2, 4, ... that run in parallel, and
// stops after a batch with an error: what fails for one pod fails for most. It
// stops too when still, asked between batches, says no.
func slowStart(n int, still func() bool, f func(i int) error) (int, error) {
	done := 0
	for size := min(n, 1); size > 0; size = min(2*size, n-done, batch) {
		from := done
		ok, err := parallel(size, func(i int) error { return f(from + i) })
		done += ok
		if err != nil {
			return done, err
		}
		if !still() {
			break
		}
	}
	return done, nil
}

// parallel calls f for 0..n-1, returns how many succeeded, and the first error.
func parallel(n int, f func(i int) error) (int, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, ok := 0, 0
	var first error
	for range min(n, writers) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= n {
					return
				}
				err := f(i)
				mu.Lock()
				if err == nil {
					ok++
				} else if first == nil {
					first = err
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return ok, first
}
