package client

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
)

// Change is one change that an informer saw. Old is the zero T for an object that
// is new, New for one that is gone. Both are shared: never modify them.
type Change[T Object] struct{ Old, New T }

// Object returns New, or Old where the object is gone.
func (c Change[T]) Object() T {
	if any(c.New) != any(*new(T)) {
		return c.New
	}
	return c.Old
}

// Deleted tells that the object is gone.
func (c Change[T]) Deleted() bool { return any(c.New) == any(*new(T)) }

type nsName struct{ ns, name string }

// Informer holds the current objects of one resource, fed by a watch. In process
// it holds the cache's own objects: pointers, no copies.
//
// Handlers are called in revision order, one at a time, from the informer's
// goroutine: they must not block. A handler sees a state that Get and List
// already show.
type Informer[T Object] struct {
	r    Resource[T]
	opts metav1.ListOptions
	log  *slog.Logger

	mu       sync.RWMutex
	objects  map[nsName]T
	byNS     map[string]map[string]T
	indexers map[string]func(T) []string
	indices  map[string]map[string]map[nsName]T
	handlers []func(Change[T])
	version  string

	// dispatch is held while a change is applied and handed to the handlers, so
	// that they see changes in order and may read the informer.
	dispatch sync.Mutex

	synced   chan struct{}
	syncOnce sync.Once
}

func newInformer[T Object](c *Client, ns string, o metav1.ListOptions, log *slog.Logger) *Informer[T] {
	return &Informer[T]{
		r: For[T](c).In(ns), opts: o, log: log,
		objects: map[nsName]T{}, byNS: map[string]map[string]T{},
		indexers: map[string]func(T) []string{}, indices: map[string]map[string]map[nsName]T{},
		synced: make(chan struct{}),
	}
}

// Get returns one object.
func (i *Informer[T]) Get(ns, name string) (T, bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	o, ok := i.objects[nsName{ns, name}]
	return o, ok
}

// Len returns the number of objects.
func (i *Informer[T]) Len() int {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return len(i.objects)
}

// List returns the objects of a namespace ("" for all) that sel selects (nil for
// all), in no order.
func (i *Informer[T]) List(ns string, sel labels.Selector) []T {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var out []T
	if ns != "" {
		for _, o := range i.byNS[ns] {
			if sel == nil || sel.Matches(labels.Set(o.GetLabels())) {
				out = append(out, o)
			}
		}
		return out
	}
	out = make([]T, 0, len(i.objects))
	for _, o := range i.objects {
		if sel == nil || sel.Matches(labels.Set(o.GetLabels())) {
			out = append(out, o)
		}
	}
	return out
}

// All iterates over a copy of the current set.
func (i *Informer[T]) All() iter.Seq[T] {
	list := i.List("", nil)
	return func(yield func(T) bool) {
		for _, o := range list {
			if !yield(o) {
				return
			}
		}
	}
}

// AddIndex makes ByIndex(name, value) find the objects for which f returns value.
// Adding the same name twice keeps the first.
func (i *Informer[T]) AddIndex(name string, f func(T) []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.indexers[name]; ok {
		return
	}
	i.indexers[name] = f
	i.indices[name] = map[string]map[nsName]T{}
	for k, o := range i.objects {
		i.put(name, f, k, o)
	}
}

func (i *Informer[T]) put(name string, f func(T) []string, k nsName, o T) {
	for _, v := range f(o) {
		m := i.indices[name][v]
		if m == nil {
			m = map[nsName]T{}
			i.indices[name][v] = m
		}
		m[k] = o
	}
}

// ByIndex returns the objects with that value in an index.
func (i *Informer[T]) ByIndex(name, value string) []T {
	i.mu.RLock()
	defer i.mu.RUnlock()
	m := i.indices[name][value]
	out := make([]T, 0, len(m))
	for _, o := range m {
		out = append(out, o)
	}
	return out
}

