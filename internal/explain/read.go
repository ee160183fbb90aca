package explain

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/explanation"
	"skiff/internal/api/storage"
	"skiff/internal/client"
)

// Reader reads what explanations are made of, with the rights of its client.
type Reader struct {
	Client *client.Client
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// Logs returns the last lines of a container; nil where logs cannot be read.
	Logs func(ctx context.Context, namespace, pod, container string, previous bool) (string, error)
	// Resources are the namespaced resources that can be listed, and the groups that
	// do not answer, with the reason. Objects lists those of one in a namespace. Both
	// may be nil: then of a namespace only its conditions are told.
	Resources func(ctx context.Context) (served []schema.GroupVersionResource, broken map[string]string, err error)
	Objects   func(ctx context.Context, r schema.GroupVersionResource, namespace string) ([]client.Object, error)
}

// Explain reads an object and what belongs to it, and explains it.
func (r Reader) Explain(ctx context.Context, k Kind, namespace, name string) (*explanation.Explanation, error) {
	o, err := r.Client.Transport().Get(ctx, client.Ref{GVR: k.GVR, Namespace: namespace, Name: name}, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	w, err := r.Read(ctx, o)
	if err != nil {
		return nil, err
	}
	return w.Explain(o), nil
}

// Known explains objects that are at hand, where they may be read; unwell leaves out
// what is well.
func (r Reader) Known(ctx context.Context, unwell bool, objs []client.Object) ([]*explanation.Explanation, error) {
	var mine []client.Object
	for _, o := range objs {
		k, ok := kindOf(o)
		if !ok {
			continue
		}
		if unwell && len(mine) == 0 && r.mayList(ctx, k, objs) {
			mine = objs
			break
		}
		// The rights are those of who asks: he reads it himself.
		got, err := r.Client.Transport().Get(ctx, client.Ref{GVR: k.GVR, Namespace: o.GetNamespace(), Name: o.GetName()}, metav1.GetOptions{ResourceVersion: "0"})
		switch {
		case err == nil:
			mine = append(mine, got)
		case !unwell:
			return nil, err
		case !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	w, err := r.Read(ctx, mine...)
	if err != nil {
		return nil, err
	}
	var out []*explanation.Explanation
	for _, o := range mine {
		if e := w.Explain(o); e != nil && (!unwell || e.State != explanation.Fine) {
			out = append(out, e)
		}
		if len(out) == maxUnwell {
			break
		}
	}
	return out, nil
}

// mayList tells whether the client may read all of these objects at once.
func (r Reader) mayList(ctx context.Context, k Kind, objs []client.Object) bool {
	ns := objs[0].GetNamespace()
	if slices.ContainsFunc(objs, func(o client.Object) bool { return o.GetNamespace() != ns }) {
		ns = ""
	}
	_, err := r.Client.Transport().List(ctx, client.Ref{GVR: k.GVR, Namespace: ns}, metav1.ListOptions{Limit: 1, ResourceVersion: "0"})
	return err == nil
}

func kindOf(o client.Object) (Kind, bool) {
	for _, k := range Kinds() {
		if known := client.KindFor(k.GVR); known != nil && reflect.TypeOf(known.New()) == reflect.TypeOf(o) {
			return k, true
		}
	}
	return Kind{}, false
}

// Unwell are the objects of a kind, in a namespace or in all, that are not as they
// should be, explained.
func (r Reader) Unwell(ctx context.Context, k Kind, namespace string) ([]*explanation.Explanation, error) {
	l, err := r.Client.Transport().List(ctx, client.Ref{GVR: k.GVR, Namespace: namespace}, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	w, err := r.Read(ctx, l.Items...)
	if err != nil {
		return nil, err
	}
	var out []*explanation.Explanation
	for _, o := range l.Items {
		if len(out) == maxUnwell {
			break
		}
		if e := w.Explain(o); e != nil && e.State != explanation.Fine && !owned(o) {
			out = append(out, e)
		}
	}
	return out, nil
}

// owned tells that an object belongs to a workload, which is told instead.
func owned(o client.Object) bool {
	c := metav1.GetControllerOfNoCopy(o)
	if c == nil {
		return false
	}
	k, ok := KindOf(c.Kind)
	return ok && k.Kind == c.Kind
}

// maxUnwell bounds a list of explanations; maxEvents the objects whose events are
// read, maxLogs the containers whose logs are.
const (
	maxUnwell = 100
	maxEvents = 20
	maxLogs   = 5
)

// reading is a world that is being read.
type reading struct {
	Reader
	mu sync.Mutex
	w  *World
}

// Read collects what is needed to explain the objects given.
func (r Reader) Read(ctx context.Context, of ...client.Object) (*World, error) {
	if r.Now == nil {
		r.Now = time.Now
	}
	d := &reading{Reader: r, w: NewWorld(r.Now(), of...)}
	spaces := map[string]bool{}
	for _, o := range of {
		spaces[o.GetNamespace()] = true
	}
	delete(spaces, "")
	g, gctx := errgroup.WithContext(ctx)
	for _, ns := range sorted(spaces) {
		d.inNamespace(gctx, g, ns, of)
	}
	for _, o := range of {
		if ns, ok := o.(*corev1.Namespace); ok && ns.DeletionTimestamp != nil {
			g.Go(func() error { return d.contents(gctx, ns.Name) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	pods := d.concerned(of)
	g, gctx = errgroup.WithContext(ctx)
	if slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.Spec.NodeName == "" && !finished(p) && p.DeletionTimestamp == nil }) {
		d.cluster(gctx, g)
	} else {
		d.nodesOf(gctx, g, pods)
	}
	if slices.ContainsFunc(of, func(o client.Object) bool { _, claim := o.(*corev1.PersistentVolumeClaim); return claim }) {
		g.Go(func() error { return list[*corev1.PersistentVolume](gctx, d, "", "persistentvolumes") })
		g.Go(func() error { return list[*storagev1.StorageClass](gctx, d, "", "storageclasses") })
		g.Go(func() error { return list[*storagev1.CSIDriver](gctx, d, "", "csidrivers") })
	}
	d.events(gctx, g, of, pods)
	d.lastWords(gctx, g, pods)
	return d.w, g.Wait()
}

// list reads all objects of a type. What may not be read is noted and no error; what
// the server does not have is not there.
func list[T client.Object](ctx context.Context, d *reading, ns, name string) error {
	objects, _, err := client.For[T](d.Client).In(ns).List(ctx, metav1.ListOptions{})
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case apierrors.IsForbidden(err):
		d.w.Unread[name] = "forbidden"
		return nil
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	}
	put := make([]client.Object, len(objects))
	for i, o := range objects {
		put[i] = o
	}
	d.w.Put(put...)
	return nil
}

// inNamespace reads what workloads and their pods are made of.
func (d *reading) inNamespace(ctx context.Context, g *errgroup.Group, ns string, of []client.Object) {
	g.Go(func() error { return list[*corev1.Pod](ctx, d, ns, "pods") })
	g.Go(func() error { return list[*appsv1.ReplicaSet](ctx, d, ns, "replicasets") })
	g.Go(func() error { return list[*appsv1.Deployment](ctx, d, ns, "deployments") })
	g.Go(func() error { return list[*appsv1.StatefulSet](ctx, d, ns, "statefulsets") })
	g.Go(func() error { return list[*appsv1.DaemonSet](ctx, d, ns, "daemonsets") })
	g.Go(func() error { return list[*batchv1.Job](ctx, d, ns, "jobs") })
	g.Go(func() error { return list[*policyv1.PodDisruptionBudget](ctx, d, ns, "poddisruptionbudgets") })
	if slices.ContainsFunc(of, func(o client.Object) bool { _, service := o.(*corev1.Service); return service }) {
		g.Go(func() error { return list[*discoveryv1.EndpointSlice](ctx, d, ns, "endpointslices") })
	}
}

// cluster reads all that the scheduler looks at.
func (d *reading) cluster(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return list[*corev1.Pod](ctx, d, "", "pods of all namespaces") })
	g.Go(func() error { return list[*corev1.Node](ctx, d, "", "nodes") })
	g.Go(func() error { return list[*corev1.Namespace](ctx, d, "", "namespaces") })
	g.Go(func() error { return list[*corev1.PersistentVolume](ctx, d, "", "persistentvolumes") })
	g.Go(func() error {
		return list[*corev1.PersistentVolumeClaim](ctx, d, "", "persistentvolumeclaims of all namespaces")
	})
	g.Go(func() error { return list[*storagev1.StorageClass](ctx, d, "", "storageclasses") })
	g.Go(func() error { return list[*storagev1.CSIDriver](ctx, d, "", "csidrivers") })
	g.Go(func() error { return list[*storagev1.CSINode](ctx, d, "", "csinodes") })
	g.Go(func() error { return list[*storagev1.CSIStorageCapacity](ctx, d, "", "csistoragecapacities") })
	g.Go(func() error { return list[*storagev1.VolumeAttachment](ctx, d, "", "volumeattachments") })
	g.Go(func() error { return list[*schedulingv1.PriorityClass](ctx, d, "", "priorityclasses") })
	g.Go(func() error { return list[*policyv1.PodDisruptionBudget](ctx, d, "", "poddisruptionbudgets") })
}

// concerned are the pods that the explanation of the objects may look into.
func (d *reading) concerned(of []client.Object) []*corev1.Pod {
	owners := map[types.UID]bool{}
	for _, o := range of {
		owners[o.GetUID()] = true
	}
	for _, rs := range all[*appsv1.ReplicaSet](d.w) {
		if o := metav1.GetControllerOfNoCopy(rs); o != nil && owners[o.UID] {
			owners[rs.UID] = true
		}
	}
	var out []*corev1.Pod
	for _, p := range all[*corev1.Pod](d.w) {
		o := metav1.GetControllerOfNoCopy(p)
		if owners[p.UID] || o != nil && owners[o.UID] || slices.ContainsFunc(of, func(o client.Object) bool { return uses(p, o) }) {
			out = append(out, p)
		}
	}
	return out
}

// uses tells whether a pod is one of a service's, or uses a claim.
func uses(p *corev1.Pod, o client.Object) bool {
	if p.Namespace != o.GetNamespace() {
		return false
	}
	switch o := o.(type) {
	case *corev1.Service:
		if len(o.Spec.Selector) == 0 {
			return false
		}
		for k, v := range o.Spec.Selector {
			if p.Labels[k] != v {
				return false
			}
		}
		return true
	case *corev1.PersistentVolumeClaim:
		return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return storage.ClaimOf(p, &v) == o.Name })
	}
	return false
}

// nodesOf reads the nodes of pods: each, or all where they are many.
func (d *reading) nodesOf(ctx context.Context, g *errgroup.Group, pods []*corev1.Pod) {
	names := map[string]bool{}
	for _, p := range pods {
		if p.Spec.NodeName != "" && !finished(p) {
			names[p.Spec.NodeName] = true
		}
	}
	if len(names) > 10 {
		g.Go(func() error { return list[*corev1.Node](ctx, d, "", "nodes") })
		return
	}
	for _, name := range sorted(names) {
		g.Go(func() error {
			n, err := client.For[*corev1.Node](d.Client).Get(ctx, name)
			d.mu.Lock()
			defer d.mu.Unlock()
			switch {
			case apierrors.IsForbidden(err):
				d.w.Unread["nodes"] = "forbidden"
			case apierrors.IsNotFound(err):
			case err != nil:
				return fmt.Errorf("read node %s: %w", name, err)
			default:
				d.w.Put(n)
			}
			return nil
		})
	}
}

// events reads the events about the objects, their pods that are not well, and those
// who create these.
func (d *reading) events(ctx context.Context, g *errgroup.Group, of []client.Object, pods []*corev1.Pod) {
	about := map[key]bool{}
	add := func(o client.Object) {
		if o.GetNamespace() != "" && len(about) < maxEvents {
			about[key{o.GetNamespace(), o.GetName()}] = true
		}
	}
	for _, o := range of {
		add(o)
		for _, rs := range in[*appsv1.ReplicaSet](d.w, o.GetNamespace()) {
			if metav1.IsControlledBy(rs, o) && (rs.Spec.Replicas == nil || *rs.Spec.Replicas > 0) {
				add(rs)
			}
		}
	}
	for _, p := range pods {
		if !podReady(p) && p.Status.Phase != corev1.PodSucceeded {
			add(p)
			for _, c := range d.w.claimsOf(p) {
				add(c)
			}
		}
	}
	for k := range about {
		g.Go(func() error {
			o := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("involvedObject.name", k.name).String()}
			events, _, err := client.For[*corev1.Event](d.Client).In(k.ns).List(ctx, o)
			d.mu.Lock()
			defer d.mu.Unlock()
			switch {
			case apierrors.IsForbidden(err):
				d.w.Unread["events"] = "forbidden"
				return nil
			case err != nil:
				return fmt.Errorf("read events: %w", err)
			}
			for _, e := range events {
				d.w.Put(e)
			}
			return nil
		})
	}
}

