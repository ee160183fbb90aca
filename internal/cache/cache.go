// Package cache holds every API object once in memory, revisioned and immutable,
// shared by everyone: GET, LIST, WATCH, informers.
//
// A Cache follows one store watch over all keys. Each Collection (one per stored
// resource) keeps a copy-on-write tree of Items and a window of recent changes.
//
// # Invariants
//
//   - An Item and its object never change. An object is what decoding the stored
//     bytes yields, never a writer's pointer.
//   - Changes enter in revision order, from the store's watch alone. All changes
//     of one revision become visible together, in all collections, before
//     Revision reports it.
//   - A Watcher gets every change of its scope after its start revision once, in
//     order.
//
// # Consistency
//
// Fresh waits until the cache has everything acknowledged before the call: a
// linearizable read. The window refills from the store after the start, so that
// watches resume over a restart; a revision older than the window is ErrExpired.
package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skiff/internal/client"
	"skiff/internal/store"
)

// Root is the prefix of all keys.
const Root = "/registry/"

// Config is what a Cache needs.
type Config struct {
	Store store.Store
	Log   *slog.Logger
	// WindowBytes bounds each collection's window of changes by the memory that
	// the replaced objects in it take, as estimated; 0 means 16 MiB.
	WindowBytes int64
	// EncodingBytes bounds the encodings kept for current objects, for lists; 0
	// means 64 MiB: both encodings of 10,000 pods. Those of changes, which
	// watchers share, have 4 MiB of their own.
	EncodingBytes int64
	// CompactEvery is how often the store's history is cut off; 0 leaves it to others.
	CompactEvery time.Duration
	// Verify keeps a hash of every object and panics when one was modified: for
	// tests.
	Verify bool
}

// ErrExpired: the revision is older than the window.
var ErrExpired = errors.New("revision is older than the window")

// Cache is the set of all collections. Use New.
type Cache struct {
	cfg   Config
	ready chan struct{}
	// recalled is closed when the windows have what they can have of the time before
	// the start.
	recalled chan struct{}
	// ended is closed when Run has ended: then the revision grows no more.
	ended chan struct{}

	mu          sync.RWMutex // the collections' trees, windows, watchers, rev
	collections map[string]*Collection
	rev         int64
	floor       int64         // what is older has been compacted
	advanced    chan struct{} // closed and replaced when rev grows

	watch     atomic.Pointer[store.Watch]
	decoded   handover
	encodings budget
	frames    frames
}

// New returns an empty cache. Add its collections, then Run it.
func New(cfg Config) *Cache {
	if cfg.WindowBytes == 0 {
		cfg.WindowBytes = 16 << 20
	}
	if cfg.EncodingBytes == 0 {
		cfg.EncodingBytes = 64 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Cache{cfg: cfg, ready: make(chan struct{}), recalled: make(chan struct{}), ended: make(chan struct{}), collections: map[string]*Collection{}, advanced: make(chan struct{})}
	c.encodings.limit = cfg.EncodingBytes
	return c
}

// CollectionConfig declares a collection.
type CollectionConfig struct {
	// Prefix of its keys, with a slash at its end: "/registry/pods/".
	Prefix string
	// Decode makes the object from a stored value. It sets resourceVersion from
	// rev.
	Decode func(key string, value []byte, rev int64) (client.Object, error)
	// Lazy keeps the stored bytes alone and decodes at every use: for objects
	// that are many and seldom read (events).
	Lazy bool
	// Node returns the node that an object belongs to; watchers by node are
	// indexed by it. May be nil.
	Node func(client.Object) string
}

// Add declares a collection. All are added before Run.
func (c *Cache) Add(cfg CollectionConfig) *Collection {
	col := newCollection(c, cfg)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.collections[cfg.Prefix] = col
	return col
}

// collectionOf finds the collection of a key: the one with its longest prefix.
func (c *Cache) collectionOf(key string) *Collection {
	for i := len(key) - 1; i > 0; i-- {
		if key[i] == '/' {
			if col, ok := c.collections[key[:i+1]]; ok {
				return col
			}
		}
	}
	return nil
}

// Ready is closed when the cache holds the store's state.
func (c *Cache) Ready() <-chan struct{} { return c.ready }

// Revision returns the revision up to which the cache has every change.
func (c *Cache) Revision() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.rev
}