// OnChange adds a handler. What the informer already holds is replayed to it as
// new, before OnChange returns.
func (i *Informer[T]) OnChange(h func(Change[T])) {
	i.dispatch.Lock()
	defer i.dispatch.Unlock()
	i.handlers = append(i.handlers, h)
	for _, o := range i.List("", nil) {
		h(Change[T]{New: o})
	}
}

// Synced is closed when the informer holds the state of a moment after its start.
func (i *Informer[T]) Synced() <-chan struct{} { return i.synced }

// Version is the resourceVersion up to which the informer has seen changes.
func (i *Informer[T]) Version() string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.version
}

// set applies one change and calls handlers. gone tells a deletion.
func (i *Informer[T]) set(o T, gone bool, rv string) {
	k := nsName{o.GetNamespace(), o.GetName()}
	i.dispatch.Lock()
	defer i.dispatch.Unlock()
	i.mu.Lock()
	old, had := i.objects[k]
	for name, f := range i.indexers {
		if had {
			for _, v := range f(old) {
				delete(i.indices[name][v], k)
				if len(i.indices[name][v]) == 0 {
					delete(i.indices[name], v)
				}
			}
		}
		if !gone {
			i.put(name, f, k, o)
		}
	}
	if gone {
		delete(i.objects, k)
		delete(i.byNS[k.ns], k.name)
		if len(i.byNS[k.ns]) == 0 {
			delete(i.byNS, k.ns)
		}
	} else {
		i.objects[k] = o
		m := i.byNS[k.ns]
		if m == nil {
			m = map[string]T{}
			i.byNS[k.ns] = m
		}
		m[k.name] = o
	}
	if rv != "" {
		i.version = rv
	}
	i.mu.Unlock()
	c := Change[T]{Old: old}
	if gone {
		if !had {
			return
		}
		// The last state known to the server, with its deletion's revision.
		c.Old = o
	} else {
		c.New = o
	}
	for _, h := range i.handlers {
		h(c)
	}
}

func (i *Informer[T]) run(ctx context.Context) {
	backoff := 20 * time.Millisecond
	for ctx.Err() == nil {
		start := time.Now()
		err := i.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > 10*time.Second {
			backoff = 20 * time.Millisecond
		}
		if err != nil {
			i.log.Debug("watch ended", "resource", i.r.kind.GVR.Resource, "err", err)
			if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || errors.Is(err, errRelist) {
				i.mu.Lock()
				i.version = ""
				i.mu.Unlock()
			}
		}
		t := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		backoff = min(backoff*2, 5*time.Second)
	}
}

var errRelist = errors.New("watch must start anew")

// stream runs one watch: the first with the initial state sent as events, later
// ones from where the last ended.
func (i *Informer[T]) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := i.opts
	o.AllowWatchBookmarks = true
	from := i.Version()
	initial := from == ""
	if initial {
		yes := true
		o.SendInitialEvents = &yes
		o.ResourceVersionMatch = metav1.ResourceVersionMatchNotOlderThan
	} else {
		o.ResourceVersion = from
	}
	w, err := i.r.Watch(ctx, o)
	if err != nil {
		return err
	}
	var seen map[nsName]bool
	if initial {
		seen = map[nsName]bool{}
	}
	for ev := range w.Events() {
		switch ev.Type {
		case watch.Error:
			return ev.Err
		case watch.Bookmark:
			if seen != nil && ev.Object.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
				i.retain(seen)
				seen = nil
				i.mu.Lock()
				i.version = ev.Object.GetResourceVersion()
				i.mu.Unlock()
				i.syncOnce.Do(func() { close(i.synced) })
				continue
			}
			if seen == nil {
				i.mu.Lock()
				i.version = ev.Object.GetResourceVersion()
				i.mu.Unlock()
			}
		default:
			o, err := typed[T](ev.Object, nil)
			if err != nil {
				return err
			}
			rv := o.GetResourceVersion()
			if seen != nil {
				// The order of initial events is not that of revisions: a
				// break before the bookmark must start over.
				rv = ""
				seen[nsName{o.GetNamespace(), o.GetName()}] = true
				if old, ok := i.Get(o.GetNamespace(), o.GetName()); ok && old.GetResourceVersion() == o.GetResourceVersion() && old.GetUID() == o.GetUID() {
					continue
				}
			}
			i.set(o, ev.Type == watch.Deleted, rv)
		}
	}
	if seen != nil {
		return errRelist
	}
	return nil
}

