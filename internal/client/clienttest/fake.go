// Package clienttest has an API in memory for the unit tests of those who use
// package client: objects, resourceVersions and conflicts, generation, watches,
// finalizers, status and scale subresources, merge, strategic and JSON patches. It neither
// defaults nor validates; what needs that is tested against the API server.
package clienttest

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// API is a client.Transport in memory. The zero value is not usable; see New.
type API struct {
	// Intercept, where set, sees every request before it is done; an error from
	// it is the answer. verb is get, list, watch, create, update, patch, delete.
	Intercept func(verb string, ref client.Ref, obj client.Object) error
	// Now is the clock; time.Now by default.
	Now func() time.Time

	mu       sync.Mutex
	rv       int64
	objects  map[key]client.Object
	watchers map[*watcher]bool
	requests []Request
}

// Request is one request that was done.
type Request struct {
	Verb string
	Ref  client.Ref
	Body client.Object // create, update
	Data []byte        // patch
}

type key struct {
	group, resource, ns, name string
}

// New returns an API that holds the objects given.
func New(objects ...client.Object) *API {
	a := &API{Now: time.Now, objects: map[key]client.Object{}, watchers: map[*watcher]bool{}}
	for _, o := range objects {
		a.Put(o)
	}
	return a
}

// Client returns a client over a.
func (a *API) Client() *client.Client { return client.New(a, "test") }

func kindOf(o client.Object) *client.Kind {
	t := reflect.TypeOf(o)
	for _, k := range client.Kinds {
		if reflect.TypeOf(k.New()) == t {
			return k
		}
	}
	panic(fmt.Sprintf("clienttest: %T is not in client.Kinds", o))
}

func keyOf(ref client.Ref) key {
	return key{ref.GVR.Group, ref.GVR.Resource, ref.Namespace, ref.Name}
}

// Put writes an object as it is, creating or replacing it.
func (a *API) Put(o client.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ref := client.Ref{GVR: kindOf(o).GVR, Namespace: o.GetNamespace(), Name: o.GetName()}
	o = o.DeepCopyObject().(client.Object)
	if o.GetUID() == "" {
		o.SetUID(types.UID(rand.String(16)))
	}
	a.store(keyOf(ref), o)
}

// Requests returns what was asked so far, writes alone.
func (a *API) Requests() []Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

func (a *API) store(k key, o client.Object) {
	a.rv++
	o.SetResourceVersion(strconv.FormatInt(a.rv, 10))
	old := a.objects[k]
	a.objects[k] = o
	a.notify(k, old, o)
}

func (a *API) remove(k key) client.Object {
	a.rv++
	old := a.objects[k]
	delete(a.objects, k)
	gone := old.DeepCopyObject().(client.Object)
	gone.SetResourceVersion(strconv.FormatInt(a.rv, 10))
	a.notify(k, old, nil)
	return gone
}

func (a *API) notify(k key, old, new client.Object) {
	for w := range a.watchers {
		if w.group != k.group || w.resource != k.resource || (w.ns != "" && w.ns != k.ns) {
			continue
		}
		was := old != nil && w.match(old)
		is := new != nil && w.match(new)
		switch {
		case is && was:
			w.send(client.Event{Type: watch.Modified, Object: new})
		case is:
			w.send(client.Event{Type: watch.Added, Object: new})
		case was:
			gone := old.DeepCopyObject().(client.Object)
			gone.SetResourceVersion(strconv.FormatInt(a.rv, 10))
			w.send(client.Event{Type: watch.Deleted, Object: gone})
		}
	}
}

func (a *API) begin(verb string, ref client.Ref, obj client.Object, data []byte) error {
	if a.Intercept != nil {
		if err := a.Intercept(verb, ref, obj); err != nil {
			return err
		}
	}
	if verb != "get" && verb != "list" && verb != "watch" {
		r := Request{Verb: verb, Ref: ref, Data: data}
		if obj != nil {
			r.Body = obj.DeepCopyObject().(client.Object)
		}
		a.mu.Lock()
		a.requests = append(a.requests, r)
		a.mu.Unlock()
	}
	return nil
}

