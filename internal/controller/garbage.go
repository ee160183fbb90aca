package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// collector deletes objects whose owners are all gone, holds back owners that are
// deleted in the foreground until their dependents are gone, and frees the
// dependents of owners that are deleted with orphaning.
//
// It keeps a graph of who owns whom from the informers, which lag: it is the cause
// to look, never the proof. Before anything is deleted, the object and its owners
// are read live, and the deletion carries the UID and revision that were read.
type collector struct {
	*control.Controller
	d     Deps
	queue *control.Queue[types.UID]

	mu         sync.Mutex
	nodes      map[types.UID]*gcNode
	dependents map[types.UID]map[types.UID]bool // by owner, seen or not
	followed   map[schema.GroupKind]bool        // kinds that an informer shows

	absentMu sync.Mutex
	absent   *lru.Cache // gcID of owners known to be gone
}

// gcID names an object as an owner reference does, in a namespace.
type gcID struct {
	APIVersion, Kind, Namespace, Name string
	UID                               types.UID
}

func (i gcID) String() string {
	return fmt.Sprintf("[%s/%s, namespace: %s, name: %s, uid: %s]", i.APIVersion, i.Kind, i.Namespace, i.Name, i.UID)
}

func idOfRef(o metav1.OwnerReference, ns string) gcID {
	return gcID{o.APIVersion, o.Kind, ns, o.Name, o.UID}
}

type gcNode struct {
	id       gcID
	gvr      schema.GroupVersionResource
	owners   []metav1.OwnerReference
	deleting bool
	// waiting: is being deleted in the foreground; orphaning: frees its
	// dependents before it goes.
	waiting, orphaning bool
}

func (n *gcNode) ref() client.Ref {
	return client.Ref{GVR: n.gvr, Namespace: n.id.Namespace, Name: n.id.Name}
}

func (n *gcNode) blocks(owner types.UID) bool {
	return slices.ContainsFunc(n.owners, func(o metav1.OwnerReference) bool {
		return o.UID == owner && o.BlockOwnerDeletion != nil && *o.BlockOwnerDeletion
	})
}

func newCollector(d Deps) *control.Controller {
	c := control.New("generic-garbage-collector", d.Deps)
	c.ReportAs("garbage-collector-controller")
	g := &collector{
		Controller: c, d: d, queue: control.NewQueue[types.UID](),
		nodes: map[types.UID]*gcNode{}, dependents: map[types.UID]map[types.UID]bool{}, followed: map[schema.GroupKind]bool{}, absent: lru.New(500),
	}
	control.Measure(c, "garbage_collector_attempt_to_delete", g.queue)
	follow[*corev1.Pod](g)
	follow[*corev1.Namespace](g)
	follow[*corev1.Node](g)
	follow[*corev1.Service](g)
	follow[*corev1.Endpoints](g) //nolint:staticcheck // served as upstream serves it
	follow[*corev1.ConfigMap](g)
	follow[*corev1.Secret](g)
	follow[*corev1.ServiceAccount](g)
	follow[*coordinationv1.Lease](g)
	follow[*appsv1.ReplicaSet](g)
	follow[*appsv1.Deployment](g)
	follow[*appsv1.StatefulSet](g)
	follow[*appsv1.DaemonSet](g)
	follow[*appsv1.ControllerRevision](g)
	follow[*corev1.ReplicationController](g)
	follow[*corev1.PodTemplate](g)
	follow[*corev1.ResourceQuota](g)
	follow[*corev1.LimitRange](g)
	follow[*batchv1.Job](g)
	follow[*batchv1.CronJob](g)
	follow[*policyv1.PodDisruptionBudget](g)
	follow[*autoscalingv2.HorizontalPodAutoscaler](g)
	follow[*corev1.PersistentVolumeClaim](g)
	follow[*corev1.PersistentVolume](g)
	follow[*storagev1.CSIDriver](g)
	follow[*storagev1.CSINode](g)
	follow[*storagev1.CSIStorageCapacity](g)
	follow[*storagev1.StorageClass](g)
	follow[*storagev1.VolumeAttachment](g)
	follow[*storagev1.VolumeAttributesClass](g)
	follow[*certificatesv1.CertificateSigningRequest](g)
	follow[*certificatesv1.ClusterTrustBundle](g)
	follow[*certificatesv1.PodCertificateRequest](g)
	follow[*resourcev1.DeviceClass](g)
	follow[*resourcev1.DeviceTaintRule](g)
	follow[*resourcev1.ResourceClaim](g)
	follow[*resourcev1.ResourceClaimTemplate](g)
	follow[*resourcev1.ResourceSlice](g)
	follow[*discoveryv1.EndpointSlice](g)
	follow[*networkingv1.IPAddress](g)
	follow[*networkingv1.ServiceCIDR](g)
	follow[*networkingv1.Ingress](g)
	follow[*networkingv1.IngressClass](g)
	follow[*networkingv1.NetworkPolicy](g)
	follow[*nodev1.RuntimeClass](g)
	follow[*schedulingv1.PriorityClass](g)
	follow[*schedulingv1beta1.PodGroup](g)
	follow[*schedulingv1beta1.Workload](g)
	follow[*rbacv1.Role](g)
	follow[*rbacv1.RoleBinding](g)
	follow[*rbacv1.ClusterRole](g)
	follow[*rbacv1.ClusterRoleBinding](g)
	// A kind that cannot be listed must not stop all others from being collected:
	// what is deleted is proven live anyway.
	c.SyncWait = 30 * time.Second
	c.Writes = append(c.Writes, control.Rule("*", []string{"*"}, "get", "list", "watch", "patch", "update", "delete"))
	c.Loop = func(ctx context.Context) error {
		g.queue.Work(ctx, 20, g.work)
		return nil
	}
	return c
}

