package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

var daemonSetKind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

// daemonBurst is how many pods a reconciliation makes or deletes, upstream's.
const daemonBurst = 250

// daemonSets keeps a pod of every DaemonSet on every node that it is for. What is to
// be done is decided in daemonset_plan.go.
type daemonSets struct {
	*control.Controller
	now       func() time.Time
	sets      *client.Informer[*appsv1.DaemonSet]
	pods      *client.Informer[*corev1.Pod]
	nodes     *client.Informer[*corev1.Node]
	revisions *client.Informer[*appsv1.ControllerRevision]

	mu       sync.Mutex
	failures map[control.Key]*daemonFailures
}

func newDaemonSet(d Deps) *control.Controller {
	c := control.New("daemon-set-controller", d.Deps)
	c.ReportAs("daemonset-controller")
	r := &daemonSets{Controller: c, now: d.Clock(), failures: map[control.Key]*daemonFailures{}}
	r.sets = control.Watch(c, r.changed)
	selects := func(ds *appsv1.DaemonSet) (labels.Selector, error) {
		return metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	}
	r.pods = control.Watch(c, enqueueOwners[*corev1.Pod](c, r.sets, "DaemonSet", selects))
	indexOwners(r.pods)
	r.revisions = control.Watch(c, enqueueOwners[*appsv1.ControllerRevision](c, r.sets, "DaemonSet", selects))
	indexOwners(r.revisions)
	r.nodes = control.Watch(c, r.nodeChanged)
	c.Writes = append(c.Writes,
		control.Rule("apps", []string{"daemonsets"}, "get", "list", "watch"),
		control.Rule("apps", []string{"daemonsets/status"}, "update"),
		control.Rule("apps", []string{"daemonsets/finalizers"}, "update"),
		control.Rule("", []string{"nodes"}, "list", "watch"),
		control.Rule("", []string{"pods"}, "list", "watch", "create", "delete", "patch"),
		control.Rule("", []string{"pods/binding"}, "create"),
		control.Rule("apps", []string{"controllerrevisions"}, "create", "delete", "get", "list", "patch", "update", "watch"),
	)
	c.Reconcile = r.reconcile
	return c
}

func (r *daemonSets) changed(ch client.Change[*appsv1.DaemonSet]) {
	k := control.KeyOf(ch.Object())
	if ch.Deleted() {
		r.mu.Lock()
		delete(r.failures, k)
		r.mu.Unlock()
	}
	r.Queue.Add(k)
}

// nodeChanged brings all sets back when a node's part in placement changed; most
// changes of nodes are their status.
func (r *daemonSets) nodeChanged(ch client.Change[*corev1.Node]) {
	if ch.Old != nil && ch.New != nil && maps.Equal(ch.Old.Labels, ch.New.Labels) && equality.Semantic.DeepEqual(ch.Old.Spec.Taints, ch.New.Spec.Taints) {
		return
	}
	for ds := range r.sets.All() {
		r.Queue.Add(control.KeyOf(ds))
	}
}

// daemonWork is one reconciliation of a DaemonSet.
type daemonWork struct {
	*daemonSets
	key  control.Key
	ds   *appsv1.DaemonSet
	sel  labels.Selector
	pods []*corev1.Pod
	revs revisions
}