// retain drops what a new initial state no longer has.
func (i *Informer[T]) retain(seen map[nsName]bool) {
	i.mu.RLock()
	var gone []T
	for k, o := range i.objects {
		if !seen[k] {
			gone = append(gone, o)
		}
	}
	i.mu.RUnlock()
	for _, o := range gone {
		i.set(o, true, "")
	}
}

// Informers shares informers: one per type, namespace and selector.
type Informers struct {
	c   *Client
	log *slog.Logger

	mu      sync.Mutex
	byKey   map[informerKey]any
	waiting []func(context.Context) // not yet started by Run
	syncs   []<-chan struct{}
	wake    chan struct{}
	// still holds, by type, what the informers of Still show.
	still map[reflect.Type][]Object
}

type informerKey struct {
	t                reflect.Type
	ns, label, field string
}

// NewInformers returns an empty set. Informers start with Run.
func NewInformers(c *Client, log *slog.Logger) *Informers {
	return &Informers{c: c, log: log, byKey: map[informerKey]any{}, wake: make(chan struct{}, 1)}
}

// Still returns informers that show the objects given and never change: who reads
// informers can be asked about any state, with no API behind it. Of selectors, those
// of labels alone narrow what is shown.
func Still(objects ...Object) *Informers {
	s := NewInformers(New(nil, ""), slog.New(slog.DiscardHandler))
	s.still = map[reflect.Type][]Object{}
	for _, o := range objects {
		t := reflect.TypeOf(o)
		s.still[t] = append(s.still[t], o)
	}
	return s
}

// fill makes i show what a set of Still has.
func fill[T Object](i *Informer[T], objects []Object) {
	sel, err := labels.Parse(i.opts.LabelSelector)
	if err != nil {
		sel = labels.Nothing()
	}
	for _, o := range objects {
		if (i.r.ns == "" || o.GetNamespace() == i.r.ns) && sel.Matches(labels.Set(o.GetLabels())) {
			i.set(o.(T), false, "")
		}
	}
	i.syncOnce.Do(func() { close(i.synced) })
}

// InformerFor returns the shared informer of all objects of T.
func InformerFor[T Object](s *Informers) *Informer[T] {
	return InformerOf[T](s, "", metav1.ListOptions{})
}

// InformerOf returns the shared informer of T in a namespace ("" for all) with
// the label and field selectors of o.
func InformerOf[T Object](s *Informers, ns string, o metav1.ListOptions) *Informer[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := informerKey{reflect.TypeFor[T](), ns, o.LabelSelector, o.FieldSelector}
	if i, ok := s.byKey[k]; ok {
		return i.(*Informer[T])
	}
	i := newInformer[T](s.c, ns, metav1.ListOptions{LabelSelector: o.LabelSelector, FieldSelector: o.FieldSelector}, s.log)
	s.byKey[k] = i
	if s.still != nil {
		fill(i, s.still[k.t])
		return i
	}
	s.syncs = append(s.syncs, i.Synced())
	s.waiting = append(s.waiting, i.run)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return i
}

// Run runs every informer, those asked for later too, until ctx ends.
func (s *Informers) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		s.mu.Lock()
		starts := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		for _, run := range starts {
			wg.Go(func() { run(ctx) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
	}
}

// WaitSynced waits until every informer asked for so far is synced.
func (s *Informers) WaitSynced(ctx context.Context) error {
	s.mu.Lock()
	syncs := append([]<-chan struct{}(nil), s.syncs...)
	s.mu.Unlock()
	for _, c := range syncs {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
