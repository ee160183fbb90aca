package cache

import (
	"context"
	"time"

	"skiff/internal/store"
)

// compact has the store forget what is older than two periods at most, and one at
// least: otherwise it keeps every state that ever was. Lists of the past end with
// it, as their clients know from upstream. Several servers of one store do not
// meet: each asks for what all have left behind for a period.
func (c *Cache) compact(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	mark := c.Revision()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := c.Revision(); now > mark {
			if err := c.cfg.Store.Compact(ctx, mark); err != nil {
				if ctx.Err() == nil {
					c.cfg.Log.Warn("compact the store", "rev", mark, "err", err)
				}
				continue
			}
			c.forget(mark)
			mark = now
		}
	}
}

// forget drops what is kept of revisions before rev.
func (c *Cache) forget(rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor = max(c.floor, rev)
	for _, col := range c.collections {
		var past []*Snapshot
		for _, s := range col.past {
			if s.Rev >= c.floor {
				past = append(past, s)
			}
		}
		col.past = past
	}
}

// compacted tells that rev is too old, although it might still be known here.
func (c *Cache) compacted(rev int64) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if rev < c.floor {
		return store.ErrCompacted
	}
	return nil
}
