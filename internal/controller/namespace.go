package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/client"
	"skiff/internal/control"
)

// namespaces empties namespaces that are being deleted, pods first: what they use
// (secrets, accounts) stays until they are gone. When nothing is left it takes the
// finalizer "kubernetes" off, and the API server removes the namespace.
type namespaces struct {
	*control.Controller
	d    Deps
	now  func() time.Time
	all  *client.Informer[*corev1.Namespace]
	pods *client.Informer[*corev1.Pod]
}

var podsResource = corev1.SchemeGroupVersion.WithResource("pods")

func newNamespace(d Deps) *control.Controller {
	c := control.New("namespace-controller", d.Deps)
	n := &namespaces{Controller: c, d: d, now: d.Clock()}
	if n.d.NamespaceSettle == 0 {
		n.d.NamespaceSettle = 2 * time.Second
	}
	n.all = control.Watch(c, func(ch client.Change[*corev1.Namespace]) {
		if !ch.Deleted() && ch.New.DeletionTimestamp != nil {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	n.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if !ch.Deleted() {
			return
		}
		if ns, ok := n.all.Get("", ch.Old.Namespace); ok && ns.DeletionTimestamp != nil {
			c.Queue.Add(control.KeyOf(ns))
		}
	})
	c.Workers = 10
	c.Writes = append(c.Writes,
		control.Rule("", []string{"namespaces"}, "delete", "get", "list", "watch"),
		control.Rule("", []string{"namespaces/finalize", "namespaces/status"}, "update"),
		control.Rule("*", []string{"*"}, "delete", "deletecollection", "get", "list"),
	)
	c.Reconcile = n.reconcile
	return c
}

// remains is what is left of a resource after asking for its deletion.
type remains struct {
	count      int
	finalizers map[string]int
	// wait is how long the rest may take, in seconds, 0 where nothing says.
	wait int64
}

func (n *namespaces) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	ns, ok := n.all.Get("", k.Name)
	if !ok || ns.DeletionTimestamp == nil {
		return control.Result{}, nil
	}
	api := client.For[*corev1.Namespace](n.Client)
	if ns.Status.Phase != corev1.NamespaceTerminating {
		next := ns.DeepCopy()
		next.Status.Phase = corev1.NamespaceTerminating
		got, err := api.UpdateStatus(ctx, next)
		if err != nil {
			return control.Result{}, ignoreGone(err)
		}
		control.Wrote(n.Pending, k, n.all, got)
		ns = got
	}
	if len(ns.Spec.Finalizers) == 0 {
		return control.Result{}, nil
	}
	report := n.empty(ctx, ns)
	if next := ns.DeepCopy(); report.apply(&next.Status, n.now()) {
		got, err := api.UpdateStatus(ctx, next)
		if err != nil {
			return control.Result{}, ignoreGone(err)
		}
		control.Wrote(n.Pending, k, n.all, got)
		ns = got
	}
	if err := errors.Join(report.errs...); err != nil {
		return control.Result{}, err
	}
	if report.wait > 0 || len(report.left) > 0 {
		// The last pod's end brings the namespace back at once; the rest is
		// looked at again in half of the time that it may take.
		return control.Result{After: time.Duration(report.wait/2+1) * time.Second}, nil
	}
	if early := ns.DeletionTimestamp.Add(n.d.NamespaceSettle).Sub(n.now()); early > 0 {
		return control.Result{After: early}, nil
	}
	return control.Result{}, n.finalize(ctx, ns)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (n *namespaces) finalize(ctx context.Context, ns *corev1.Namespace) error {
	next := ns.DeepCopy()
	next.Spec.Finalizers = slices.DeleteFunc(next.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	ref := client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("namespaces"), Name: ns.Name, Subresource: "finalize"}
	_, err := n.Client.Transport().Update(ctx, ref, next, metav1.UpdateOptions{})
	return ignoreGone(err)
}

// empty asks for the deletion of everything in ns and reports what is left.
func (n *namespaces) empty(ctx context.Context, ns *corev1.Namespace) *deletionReport {
	r := &deletionReport{left: map[schema.GroupVersionResource]int{}, finalizers: map[string]int{}}
	all, err := n.d.resources(ctx)
	if err != nil {
		r.errs = append(r.errs, err)
		r.discovery = err
	}
	var rest []Resource
	hasPods := false
	for _, res := range all {
		switch {
		case !res.Namespaced || !res.can("delete"):
		case res.GVR == podsResource:
			hasPods = true
			left, err := n.emptyOf(ctx, res, ns)
			r.add(res.GVR, left, err)
			if err != nil {
				r.errs[len(r.errs)-1] = fmt.Errorf("failed to delete pods for namespace: %s, err: %w", ns.Name, err)
			}
		default:
			rest = append(rest, res)
		}
	}
	if hasPods && r.left[podsResource] > 0 {
		return r
	}
	// The same objects under two groups (events) need no second round.
	seen := map[string]bool{}
	for _, res := range rest {
		if res.GVR.Resource == "events" && seen["events"] {
			continue
		}
		seen[res.GVR.Resource] = true
		left, err := n.emptyOf(ctx, res, ns)
		r.add(res.GVR, left, err)
	}
	return r
}

func (n *namespaces) emptyOf(ctx context.Context, res Resource, ns *corev1.Namespace) (remains, error) {
	wait := int64(0)
	if res.GVR == podsResource {
		wait = n.podsWait(ns)
	}
	t := n.Client.Transport()
	ref := client.Ref{GVR: res.GVR, Namespace: ns.Name}
	background := metav1.DeletePropagationBackground
	opts := metav1.DeleteOptions{PropagationPolicy: &background}
	list := func() ([]client.Object, error) {
		if !res.can("list") {
			return nil, nil
		}
		l, err := t.List(ctx, ref, metav1.ListOptions{})
		if unsupported(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return l.Items, nil
	}
	items, err := list()
	if err != nil {
		return remains{wait: wait}, err
	}
	if res.can("list") && len(items) == 0 {
		return remains{}, nil
	}
	err = nil
	collection := res.can("deletecollection")
	if collection {
		if err = t.DeleteCollection(ctx, ref, opts, metav1.ListOptions{}); unsupported(err) {
			collection, err = false, nil
		}
	}
	if !collection {
		for _, it := range items {
			one := ref
			one.Name = it.GetName()
			if _, e := t.Delete(ctx, one, opts); e != nil && !unsupported(e) {
				err = e
				break
			}
		}
	}
	if err != nil {
		return remains{wait: wait}, err
	}
	if items, err = list(); err != nil {
		return remains{wait: wait}, err
	}
	left := remains{count: len(items), finalizers: map[string]int{}, wait: wait}
	for _, it := range items {
		for _, f := range it.GetFinalizers() {
			left.finalizers[f]++
		}
	}
	switch {
	case left.count == 0:
		left.wait = 0
	case wait != 0:
	case len(left.finalizers) > 0:
		left.wait = 15
	default:
		return left, fmt.Errorf("unexpected items still remain in namespace: %s for gvr: %v", ns.Name, res.GVR)
	}
	return left, nil
}

func unsupported(err error) bool {
	return apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err)
}

// podsWait is the longest grace period of the namespace's pods, or 0 once it has
// passed.
func (n *namespaces) podsWait(ns *corev1.Namespace) int64 {
	most := int64(0)
	for _, p := range n.pods.List(ns.Name, nil) {
		if podTerminal(p) {
			continue
		}
		if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
			most = max(most, *g)
		}
	}
	if n.now().Sub(ns.DeletionTimestamp.Time) >= time.Duration(most)*time.Second {
		return 0
	}
	return most
}

