package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/quota"
	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/control"
)

// quotaResync is how often every quota is counted anew, for the kinds that are not
// watched.
const quotaResync = 5 * time.Minute

// quotaRest is how long a quota's status must have been as it is before less is
// written than it says: what was admitted last has come into being by then. Where
// admission gives no rest, quotaPatience ends the waiting.
const (
	quotaRest     = 100 * time.Millisecond
	quotaPatience = 5 * time.Second
)

// quotas counts what every ResourceQuota limits. Admission adds up what it lets in;
// here is given back what is gone. An object that is new is no reason to count: its
// successors may be admitted, in the quota's status, and not be there yet; counting
// then would let in one too many. For the same reason less is only written when
// nothing was admitted for a moment, and after a count of what there is, not of what
// the informers have seen.
type quotas struct {
	*control.Controller
	d        Deps
	now      func() time.Time
	features resource.Features
	all      *client.Informer[*corev1.ResourceQuota]
	// lists has the objects of a namespace, of the watched resources.
	lists map[schema.GroupResource]func(ns string) []resource.Object

	mu      sync.Mutex
	resting map[control.Key]restingQuota // quotas of which less is used than they say
}

// restingQuota is since when a quota's status is as it is, and since when it says too much.
type restingQuota struct {
	version      string
	since, wrong time.Time
}

func newResourceQuota(d Deps) *control.Controller {
	c := control.New("resourcequota-controller", d.Deps)
	r := &quotas{Controller: c, d: d, now: d.Clock(), features: resource.DefaultFeatures(), lists: map[schema.GroupResource]func(string) []resource.Object{}, resting: map[control.Key]restingQuota{}}
	r.all = control.Watch(c, func(ch client.Change[*corev1.ResourceQuota]) {
		// Admission writes the status with every object that it lets in.
		if ch.Old != nil && ch.New != nil && equality.Semantic.DeepEqual(ch.Old.Spec, ch.New.Spec) {
			return
		}
		c.Queue.Add(control.KeyOf(ch.Object()))
	})
	watchCounted[*corev1.Pod](r)
	watchCounted[*corev1.Service](r)
	watchCounted[*corev1.ReplicationController](r)
	watchCounted[*corev1.Secret](r)
	watchCounted[*corev1.ConfigMap](r)
	watchCounted[*appsv1.Deployment](r)
	watchCounted[*appsv1.ReplicaSet](r)
	watchCounted[*appsv1.StatefulSet](r)
	watchCounted[*appsv1.DaemonSet](r)
	watchCounted[*batchv1.Job](r)
	watchCounted[*batchv1.CronJob](r)
	watchCounted[*corev1.PersistentVolumeClaim](r)
	r.lists[schema.GroupResource{Resource: "resourcequotas"}] = func(ns string) []resource.Object { return objectsOf(r.all.List(ns, nil)) }
	c.Writes = append(c.Writes,
		control.Rule("*", []string{"*"}, "list", "watch"),
		control.Rule("", []string{"resourcequotas/status"}, "update"),
	)
	c.Reconcile = r.reconcile
	return c
}

func objectsOf[T client.Object](list []T) []resource.Object {
	out := make([]resource.Object, len(list))
	for i, o := range list {
		out[i] = o
	}
	return out
}

// watchCounted brings the quotas of a namespace back when less is used of what they
// count of T.
func watchCounted[T client.Object](r *quotas) {
	gr := client.KindOf[T]().GVR.GroupResource()
	counter := quota.For(r.features, gr)
	inf := control.Watch(r.Controller, func(ch client.Change[T]) {
		o := ch.Object()
		list := r.all.List(o.GetNamespace(), nil)
		if len(list) == 0 || any(ch.Old) == any(*new(T)) {
			return
		}
		if now := r.now(); !ch.Deleted() && len(quota.Nonzero(quota.Increase(counter.Usage(ch.Old, now), counter.Usage(ch.New, now)))) == 0 {
			return
		}
		for _, q := range list {
			if len(counter.Matching(quota.Names(q.Spec.Hard))) > 0 {
				r.Queue.Add(control.KeyOf(q))
			}
		}
	})
	r.lists[gr] = func(ns string) []resource.Object { return objectsOf(inf.List(ns, nil)) }
}

