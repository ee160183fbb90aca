package controller

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/client"
	"skiff/internal/control"
)

var deploymentKind = appsv1.SchemeGroupVersion.WithKind("Deployment")

// deployments rolls the ReplicaSets of every Deployment to its template. The
// arithmetic is in deployment_rollout.go; here is what it is applied to.
type deployments struct {
	*control.Controller
	now  func() time.Time
	all  *client.Informer[*appsv1.Deployment]
	sets *client.Informer[*appsv1.ReplicaSet]
	pods *client.Informer[*corev1.Pod]
}

func newDeployment(d Deps) *control.Controller {
	c := control.New("deployment-controller", d.Deps)
	r := &deployments{Controller: c, now: d.Clock()}
	r.all = control.Watch(c, control.Enqueue[*appsv1.Deployment](c))
	r.sets = control.Watch(c, enqueueOwners[*appsv1.ReplicaSet](c, r.all, "Deployment", func(d *appsv1.Deployment) (labels.Selector, error) {
		return metav1.LabelSelectorAsSelector(d.Spec.Selector)
	}))
	indexOwners(r.sets)
	r.pods = control.Watch(c, r.podChanged)
	indexOwners(r.pods)
	c.Writes = append(c.Writes,
		control.Rule("apps", []string{"deployments"}, "get", "list", "watch", "update"),
		control.Rule("apps", []string{"deployments/status"}, "update"),
		control.Rule("apps", []string{"deployments/finalizers"}, "update"),
		control.Rule("apps", []string{"replicasets"}, "create", "delete", "get", "list", "patch", "update", "watch"),
		control.Rule("", []string{"pods"}, "get", "list", "update", "watch"),
	)
	c.Reconcile = r.reconcile
	return c
}

// podChanged brings a recreating Deployment back when the last old pod is gone.
func (r *deployments) podChanged(ch client.Change[*corev1.Pod]) {
	p := ch.Object()
	if !ch.Deleted() && !podTerminal(p) {
		return
	}
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	rs, ok := r.sets.Get(p.Namespace, ref.Name)
	if !ok || rs.UID != ref.UID {
		return
	}
	owner := metav1.GetControllerOfNoCopy(rs)
	if owner == nil {
		return
	}
	if d, ok := r.all.Get(p.Namespace, owner.Name); ok && d.UID == owner.UID && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		r.Queue.Add(control.KeyOf(d))
	}
}

// rollout is one reconciliation of a Deployment. d is a copy: conditions,
// revision and collision count are changed in it as they come up, and written
// with the rest of the status, once.
type rollout struct {
	*deployments
	key      control.Key
	observed *appsv1.Deployment // as read
	d        *appsv1.Deployment
	new      *appsv1.ReplicaSet // nil until it exists
	old      []*appsv1.ReplicaSet
	after    time.Duration
}

func (r *deployments) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	observed, ok := r.all.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	o := &rollout{deployments: r, key: k, observed: observed, d: observed.DeepCopy()}
	if reflect.DeepEqual(o.d.Spec.Selector, &metav1.LabelSelector{}) {
		r.Events.Event(observed, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		o.d.Status.ObservedGeneration = max(o.d.Status.ObservedGeneration, o.d.Generation)
		return control.Result{}, o.writeStatus(ctx, o.d.Status)
	}
	if err := o.run(ctx); err != nil {
		// What was found out on the way (a failure to create, a collision) must
		// be seen although the reconciliation is to come again.
		if statusErr := o.writeStatus(ctx, o.d.Status); statusErr != nil && !apierrors.IsConflict(statusErr) {
			r.Log.Debug("cannot write status", "ns", k.Namespace, "deployment", k.Name, "err", statusErr)
		}
		return control.Result{}, err
	}
	return control.Result{After: o.after}, nil
}