// deletionReport collects what became of a namespace's contents.
type deletionReport struct {
	left       map[schema.GroupVersionResource]int
	finalizers map[string]int
	wait       int64
	discovery  error
	failed     []error
	errs       []error
}

func (r *deletionReport) add(gvr schema.GroupVersionResource, left remains, err error) {
	if err != nil {
		r.errs = append(r.errs, err)
		r.failed = append(r.failed, err)
	}
	r.wait = max(r.wait, left.wait)
	if left.count > 0 {
		r.left[gvr] = left.count
	}
	for f, n := range left.finalizers {
		r.finalizers[f] += n
	}
}

// apply puts the conditions into s and tells whether one changed.
func (r *deletionReport) apply(s *corev1.NamespaceStatus, now time.Time) bool {
	type verdict struct {
		t               corev1.NamespaceConditionType
		okReason, okMsg string
		reason, message string // of a failure, empty where all is well
	}
	verdicts := []verdict{
		{t: corev1.NamespaceDeletionDiscoveryFailure, okReason: "ResourcesDiscovered", okMsg: "All resources successfully discovered"},
		{t: corev1.NamespaceDeletionGVParsingFailure, okReason: "ParsedGroupVersions", okMsg: "All legacy kube types successfully parsed"},
		{t: corev1.NamespaceDeletionContentFailure, okReason: "ContentDeleted", okMsg: "All content successfully deleted, may be waiting on finalization"},
		{t: corev1.NamespaceContentRemaining, okReason: "ContentRemoved", okMsg: "All content successfully removed"},
		{t: corev1.NamespaceFinalizersRemaining, okReason: "ContentHasNoFinalizers", okMsg: "All content-preserving finalizers finished"},
	}
	if r.discovery != nil {
		verdicts[0].reason, verdicts[0].message = "DiscoveryFailed", r.discovery.Error()
	}
	if len(r.failed) > 0 {
		var texts []string
		for _, err := range r.failed {
			texts = append(texts, err.Error())
		}
		slices.Sort(texts)
		verdicts[2].reason = "ContentDeletionFailed"
		verdicts[2].message = fmt.Sprintf("Failed to delete all resource types, %d remaining: %v", len(texts), strings.Join(texts, ", "))
	}
	if len(r.left) > 0 {
		var texts []string
		for gvr, n := range r.left {
			texts = append(texts, fmt.Sprintf("%s.%s has %d resource instances", gvr.Resource, gvr.Group, n))
		}
		slices.Sort(texts)
		verdicts[3].reason, verdicts[3].message = "SomeResourcesRemain", "Some resources are remaining: "+strings.Join(texts, ", ")
	}
	if len(r.finalizers) > 0 {
		var texts []string
		for f, n := range r.finalizers {
			texts = append(texts, fmt.Sprintf("%s in %d resource instances", f, n))
		}
		slices.Sort(texts)
		verdicts[4].reason, verdicts[4].message = "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: "+strings.Join(texts, ", ")
	}
	changed := false
	for _, v := range verdicts {
		c := corev1.NamespaceCondition{Type: v.t, Status: corev1.ConditionFalse, Reason: v.okReason, Message: v.okMsg}
		if v.reason != "" {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, v.reason, v.message
		}
		i := slices.IndexFunc(s.Conditions, func(o corev1.NamespaceCondition) bool { return o.Type == v.t })
		if i < 0 {
			c.LastTransitionTime = metav1.NewTime(now)
			s.Conditions = append(s.Conditions, c)
			changed = true
			continue
		}
		old := &s.Conditions[i]
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			continue
		}
		c.LastTransitionTime = old.LastTransitionTime
		if old.Status != c.Status {
			c.LastTransitionTime = metav1.NewTime(now)
		}
		*old, changed = c, true
	}
	return changed
}