func (r *daemonSets) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	ds, ok := r.sets.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	if reflect.DeepEqual(ds.Spec.Selector, &metav1.LabelSelector{}) {
		r.Events.Event(ds, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return control.Result{}, nil
	}
	if ds.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	sel, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil {
		return control.Result{}, err
	}
	w := &daemonWork{daemonSets: r, key: k, ds: ds, sel: sel, revs: revisions{c: r.Controller, key: k, inf: r.revisions, owner: ds, kind: daemonSetKind}}
	m := &claimer[*corev1.Pod]{c: r.Controller, key: k, inf: r.pods, owner: ds, gvk: daemonSetKind, fresh: w.fresh}
	w.pods, err = m.claim(ctx, append(r.pods.ByIndex(byController, string(ds.UID)), r.pods.ByIndex(orphans, ds.Namespace)...), sel)
	if err != nil {
		return control.Result{}, err
	}
	cur, old, err := w.history(ctx)
	if err != nil {
		return control.Result{}, fmt.Errorf("failed to construct revisions of DaemonSet: %w", err)
	}
	v := newDaemonView(ds, cur.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], r.nodes.List("", nil), w.pods, r.now())
	after, err := w.act(ctx, v)
	if err == nil {
		err = w.cleanUp(ctx, old)
	}
	status := v.status()
	if !reflect.DeepEqual(status, ds.Status) {
		err = errors.Join(err, w.writeStatus(ctx, status))
	}
	if err != nil {
		return control.Result{}, err
	}
	if min := ds.Spec.MinReadySeconds; min > 0 && status.NumberReady != status.NumberAvailable {
		next := nextAvailable(w.pods, min, v.now)
		if next == 0 {
			next = time.Duration(min) * time.Second
		}
		if after == 0 || next < after {
			after = next
		}
	}
	return control.Result{After: after}, nil
}

func (w *daemonWork) fresh(ctx context.Context) (metav1.Object, error) {
	return client.For[*appsv1.DaemonSet](w.Client).In(w.ds.Namespace).Get(ctx, w.ds.Name)
}

// act makes and deletes pods; an update goes on only when every node is served.
func (w *daemonWork) act(ctx context.Context, v *daemonView) (time.Duration, error) {
	w.mu.Lock()
	failures := w.failures[w.key]
	if failures == nil {
		failures = &daemonFailures{}
		w.failures[w.key] = failures
	}
	w.mu.Unlock()
	plan := v.manage(failures)
	for _, p := range plan.ended {
		node, _ := daemonNode(p)
		t, reason, message := daemonEndedEvent(p, node)
		w.Events.Event(w.ds, t, reason, "%s", message)
	}
	after := plan.after
	if plan.empty() && w.ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		plan = v.roll()
	}
	pods := podWrites{c: w.Controller, key: w.key, inf: w.daemonSets.pods, owner: w.ds}
	create, del := plan.create[:min(len(plan.create), daemonBurst)], plan.delete[:min(len(plan.delete), daemonBurst)]
	_, err := slowStart(len(create), func() bool { return true }, func(i int) error {
		_, err := pods.create(ctx, daemonPod(w.ds, v.hash, create[i]))
		return err
	})
	_, delErr := parallel(len(del), func(i int) error { return pods.delete(ctx, del[i]) })
	return after, errors.Join(err, delErr)
}

// history finds the revision of the current template, or makes it, and the others.
func (w *daemonWork) history(ctx context.Context) (cur *appsv1.ControllerRevision, old []*appsv1.ControllerRevision, err error) {
	m := &claimer[*appsv1.ControllerRevision]{c: w.Controller, key: w.key, inf: w.daemonSets.revisions, owner: w.ds, gvk: daemonSetKind, fresh: w.fresh}
	owned := w.daemonSets.revisions.ByIndex(byController, string(w.ds.UID))
	all, err := m.claim(ctx, append(owned, w.daemonSets.revisions.ByIndex(orphans, w.ds.Namespace)...), w.sel)
	if err != nil {
		return nil, nil, err
	}
	data, err := revisionData(&w.ds.Spec.Template)
	if err != nil {
		return nil, nil, err
	}
	var current []*appsv1.ControllerRevision
	next := int64(1)
	for _, rev := range all {
		if rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == "" {
			rev = rev.DeepCopy()
			metav1.SetMetaDataLabel(&rev.ObjectMeta, appsv1.DefaultDaemonSetUniqueLabelKey, rev.Name)
			if rev, err = w.revs.update(ctx, rev); err != nil {
				return nil, nil, err
			}
		}
		if bytes.Equal(rev.Data.Raw, data) {
			current = append(current, rev)
			continue
		}
		old = append(old, rev)
		next = max(next, rev.Revision+1)
	}
	if len(current) == 0 {
		cur, err = w.snapshot(ctx, data, next)
		return cur, old, err
	}
	if cur, err = w.oneOf(ctx, current); err != nil {
		return nil, nil, err
	}
	if cur.Revision < next {
		cur = cur.DeepCopy()
		cur.Revision = next
		cur, err = w.revs.update(ctx, cur)
	}
	return cur, old, err
}

