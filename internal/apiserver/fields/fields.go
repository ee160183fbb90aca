// Package fields keeps metadata.managedFields and does server-side apply, with
// the bytes, conflicts and messages of upstream: its rules are those of
// apimachinery's managedfields, over a schema of skiff's own (schema.json.gz,
// made together with the OpenAPI documents) that is read at the first write.
//
// Kinds that are written often have a walker (walker.go) that does the same for
// create, update and patch in a few microseconds: it compares the Go structs in
// one pass (compare.go) along a plan made once of type and schema (plan.go), and
// works on sets of fields (set.go) that objects of one template share. What is
// out of the ordinary, and every apply, is the library's, so that there is one
// specification of the bytes; TestWalkerEqualsLibrary holds the walker to it.
//
// Objects come and go without TypeMeta. A live object is shared and not changed.
package fields

import (
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"skiff/internal/api/resource"
)

// Object is an API object.
type Object = resource.Object

// Managers maintains the managed fields of the objects of a set of resources.
// It is safe for concurrent use.
type Managers struct {
	types *types

	mu    sync.Mutex
	doors map[door]*managed
	plans map[schema.GroupVersionKind]*planned
}

// managed is what keeps the managed fields of a door: the library, and before it
// a walker where there is one.
type managed struct {
	*managedfields.FieldManager
	walker *walker
}

// door is a resource, or one of its subresources, that objects are written through.
type door struct {
	gvr schema.GroupVersionResource
	sub string
}

// New returns managers for resources. The schema is read at the first use.
func New(all []*resource.Resource) *Managers {
	return &Managers{types: newTypes(all), doors: map[door]*managed{}, plans: map[schema.GroupVersionKind]*planned{}}
}

// at returns the manager of a door.
func (m *Managers) at(r *resource.Resource, sub *resource.Subresource) (*managed, error) {
	d := door{gvr: r.GVR()}
	if sub != nil {
		d.sub = sub.Name
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.doors[d]; f != nil {
		return f, nil
	}
	if err := m.types.load(); err != nil {
		return nil, err
	}
	k := &kind{gvk: r.GVK(), fresh: r.New, standard: r.Default, types: m.types}
	s := &r.Strategy
	switch {
	case sub != nil && sub.NewView != nil:
		k = &kind{gvk: sub.Kind, fresh: sub.NewView, types: m.types}
		s = &resource.Strategy{}
	case sub != nil && sub.NewBody != nil:
		k = &kind{gvk: sub.Kind, fresh: sub.NewBody, types: m.types}
		s = &resource.Strategy{}
	case sub != nil && sub.Status != nil:
		s = sub.Status
	}
	filter, err := ignored(k.gvk.GroupVersion(), s)
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w", d.gvr, d.sub, err)
	}
	// What this door does not write it does not write in another version either.
	for _, twin := range m.types.twins(r) {
		door := &twin.Strategy
		if sub != nil {
			t := twin.Subresource(sub.Name)
			if t == nil || t.Status == nil {
				continue
			}
			door = t.Status
		}
		more, err := ignored(twin.GroupVersion, door)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", d.gvr, d.sub, err)
		}
		maps.Copy(filter, more)
	}
	hub := schema.GroupVersion{Group: k.gvk.Group, Version: hubVersion}
	f, err := managedfields.NewDefaultFieldManager(k, k, k, k, k.gvk, hub, d.sub, filter)
	if err != nil {
		return nil, err
	}
	out := &managed{FieldManager: f, walker: m.walkerFor(r, sub)}
	m.doors[d] = out
	return out, nil
}

// ignored makes the filter of what a door does not write.
func ignored(gv schema.GroupVersion, s *resource.Strategy) (map[fieldpath.APIVersion]fieldpath.Filter, error) {
	version := fieldpath.APIVersion(gv.String())
	switch {
	case len(s.KeepFields) > 0:
		var matchers []*fieldpath.SetMatcher
		for _, dotted := range s.KeepFields {
			var parts []any
			for _, name := range strings.Split(dotted, ".") {
				name, list := strings.CutSuffix(name, "[*]")
				parts = append(parts, name)
				if list {
					parts = append(parts, fieldpath.MatchAnyPathElement())
				}
			}
			matcher, err := fieldpath.PrefixMatcher(parts...)
			if err != nil {
				return nil, fmt.Errorf("field %q: %w", dotted, err)
			}
			matchers = append(matchers, matcher)
		}
		return map[fieldpath.APIVersion]fieldpath.Filter{version: fieldpath.NewIncludeMatcherFilter(matchers...)}, nil
	case len(s.ResetFields) > 0:
		set := fieldpath.NewSet()
		for _, dotted := range s.ResetFields {
			var parts []any
			for _, name := range strings.Split(dotted, ".") {
				parts = append(parts, name)
			}
			path, err := fieldpath.MakePath(parts...)
			if err != nil {
				return nil, fmt.Errorf("field %q: %w", dotted, err)
			}
			set.Insert(path)
		}
		return fieldpath.NewExcludeFilterSetMap(map[fieldpath.APIVersion]*fieldpath.Set{version: set}), nil
	}
	return map[fieldpath.APIVersion]fieldpath.Filter{}, nil
}

// Update notes that manager made obj out of live (nil on creation) through the
// door sub. It changes obj and returns it. A failure leaves live's managed fields,
// as upstream: a write never fails for them.
func (m *Managers) Update(r *resource.Resource, sub string, live, obj Object, manager string) (Object, error) {
	s := r.Subresource(sub)
	if s != nil && s.SetView != nil {
		return obj, m.updateView(r, s, live, obj, manager)
	}
	f, err := m.at(r, s)
	if err != nil {
		return nil, err
	}
	was := r.New()
	switch {
	case live != nil:
		was = live
	case s != nil && s.NewBody != nil:
		was = s.NewBody()
	}
	if f.walker != nil && f.walker.update(was, obj, manager) {
		return obj, nil
	}
	if live != nil {
		was = shallow(live)
	}
	if _, err := f.Update(was, obj, manager); err != nil {
		obj.SetManagedFields(nil)
		if live != nil {
			obj.SetManagedFields(live.GetManagedFields())
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj, nil
}

// Apply merges an apply configuration, as decoded, into live (an empty object on
// creation) and returns a new object.
func (m *Managers) Apply(r *resource.Resource, sub string, live Object, config map[string]any, manager string, force bool) (Object, error) {
	s := r.Subresource(sub)
	if s != nil && s.SetView != nil {
		return m.applyView(r, s, live, config, manager, force)
	}
	f, err := m.at(r, s)
	if err != nil {
		return nil, err
	}
	return apply(f.FieldManager, shallow(live), config, manager, force)
}

func apply(f *managedfields.FieldManager, live Object, config map[string]any, manager string, force bool) (Object, error) {
	out, err := f.Apply(live, &unstructured.Unstructured{Object: config}, manager, force)
	if err != nil {
		return nil, err
	}
	obj, ok := out.(Object)
	if !ok {
		return nil, fmt.Errorf("applied object is %T", out)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	return obj, nil
}

// Valid tells whether managed fields can be read: what admission plugins leave
// behind is checked with it.
func (m *Managers) Valid(entries []metav1.ManagedFieldsEntry) error {
	return managedfields.ValidateManagedFields(entries)
}

// shallow copies the outermost struct of an object, whose TypeMeta and managed
// fields may then be set. What lies below is shared.
func shallow(obj Object) Object {
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	return v.Interface().(Object)
}
