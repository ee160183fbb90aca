package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/client"
	"skiff/internal/control"
)

var statefulSetKind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

// statefulSets keeps the pods of every StatefulSet, each with its name and its
// claims. What is to be done is decided in statefulset_plan.go.
type statefulSets struct {
	*control.Controller
	now       func() time.Time
	sets      *client.Informer[*appsv1.StatefulSet]
	pods      *client.Informer[*corev1.Pod]
	revisions *client.Informer[*appsv1.ControllerRevision]
	claims    *client.Informer[*corev1.PersistentVolumeClaim]
}

func newStatefulSet(d Deps) *control.Controller {
	c := control.New("statefulset-controller", d.Deps)
	r := &statefulSets{Controller: c, now: d.Clock()}
	r.sets = control.Watch(c, control.Enqueue[*appsv1.StatefulSet](c))
	r.pods = control.Watch(c, enqueueOwners[*corev1.Pod](c, r.sets, "StatefulSet", func(s *appsv1.StatefulSet) (labels.Selector, error) {
		return metav1.LabelSelectorAsSelector(s.Spec.Selector)
	}))
	indexOwners(r.pods)
	r.revisions = control.Watch[*appsv1.ControllerRevision](c, nil)
	indexOwners(r.revisions)
	r.claims = control.Watch[*corev1.PersistentVolumeClaim](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"pods"}, "list", "watch", "create", "delete", "get", "patch", "update"),
		control.Rule("apps", []string{"statefulsets"}, "get", "list", "watch"),
		control.Rule("apps", []string{"statefulsets/status"}, "update"),
		control.Rule("apps", []string{"statefulsets/finalizers"}, "update"),
		control.Rule("apps", []string{"controllerrevisions"}, "create", "delete", "get", "list", "patch", "update", "watch"),
		control.Rule("", []string{"persistentvolumeclaims"}, "create", "delete", "get", "list", "patch", "update", "watch"),
		control.Rule("", []string{"pods/finalizers"}, "update"),
	)
	c.Reconcile = r.reconcile
	return c
}

// setWork is one reconciliation of a StatefulSet.
type setWork struct {
	*statefulSets
	key  control.Key
	set  *appsv1.StatefulSet
	view *setView
	revs revisions
}

func (r *statefulSets) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	set, ok := r.sets.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	sel, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		r.Log.Error("invalid selector", "ns", k.Namespace, "name", k.Name, "err", err)
		return control.Result{}, nil
	}
	w := &setWork{statefulSets: r, key: k, set: set, revs: revisions{c: r.Controller, key: k, inf: r.revisions, owner: set, kind: statefulSetKind}}
	history, err := w.history(ctx, sel)
	if err != nil {
		return control.Result{}, err
	}
	pods, err := w.claimPods(ctx, sel)
	if err != nil {
		return control.Result{}, err
	}
	if w.view, err = w.look(ctx, pods, history); err != nil {
		return control.Result{}, err
	}
	plan := planSet(w.view)
	err = w.do(ctx, plan)
	settleSet(set, &plan.status)
	if setStatusDiffers(set, plan.status) {
		err = errors.Join(err, w.writeStatus(ctx, plan.status))
	}
	live := liveSetRevisions(w.view)
	for _, rev := range beyondLimit(history, func(rev *appsv1.ControllerRevision) bool { return live[rev.Name] }, int(*set.Spec.RevisionHistoryLimit)) {
		err = errors.Join(err, w.revs.delete(ctx, rev))
	}
	if err != nil {
		return control.Result{}, err
	}
	if min := set.Spec.MinReadySeconds; min > 0 && plan.status.ReadyReplicas != plan.status.AvailableReplicas {
		if d := nextAvailable(pods, min, w.view.now); d > 0 {
			return control.Result{After: d}, nil
		}
		return control.Result{After: time.Duration(min) * time.Second}, nil
	}
	return control.Result{}, nil
}

func (w *setWork) fresh(ctx context.Context) (metav1.Object, error) {
	return client.For[*appsv1.StatefulSet](w.Client).In(w.set.Namespace).Get(ctx, w.set.Name)
}