// follow keeps the graph current with the objects of one kind.
func follow[T client.Object](g *collector) {
	k := client.KindOf[T]()
	g.followed[k.GVK.GroupKind()] = true
	control.Watch(g.Controller, func(ch client.Change[T]) {
		o := ch.Object()
		g.observe(gcID{k.GVK.GroupVersion().String(), k.GVK.Kind, o.GetNamespace(), o.GetName(), o.GetUID()}, k.GVR, o, ch.Deleted())
	})
}

// settle is how long an owner that no informer has shown yet is waited for before
// it is looked up: informers of different kinds are not in step.
const settle = time.Second

// observe brings one object's state into the graph and queues what it touches.
func (g *collector) observe(id gcID, gvr schema.GroupVersionResource, o metav1.Object, gone bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.nodes[id.UID]
	if gone {
		if old != nil {
			g.drop(old)
		}
		return
	}
	n := &gcNode{id: id, gvr: gvr, owners: o.GetOwnerReferences(), deleting: o.GetDeletionTimestamp() != nil}
	n.waiting = n.deleting && slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents)
	n.orphaning = n.deleting && slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents)
	if old != nil && old.deleting == n.deleting && old.waiting == n.waiting && old.orphaning == n.orphaning && sameRefs(old.owners, n.owners) {
		return // most changes are of status, and concern nobody here
	}
	g.nodes[id.UID] = n
	had := map[types.UID]metav1.OwnerReference{}
	if old != nil {
		for _, ref := range old.owners {
			had[ref.UID] = ref
		}
	}
	for _, ref := range n.owners {
		was, known := had[ref.UID]
		delete(had, ref.UID)
		if known {
			if was.BlockOwnerDeletion != nil && *was.BlockOwnerDeletion && (ref.BlockOwnerDeletion == nil || !*ref.BlockOwnerDeletion) {
				g.queue.Add(ref.UID)
			}
			continue
		}
		m := g.dependents[ref.UID]
		if m == nil {
			m = map[types.UID]bool{}
			g.dependents[ref.UID] = m
		}
		m[id.UID] = true
		owner := g.nodes[ref.UID]
		switch {
		case owner == nil:
			g.queue.AddAfter(id.UID, settle)
		case !matches(owner.id, ref, id.Namespace):
			g.reportForeign(n, ref, owner.id)
			g.queue.Add(id.UID)
		case owner.waiting:
			g.queue.Add(id.UID)
		}
	}
	for uid, ref := range had {
		delete(g.dependents[uid], id.UID)
		if len(g.dependents[uid]) == 0 {
			delete(g.dependents, uid)
		}
		if ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion {
			g.queue.Add(uid)
		}
	}
	if old == nil {
		// Dependents that named this object before it was seen, wrongly.
		for uid := range g.dependents[id.UID] {
			dep := g.nodes[uid]
			for _, ref := range dep.owners {
				if ref.UID == id.UID && !matches(id, ref, dep.id.Namespace) {
					g.reportForeign(dep, ref, id)
					g.queue.Add(uid)
				}
			}
		}
	}
	if n.orphaning && (old == nil || !old.orphaning) {
		g.queue.Add(id.UID)
	}
	if n.waiting && (old == nil || !old.waiting) {
		for uid := range g.dependents[id.UID] {
			g.queue.Add(uid)
		}
		g.queue.Add(id.UID)
	}
}

