package explain

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/client"
)

// World is what an explanation is made of: objects as they are at one moment. What
// it has not is not known: see Unread.
type World struct {
	Now time.Time
	// Unread are the lists that could not be read, with the reason.
	Unread map[string]string
	// Logs are the last lines that containers wrote before they ended, by LogKey.
	Logs map[string]string
	// Served are the resources of the API, for a namespace that does not go away,
	// and Broken the groups that could not be asked for theirs, with the reason.
	Served []schema.GroupVersionResource
	Broken map[string]string
	// Left are a namespace's objects, by resource.
	Left map[schema.GroupVersionResource][]client.Object

	byType map[reflect.Type][]client.Object
	index  map[reflect.Type]map[key]client.Object
}

type key struct{ ns, name string }

// NewWorld returns a world with the objects given, seen at a moment.
func NewWorld(now time.Time, objects ...client.Object) *World {
	w := &World{
		Now: now, Unread: map[string]string{}, Logs: map[string]string{}, Broken: map[string]string{},
		Left: map[schema.GroupVersionResource][]client.Object{}, byType: map[reflect.Type][]client.Object{},
	}
	w.Put(objects...)
	return w
}

// LogKey is what Logs are known by.
func LogKey(namespace, pod, container string) string { return namespace + "/" + pod + "/" + container }

// Put adds objects, or replaces those of the same type, namespace and name.
func (w *World) Put(objects ...client.Object) {
	grouped := map[reflect.Type][]client.Object{}
	for _, o := range objects {
		t := reflect.TypeOf(o)
		grouped[t] = append(grouped[t], o)
	}
	for t, list := range grouped {
		now := make(map[key]client.Object, len(list))
		for _, o := range list {
			now[key{o.GetNamespace(), o.GetName()}] = o
		}
		// Never in place: worlds that were made from this one share the list.
		next := make([]client.Object, 0, len(w.byType[t])+len(list))
		for _, o := range w.byType[t] {
			if _, again := now[key{o.GetNamespace(), o.GetName()}]; !again {
				next = append(next, o)
			}
		}
		next = append(next, slices.Collect(maps.Values(now))...)
		slices.SortFunc(next, func(a, b client.Object) int {
			return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
		})
		w.byType[t] = next
		delete(w.index, t)
	}
}

// Remove takes an object out.
func (w *World) Remove(o client.Object) {
	t := reflect.TypeOf(o)
	w.byType[t] = slices.DeleteFunc(slices.Clone(w.byType[t]), func(x client.Object) bool {
		return x.GetNamespace() == o.GetNamespace() && x.GetName() == o.GetName()
	})
	delete(w.index, t)
}

// with is a world that differs from w in the objects given.
func (w *World) with(objects ...client.Object) *World {
	next := *w
	next.byType, next.index = maps.Clone(w.byType), nil
	next.Put(objects...)
	return &next
}

// all are the objects of a type, by namespace and name.
func all[T client.Object](w *World) []T {
	list := w.byType[reflect.TypeFor[T]()]
	out := make([]T, len(list))
	for i, o := range list {
		out[i] = o.(T)
	}
	return out
}

// in are those of one namespace.
func in[T client.Object](w *World, ns string) []T {
	var out []T
	for _, o := range w.byType[reflect.TypeFor[T]()] {
		if o.GetNamespace() == ns {
			out = append(out, o.(T))
		}
	}
	return out
}

func get[T client.Object](w *World, ns, name string) (T, bool) {
	t := reflect.TypeFor[T]()
	if w.index == nil {
		w.index = map[reflect.Type]map[key]client.Object{}
	}
	m := w.index[t]
	if m == nil {
		m = make(map[key]client.Object, len(w.byType[t]))
		for _, o := range w.byType[t] {
			m[key{o.GetNamespace(), o.GetName()}] = o
		}
		w.index[t] = m
	}
	o, ok := m[key{ns, name}]
	if !ok {
		var zero T
		return zero, false
	}
	return o.(T), true
}

// said are the messages of the newest events of each reason about an object, the
// newest first; none of reasons means all.
func said(w *World, kind, ns, name string, reasons ...string) []string {
	type told struct {
		at   time.Time
		text string
	}
	newest := map[string]told{}
	for _, e := range in[*corev1.Event](w, ns) {
		r := e.InvolvedObject
		if r.Kind != kind || r.Name != name || len(reasons) > 0 && !slices.Contains(reasons, e.Reason) {
			continue
		}
		at := e.LastTimestamp.Time
		if e.Series != nil && e.Series.LastObservedTime.After(at) {
			at = e.Series.LastObservedTime.Time
		}
		if e.EventTime.After(at) {
			at = e.EventTime.Time
		}
		if old, ok := newest[e.Reason]; !ok || at.After(old.at) {
			newest[e.Reason] = told{at, e.Message}
		}
	}
	list := slices.SortedFunc(maps.Values(newest), func(a, b told) int {
		return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.text, b.text))
	})
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = t.text
	}
	return out
}