// Fresh waits until the cache has every write that was acknowledged before the
// call, and returns the revision it has reached.
func (c *Cache) Fresh(ctx context.Context) (int64, error) {
	rev, err := c.cfg.Store.Revision(ctx)
	if err != nil {
		return 0, err
	}
	return rev, c.WaitFor(ctx, rev)
}

// WaitFor waits until the cache has reached rev. A watch that lags is pushed. When Run
// has ended before that, it fails with store.ErrClosed.
func (c *Cache) WaitFor(ctx context.Context, rev int64) error {
	var push *time.Timer
	for {
		c.mu.RLock()
		reached, advanced := c.rev >= rev, c.advanced
		c.mu.RUnlock()
		if reached {
			if push != nil {
				push.Stop()
			}
			return nil
		}
		if push == nil {
			push = time.NewTimer(2 * time.Millisecond)
		}
		select {
		case <-advanced:
		case <-push.C:
			if w := c.watch.Load(); w != nil {
				if err := (*w).RequestProgress(ctx); err != nil && ctx.Err() == nil {
					c.cfg.Log.Debug("request progress", "err", err)
				}
			}
			push.Reset(50 * time.Millisecond)
		case <-c.ended:
			push.Stop()
			return store.ErrClosed
		case <-ctx.Done():
			push.Stop()
			return ctx.Err()
		}
	}
}

// refillAtMost bounds how many past revisions are replayed after the start.
const refillAtMost = 20000

