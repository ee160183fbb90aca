package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"skiff/internal/store"
)

// recall fills the windows with the changes up to the revision that the cache began
// with, so that watches resume over a restart. It runs beside everything else; a
// watch from the time before waits for it.
func (c *Cache) recall(ctx context.Context, began int64) {
	defer close(c.recalled)
	err := c.recallFrom(ctx, began)
	if errors.Is(err, store.ErrCompacted) {
		err = c.recallFrom(ctx, began) // a compaction just now: what is left is shorter
	}
	if err != nil && ctx.Err() == nil {
		c.cfg.Log.Warn("the changes before the start are not known: clients list anew", "rev", began, "err", err)
	}
}

func (c *Cache) recallFrom(ctx context.Context, began int64) error {
	compacted, err := c.cfg.Store.Compacted(ctx)
	if err != nil {
		return err
	}
	from := max(compacted, began-refillAtMost, 1)
	if from >= began {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := c.cfg.Store.Watch(ctx, Root, from)
	if err != nil {
		return err
	}
	if err := w.RequestProgress(ctx); err != nil {
		return err
	}
	past, done := pastChanges{c: c, from: from, last: map[string]*Item{}, windows: map[*Collection][]*Event{}}, false
	for b := range w.Batches() {
		for _, e := range b.Events {
			if e.KV.ModRev <= began {
				if err := past.add(ctx, e); err != nil {
					return err
				}
			}
		}
		if done = b.Revision >= began; done {
			break
		}
	}
	cancel()
	for range w.Batches() { // what it buffered
	}
	if !done {
		if err := w.Err(); err != nil {
			return err
		}
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, col := range c.collections {
		col.prepend(past.windows[col], from, began)
	}
	return nil
}

// pastChanges turns the store's changes after a revision into events.
type pastChanges struct {
	c    *Cache
	from int64
	// last has the state of each key that has changed so far, nil for none.
	last    map[string]*Item
	windows map[*Collection][]*Event
}

func (p *pastChanges) add(ctx context.Context, e store.Event) error {
	p.c.mu.RLock()
	col := p.c.collectionOf(e.KV.Key)
	p.c.mu.RUnlock()
	if col == nil {
		return nil
	}
	old, known := p.last[e.KV.Key]
	if !known && !(e.Type == store.Put && e.KV.CreateRev == e.KV.ModRev) {
		kv, err := p.c.cfg.Store.Get(ctx, e.KV.Key, p.from)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("state of %s before: %w", e.KV.Key, err)
		}
		if err == nil {
			old = p.item(col, kv)
		}
	}
	var it *Item
	if e.Type == store.Put {
		it = p.item(col, e.KV)
	}
	if it == nil && (e.Type == store.Put || old == nil) {
		return nil // does not decode, or was never seen
	}
	p.last[e.KV.Key] = it
	key := e.KV.Key[len(col.cfg.Prefix):]
	p.windows[col] = append(p.windows[col], &Event{Rev: e.KV.ModRev, Key: key, Old: old, New: it})
	return nil
}

// item is the one that the collection has, where that is it.
func (p *pastChanges) item(col *Collection, kv store.KV) *Item {
	if it := col.Get(kv.Key[len(col.cfg.Prefix):]); it != nil && it.Rev == kv.ModRev {
		return it
	}
	return p.c.item(kv)
}

// prepend puts the changes of (from, began] before those that the window has. The
// caller holds c.mu.
func (col *Collection) prepend(past []*Event, from, began int64) {
	if col.windowStart != began {
		return // it has moved on, past what would be put before
	}
	col.window = slices.Concat(past, col.window)
	for _, e := range past {
		col.windowBytes += e.bytes()
	}
	col.windowStart = from
	col.trim()
}