func (o *rollout) run(ctx context.Context) error {
	sets, err := o.claimSets(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(sets, older)
	o.new = newestMatch(o.d, sets)
	for _, rs := range sets {
		if rs != o.new {
			o.old = append(o.old, rs)
		}
	}
	if o.d.DeletionTimestamp != nil {
		return o.settleStatus(ctx)
	}
	markPaused(o.d, o.now())
	if err := o.syncRevision(ctx); err != nil {
		return err
	}
	if o.d.Spec.Paused {
		return o.scaleOnly(ctx)
	}
	if rev, ok := rollbackTo(o.d); ok {
		return o.rollback(ctx, rev)
	}
	if scalesFirst(o.d, o.sets()) {
		return o.scaleOnly(ctx)
	}
	switch o.d.Spec.Strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		return o.recreate(ctx)
	case appsv1.RollingUpdateDeploymentStrategyType:
		return o.rolling(ctx)
	}
	return fmt.Errorf("unexpected deployment strategy type: %s", o.d.Spec.Strategy.Type)
}

func (o *rollout) claimSets(ctx context.Context) ([]*appsv1.ReplicaSet, error) {
	sel, err := metav1.LabelSelectorAsSelector(o.d.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("deployment %s/%s has invalid label selector: %w", o.d.Namespace, o.d.Name, err)
	}
	m := &claimer[*appsv1.ReplicaSet]{
		c: o.Controller, key: o.key, inf: o.deployments.sets, owner: o.d, gvk: deploymentKind,
		fresh: func(ctx context.Context) (metav1.Object, error) {
			return client.For[*appsv1.Deployment](o.Client).In(o.d.Namespace).Get(ctx, o.d.Name)
		},
	}
	owned := o.deployments.sets.ByIndex(byController, string(o.d.UID))
	return m.claim(ctx, append(owned, o.deployments.sets.ByIndex(orphans, o.d.Namespace)...), sel)
}

// sets are all ReplicaSets of the Deployment, the new one, where there is one, last.
func (o *rollout) sets() []*appsv1.ReplicaSet {
	if o.new == nil {
		return slices.Clone(o.old)
	}
	return append(slices.Clone(o.old), o.new)
}

// replace puts a newer version of a ReplicaSet where the older was.
func (o *rollout) replace(rs *appsv1.ReplicaSet) {
	if o.new != nil && o.new.UID == rs.UID {
		o.new = rs
	}
	for i := range o.old {
		if o.old[i].UID == rs.UID {
			o.old[i] = rs
		}
	}
}

func (o *rollout) writeSet(ctx context.Context, rs *appsv1.ReplicaSet) error {
	got, err := client.For[*appsv1.ReplicaSet](o.Client).Update(ctx, rs)
	if err != nil {
		return err
	}
	control.Wrote(o.Pending, o.key, o.deployments.sets, got)
	o.replace(got)
	return nil
}

