package cache

// Usage is what the cache holds.
type Usage struct {
	// Objects and the Bytes of their stored values. What an object takes in memory
	// differs from that by its kind; decoded, it is some four times as much.
	Objects int
	Bytes   int64
	// Window is an estimate of the memory that the windows of changes keep, Encoded
	// the size of the encodings that are kept for the next request, bytes.
	Window, Encoded int64
	// Watchers are the watches that are open, those of informers in process among
	// them.
	Watchers int
}

// Usage counts what is held. It looks at every object.
func (c *Cache) Usage() Usage {
	var u Usage
	c.mu.RLock()
	for _, col := range c.collections {
		u.Objects += col.tree.Len()
		col.tree.Scan(func(it *Item) bool {
			u.Bytes += int64(it.size)
			return true
		})
		u.Window += col.windowBytes
		u.Watchers += col.watchers.count()
	}
	c.mu.RUnlock()
	c.encodings.mu.Lock()
	defer c.encodings.mu.Unlock()
	u.Encoded = c.encodings.used
	return u
}

// count is the number of watchers; the caller holds the cache's lock.
func (ws *watchers) count() int {
	n := len(ws.all)
	for _, by := range []map[string]map[*Watcher]struct{}{ws.byNS, ws.byKey, ws.byNode} {
		for _, m := range by {
			n += len(m)
		}
	}
	return n
}