func notFound(ref client.Ref) error {
	return apierrors.NewNotFound(ref.GVR.GroupResource(), ref.Name)
}

// Get implements client.Transport.
func (a *API) Get(_ context.Context, ref client.Ref, _ metav1.GetOptions) (client.Object, error) {
	if err := a.begin("get", ref, nil, nil); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	o, ok := a.objects[keyOf(ref)]
	if !ok {
		return nil, notFound(ref)
	}
	if ref.Subresource == "scale" {
		return scaleOf(ref, o)
	}
	return o, nil
}

func selector(o metav1.ListOptions) (func(client.Object) bool, error) {
	l, err := labels.Parse(o.LabelSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	f, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return func(obj client.Object) bool {
		set := fields.Set{"metadata.name": obj.GetName(), "metadata.namespace": obj.GetNamespace()}
		if p, ok := obj.(*corev1.Pod); ok {
			set["spec.nodeName"] = p.Spec.NodeName
			set["status.phase"] = string(p.Status.Phase)
		}
		if r, ok := obj.(*certificatesv1.PodCertificateRequest); ok {
			set["spec.nodeName"] = string(r.Spec.NodeName)
		}
		if s, ok := obj.(*resourcev1.ResourceSlice); ok {
			set[resourcev1.ResourceSliceSelectorDriver] = s.Spec.Driver
			if s.Spec.NodeName != nil {
				set[resourcev1.ResourceSliceSelectorNodeName] = *s.Spec.NodeName
			}
		}
		return l.Matches(labels.Set(obj.GetLabels())) && f.Matches(set)
	}, nil
}

// List implements client.Transport.
func (a *API) List(_ context.Context, ref client.Ref, o metav1.ListOptions) (*client.List, error) {
	if err := a.begin("list", ref, nil, nil); err != nil {
		return nil, err
	}
	match, err := selector(o)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	l := &client.List{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatInt(a.rv, 10)}}
	for k, obj := range a.objects {
		if k.group == ref.GVR.Group && k.resource == ref.GVR.Resource && (ref.Namespace == "" || ref.Namespace == k.ns) && match(obj) {
			l.Items = append(l.Items, obj)
		}
	}
	slices.SortFunc(l.Items, func(x, y client.Object) int {
		return compare(x.GetNamespace()+"/"+x.GetName(), y.GetNamespace()+"/"+y.GetName())
	})
	return l, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

type watcher struct {
	group, resource, ns string
	match               func(client.Object) bool
	out                 chan client.Event

	mu    sync.Mutex
	queue []client.Event
	wake  chan struct{}
}

func (w *watcher) Events() <-chan client.Event { return w.out }

func (w *watcher) send(e client.Event) {
	w.mu.Lock()
	w.queue = append(w.queue, e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.out)
	for {
		w.mu.Lock()
		q := w.queue
		w.queue = nil
		w.mu.Unlock()
		for _, e := range q {
			select {
			case w.out <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
	}
}

// Watch implements client.Transport. It starts with the current state and a
// bookmark when asked for initial events, and with changes from now on otherwise.
func (a *API) Watch(ctx context.Context, ref client.Ref, o metav1.ListOptions) (client.Watch, error) {
	if err := a.begin("watch", ref, nil, nil); err != nil {
		return nil, err
	}
	match, err := selector(o)
	if err != nil {
		return nil, err
	}
	w := &watcher{group: ref.GVR.Group, resource: ref.GVR.Resource, ns: ref.Namespace, match: match, out: make(chan client.Event), wake: make(chan struct{}, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.SendInitialEvents != nil && *o.SendInitialEvents {
		for k, obj := range a.objects {
			if k.group == w.group && k.resource == w.resource && (w.ns == "" || w.ns == k.ns) && match(obj) {
				w.send(client.Event{Type: watch.Added, Object: obj})
			}
		}
		mark := client.KindFor(ref.GVR).New()
		mark.SetResourceVersion(strconv.FormatInt(a.rv, 10))
		mark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		w.send(client.Event{Type: watch.Bookmark, Object: mark})
	}
	a.watchers[w] = true
	go func() {
		w.run(ctx)
		a.mu.Lock()
		delete(a.watchers, w)
		a.mu.Unlock()
	}()
	return w, nil
}

// Create implements client.Transport.
func (a *API) Create(_ context.Context, ref client.Ref, obj client.Object, _ metav1.CreateOptions) (client.Object, error) {
	if err := a.begin("create", ref, obj, nil); err != nil {
		return nil, err
	}
	if ref.Subresource != "" {
		if ref.GVR.Resource == "pods" && ref.Subresource == "binding" {
			return obj, a.bind(ref, obj.(*corev1.Binding))
		}
		return obj, nil
	}
	o := obj.DeepCopyObject().(client.Object)
	if ref.Namespace != "" {
		o.SetNamespace(ref.Namespace)
	}
	if o.GetName() == "" && o.GetGenerateName() != "" {
		o.SetName(o.GetGenerateName() + rand.String(5))
	}
	ref.Namespace, ref.Name = o.GetNamespace(), o.GetName()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.objects[keyOf(ref)]; ok {
		return nil, apierrors.NewAlreadyExists(ref.GVR.GroupResource(), ref.Name)
	}
	o.SetUID(types.UID(rand.String(16)))
	o.SetCreationTimestamp(metav1.NewTime(a.Now().Truncate(time.Second)))
	o.SetGeneration(1)
	a.store(keyOf(ref), o)
	return o, nil
}

// Update implements client.Transport.
func (a *API) Update(_ context.Context, ref client.Ref, obj client.Object, _ metav1.UpdateOptions) (client.Object, error) {
	if err := a.begin("update", ref, obj, nil); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if scale, ok := obj.(*autoscalingv1.Scale); ok && ref.Subresource == "scale" {
		old, ok := a.objects[keyOf(ref)]
		if !ok {
			return nil, notFound(ref)
		}
		whole := ref
		whole.Subresource = ""
		o, err := a.replace(whole, setScale(old, scale))
		if err != nil {
			return nil, err
		}
		return scaleOf(ref, o)
	}
	return a.replace(ref, obj.DeepCopyObject().(client.Object))
}

func (a *API) replace(ref client.Ref, o client.Object) (client.Object, error) {
	k := keyOf(ref)
	old, ok := a.objects[k]
	if !ok {
		return nil, notFound(ref)
	}
	if rv := o.GetResourceVersion(); rv != "" && rv != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	// Status and the rest are written through their own doors.
	oldMap, newMap := tree(old), tree(o)
	if ref.Subresource == "status" || ref.Subresource == "approval" {
		merged := tree(old)
		merged["status"] = newMap["status"]
		newMap = merged
	} else if _, has := oldMap["status"]; has && hasStatus(ref) {
		newMap["status"] = oldMap["status"]
	}
	out := kindOf(old).New()
	if err := untree(newMap, out); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	out.SetUID(old.GetUID())
	out.SetCreationTimestamp(old.GetCreationTimestamp())
	out.SetDeletionTimestamp(old.GetDeletionTimestamp())
	out.SetGeneration(old.GetGeneration())
	if !reflect.DeepEqual(oldMap["spec"], tree(out)["spec"]) {
		out.SetGeneration(old.GetGeneration() + 1)
	}
	if out.GetDeletionTimestamp() != nil && len(out.GetFinalizers()) == 0 && len(old.GetFinalizers()) > 0 {
		return a.remove(k), nil
	}
	out.SetResourceVersion(old.GetResourceVersion())
	if reflect.DeepEqual(tree(out), oldMap) {
		return old, nil
	}
	a.store(k, out)
	return out, nil
}

func hasStatus(ref client.Ref) bool {
	switch ref.GVR.Resource {
	case "pods", "nodes", "namespaces", "services", "deployments", "replicasets", "statefulsets", "daemonsets", "replicationcontrollers",
		"jobs", "cronjobs", "poddisruptionbudgets", "resourcequotas", "persistentvolumeclaims", "resourceclaims",
		"horizontalpodautoscalers", "certificatesigningrequests", "podcertificaterequests":
		return true
	}
	return false
}

func tree(o client.Object) map[string]any {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

func untree(m map[string]any, o client.Object) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, o)
}

// Patch implements client.Transport. Apply is done as a strategic merge.
func (a *API) Patch(_ context.Context, ref client.Ref, t types.PatchType, patch []byte, _ metav1.PatchOptions) (client.Object, error) {
	if err := a.begin("patch", ref, nil, patch); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old, ok := a.objects[keyOf(ref)]
	if !ok {
		return nil, notFound(ref)
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch t {
	case types.MergePatchType:
		after, err = jsonpatch.MergePatch(before, patch)
	case types.JSONPatchType:
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(patch); err == nil {
			after, err = p.Apply(before)
		}
	default:
		after, err = strategicpatch.StrategicMergePatch(before, patch, kindOf(old).New())
	}
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	o := kindOf(old).New()
	if err := json.Unmarshal(after, o); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if uid := o.GetUID(); uid != "" && uid != old.GetUID() {
		return nil, apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, old.GetUID()))
	}
	return a.replace(ref, o)
}

// Delete implements client.Transport. A pod on a node gets a deletion timestamp
// and stays until it is deleted with grace period 0, as on a cluster.
func (a *API) Delete(_ context.Context, ref client.Ref, o metav1.DeleteOptions) (client.Object, error) {
	if err := a.begin("delete", ref, nil, nil); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := keyOf(ref)
	old, ok := a.objects[k]
	if !ok {
		return nil, notFound(ref)
	}
	if p := o.Preconditions; p != nil {
		if p.UID != nil && *p.UID != old.GetUID() {
			return nil, apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, old.GetUID()))
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != old.GetResourceVersion() {
			return nil, apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, old.GetResourceVersion()))
		}
	}
	grace := int64(0)
	if p, ok := old.(*corev1.Pod); ok && p.Spec.NodeName != "" {
		grace = 30
		if p.Spec.TerminationGracePeriodSeconds != nil {
			grace = *p.Spec.TerminationGracePeriodSeconds
		}
		if o.GracePeriodSeconds != nil {
			grace = *o.GracePeriodSeconds
		}
	}
	if grace == 0 && len(old.GetFinalizers()) == 0 {
		return a.remove(k), nil
	}
	now := old.DeepCopyObject().(client.Object)
	at := metav1.NewTime(a.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
	if d := old.GetDeletionTimestamp(); d == nil || at.Before(d) {
		now.SetDeletionTimestamp(&at)
		now.SetDeletionGracePeriodSeconds(&grace)
		a.store(k, now)
		return now, nil
	}
	return old, nil
}

// DeleteCollection implements client.Transport.
func (a *API) DeleteCollection(ctx context.Context, ref client.Ref, o metav1.DeleteOptions, lo metav1.ListOptions) error {
	l, err := a.List(ctx, ref, lo)
	if err != nil {
		return err
	}
	for _, it := range l.Items {
		r := ref
		r.Namespace, r.Name = it.GetNamespace(), it.GetName()
		if _, err := a.Delete(ctx, r, o); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// Bind implements client.Transport.
func (a *API) Bind(_ context.Context, bindings []*corev1.Binding) []error {
	errs := make([]error, len(bindings))
	for i, b := range bindings {
		ref := client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: b.Namespace, Name: b.Name, Subresource: "binding"}
		if errs[i] = a.begin("create", ref, b, nil); errs[i] == nil {
			errs[i] = a.bind(ref, b)
		}
	}
	return errs
}

func (a *API) bind(ref client.Ref, b *corev1.Binding) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ref.Subresource = ""
	old, ok := a.objects[keyOf(ref)].(*corev1.Pod)
	if !ok {
		return notFound(ref)
	}
	if old.Spec.NodeName != "" {
		return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("pod %s is already assigned to node %q", ref.Name, old.Spec.NodeName))
	}
	p := old.DeepCopy()
	p.Spec.NodeName = b.Target.Name
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(a.Now())})
	a.store(keyOf(ref), p)
	return nil
}
