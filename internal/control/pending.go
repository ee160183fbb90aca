package control

import (
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// Pending remembers what a controller wrote for a key until its informers show
// it. The answer to a write may come before the watch delivers it; a controller
// that counted its pods in between would make them twice. The runner asks Settled
// before it reconciles a key, so a reconciliation always reads its own writes; in
// process the watch is as fast as the answer, and the wait is nothing.
//
// A write that failed with an unknown outcome (connection lost, timeout) is not
// remembered: such an object is found by the next reconciliation.
type Pending struct {
	mu   sync.Mutex
	keys map[Key]*pendingKey
}

type pendingKey struct {
	// wrote maps an informer to the newest revision written.
	wrote map[any]*pendingWrite
	gone  []func() bool
}

type pendingWrite struct {
	rv      uint64
	version func() string
}

func newPending() *Pending { return &Pending{keys: map[Key]*pendingKey{}} }

func (p *Pending) key(k Key) *pendingKey {
	e := p.keys[k]
	if e == nil {
		e = &pendingKey{wrote: map[any]*pendingWrite{}}
		p.keys[k] = e
	}
	return e
}

// Wrote records that obj, as the server returned it, was written for k, and that
// inf will show it.
func Wrote[T client.Object](p *Pending, k Key, inf *client.Informer[T], obj T) {
	rv, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.key(k)
	w := e.wrote[inf]
	if w == nil {
		w = &pendingWrite{version: inf.Version}
		e.wrote[inf] = w
	}
	w.rv = max(w.rv, rv)
}

// Removed records that obj was asked to be deleted for k: inf will show it
// terminating, or no more.
func Removed[T client.Object](p *Pending, k Key, inf *client.Informer[T], obj T) {
	ns, name, uid := obj.GetNamespace(), obj.GetName(), obj.GetUID()
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.key(k)
	e.gone = append(e.gone, func() bool { return deletionSeen(inf, ns, name, uid) })
}

func deletionSeen[T client.Object](inf *client.Informer[T], ns, name string, uid types.UID) bool {
	o, ok := inf.Get(ns, name)
	return !ok || o.GetUID() != uid || o.GetDeletionTimestamp() != nil
}

// Settled tells whether everything recorded for k is seen.
func (p *Pending) Settled(k Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.keys[k]
	if e == nil {
		return true
	}
	for _, w := range e.wrote {
		if v, err := strconv.ParseUint(w.version(), 10, 64); err != nil || v < w.rv {
			return false
		}
	}
	for len(e.gone) > 0 {
		if !e.gone[0]() {
			return false
		}
		e.gone = e.gone[1:]
	}
	delete(p.keys, k)
	return true
}