// Run fills the cache and follows the store until ctx ends. A watch that breaks
// is resumed where it was; if that revision is compacted, the state is read anew
// and the window starts over.
func (c *Cache) Run(ctx context.Context) error {
	defer close(c.ended)
	began, err := c.fill(ctx)
	if err != nil {
		close(c.recalled)
		return fmt.Errorf("fill cache: %w", err)
	}
	var past sync.WaitGroup
	past.Go(func() { c.recall(ctx, began) })
	defer past.Wait()
	if c.cfg.CompactEvery > 0 {
		past.Go(func() { c.compact(ctx, c.cfg.CompactEvery) })
	}
	for ctx.Err() == nil {
		err := c.follow(ctx)
		if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return nil
		}
		c.cfg.Log.Warn("store watch ended; resuming", "rev", c.Revision(), "err", err)
		if errors.Is(err, store.ErrCompacted) {
			if err := c.refill(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Log.Error("read the store anew", "err", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// fill reads the state as it is now, and returns its revision.
func (c *Cache) fill(ctx context.Context) (int64, error) {
	items, rev, err := c.read(ctx, 0)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	for _, it := range items {
		it.col.tree.Set(it)
	}
	c.rev = rev
	for _, col := range c.collections {
		col.windowStart = rev
	}
	c.mu.Unlock()
	close(c.ready)
	return rev, nil
}

// refill replaces the state after changes were missed. Watchers are ended: their
// clients list anew.
func (c *Cache) refill(ctx context.Context) error {
	items, rev, err := c.read(ctx, 0)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, col := range c.collections {
		col.reset(rev)
	}
	for _, it := range items {
		it.col.tree.Set(it)
	}
	c.advance(rev)
	return nil
}

func (c *Cache) read(ctx context.Context, rev int64) ([]*Item, int64, error) {
	var items []*Item
	o := store.ListOptions{Revision: rev, Limit: 1000}
	for {
		p, err := c.cfg.Store.List(ctx, Root, o)
		if err != nil {
			return nil, 0, err
		}
		if o.Revision == 0 {
			o.Revision = p.Revision
		}
		for _, kv := range p.KVs {
			if it := c.item(kv); it != nil {
				items = append(items, it)
			}
		}
		if !p.More || len(p.KVs) == 0 {
			return items, o.Revision, nil
		}
		o.After = p.KVs[len(p.KVs)-1].Key
	}
}

// follow applies the store's changes until the watch ends.
func (c *Cache) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := c.cfg.Store.Watch(ctx, Root, c.Revision())
	if err != nil {
		return err
	}
	c.watch.Store(&w)
	if err := w.RequestProgress(ctx); err != nil {
		return err
	}
	for b := range w.Batches() {
		c.apply(b)
	}
	return w.Err()
}

// apply makes a batch visible.
func (c *Cache) apply(b store.Batch) {
	type change struct {
		col *Collection
		key string
		it  *Item // nil for a deletion
		rev int64
	}
	changes := make([]change, 0, len(b.Events))
	for _, e := range b.Events {
		col := c.collectionOf(e.KV.Key)
		if col == nil {
			continue
		}
		ch := change{col: col, key: strings.TrimPrefix(e.KV.Key, col.cfg.Prefix), rev: e.KV.ModRev}
		if e.Type == store.Put {
			if ch.it = c.item(e.KV); ch.it == nil {
				continue
			}
		}
		changes = append(changes, ch)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range changes {
		ch.col.apply(ch.key, ch.it, ch.rev)
	}
	c.advance(b.Revision)
}

func (c *Cache) advance(rev int64) {
	if rev > c.rev {
		c.rev = rev
		close(c.advanced)
		c.advanced = make(chan struct{})
	}
}

// item decodes a stored value, unless its writer handed over what it decoded. A
// value that does not decode is logged and left out: it must not stop the rest.
func (c *Cache) item(kv store.KV) *Item {
	col := c.collectionOf(kv.Key)
	if col == nil {
		return nil
	}
	it := &Item{col: col, Key: strings.TrimPrefix(kv.Key, col.cfg.Prefix), Rev: kv.ModRev, CreateRev: kv.CreateRev, size: len(kv.Value)}
	if col.cfg.Lazy {
		it.raw = kv.Value
		return it
	}
	obj := c.decoded.take(kv.Key, kv.ModRev)
	if obj == nil {
		var err error
		if obj, err = col.cfg.Decode(kv.Key, kv.Value, kv.ModRev); err != nil {
			c.cfg.Log.Error("stored object does not decode", "key", kv.Key, "rev", kv.ModRev, "err", err)
			return nil
		}
	}
	it.obj = obj
	if c.cfg.Verify {
		it.hash = hashObject(obj)
	}
	return it
}

// Written hands over the object that a writer decoded from the bytes it stored as
// revision rev of key, to save decoding it again.
func (c *Cache) Written(key string, rev int64, obj client.Object) {
	c.mu.RLock()
	col := c.collectionOf(key)
	c.mu.RUnlock()
	if col != nil && !col.cfg.Lazy {
		c.decoded.put(key, rev, obj)
	}
}

// handover is a small map of objects on their way from writers to the watch.
type handover struct {
	mu   sync.Mutex
	m    map[string]handed
	keys []string
}

type handed struct {
	rev int64
	obj client.Object
}

func (h *handover) put(key string, rev int64, obj client.Object) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = map[string]handed{}
	}
	if old, ok := h.m[key]; !ok {
		h.keys = append(h.keys, key)
	} else if old.rev > rev {
		return
	}
	h.m[key] = handed{rev, obj}
	// What the watch overtook is never taken: forget the oldest.
	for len(h.keys) > 256 {
		delete(h.m, h.keys[0])
		h.keys = h.keys[1:]
	}
}

func (h *handover) take(key string, rev int64) client.Object {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.m[key]
	if !ok || e.rev != rev {
		return nil
	}
	delete(h.m, key)
	for i, k := range h.keys {
		if k == key {
			h.keys = slices.Delete(h.keys, i, i+1)
			break
		}
	}
	return e.obj
}
