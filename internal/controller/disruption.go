package controller

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	// evictionGrace is how long an evicted pod counts as gone before its deletion is
	// seen.
	evictionGrace = 2 * time.Minute
	// staleDisruption is how long a pod that is not deleted is marked as about to be
	// disrupted.
	staleDisruption = 2 * time.Minute
)

// disruptions keeps the status of every PodDisruptionBudget, by which evictions are
// granted.
type disruptions struct {
	*control.Controller
	d           Deps
	now         func() time.Time
	budgets     *client.Informer[*policyv1.PodDisruptionBudget]
	pods        *client.Informer[*corev1.Pod]
	replicaSets *client.Informer[*appsv1.ReplicaSet]
	deployments *client.Informer[*appsv1.Deployment]
	statefuls   *client.Informer[*appsv1.StatefulSet]
	replication *client.Informer[*corev1.ReplicationController]
	// marked are pods with the condition DisruptionTarget.
	marked *control.Queue[control.Key]
}

func newDisruption(d Deps) *control.Controller {
	c := control.New("disruption-controller", d.Deps)
	c.ReportAs("controllermanager")
	r := &disruptions{Controller: c, d: d, now: d.Clock(), marked: control.NewQueue[control.Key]()}
	control.Measure(c, "stale_pod_disruption", r.marked)
	r.budgets = control.Watch(c, control.Enqueue[*policyv1.PodDisruptionBudget](c))
	r.pods = control.Watch(c, r.podChanged)
	r.replicaSets = control.Watch[*appsv1.ReplicaSet](c, nil)
	r.deployments = control.Watch[*appsv1.Deployment](c, nil)
	r.statefuls = control.Watch[*appsv1.StatefulSet](c, nil)
	r.replication = control.Watch[*corev1.ReplicationController](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("policy", []string{"poddisruptionbudgets"}, "get", "list", "watch"),
		control.Rule("policy", []string{"poddisruptionbudgets/status"}, "update"),
		control.Rule("", []string{"pods/status"}, "patch", "update"),
		control.Rule("*", []string{"*/scale"}, "get"),
		control.Rule("*", []string{"*"}, "get"),
	)
	c.Reconcile = r.reconcile
	c.Loop = func(ctx context.Context) error {
		r.marked.Work(ctx, 1, r.unmark)
		return nil
	}
	return c
}

func (r *disruptions) podChanged(ch client.Change[*corev1.Pod]) {
	p := ch.Object()
	for _, b := range r.budgets.List(p.Namespace, nil) {
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue
		}
		if sel.Matches(labels.Set(p.Labels)) || ch.Old != nil && sel.Matches(labels.Set(ch.Old.Labels)) {
			r.Queue.Add(control.KeyOf(b))
		}
	}
	if !ch.Deleted() {
		if left, ok := markedFor(p, r.now()); ok {
			r.marked.AddAfter(control.KeyOf(p), left)
		}
	}
}

// markedFor tells that p is marked as about to be disrupted and is not, and how long
// it stays so.
func markedFor(p *corev1.Pod, now time.Time) (time.Duration, bool) {
	c := podCondition(p, corev1.DisruptionTarget)
	if c == nil || c.Status != corev1.ConditionTrue || c.Reason == corev1.PodReasonTerminationByKubelet || p.DeletionTimestamp != nil || podTerminal(p) {
		return 0, false
	}
	return max(0, c.LastTransitionTime.Add(staleDisruption).Sub(now)), true
}

func (r *disruptions) unmark(ctx context.Context, k control.Key) (time.Duration, error) {
	p, ok := r.pods.Get(k.Namespace, k.Name)
	if !ok {
		return 0, nil
	}
	left, ok := markedFor(p, r.now())
	if !ok {
		return 0, nil
	}
	if left > 0 {
		r.marked.AddAfter(k, left)
		return 0, nil
	}
	p = p.DeepCopy()
	c := podCondition(p, corev1.DisruptionTarget)
	*c = corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(r.now()), ObservedGeneration: c.ObservedGeneration}
	_, err := client.For[*corev1.Pod](r.Client).UpdateStatus(ctx, p)
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return 0, err
}