// history are the set's revisions, orphans among them adopted, by number.
func (w *setWork) history(ctx context.Context, sel labels.Selector) ([]*appsv1.ControllerRevision, error) {
	m := &claimer[*appsv1.ControllerRevision]{c: w.Controller, key: w.key, inf: w.statefulSets.revisions, owner: w.set, gvk: statefulSetKind, fresh: w.fresh}
	var owned []*appsv1.ControllerRevision
	for _, rev := range w.statefulSets.revisions.ByIndex(byController, string(w.set.UID)) {
		if sel.Matches(labels.Set(rev.Labels)) {
			owned = append(owned, rev)
		}
	}
	all, err := m.claim(ctx, append(owned, w.statefulSets.revisions.ByIndex(orphans, w.set.Namespace)...), sel)
	slices.SortFunc(all, byRevision)
	return all, err
}

func (w *setWork) claimPods(ctx context.Context, sel labels.Selector) ([]*corev1.Pod, error) {
	m := &claimer[*corev1.Pod]{
		c: w.Controller, key: w.key, inf: w.pods, owner: w.set, gvk: statefulSetKind, fresh: w.fresh,
		member: func(p *corev1.Pod) bool { name, _ := ordinalOf(p.Name); return name == w.set.Name },
	}
	owned := w.pods.ByIndex(byController, string(w.set.UID))
	return m.claim(ctx, append(owned, w.pods.ByIndex(orphans, w.set.Namespace)...), sel)
}

// look finds the revisions that count, and makes the one of a new template.
func (w *setWork) look(ctx context.Context, pods []*corev1.Pod, history []*appsv1.ControllerRevision) (*setView, error) {
	v := &setView{set: w.set, pods: pods, claim: w.claim, now: w.now()}
	if n := w.set.Status.CollisionCount; n != nil {
		v.collisions = *n
	}
	next := int64(1)
	if n := len(history); n > 0 {
		next = history[n-1].Revision + 1
	}
	rev, err := w.revs.newRevision(&w.set.Spec.Template, next, v.collisions)
	if err != nil {
		return nil, err
	}
	same := -1
	for i, old := range history {
		if bytes.Equal(old.Data.Raw, rev.Data.Raw) {
			same = i
		}
	}
	switch {
	case same >= 0 && same == len(history)-1:
		v.update = history[same]
	case same >= 0: // back to a template of before
		again := history[same].DeepCopy()
		again.Revision = next
		v.update, err = w.revs.update(ctx, again)
	default:
		v.update, v.collisions, err = w.revs.create(ctx, rev, v.collisions)
	}
	if err != nil {
		return nil, err
	}
	v.current = v.update
	for _, rev := range history {
		if rev.Name == w.set.Status.CurrentRevision {
			v.current = rev
		}
	}
	now := &w.set.Spec.Template
	if v.currentTemplate, err = revisionTemplate(v.current, now); err != nil {
		return nil, err
	}
	v.updateTemplate, err = revisionTemplate(v.update, now)
	return v, err
}

func (w *setWork) claim(name string) *corev1.PersistentVolumeClaim {
	c, _ := w.claims.Get(w.set.Namespace, name)
	return c
}

// do does the plan's phases, up to the first that fails.
func (w *setWork) do(ctx context.Context, plan setPlan) error {
	ordered := w.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	for _, phase := range plan.phases {
		if ordered {
			for _, s := range phase {
				if err := w.step(ctx, s); err != nil {
					return err
				}
			}
			continue
		}
		if _, err := slowStart(len(phase), func() bool { return true }, func(i int) error { return w.step(ctx, phase[i]) }); err != nil {
			return err
		}
	}
	return nil
}

func (w *setWork) step(ctx context.Context, s setStep) error {
	switch s.action {
	case makePod:
		return w.makePod(ctx, s.pod)
	case deletePod, replacePod:
		return w.deletePod(ctx, s.pod)
	case makeClaims:
		if err := w.makeClaims(ctx, s.pod); err != nil {
			return err
		}
		if err := w.ownClaims(ctx, s.pod); err != nil {
			w.tell("Update", s.pod, err)
			return err
		}
		return nil
	case ownClaims:
		return w.ownClaims(ctx, s.pod)
	case repairPod:
		err := w.repair(ctx, s.pod)
		w.tell("Update", s.pod, err)
		return err
	}
	return fmt.Errorf("unknown step %q", s.action)
}

