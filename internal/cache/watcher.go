package cache

import (
	"context"
	"errors"
	"strings"
	"sync"
)

// maxQueue is how many changes a watcher may lag behind before it is ended: its
// client resumes from the last revision it saw.
const maxQueue = 100_000

// ErrSlow ends a watcher that does not keep up.
var ErrSlow = errors.New("watcher is too slow")

// Watcher delivers the changes of a scope in revision order.
type Watcher struct {
	col   *Collection
	scope Scope

	mu    sync.Mutex
	queue []*Event
	err   error
	wake  chan struct{}
}

func (col *Collection) newWatcher(s Scope) *Watcher {
	w := &Watcher{col: col, scope: s, wake: make(chan struct{}, 1)}
	col.watchers.add(w)
	return w
}

// Next waits for changes and returns all there are. It returns an error when the
// watcher was ended (ErrSlow, ErrExpired) or ctx is done.
func (w *Watcher) Next(ctx context.Context) ([]*Event, error) {
	for {
		if q, err := w.take(); len(q) > 0 || err != nil {
			return q, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Wake has a value when Poll has changes; for callers that wait for more than
// changes.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Poll returns the changes there are, at once.
func (w *Watcher) Poll() ([]*Event, error) { return w.take() }

func (w *Watcher) take() ([]*Event, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = nil
	if len(q) > 0 {
		return q, nil
	}
	return nil, w.err
}

// Progress returns a revision up to which the watcher has delivered everything,
// 0 while changes wait to be taken.
func (w *Watcher) Progress() int64 {
	w.col.c.mu.RLock()
	defer w.col.c.mu.RUnlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) > 0 || w.err != nil {
		return 0
	}
	return w.col.c.rev
}

// Stop ends the watcher.
func (w *Watcher) Stop() {
	w.col.c.mu.Lock()
	defer w.col.c.mu.Unlock()
	w.col.watchers.remove(w)
}

func (w *Watcher) send(e *Event) {
	w.mu.Lock()
	if len(w.queue) >= maxQueue {
		w.err = ErrSlow
		w.queue = nil
	}
	if w.err == nil {
		w.queue = append(w.queue, e)
	}
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	w.err, w.queue = err, nil
	w.mu.Unlock()
	w.signal()
}

func (w *Watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (s Scope) key() string {
	if s.Namespace == "" {
		return s.Name
	}
	return s.Namespace + "/" + s.Name
}

func (w *Watcher) wants(node func(o Object) string, e *Event) bool {
	switch {
	case w.scope.Name != "":
		return e.Key == w.scope.key()
	case w.scope.Node != "":
		return nodeOf(node, e.Old) == w.scope.Node || nodeOf(node, e.New) == w.scope.Node
	case w.scope.Namespace != "":
		return strings.HasPrefix(e.Key, w.scope.Namespace+"/")
	}
	return true
}

// watchers are indexed so that a change costs those who may want it, not all.
type watchers struct {
	all    map[*Watcher]struct{}
	byNS   map[string]map[*Watcher]struct{}
	byKey  map[string]map[*Watcher]struct{}
	byNode map[string]map[*Watcher]struct{}
}

func newWatchers() watchers {
	return watchers{
		all: map[*Watcher]struct{}{}, byNS: map[string]map[*Watcher]struct{}{},
		byKey: map[string]map[*Watcher]struct{}{}, byNode: map[string]map[*Watcher]struct{}{},
	}
}

func (ws *watchers) place(s Scope) (map[string]map[*Watcher]struct{}, string) {
	switch {
	case s.Name != "":
		return ws.byKey, s.key()
	case s.Node != "":
		return ws.byNode, s.Node
	case s.Namespace != "":
		return ws.byNS, s.Namespace
	}
	return nil, ""
}

func (ws *watchers) add(w *Watcher) {
	m, k := ws.place(w.scope)
	if m == nil {
		ws.all[w] = struct{}{}
		return
	}
	if m[k] == nil {
		m[k] = map[*Watcher]struct{}{}
	}
	m[k][w] = struct{}{}
}

func (ws *watchers) remove(w *Watcher) {
	m, k := ws.place(w.scope)
	if m == nil {
		delete(ws.all, w)
		return
	}
	delete(m[k], w)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

func (ws *watchers) each(f func(*Watcher)) {
	for w := range ws.all {
		f(w)
	}
	for _, m := range []map[string]map[*Watcher]struct{}{ws.byNS, ws.byKey, ws.byNode} {
		for _, set := range m {
			for w := range set {
				f(w)
			}
		}
	}
}

func (ws *watchers) dispatch(node func(o Object) string, e *Event) {
	for w := range ws.all {
		w.send(e)
	}
	if i := strings.IndexByte(e.Key, '/'); i > 0 && len(ws.byNS) > 0 {
		for w := range ws.byNS[e.Key[:i]] {
			w.send(e)
		}
	}
	for w := range ws.byKey[e.Key] {
		w.send(e)
	}
	if len(ws.byNode) > 0 {
		was, is := nodeOf(node, e.Old), nodeOf(node, e.New)
		if was != "" {
			for w := range ws.byNode[was] {
				w.send(e)
			}
		}
		if is != "" && is != was {
			for w := range ws.byNode[is] {
				w.send(e)
			}
		}
	}
}
