// Package client is the one way in which skiff's parts use the API: a generic
// client, client.For[*corev1.Pod](c), over a Transport.
//
// Two transports exist: in process (into the API server's request pipeline, after
// decoding, under a user's identity) and HTTPS with protobuf. Code that holds a
// Client cannot tell which it has.
//
// # Sharing
//
// Objects that a client or an informer returns may be shared with the API
// server's cache and with everybody else: they are immutable. DeepCopy before
// changing one. Objects handed in are copied; the caller keeps them.
//
// # Errors
//
// Every error from the API is an *apierrors.StatusError: use
// apierrors.IsNotFound and its sisters.
package client

import (
	"context"
	"fmt"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Object is an API object: a pointer to a k8s.io/api struct.
type Object interface {
	metav1.Object
	runtime.Object
}

// Ref names what a request is for. An empty Name means the collection; an empty
// Namespace, for a namespaced resource, all namespaces.
type Ref struct {
	GVR         schema.GroupVersionResource
	Namespace   string
	Name        string
	Subresource string
}

// List is the answer to a list request.
type List struct {
	Items []Object
	metav1.ListMeta
}

// Event is one event of a watch. Object is an Object for Added, Modified,
// Deleted and Bookmark; for Error the watch is over and Err says why.
type Event struct {
	Type   watch.EventType
	Object Object
	Err    error
}

// Watch is a running watch; it ends with its context, or by an Error event, after
// which Events is closed.
type Watch interface {
	Events() <-chan Event
}

// Transport carries requests to an API server.
type Transport interface {
	Get(ctx context.Context, ref Ref, o metav1.GetOptions) (Object, error)
	List(ctx context.Context, ref Ref, o metav1.ListOptions) (*List, error)
	Watch(ctx context.Context, ref Ref, o metav1.ListOptions) (Watch, error)
	// Create posts obj to ref; for a subresource (binding, token, eviction) the
	// answer may be of another type than obj.
	Create(ctx context.Context, ref Ref, obj Object, o metav1.CreateOptions) (Object, error)
	Update(ctx context.Context, ref Ref, obj Object, o metav1.UpdateOptions) (Object, error)
	Patch(ctx context.Context, ref Ref, t types.PatchType, patch []byte, o metav1.PatchOptions) (Object, error)
	// Delete returns the object as it is after the request, nil where the server
	// answered with a Status.
	Delete(ctx context.Context, ref Ref, o metav1.DeleteOptions) (Object, error)
	DeleteCollection(ctx context.Context, ref Ref, o metav1.DeleteOptions, lo metav1.ListOptions) error
	// Bind posts many pod bindings, as one batch where the transport can; errors
	// are in the order of bindings.
	Bind(ctx context.Context, bindings []*corev1.Binding) []error
}

// Client is an identity's access to the API.
type Client struct {
	t Transport
	// Manager is the field manager of this client's writes.
	manager string
}

// New returns a client over t whose writes carry the field manager named.
func New(t Transport, fieldManager string) *Client {
	return &Client{t: t, manager: fieldManager}
}

// Transport returns the transport, for requests that For does not cover.
func (c *Client) Transport() Transport { return c.t }

// Bind posts pod bindings; errors are in the order of bindings.
func (c *Client) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	return c.t.Bind(ctx, bindings)
}

// Resource is the typed access to one resource. The zero namespace of a
// namespaced resource means all namespaces, for List and Watch.
type Resource[T Object] struct {
	c    *Client
	kind *Kind
	ns   string
}

// For returns the access to T's resource. It panics when T is not in Kinds: a
// mistake in the program, not in its input.
func For[T Object](c *Client) Resource[T] {
	return Resource[T]{c: c, kind: KindOf[T]()}
}

// In narrows to one namespace.
func (r Resource[T]) In(namespace string) Resource[T] { r.ns = namespace; return r }

func (r Resource[T]) ref(name, sub string) Ref {
	return Ref{GVR: r.kind.GVR, Namespace: r.ns, Name: name, Subresource: sub}
}

