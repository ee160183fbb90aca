package cache

import (
	"context"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tidwall/btree"

	"skiff/internal/client"
	"skiff/internal/store"
)

// Event is one change of a collection. Old is nil for a creation, New for a
// deletion. Events are shared: never to be modified.
type Event struct {
	Rev      int64
	Key      string
	Old, New *Item

	gone   atomic.Pointer[Item]
	frames [encodings]atomic.Pointer[frame]
}

// Gone returns the last state of an object that left a watcher's view, with the
// revision at which it left as its resourceVersion: what a DELETED event shows.
// It is Old otherwise, and made once for all watchers.
func (e *Event) Gone() *Item {
	if it := e.gone.Load(); it != nil {
		return it
	}
	old := e.Old.Object()
	if old == nil {
		return nil
	}
	// Of its own is only what differs.
	v := reflect.New(reflect.TypeOf(old).Elem())
	v.Elem().Set(reflect.ValueOf(old).Elem())
	obj := v.Interface().(client.Object)
	obj.SetResourceVersion(strconv.FormatInt(e.Rev, 10))
	it := &Item{Key: e.Key, Rev: e.Rev, CreateRev: e.Old.CreateRev, col: e.Old.col, obj: obj, size: e.Old.size}
	if e.Old.col.c.cfg.Verify {
		it.hash = hashObject(obj)
	}
	if !e.gone.CompareAndSwap(nil, it) {
		return e.gone.Load()
	}
	return it
}

// Collection is the objects of one stored resource.
type Collection struct {
	c   *Cache
	cfg CollectionConfig

	// Everything below is guarded by c.mu.
	tree *btree.BTreeG[*Item]
	// window has the changes after windowStart, oldest first.
	window      []*Event
	windowStart int64
	windowBytes int64
	watchers    watchers
	// snap is the latest snapshot taken, valid while no change followed.
	snap *Snapshot
	// past are snapshots kept for the pages of long lists, newest last.
	past []*Snapshot
}

func newTree() *btree.BTreeG[*Item] {
	return btree.NewBTreeGOptions(func(a, b *Item) bool { return a.Key < b.Key }, btree.Options{NoLocks: true, Degree: 32})
}

func newCollection(c *Cache, cfg CollectionConfig) *Collection {
	return &Collection{c: c, cfg: cfg, tree: newTree(), watchers: newWatchers()}
}

// Prefix of the collection's keys.
func (col *Collection) Prefix() string { return col.cfg.Prefix }

// Get returns an item by its key below the prefix, nil where there is none.
func (col *Collection) Get(key string) *Item {
	col.c.mu.RLock()
	defer col.c.mu.RUnlock()
	it, _ := col.tree.Get(&Item{Key: key})
	return it
}

// Len returns the number of objects.
func (col *Collection) Len() int {
	col.c.mu.RLock()
	defer col.c.mu.RUnlock()
	return col.tree.Len()
}

// Snapshot is the state of a collection at a revision.
type Snapshot struct {
	Rev  int64
	tree *btree.BTreeG[*Item]
}

// Len returns the number of objects.
func (s *Snapshot) Len() int { return s.tree.Len() }

// Ascend calls f with the items whose key starts with prefix and is greater than
// after, in key order, until f returns false.
func (s *Snapshot) Ascend(prefix, after string, f func(*Item) bool) {
	from := prefix
	if after > from {
		from = after
	}
	// A tree copy may be read by many at once.
	s.tree.Ascend(&Item{Key: from}, func(it *Item) bool {
		if !strings.HasPrefix(it.Key, prefix) {
			return it.Key < prefix
		}
		if after != "" && it.Key <= after {
			return true
		}
		return f(it)
	})
}

// Snapshot returns the current state.
func (col *Collection) Snapshot() *Snapshot {
	col.c.mu.RLock()
	s, rev := col.snap, col.c.rev
	col.c.mu.RUnlock()
	if s != nil && s.Rev == rev {
		return s
	}
	col.c.mu.Lock()
	defer col.c.mu.Unlock()
	return col.snapshot()
}

func (col *Collection) snapshot() *Snapshot {
	if col.snap == nil {
		col.snap = &Snapshot{Rev: col.c.rev, tree: col.tree.Copy()}
	} else if col.snap.Rev != col.c.rev {
		// Nothing here changed since: the same tree serves the newer revision.
		col.snap = &Snapshot{Rev: col.c.rev, tree: col.snap.tree}
	}
	return col.snap
}

// keepPast is how many snapshots are kept for the later pages of lists.
const keepPast = 8

// Keep makes At find s for a while: for the next page of a list.
func (col *Collection) Keep(s *Snapshot) {
	col.c.mu.Lock()
	defer col.c.mu.Unlock()
	for _, p := range col.past {
		if p.Rev == s.Rev {
			return
		}
	}
	col.past = append(col.past, s)
	if len(col.past) > keepPast {
		col.past = append([]*Snapshot(nil), col.past[1:]...)
	}
}