func sameRefs(a, b []metav1.OwnerReference) bool {
	return slices.EqualFunc(a, b, func(x, y metav1.OwnerReference) bool {
		return idOfRef(x, "") == idOfRef(y, "") && ptr.Equal(x.BlockOwnerDeletion, y.BlockOwnerDeletion)
	})
}

// drop takes an object that is gone out of the graph. Its dependents are looked
// at, and owners that wait for it.
func (g *collector) drop(n *gcNode) {
	delete(g.nodes, n.id.UID)
	if deps := g.dependents[n.id.UID]; len(deps) > 0 {
		g.markAbsent(n.id)
		for uid := range deps {
			g.queue.Add(uid)
		}
	}
	for _, ref := range n.owners {
		delete(g.dependents[ref.UID], n.id.UID)
		if len(g.dependents[ref.UID]) == 0 {
			delete(g.dependents, ref.UID)
		}
		if owner := g.nodes[ref.UID]; owner != nil && owner.waiting {
			g.queue.Add(ref.UID)
		}
	}
}

// matches tells whether a reference, made from namespace ns, names id.
func matches(id gcID, ref metav1.OwnerReference, ns string) bool {
	return ref.UID == id.UID && ref.Name == id.Name && ref.Kind == id.Kind && ref.APIVersion == id.APIVersion && (id.Namespace == "" || id.Namespace == ns)
}

// reportForeign tells of an owner in another namespace: such a reference is to
// nothing, and the dependent goes.
func (g *collector) reportForeign(dep *gcNode, ref metav1.OwnerReference, owner gcID) {
	if owner.Namespace == "" || owner.Namespace == dep.id.Namespace {
		return
	}
	g.Events.EventRef(corev1.ObjectReference{Kind: dep.id.Kind, APIVersion: dep.id.APIVersion, Namespace: dep.id.Namespace, Name: dep.id.Name, UID: dep.id.UID},
		corev1.EventTypeWarning, "OwnerRefInvalidNamespace", "ownerRef %s does not exist in namespace %q", idOfRef(ref, dep.id.Namespace), dep.id.Namespace)
}

func (g *collector) markAbsent(id gcID) {
	g.absentMu.Lock()
	defer g.absentMu.Unlock()
	g.absent.Add(id, nil)
}

func (g *collector) knownAbsent(id gcID) bool {
	g.absentMu.Lock()
	defer g.absentMu.Unlock()
	_, ok := g.absent.Get(id)
	return ok
}

func (g *collector) node(uid types.UID) *gcNode {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nodes[uid]
}

func (g *collector) dependentsOf(uid types.UID) []*gcNode {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*gcNode
	for d := range g.dependents[uid] {
		out = append(out, g.nodes[d])
	}
	return out
}

// settled tells that the graph shows all owners of n, alive and rightly named:
// then there is nothing to do, and nothing to read.
func (g *collector) settled(n *gcNode) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, ref := range n.owners {
		owner := g.nodes[ref.UID]
		if owner == nil || owner.waiting || !matches(owner.id, ref, n.id.Namespace) {
			return false
		}
	}
	return true
}