func typed[T Object](o Object, err error) (T, error) {
	var zero T
	if err != nil {
		return zero, err
	}
	if o == nil {
		return zero, nil
	}
	t, ok := o.(T)
	if !ok {
		return zero, apierrors.NewInternalError(fmt.Errorf("answer is a %T, want %T", o, zero))
	}
	return t, nil
}

// Get reads one object, linearizable.
func (r Resource[T]) Get(ctx context.Context, name string) (T, error) {
	return typed[T](r.c.t.Get(ctx, r.ref(name, ""), metav1.GetOptions{}))
}

// List reads objects.
func (r Resource[T]) List(ctx context.Context, o metav1.ListOptions) ([]T, metav1.ListMeta, error) {
	l, err := r.c.t.List(ctx, r.ref("", ""), o)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	out := make([]T, 0, len(l.Items))
	for _, it := range l.Items {
		t, err := typed[T](it, nil)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		out = append(out, t)
	}
	return out, l.ListMeta, nil
}

// Watch watches objects; informers are the usual way.
func (r Resource[T]) Watch(ctx context.Context, o metav1.ListOptions) (Watch, error) {
	return r.c.t.Watch(ctx, r.ref("", ""), o)
}

// Create posts a new object into its own namespace (or the one of In).
func (r Resource[T]) Create(ctx context.Context, obj T) (T, error) {
	ref := r.at(obj, "")
	ref.Name = ""
	return typed[T](r.c.t.Create(ctx, ref, obj, metav1.CreateOptions{FieldManager: r.c.manager}))
}

// Update replaces an object; its resourceVersion, where set, must be current.
func (r Resource[T]) Update(ctx context.Context, obj T) (T, error) {
	return typed[T](r.c.t.Update(ctx, r.at(obj, ""), obj, metav1.UpdateOptions{FieldManager: r.c.manager}))
}

// UpdateStatus replaces an object's status.
func (r Resource[T]) UpdateStatus(ctx context.Context, obj T) (T, error) {
	return typed[T](r.c.t.Update(ctx, r.at(obj, "status"), obj, metav1.UpdateOptions{FieldManager: r.c.manager}))
}

// UpdateSub replaces an object through another of its doors (approval).
func (r Resource[T]) UpdateSub(ctx context.Context, obj T, sub string) (T, error) {
	return typed[T](r.c.t.Update(ctx, r.at(obj, sub), obj, metav1.UpdateOptions{FieldManager: r.c.manager}))
}

// Patch changes an object; sub names a subresource or is empty.
func (r Resource[T]) Patch(ctx context.Context, name string, t types.PatchType, patch []byte, sub string) (T, error) {
	o := metav1.PatchOptions{FieldManager: r.c.manager}
	if t == types.ApplyPatchType {
		force := true
		o.Force = &force
	}
	return typed[T](r.c.t.Patch(ctx, r.ref(name, sub), t, patch, o))
}

// Delete removes an object. Preconditions, grace and propagation are in o.
func (r Resource[T]) Delete(ctx context.Context, name string, o metav1.DeleteOptions) error {
	_, err := r.c.t.Delete(ctx, r.ref(name, ""), o)
	return err
}

// DeleteCollection removes what lo selects.
func (r Resource[T]) DeleteCollection(ctx context.Context, o metav1.DeleteOptions, lo metav1.ListOptions) error {
	return r.c.t.DeleteCollection(ctx, r.ref("", ""), o, lo)
}

// CreateSub posts in to a subresource of an object (token, eviction) and returns
// the answer.
func (r Resource[T]) CreateSub(ctx context.Context, name, sub string, in Object) (Object, error) {
	return r.c.t.Create(ctx, r.ref(name, sub), in, metav1.CreateOptions{FieldManager: r.c.manager})
}

func (r Resource[T]) at(obj T, sub string) Ref {
	ref := r.ref(obj.GetName(), sub)
	if r.kind.Namespaced && ref.Namespace == "" {
		ref.Namespace = obj.GetNamespace()
	}
	return ref
}

// KindOf returns what Kinds says of T.
func KindOf[T Object]() *Kind {
	t := reflect.TypeFor[T]()
	if k, ok := byType[t]; ok {
		return k
	}
	panic(fmt.Sprintf("client: %v is not in client.Kinds", t))
}