func (r *quotas) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	q, ok := r.all.Get(k.Namespace, k.Name)
	if !ok {
		r.rested(k, "", false)
		return control.Result{}, nil
	}
	next := q.DeepCopy()
	next.Status.Hard = quota.Add(corev1.ResourceList{}, q.Spec.Hard)
	used, err := r.count(ctx, next, false)
	less := len(quota.Nonzero(quota.Increase(quota.Only(q.Status.Used, quota.Names(used)), used))) > 0
	if wait := r.rested(k, q.ResourceVersion, less); wait > 0 {
		return control.Result{After: wait}, err
	}
	if less {
		used, err = r.count(ctx, next, true)
	}
	// What could not be counted stays as it was.
	for n, v := range next.Status.Used {
		if _, counted := used[n]; !counted {
			used[n] = v
		}
	}
	next.Status.Used = quota.Only(used, quota.Names(q.Spec.Hard))
	if q.Status.Hard == nil || q.Status.Used == nil || !equality.Semantic.DeepEqual(next.Status, q.Status) {
		got, writeErr := client.For[*corev1.ResourceQuota](r.Client).UpdateStatus(ctx, next)
		switch {
		case writeErr == nil:
			control.Wrote(r.Pending, k, r.all, got)
		case !apierrors.IsNotFound(writeErr):
			err = errors.Join(err, writeErr)
		}
	}
	if !equality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard) {
		// What was admitted before the limit held is there soon.
		return control.Result{After: time.Second}, err
	}
	return control.Result{After: quotaResync}, err
}

// rested tells how long to wait before less is written into the status of a quota
// at that version; 0 ends the waiting.
func (r *quotas) rested(k control.Key, version string, less bool) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !less {
		delete(r.resting, k)
		return 0
	}
	now := time.Now()
	was, ok := r.resting[k]
	if !ok {
		was.wrong = now
	}
	if was.version != version {
		was.version, was.since = version, now
	}
	r.resting[k] = was
	if now.Sub(was.wrong) >= quotaPatience {
		return 0
	}
	return quotaRest - min(now.Sub(was.since), quotaRest)
}

// count adds up what is used of the names that q limits: as the informers have it,
// or as it is at the time of the call.
func (r *quotas) count(ctx context.Context, q *corev1.ResourceQuota, exact bool) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	names := quota.Names(q.Status.Hard)
	var errs []error
	for _, gr := range r.counted(names) {
		counter := quota.For(r.features, gr)
		if counter == nil {
			continue
		}
		mine := counter.Matching(names)
		if len(mine) == 0 {
			continue
		}
		objects, err := r.list(ctx, gr, q.Namespace, exact)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		sum, err := countAll(counter, q, mine, objects, r.now())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for n, v := range sum {
			used[n] = v
		}
	}
	return used, errors.Join(errs...)
}

// countAll adds up what objects use of names.
func countAll(c *quota.Counter, q *corev1.ResourceQuota, names []corev1.ResourceName, objects []resource.Object, now time.Time) (corev1.ResourceList, error) {
	sum := corev1.ResourceList{}
	for _, n := range names {
		sum[n] = *apiresource.NewQuantity(0, apiresource.DecimalSI)
	}
	for _, o := range objects {
		ok, err := c.Matches(q, o)
		if err != nil {
			return nil, err
		}
		if ok {
			sum = quota.Add(sum, quota.Only(c.Usage(o, now), names))
		}
	}
	return sum, nil
}

// counted are the resources of which names ask for numbers: the watched ones, and
// those that are named as count/<resource>.<group>.
func (r *quotas) counted(names []corev1.ResourceName) []schema.GroupResource {
	var out []schema.GroupResource
	for gr := range r.lists {
		out = append(out, gr)
	}
	for _, n := range names {
		if gr, ok := strings.CutPrefix(string(n), "count/"); ok {
			if p := schema.ParseGroupResource(gr); !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

func (r *quotas) list(ctx context.Context, gr schema.GroupResource, ns string, exact bool) ([]resource.Object, error) {
	if f := r.lists[gr]; f != nil && !exact {
		return f(ns), nil
	}
	all, err := r.d.resources(ctx)
	if err != nil {
		return nil, err
	}
	for _, res := range all {
		if res.GVR.GroupResource() != gr || !res.Namespaced || !res.can("list") {
			continue
		}
		o := metav1.ListOptions{ResourceVersion: "0"}
		if exact {
			o.ResourceVersion = ""
		}
		l, err := r.Client.Transport().List(ctx, client.Ref{GVR: res.GVR, Namespace: ns}, o)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", gr, err)
		}
		return objectsOf(l.Items), nil
	}
	return nil, nil
}