// errForeignScope marks a reference from a cluster-scoped object to a namespaced
// one, which can never be resolved.
var errForeignScope = errors.New("cluster-scoped objects cannot refer to namespaced owners")

func (g *collector) work(ctx context.Context, uid types.UID) (time.Duration, error) {
	n := g.node(uid)
	if n == nil {
		return 0, nil
	}
	err := g.process(ctx, n)
	switch {
	case err == nil:
		g.lookAgain(n)
		return 0, nil
	case errors.Is(err, errForeignScope), ctx.Err() != nil:
		return 0, nil
	case !apierrors.IsConflict(err):
		g.Log.Warn("garbage collection failed", "object", n.id.String(), "err", err)
	}
	return 0, err
}

// lookAgain comes back to an object whose owner exists but was not shown yet: if
// that owner goes before it is shown, no event will tell.
func (g *collector) lookAgain(n *gcNode) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nodes[n.id.UID] != n {
		return
	}
	for _, ref := range n.owners {
		gv, err := schema.ParseGroupVersion(ref.APIVersion)
		if err == nil && g.nodes[ref.UID] == nil && g.followed[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}] {
			g.queue.AddAfter(n.id.UID, 30*time.Second)
			return
		}
	}
}

func (g *collector) process(ctx context.Context, n *gcNode) error {
	switch {
	case n.orphaning:
		return g.orphan(ctx, n)
	case n.waiting:
		return g.finishWaiting(ctx, n)
	case n.deleting || len(n.owners) == 0 || g.settled(n):
		return nil
	}
	latest, err := g.Client.Transport().Get(ctx, n.ref(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && latest.GetUID() != n.id.UID {
		return nil // gone; the informer will tell
	}
	if err != nil {
		return err
	}
	if latest.GetDeletionTimestamp() != nil || len(latest.GetOwnerReferences()) == 0 {
		return nil
	}
	solid, dangling, waiting, err := g.classify(ctx, n, latest.GetOwnerReferences())
	if err != nil {
		return err
	}
	deps := g.dependentsOf(n.id.UID)
	policy := metav1.DeletePropagationBackground
	switch {
	case len(solid) > 0:
		if len(dangling) == 0 && len(waiting) == 0 {
			return nil
		}
		return g.setOwners(ctx, n, latest, solid)
	case len(waiting) > 0 && len(deps) > 0:
		// A dependent of an owner that waits waits itself for its own. Where a
		// circle would block all of them for ever, it blocks no longer.
		for _, d := range deps {
			if d.waiting {
				owners := slices.Clone(latest.GetOwnerReferences())
				no := false
				for i := range owners {
					owners[i].BlockOwnerDeletion = &no
				}
				if err := g.setOwners(ctx, n, latest, owners); err != nil {
					return err
				}
				if latest, err = g.Client.Transport().Get(ctx, n.ref(), metav1.GetOptions{}); err != nil {
					return ignoreGone(err)
				}
				break
			}
		}
		policy = metav1.DeletePropagationForeground
	case slices.Contains(latest.GetFinalizers(), metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(latest.GetFinalizers(), metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	uid, rv := latest.GetUID(), latest.GetResourceVersion()
	_, err = g.Client.Transport().Delete(ctx, n.ref(), metav1.DeleteOptions{
		PropagationPolicy: &policy, Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &rv},
	})
	return ignoreGone(err)
}

// classify sorts references by what their owners are: there, gone, or being
// deleted in the foreground.
func (g *collector) classify(ctx context.Context, n *gcNode, refs []metav1.OwnerReference) (solid, dangling, waiting []metav1.OwnerReference, err error) {
	for _, ref := range refs {
		owner, err := g.owner(ctx, n, ref)
		switch {
		case err != nil:
			return nil, nil, nil, err
		case owner == nil:
			dangling = append(dangling, ref)
		case owner.GetDeletionTimestamp() != nil && slices.Contains(owner.GetFinalizers(), metav1.FinalizerDeleteDependents):
			waiting = append(waiting, ref)
		default:
			solid = append(solid, ref)
		}
	}
	return solid, dangling, waiting, nil
}

// owner reads an owner live; nil means that it is gone.
func (g *collector) owner(ctx context.Context, n *gcNode, ref metav1.OwnerReference) (client.Object, error) {
	if g.knownAbsent(idOfRef(ref, n.id.Namespace)) || g.knownAbsent(idOfRef(ref, "")) {
		return nil, nil
	}
	res, err := g.resourceOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	ns := ""
	if res.Namespaced {
		if ns = n.id.Namespace; ns == "" {
			return nil, errForeignScope
		}
	}
	owner, err := g.Client.Transport().Get(ctx, client.Ref{GVR: res.GVR, Namespace: ns, Name: ref.Name}, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && owner.GetUID() != ref.UID {
		g.markAbsent(idOfRef(ref, ns))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return owner, nil
}

func (g *collector) resourceOf(ctx context.Context, ref metav1.OwnerReference) (Resource, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return Resource{}, err
	}
	all, listErr := g.d.resources(ctx)
	for _, r := range all {
		if r.Kind == ref.Kind && r.GVR.GroupVersion() == gv {
			return r, nil
		}
	}
	if listErr != nil {
		return Resource{}, listErr
	}
	return Resource{}, fmt.Errorf("unable to get REST mapping for %s/%s", ref.APIVersion, ref.Kind)
}

// setOwners replaces the owner references of an object as it was read.
func (g *collector) setOwners(ctx context.Context, n *gcNode, latest client.Object, owners []metav1.OwnerReference) error {
	return g.patch(ctx, n, map[string]any{"uid": latest.GetUID(), "resourceVersion": latest.GetResourceVersion(), "ownerReferences": owners})
}

func (g *collector) patch(ctx context.Context, n *gcNode, metadata map[string]any) error {
	p, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	_, err = g.Client.Transport().Patch(ctx, n.ref(), types.MergePatchType, p, metav1.PatchOptions{})
	return ignoreGone(err)
}

// finishWaiting lets an owner go once no dependent blocks it.
func (g *collector) finishWaiting(ctx context.Context, n *gcNode) error {
	blocked := false
	for _, d := range g.dependentsOf(n.id.UID) {
		if !d.blocks(n.id.UID) {
			continue
		}
		blocked = true
		if !d.waiting {
			g.queue.Add(d.id.UID)
		}
	}
	if blocked {
		return nil
	}
	return g.removeFinalizer(ctx, n, metav1.FinalizerDeleteDependents)
}

// orphan takes the owner out of its dependents, then lets it go.
func (g *collector) orphan(ctx context.Context, n *gcNode) error {
	deps := g.dependentsOf(n.id.UID)
	_, err := parallel(len(deps), func(i int) error {
		d := deps[i]
		latest, err := g.Client.Transport().Get(ctx, d.ref(), metav1.GetOptions{})
		if err != nil {
			return ignoreGone(err)
		}
		if latest.GetUID() != d.id.UID {
			return nil
		}
		owners := slices.DeleteFunc(slices.Clone(latest.GetOwnerReferences()), func(o metav1.OwnerReference) bool { return o.UID == n.id.UID })
		if len(owners) == len(latest.GetOwnerReferences()) {
			return nil
		}
		return g.setOwners(ctx, d, latest, owners)
	})
	if err != nil {
		return fmt.Errorf("orphan dependents of %s: %w", n.id, err)
	}
	return g.removeFinalizer(ctx, n, metav1.FinalizerOrphanDependents)
}

func (g *collector) removeFinalizer(ctx context.Context, n *gcNode, name string) error {
	latest, err := g.Client.Transport().Get(ctx, n.ref(), metav1.GetOptions{})
	if err != nil {
		return ignoreGone(err)
	}
	if latest.GetUID() != n.id.UID || !slices.Contains(latest.GetFinalizers(), name) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(latest.GetFinalizers()), func(f string) bool { return f == name })
	return g.patch(ctx, n, map[string]any{"uid": latest.GetUID(), "resourceVersion": latest.GetResourceVersion(), "finalizers": rest})
}