// At returns the state at exactly rev: kept, current, or read from the store,
// which answers store.ErrCompacted for one too old.
func (col *Collection) At(ctx context.Context, rev int64) (*Snapshot, error) {
	if err := col.c.compacted(rev); err != nil {
		return nil, err
	}
	if s := col.Snapshot(); s.Rev == rev {
		return s, nil
	}
	col.c.mu.RLock()
	for _, p := range col.past {
		if p.Rev == rev {
			col.c.mu.RUnlock()
			return p, nil
		}
	}
	// No change of this collection between the newest one and rev: the current
	// state is also that of rev.
	if n := len(col.window); rev <= col.c.rev && rev >= col.windowStart && (n == 0 || col.window[n-1].Rev <= rev) {
		col.c.mu.RUnlock()
		return &Snapshot{Rev: rev, tree: col.Snapshot().tree}, nil
	}
	col.c.mu.RUnlock()
	s := &Snapshot{Rev: rev, tree: newTree()}
	o := store.ListOptions{Revision: rev, Limit: 1000}
	for {
		p, err := col.c.cfg.Store.List(ctx, col.cfg.Prefix, o)
		if err != nil {
			return nil, err
		}
		for _, kv := range p.KVs {
			if it := col.c.item(kv); it != nil && it.col == col {
				s.tree.Set(it)
			}
		}
		if !p.More || len(p.KVs) == 0 {
			return s, nil
		}
		o.After = p.KVs[len(p.KVs)-1].Key
	}
}

// apply enters one change; the caller holds c.mu.
func (col *Collection) apply(key string, it *Item, rev int64) {
	var old *Item
	if it != nil {
		old, _ = col.tree.Set(it)
	} else {
		var had bool
		if old, had = col.tree.Delete(&Item{Key: key}); !had {
			return
		}
	}
	if old != nil {
		old.verify()
		col.c.encodings.drop(old)
	}
	col.snap = nil
	e := &Event{Rev: rev, Key: key, Old: old, New: it}
	col.window = append(col.window, e)
	col.windowBytes += e.bytes()
	col.trim()
	col.watchers.dispatch(col.cfg.Node, e)
}

// trim keeps the window to its size; the caller holds c.mu.
func (col *Collection) trim() {
	for col.windowBytes > col.c.cfg.WindowBytes && len(col.window) > 100 {
		col.windowStart = col.window[0].Rev
		col.windowBytes -= col.window[0].bytes()
		col.window[0] = nil
		col.window = col.window[1:]
	}
}

// bytes estimates what an event keeps in memory: the window holds the object that
// a change replaced, which nobody else does. Decoded, an object takes several
// times its stored bytes.
func (e *Event) bytes() int64 {
	const overhead, decoded = 1 << 10, 4
	if e.Old == nil {
		return overhead
	}
	if e.Old.raw != nil {
		return overhead + int64(e.Old.size)
	}
	return overhead + decoded*int64(e.Old.size)
}

// reset forgets everything; the caller holds c.mu and fills in the new state.
func (col *Collection) reset(rev int64) {
	col.tree.Scan(func(it *Item) bool {
		col.c.encodings.drop(it)
		return true
	})
	col.tree = newTree()
	col.snap = nil
	col.window, col.windowBytes, col.windowStart = nil, 0, rev
	col.watchers.each(func(w *Watcher) { w.end(ErrExpired) })
}

// since returns the changes after rev; the caller holds c.mu.
func (col *Collection) since(rev int64) ([]*Event, error) {
	if rev < col.windowStart {
		return nil, ErrExpired
	}
	i := sort.Search(len(col.window), func(i int) bool { return col.window[i].Rev > rev })
	return col.window[i:], nil
}

// Scope narrows a watch to what it can possibly want; the zero Scope is
// everything.
type Scope struct {
	Namespace string
	// Name, with Namespace for namespaced objects, is one object.
	Name string
	// Node is the objects of one node.
	Node string
}

// Watch starts a watcher with the changes after revision after. ErrExpired where
// that is older than the window. End it with Stop. Just after the start it waits
// until the window has what was before the start.
func (col *Collection) Watch(s Scope, after int64) (*Watcher, error) {
	if after < col.WindowStart() {
		<-col.c.recalled
	}
	col.c.mu.Lock()
	defer col.c.mu.Unlock()
	past, err := col.since(after)
	if err != nil {
		return nil, err
	}
	w := col.newWatcher(s)
	for _, e := range past {
		if w.wants(col.cfg.Node, e) {
			w.queue = append(w.queue, e)
		}
	}
	return w, nil
}

// WatchFrom starts a watcher at a snapshot that it takes, and returns both: the
// watcher has every change after the snapshot.
func (col *Collection) WatchFrom(s Scope) (*Snapshot, *Watcher) {
	col.c.mu.Lock()
	defer col.c.mu.Unlock()
	return col.snapshot(), col.newWatcher(s)
}

// WindowStart is the oldest revision from which Watch can start.
func (col *Collection) WindowStart() int64 {
	col.c.mu.RLock()
	defer col.c.mu.RUnlock()
	return col.windowStart
}

func nodeOf(f func(client.Object) string, it *Item) string {
	if f == nil || it == nil {
		return ""
	}
	obj := it.Object()
	if obj == nil {
		return ""
	}
	return f(obj)
}