// syncRevision keeps the new ReplicaSet's annotations and the Deployment's
// revision current.
func (o *rollout) syncRevision(ctx context.Context) error {
	if o.new == nil {
		return nil
	}
	rs := o.new.DeepCopy()
	changed := annotateNew(o.d, rs, maxRevision(o.old)+1, true)
	if changed || rs.Spec.MinReadySeconds != o.d.Spec.MinReadySeconds {
		rs.Spec.MinReadySeconds = o.d.Spec.MinReadySeconds
		if err := o.writeSet(ctx, rs); err != nil {
			return err
		}
	}
	setRevision(o.d, o.new.Annotations[revisionAnnotation])
	if hasDeadline(o.d) && condition(&o.d.Status, appsv1.DeploymentProgressing) == nil {
		setCondition(&o.d.Status, o.now(), appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", o.new.Name))
	}
	return nil
}

// createNew makes the ReplicaSet of the current template.
func (o *rollout) createNew(ctx context.Context) error {
	rs := newReplicaSetFor(o.d)
	n, err := newSetSize(o.d, append(o.sets(), rs), rs)
	if err != nil {
		return err
	}
	rs.Spec.Replicas = &n
	revision := maxRevision(o.old) + 1
	annotateNew(o.d, rs, revision, false)
	sets := client.For[*appsv1.ReplicaSet](o.Client).In(o.d.Namespace)
	got, err := sets.Create(ctx, rs)
	existed := apierrors.IsAlreadyExists(err)
	switch {
	case err == nil:
		control.Wrote(o.Pending, o.key, o.deployments.sets, got)
	case existed:
		there, getErr := sets.Get(ctx, rs.Name)
		if getErr != nil {
			return getErr
		}
		if ref := metav1.GetControllerOfNoCopy(there); ref == nil || ref.UID != o.d.UID || !sameTemplate(&o.d.Spec.Template, &there.Spec.Template) {
			// Another template with the same hash: the next try hashes with
			// the collision count.
			count := int32(1)
			if c := o.d.Status.CollisionCount; c != nil {
				count = *c + 1
			}
			o.d.Status.CollisionCount = &count
			return err
		}
		got = there
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return err
	default:
		msg := fmt.Sprintf("Failed to create new replica set %q: %v", rs.Name, err)
		if hasDeadline(o.d) {
			setCondition(&o.d.Status, o.now(), appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", msg)
		}
		o.Events.Event(o.d, corev1.EventTypeWarning, "ReplicaSetCreateError", "%s", msg)
		return err
	}
	o.new = got
	if !existed && n > 0 {
		o.Events.Event(o.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", got.Name, n)
	}
	setRevision(o.d, strconv.FormatInt(revision, 10))
	if !existed && hasDeadline(o.d) {
		setCondition(&o.d.Status, o.now(), appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", got.Name))
	}
	return nil
}

// resize is a ReplicaSet's new size.
type resize struct {
	rs *appsv1.ReplicaSet
	to int32
}

// apply writes sizes, and with them what they were computed from; it tells whether
// any size changed.
func (o *rollout) apply(ctx context.Context, sizes []resize) (bool, error) {
	changed := false
	for _, s := range sizes {
		from := *s.rs.Spec.Replicas
		rs := s.rs.DeepCopy()
		rs.Spec.Replicas = &s.to
		annotated := annotateSizes(rs, *o.d.Spec.Replicas, *o.d.Spec.Replicas+maxSurge(o.d))
		if from == s.to && !annotated {
			continue
		}
		if err := o.writeSet(ctx, rs); err != nil {
			return changed, err
		}
		if from == s.to {
			continue
		}
		changed = true
		way := "up"
		if from > s.to {
			way = "down"
		}
		o.Events.Event(o.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", way, s.rs.Name, from, s.to)
	}
	return changed, nil
}

// scaleOnly brings the ReplicaSets to the Deployment's size and rolls nothing:
// for a paused Deployment, and before a rollout goes on after scaling.
func (o *rollout) scaleOnly(ctx context.Context) error {
	if _, err := o.apply(ctx, proportionalSizes(o.d, o.new, o.old)); err != nil {
		return err
	}
	if o.d.Spec.Paused {
		if _, rolling := rollbackTo(o.d); !rolling {
			if err := o.cleanUp(ctx); err != nil {
				return err
			}
		}
	}
	return o.settleStatus(ctx)
}

func (o *rollout) rolling(ctx context.Context) error {
	if o.new == nil {
		if err := o.createNew(ctx); err != nil {
			return err
		}
	}
	n := *o.d.Spec.Replicas
	if *o.new.Spec.Replicas < n {
		var err error
		if n, err = newSetSize(o.d, o.sets(), o.new); err != nil {
			return err
		}
	}
	if *o.new.Spec.Replicas != n {
		if scaled, err := o.apply(ctx, []resize{{o.new, n}}); err != nil || scaled {
			return o.progress(ctx, err)
		}
	}
	if scaled, err := o.apply(ctx, shrinkOld(o.d, o.new, o.old)); err != nil || scaled {
		return o.progress(ctx, err)
	}
	return o.finish(ctx)
}

func (o *rollout) recreate(ctx context.Context) error {
	var down []resize
	for _, rs := range o.old {
		if *rs.Spec.Replicas > 0 {
			down = append(down, resize{rs, 0})
		}
	}
	if scaled, err := o.apply(ctx, down); err != nil || scaled {
		return o.progress(ctx, err)
	}
	if o.oldPodsLeft() {
		return o.progress(ctx, nil)
	}
	if o.new == nil {
		if err := o.createNew(ctx); err != nil {
			return err
		}
	}
	if n := *o.d.Spec.Replicas; *o.new.Spec.Replicas != n {
		if _, err := o.apply(ctx, []resize{{o.new, n}}); err != nil {
			return err
		}
	}
	return o.finish(ctx)
}

func (o *rollout) oldPodsLeft() bool {
	for _, rs := range o.old {
		if rs.Status.Replicas > 0 {
			return true
		}
		for _, p := range o.pods.ByIndex(byController, string(rs.UID)) {
			if !podTerminal(p) {
				return true
			}
		}
	}
	return false
}

func (o *rollout) finish(ctx context.Context) error {
	if complete(o.d, &o.d.Status) {
		if err := o.cleanUp(ctx); err != nil {
			return err
		}
	}
	return o.progress(ctx, nil)
}

// cleanUp deletes old ReplicaSets beyond the history limit.
func (o *rollout) cleanUp(ctx context.Context) error {
	for _, rs := range beyondHistory(o.d, o.old) {
		uid := rs.UID
		err := client.For[*appsv1.ReplicaSet](o.Client).In(rs.Namespace).Delete(ctx, rs.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		control.Removed(o.Pending, o.key, o.deployments.sets, rs)
	}
	return nil
}

// rollback puts a former template back, as the annotation of extensions/v1beta1
// asks; kubectl undo patches the template itself.
func (o *rollout) rollback(ctx context.Context, revision int64) error {
	if o.new == nil {
		if err := o.createNew(ctx); err != nil {
			return err
		}
	}
	if revision == 0 {
		if revision = previousRevision(o.sets()); revision == 0 {
			o.Events.Event(o.d, corev1.EventTypeWarning, "DeploymentRollbackRevisionNotFound", "Unable to find last revision.")
			return o.endRollback(ctx)
		}
	}
	for _, rs := range o.sets() {
		if v, ok := revisionOf(rs); !ok || v != revision {
			continue
		}
		if sameTemplate(&o.d.Spec.Template, &rs.Spec.Template) {
			o.Events.Event(o.d, corev1.EventTypeWarning, "DeploymentRollbackTemplateUnchanged", "The rollback revision contains the same template as current deployment %q", o.d.Name)
			return o.endRollback(ctx)
		}
		restoreTemplate(o.d, rs)
		if err := o.endRollback(ctx); err != nil {
			return err
		}
		o.Events.Event(o.d, corev1.EventTypeNormal, "DeploymentRollback", "Rolled back deployment %q to revision %d", o.d.Name, revision)
		return nil
	}
	o.Events.Event(o.d, corev1.EventTypeWarning, "DeploymentRollbackRevisionNotFound", "Unable to find the revision to rollback to.")
	return o.endRollback(ctx)
}

func (o *rollout) endRollback(ctx context.Context) error {
	delete(o.d.Annotations, appsv1.DeprecatedRollbackTo)
	got, err := client.For[*appsv1.Deployment](o.Client).Update(ctx, o.d)
	if err != nil {
		return err
	}
	control.Wrote(o.Pending, o.key, o.all, got)
	return nil
}

// settleStatus writes the counts without judging progress.
func (o *rollout) settleStatus(ctx context.Context) error {
	return o.writeStatus(ctx, deploymentStatus(o.d, o.new, o.sets(), o.now()))
}

// progress writes the counts and what they say about the rollout. err is an error
// of the step before, which stays the answer.
func (o *rollout) progress(ctx context.Context, err error) error {
	if err != nil {
		return err
	}
	status := rolloutStatus(o.d, o.new, o.sets(), o.now())
	o.after = progressCheck(o.d, &status, o.now())
	return o.writeStatus(ctx, status)
}

func (o *rollout) writeStatus(ctx context.Context, s appsv1.DeploymentStatus) error {
	if reflect.DeepEqual(s, o.observed.Status) && o.d.Annotations[revisionAnnotation] == o.observed.Annotations[revisionAnnotation] {
		return nil
	}
	next := o.observed.DeepCopy()
	next.Status = s
	if v := o.d.Annotations[revisionAnnotation]; v != "" {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, revisionAnnotation, v)
	}
	got, err := client.For[*appsv1.Deployment](o.Client).UpdateStatus(ctx, next)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	control.Wrote(o.Pending, o.key, o.all, got)
	return nil
}