// oneOf leaves one of several revisions of the same template, and the pods with its
// label.
func (w *daemonWork) oneOf(ctx context.Context, current []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	keep := current[0]
	for _, rev := range current {
		if rev.Revision >= keep.Revision {
			keep = rev
		}
	}
	if len(current) == 1 {
		return keep, nil
	}
	hash := keep.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{appsv1.DefaultDaemonSetUniqueLabelKey: hash}}})
	if err != nil {
		return nil, err
	}
	for i, p := range w.pods {
		if p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash {
			continue
		}
		got, err := client.For[*corev1.Pod](w.Client).In(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, "")
		if err != nil {
			return nil, err
		}
		control.Wrote(w.Pending, w.key, w.daemonSets.pods, got)
		w.pods[i] = got
	}
	for _, rev := range current {
		if rev != keep {
			if err := w.revs.delete(ctx, rev); err != nil {
				return nil, err
			}
		}
	}
	return keep, nil
}

// snapshot makes the revision of the current template. Where its name is another
// template's, the collision is counted, and the next reconciliation hashes with it.
func (w *daemonWork) snapshot(ctx context.Context, data []byte, number int64) (*appsv1.ControllerRevision, error) {
	hash := templateHash(&w.ds.Spec.Template, w.ds.Status.CollisionCount)
	rev := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: w.ds.Name + "-" + hash, Namespace: w.ds.Namespace, Annotations: w.ds.Annotations,
			Labels:          map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(w.ds, daemonSetKind)},
		},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
	maps.Copy(rev.Labels, w.ds.Spec.Template.Labels)
	rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	all := client.For[*appsv1.ControllerRevision](w.Client).In(w.ds.Namespace)
	got, err := all.Create(ctx, rev)
	if !apierrors.IsAlreadyExists(err) {
		if err == nil {
			control.Wrote(w.Pending, w.key, w.daemonSets.revisions, got)
		}
		return got, err
	}
	there, getErr := all.Get(ctx, rev.Name)
	if getErr != nil {
		return nil, getErr
	}
	if bytes.Equal(there.Data.Raw, data) {
		return there, nil
	}
	status := *w.ds.Status.DeepCopy()
	count := int32(1)
	if status.CollisionCount != nil {
		count = *status.CollisionCount + 1
	}
	status.CollisionCount = &count
	if statusErr := w.writeStatus(ctx, status); statusErr != nil {
		return nil, statusErr
	}
	return nil, err
}

// cleanUp deletes old revisions beyond the history limit that no pod is of.
func (w *daemonWork) cleanUp(ctx context.Context, old []*appsv1.ControllerRevision) error {
	over := len(old) - int(*w.ds.Spec.RevisionHistoryLimit)
	live := map[string]bool{}
	for _, p := range w.pods {
		live[p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	free := beyondLimit(old, func(rev *appsv1.ControllerRevision) bool {
		return live[rev.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]]
	}, 0)
	for _, rev := range free[:min(len(free), max(0, over))] {
		if err := w.revs.delete(ctx, rev); err != nil {
			return fmt.Errorf("failed to clean up revisions of DaemonSet: %w", err)
		}
	}
	return nil
}

func (w *daemonWork) writeStatus(ctx context.Context, s appsv1.DaemonSetStatus) error {
	next := w.ds.DeepCopy()
	next.Status = s
	got, err := client.For[*appsv1.DaemonSet](w.Client).UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("error storing status for daemon set %s: %w", w.key, err)
	}
	control.Wrote(w.Pending, w.key, w.sets, got)
	return nil
}