func (r *disruptions) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	b, ok := r.budgets.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	after, err := r.sync(ctx, k, b)
	if err == nil || apierrors.IsConflict(err) {
		return control.Result{After: after}, err
	}
	// What cannot be counted must not be disrupted.
	failed := b.DeepCopy()
	failed.Status.DisruptionsAllowed = 0
	r.setCondition(&failed.Status, metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error())
	if equality.Semantic.DeepEqual(failed.Status, b.Status) {
		return control.Result{}, nil
	}
	return control.Result{}, r.writeStatus(ctx, k, failed)
}

func (r *disruptions) setCondition(s *policyv1.PodDisruptionBudgetStatus, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message, ObservedGeneration: s.ObservedGeneration,
		LastTransitionTime: metav1.NewTime(r.now()),
	})
}

func (r *disruptions) sync(ctx context.Context, k control.Key, b *policyv1.PodDisruptionBudget) (time.Duration, error) {
	sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		r.Events.Event(b, corev1.EventTypeWarning, "NoPods", "Failed to get pods: %v", err)
		return 0, err
	}
	pods := r.pods.List(b.Namespace, sel)
	if len(pods) == 0 {
		r.Events.Event(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	expected, desired, unmanaged, err := r.expect(ctx, b, pods)
	if err != nil {
		r.Events.Event(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		return 0, err
	}
	if unmanaged {
		r.Events.Event(b, corev1.EventTypeWarning, "UnmanagedPods", "Pods selected by this PodDisruptionBudget (selector: %v) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.", b.Spec.Selector)
	}
	now := r.now()
	next := b.DeepCopy()
	late, after := budgetStatus(&next.Status, pods, expected, desired, now)
	next.Status.ObservedGeneration = b.Generation
	for _, p := range late {
		// The namespace twice is upstream's text.
		r.Events.Event(p, corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Namespace)
	}
	if next.Status.DisruptionsAllowed > 0 {
		r.setCondition(&next.Status, metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		r.setCondition(&next.Status, metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	if equality.Semantic.DeepEqual(next.Status, b.Status) {
		return after, nil
	}
	return after, r.writeStatus(ctx, k, next)
}

// budgetStatus counts pods into s. Evicted pods of which the deletion has not come in
// time are returned as late and count again; after is when the next of them does.
func budgetStatus(s *policyv1.PodDisruptionBudgetStatus, pods []*corev1.Pod, expected, desired int32, now time.Time) (late []*corev1.Pod, after time.Duration) {
	disrupted := map[string]metav1.Time{}
	healthy := int32(0)
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		if t, ok := s.DisruptedPods[p.Name]; ok {
			left := t.Add(evictionGrace).Sub(now)
			if left >= 0 {
				disrupted[p.Name] = t
				if after == 0 || left < after {
					after = max(left, time.Millisecond)
				}
				if left > 0 {
					continue
				}
			} else {
				late = append(late, p)
			}
		}
		if podReady(p) {
			healthy++
		}
	}
	if s.DisruptedPods == nil && len(disrupted) == 0 {
		disrupted = nil
	}
	s.DisruptedPods, s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods = disrupted, healthy, desired, expected
	s.DisruptionsAllowed = max(0, healthy-desired)
	if expected <= 0 {
		s.DisruptionsAllowed = 0
	}
	return late, after
}

func (r *disruptions) writeStatus(ctx context.Context, k control.Key, b *policyv1.PodDisruptionBudget) error {
	got, err := client.For[*policyv1.PodDisruptionBudget](r.Client).UpdateStatus(ctx, b)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	control.Wrote(r.Pending, k, r.budgets, got)
	return nil
}

// expect is how many pods there should be, and how many of them healthy.
func (r *disruptions) expect(ctx context.Context, b *policyv1.PodDisruptionBudget, pods []*corev1.Pod) (expected, desired int32, unmanaged bool, err error) {
	limit, least := b.Spec.MaxUnavailable, b.Spec.MinAvailable
	switch {
	case limit == nil && least == nil:
		return 0, 0, false, nil
	case limit == nil && least.Type == intstr.Int:
		return int32(len(pods)), least.IntVal, false, nil
	}
	if expected, unmanaged, err = r.scale(ctx, pods); err != nil {
		return 0, 0, unmanaged, err
	}
	which := limit
	if limit == nil {
		which = least
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(which, int(expected), true)
	if err != nil {
		return 0, 0, unmanaged, err
	}
	if limit != nil {
		return expected, max(0, expected-int32(n)), unmanaged, nil
	}
	return expected, int32(n), unmanaged, nil
}

// scale adds up the sizes of the pods' controllers.
func (r *disruptions) scale(ctx context.Context, pods []*corev1.Pod) (n int32, unmanaged bool, err error) {
	seen := map[types.UID]bool{}
	sizes := map[types.UID]int32{}
	for _, p := range pods {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			unmanaged = true
			continue
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		uid, size, ok, err := r.sizeOf(ctx, ref, p.Namespace)
		if err != nil {
			return 0, unmanaged, err
		}
		if !ok {
			return 0, unmanaged, fmt.Errorf("found no controllers for pod %q", p.Name)
		}
		sizes[uid] = size
	}
	for _, size := range sizes {
		n += size
	}
	return n, unmanaged, nil
}

// sizeOf is the size of a controller, or of the Deployment above it.
func (r *disruptions) sizeOf(ctx context.Context, ref *metav1.OwnerReference, ns string) (uid types.UID, size int32, ok bool, err error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return "", 0, false, err
	}
	switch {
	case gv.Group == "apps" && ref.Kind == "ReplicaSet":
		rs, ok := r.replicaSets.Get(ns, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, false, nil
		}
		above := metav1.GetControllerOfNoCopy(rs)
		if above == nil || above.Kind != "Deployment" {
			return rs.UID, *rs.Spec.Replicas, true, nil
		}
		d, ok := r.deployments.Get(ns, above.Name)
		if !ok || d.UID != above.UID {
			return "", 0, false, nil
		}
		return d.UID, *d.Spec.Replicas, true, nil
	case gv.Group == "apps" && ref.Kind == "StatefulSet":
		s, ok := r.statefuls.Get(ns, ref.Name)
		if !ok || s.UID != ref.UID {
			return "", 0, false, nil
		}
		return s.UID, *s.Spec.Replicas, true, nil
	case gv.Group == "" && ref.Kind == "ReplicationController":
		rc, ok := r.replication.Get(ns, ref.Name)
		if !ok || rc.UID != ref.UID {
			return "", 0, false, nil
		}
		return rc.UID, *rc.Spec.Replicas, true, nil
	}
	return r.scaleOf(ctx, ref, gv, ns)
}

// scaleOf asks the scale subresource of any other kind.
func (r *disruptions) scaleOf(ctx context.Context, ref *metav1.OwnerReference, gv schema.GroupVersion, ns string) (types.UID, int32, bool, error) {
	all, err := r.d.resources(ctx)
	if err != nil {
		return "", 0, false, err
	}
	for _, res := range all {
		if res.Kind != ref.Kind || res.GVR.Group != gv.Group {
			continue
		}
		at := client.Ref{GVR: res.GVR, Namespace: ns, Name: ref.Name}
		door := at
		door.Subresource = "scale"
		o, err := r.Client.Transport().Get(ctx, door, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			// The object is gone, or it has no such door.
			if _, err = r.Client.Transport().Get(ctx, at, metav1.GetOptions{}); apierrors.IsNotFound(err) {
				return "", 0, false, nil
			}
			if err == nil {
				err = fmt.Errorf("%s does not implement the scale subresource", res.GVR.GroupResource())
			}
		}
		if err != nil {
			return "", 0, false, err
		}
		s, ok := o.(*autoscalingv1.Scale)
		if !ok {
			return "", 0, false, fmt.Errorf("scale of %s %q is a %T", res.GVR.GroupResource(), ref.Name, o)
		}
		return s.UID, s.Spec.Replicas, s.UID == ref.UID, nil
	}
	return "", 0, false, &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: gv.Group, Kind: ref.Kind}, SearchedVersions: []string{gv.Version}}
}