// lastWords reads what failing containers wrote last, and the ConfigMaps that lack
// something. Secrets are never read.
func (d *reading) lastWords(ctx context.Context, g *errgroup.Group, pods []*corev1.Pod) {
	left := maxLogs
	for _, p := range pods {
		statuses := append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...)
		for _, st := range statuses {
			if wait := st.State.Waiting; wait != nil {
				if m := missingKey.FindStringSubmatch(wait.Message); m != nil && m[2] == "ConfigMap" {
					g.Go(func() error {
						if cm, err := client.For[*corev1.ConfigMap](d.Client).In(m[3]).Get(ctx, m[4]); err == nil {
							d.mu.Lock()
							defer d.mu.Unlock()
							d.w.Put(cm)
						}
						return nil // it is told without
					})
				}
			}
			ended, previous := st.State.Terminated, false
			if ended == nil {
				ended, previous = st.LastTerminationState.Terminated, true
			}
			if ended == nil || ended.ExitCode == 0 || ended.Message != "" || d.Logs == nil || left == 0 || st.Ready {
				continue
			}
			left--
			g.Go(func() error {
				text, err := d.Logs(ctx, p.Namespace, p.Name, st.Name, previous)
				if err != nil {
					return nil // a log that is gone is no failure
				}
				d.mu.Lock()
				defer d.mu.Unlock()
				d.w.Logs[LogKey(p.Namespace, p.Name, st.Name)] = text
				return nil
			})
		}
	}
}

// contents reads what is left in a namespace.
func (d *reading) contents(ctx context.Context, ns string) error {
	if d.Resources == nil || d.Objects == nil {
		return nil
	}
	served, broken, err := d.Resources(ctx)
	if err != nil {
		return fmt.Errorf("read the API's resources: %w", err)
	}
	d.mu.Lock()
	d.w.Broken = broken
	d.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(8)
	for _, r := range served {
		if r.Resource == "events" || r.Group == explanation.GroupVersion.Group || r.Group == "metrics.k8s.io" {
			continue // they hold nothing up
		}
		g.Go(func() error {
			objects, err := d.Objects(ctx, r, ns)
			d.mu.Lock()
			defer d.mu.Unlock()
			switch {
			case apierrors.IsForbidden(err):
				d.w.Unread[r.GroupResource().String()] = "forbidden"
			case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
			case err != nil:
				d.w.Broken[r.GroupVersion().String()] = err.Error()
			case len(objects) > 0:
				d.w.Left[r] = objects
			}
			return nil
		})
	}
	return g.Wait()
}