// tell records what became of a pod.
func (w *setWork) tell(verb string, p *corev1.Pod, err error) {
	if err != nil {
		w.Events.Event(w.set, corev1.EventTypeWarning, "Failed"+verb, "%s Pod %s in StatefulSet %s failed error: %s", verb, p.Name, w.set.Name, err)
		return
	}
	w.Events.Event(w.set, corev1.EventTypeNormal, "Successful"+verb, "%s Pod %s in StatefulSet %s successful", verb, p.Name, w.set.Name)
}

func (w *setWork) makePod(ctx context.Context, p *corev1.Pod) error {
	if err := w.makeClaims(ctx, p); err != nil {
		w.tell("Create", p, err)
		return err
	}
	got, err := client.For[*corev1.Pod](w.Client).In(w.set.Namespace).Create(ctx, p)
	if apierrors.IsAlreadyExists(err) {
		return err
	}
	if err == nil {
		control.Wrote(w.Pending, w.key, w.pods, got)
		if err := w.ownClaims(ctx, got); err != nil {
			w.tell("Update", p, err)
			return err
		}
	}
	w.tell("Create", p, err)
	return err
}

func (w *setWork) deletePod(ctx context.Context, p *corev1.Pod) error {
	uid := p.UID
	err := client.For[*corev1.Pod](w.Client).In(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	if err == nil {
		control.Removed(w.Pending, w.key, w.pods, p)
	}
	w.tell("Delete", p, err)
	return err
}

// repair gives a pod its labels, volumes and claims back.
func (w *setWork) repair(ctx context.Context, p *corev1.Pod) error {
	p = p.DeepCopy()
	identify(w.set, p)
	if !claimsMounted(w.set, p) {
		mountClaims(w.set, p)
		if err := w.makeClaims(ctx, p); err != nil {
			return err
		}
	}
	if err := w.ownClaims(ctx, p); err != nil {
		return err
	}
	got, err := client.For[*corev1.Pod](w.Client).Update(ctx, p)
	if err != nil {
		return err
	}
	control.Wrote(w.Pending, w.key, w.pods, got)
	return nil
}

// makeClaims makes the claims of a pod that do not exist.
func (w *setWork) makeClaims(ctx context.Context, p *corev1.Pod) error {
	var errs []error
	for _, c := range setClaims(w.set, p.Name) {
		if there := w.claim(c.Name); there != nil {
			if there.DeletionTimestamp != nil {
				errs = append(errs, fmt.Errorf("pvc %s is being deleted", c.Name))
			}
			continue
		}
		got, err := client.For[*corev1.PersistentVolumeClaim](w.Client).Create(ctx, c)
		switch {
		case err == nil:
			control.Wrote(w.Pending, w.key, w.claims, got)
			w.Events.Event(w.set, corev1.EventTypeNormal, "SuccessfulCreate", "Create Claim %s Pod %s in StatefulSet %s success", c.Name, p.Name, w.set.Name)
		case !apierrors.IsAlreadyExists(err):
			w.Events.Event(w.set, corev1.EventTypeWarning, "FailedCreate", "Create Claim %s for Pod %s in StatefulSet %s failed error: %s", c.Name, p.Name, w.set.Name, err)
			fallthrough
		default:
			errs = append(errs, fmt.Errorf("failed to create PVC %s: %w", c.Name, err))
		}
	}
	return errors.Join(errs...)
}

// ownClaims gives the claims of a pod the owners that the retention policy asks for.
func (w *setWork) ownClaims(ctx context.Context, p *corev1.Pod) error {
	for _, t := range setClaims(w.set, p.Name) {
		c := w.claim(t.Name)
		if c == nil {
			continue
		}
		if claimConflict(c, w.set, p) {
			w.Events.Event(w.set, corev1.EventTypeWarning, "ConflictingController", "PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim", c.Name)
		}
		if claimOwnersRight(c, w.set, p) {
			continue
		}
		c = c.DeepCopy()
		setClaimOwners(c, w.set, p)
		got, err := client.For[*corev1.PersistentVolumeClaim](w.Client).Update(ctx, c)
		if err != nil {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", c.Name, err)
		}
		control.Wrote(w.Pending, w.key, w.claims, got)
	}
	return nil
}

func (w *setWork) writeStatus(ctx context.Context, s appsv1.StatefulSetStatus) error {
	next := w.set.DeepCopy()
	next.Status = s
	got, err := client.For[*appsv1.StatefulSet](w.Client).UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	control.Wrote(w.Pending, w.key, w.sets, got)
	return nil
}
