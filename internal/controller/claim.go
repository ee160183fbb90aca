package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

// claim is what an owner does with an object that may be its own.
type claim int

const (
	leaveAlone claim = iota // somebody else's, or nobody's and not wanted
	keep
	adopt
	release
)

// claimOf decides about one object, which the owner selects or does not (match): an
// owner keeps what it controls and selects, releases what it no longer selects, and
// adopts what it selects and nobody controls. An owner that is being deleted changes
// nothing.
func claimOf(owner, o metav1.Object, match bool) claim {
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
		switch {
		case ref.UID != owner.GetUID():
			return leaveAlone
		case match:
			return keep
		case owner.GetDeletionTimestamp() != nil:
			return leaveAlone
		}
		return release
	}
	if owner.GetDeletionTimestamp() != nil || o.GetDeletionTimestamp() != nil || !match || o.GetNamespace() != owner.GetNamespace() {
		return leaveAlone
	}
	return adopt
}

// matcher is a selector that remembers what it said of the last labels: pods of one
// template have one map of them (the API server sees to it), and come one after the
// other.
type matcher struct {
	sel  labels.Selector
	last unsafe.Pointer
	said bool
}

func (m *matcher) matches(l map[string]string) bool {
	at := reflect.ValueOf(l).UnsafePointer()
	if at == nil || at != m.last {
		m.last, m.said = at, m.sel.Matches(labels.Set(l))
	}
	return m.said
}

// claimer adopts and releases objects of type T for an owner.
type claimer[T client.Object] struct {
	c     *control.Controller
	key   control.Key
	inf   *client.Informer[T]
	owner metav1.Object
	gvk   schema.GroupVersionKind
	// fresh reads the owner live: an owner deleted a moment ago must not adopt.
	fresh func(ctx context.Context) (metav1.Object, error)
	// member, where set, must hold beside the selector.
	member func(T) bool
	// change, where set, is asked for more to write with an adoption (adopted) or a
	// release: a part of metadata.
	change func(o T, adopted bool) map[string]any

	checked  bool
	checkErr error
}

// claim returns the objects that are the owner's, after adoptions and releases.
func (m *claimer[T]) claim(ctx context.Context, objects []T, sel labels.Selector) ([]T, error) {
	var mine []T
	var errs []error
	selected := matcher{sel: sel}
	for _, o := range objects {
		match := selected.matches(o.GetLabels()) && (m.member == nil || m.member(o))
		switch claimOf(m.owner, o, match) {
		case keep:
			mine = append(mine, o)
		case adopt:
			got, err := m.adopt(ctx, o)
			switch {
			case err == nil:
				mine = append(mine, got)
			case !apierrors.IsNotFound(err):
				errs = append(errs, err)
			}
		case release:
			if err := m.release(ctx, o); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return mine, errors.Join(errs...)
}

func (m *claimer[T]) canAdopt(ctx context.Context) error {
	if m.checked {
		return m.checkErr
	}
	m.checked = true
	o, err := m.fresh(ctx)
	switch {
	case err != nil:
		m.checkErr = fmt.Errorf("can't recheck DeletionTimestamp: %w", err)
	case o.GetUID() != m.owner.GetUID():
		m.checkErr = fmt.Errorf("can't recheck DeletionTimestamp: original %s %s/%s is gone: got uid %s, wanted %s", m.gvk.Kind, o.GetNamespace(), o.GetName(), o.GetUID(), m.owner.GetUID())
	case o.GetDeletionTimestamp() != nil:
		m.checkErr = fmt.Errorf("%s/%s has just been deleted at %v", o.GetNamespace(), o.GetName(), o.GetDeletionTimestamp())
	}
	return m.checkErr
}

func (m *claimer[T]) adopt(ctx context.Context, o T) (T, error) {
	var zero T
	if err := m.canAdopt(ctx); err != nil {
		return zero, fmt.Errorf("can't adopt %s/%s (%s): %w", o.GetNamespace(), o.GetName(), o.GetUID(), err)
	}
	return m.patch(ctx, o, []any{metav1.NewControllerRef(m.owner, m.gvk)}, true)
}

func (m *claimer[T]) release(ctx context.Context, o T) error {
	_, err := m.patch(ctx, o, []any{map[string]any{"$patch": "delete", "uid": m.owner.GetUID()}}, false)
	// Gone, or no longer the object that was meant: nothing is left to release.
	if apierrors.IsNotFound(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

func (m *claimer[T]) patch(ctx context.Context, o T, owners []any, adopted bool) (T, error) {
	var zero T
	meta := map[string]any{}
	if m.change != nil {
		meta = m.change(o, adopted)
	}
	meta["uid"], meta["ownerReferences"] = o.GetUID(), owners
	patch, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return zero, err
	}
	got, err := client.For[T](m.c.Client).In(o.GetNamespace()).Patch(ctx, o.GetName(), types.StrategicMergePatchType, patch, "")
	if err != nil {
		return zero, err
	}
	control.Wrote(m.c.Pending, m.key, m.inf, got)
	return got, nil
}

// Indices of objects by their controller.
const (
	byController = "controller" // value: the controller's UID
	orphans      = "orphan"     // value: the namespace
)

// indexOwners lets an informer find objects by their controller, and those that
// have none.
func indexOwners[T client.Object](inf *client.Informer[T]) {
	inf.AddIndex(byController, func(o T) []string {
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
			return []string{string(ref.UID)}
		}
		return nil
	})
	inf.AddIndex(orphans, func(o T) []string {
		if metav1.GetControllerOfNoCopy(o) == nil {
			return []string{o.GetNamespace()}
		}
		return nil
	})
}

// enqueueOwners returns a handler that enqueues the owners of a changed object:
// its controller, before and after, and where it has none, those that may adopt it.
func enqueueOwners[T, O client.Object](c *control.Controller, owners *client.Informer[O], kind string, selects func(O) (labels.Selector, error)) func(client.Change[T]) {
	resolve := func(o T) *metav1.OwnerReference {
		ref := metav1.GetControllerOfNoCopy(o)
		if ref == nil {
			return nil
		}
		if ref.Kind == kind {
			if owner, ok := owners.Get(o.GetNamespace(), ref.Name); ok && owner.GetUID() == ref.UID {
				c.Queue.Add(control.KeyOf(owner))
			}
		}
		return ref
	}
	return func(ch client.Change[T]) {
		isNew := any(ch.Old) == any(*new(T))
		var was *metav1.OwnerReference
		if !isNew {
			was = resolve(ch.Old)
		}
		if ch.Deleted() {
			return
		}
		is := resolve(ch.New)
		if is != nil || ch.New.GetDeletionTimestamp() != nil {
			return
		}
		if isNew || was != nil || !labels.Equals(ch.Old.GetLabels(), ch.New.GetLabels()) {
			for _, owner := range owners.List(ch.New.GetNamespace(), nil) {
				if sel, err := selects(owner); err == nil && !sel.Empty() && sel.Matches(labels.Set(ch.New.GetLabels())) {
					c.Queue.Add(control.KeyOf(owner))
				}
			}
		}
	}
}
