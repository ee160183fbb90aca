package cache

import (
	"sync"
)

// budget keeps encodings of current items, and forgets the oldest when all
// together take too much.
type budget struct {
	mu    sync.Mutex
	limit int64
	used  int64
	queue []kept
	dead  int // in queue, of items that were dropped
}

type kept struct {
	it *Item
	e  Encoding
}

// add keeps an encoding of it, unless there is one or the item was replaced.
func (b *budget) add(it *Item, e Encoding, enc []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if it.replaced || !it.enc[e].CompareAndSwap(nil, &enc) {
		return
	}
	b.queue = append(b.queue, kept{it, e})
	b.used += int64(len(enc))
	for b.used > b.limit && len(b.queue) > 1 {
		if b.release(b.queue[0]) == 0 {
			b.dead--
		}
		b.queue[0] = kept{}
		b.queue = b.queue[1:]
	}
}

// release forgets one encoding and returns its size, 0 where it was forgotten.
func (b *budget) release(k kept) int64 {
	p := k.it.enc[k.e].Swap(nil)
	if p == nil {
		return 0
	}
	b.used -= int64(len(*p))
	return int64(len(*p))
}

// drop forgets the encodings of an item that was replaced, for good.
func (b *budget) drop(it *Item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	it.replaced = true
	for e := range encodings {
		if b.release(kept{it, e}) > 0 {
			b.dead++
		}
	}
	// The queue must not hold on to many items that are nobody's.
	if b.dead <= 64 || b.dead <= len(b.queue)/2 {
		return
	}
	live := make([]kept, 0, len(b.queue)-b.dead)
	for _, k := range b.queue {
		if k.it.enc[k.e].Load() != nil {
			live = append(live, k)
		}
	}
	b.queue, b.dead = live, 0
}

// frame is what watchers send of an event, and for which view it was made.
type frame struct {
	view any
	b    []byte
}

// frames keeps the frames of the newest events, while watchers send them.
type frames struct {
	mu    sync.Mutex
	used  int
	queue []madeFrame
}

type madeFrame struct {
	e   *Event
	enc Encoding
	n   int
}

// framesBytes bounds the frames kept.
const framesBytes = 4 << 20

func (f *frames) add(e *Event, enc Encoding, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queue = append(f.queue, madeFrame{e, enc, n})
	f.used += n
	for f.used > framesBytes && len(f.queue) > 1 {
		old := f.queue[0]
		f.queue[0] = madeFrame{}
		f.queue = f.queue[1:]
		old.e.frames[old.enc].Store(nil)
		f.used -= old.n
	}
}

// Frame returns the bytes that a watcher sends of e in an encoding, made once for
// all watchers with an equal view: what the bytes depend on besides the event
// (comparable). They are shared: never to be modified.
func (e *Event) Frame(enc Encoding, view any, encode func() ([]byte, error)) ([]byte, error) {
	if f := e.frames[enc].Load(); f != nil && f.view == view {
		return f.b, nil
	}
	b, err := encode()
	if err != nil {
		return nil, err
	}
	if e.frames[enc].CompareAndSwap(nil, &frame{view, b}) {
		it := e.New
		if it == nil {
			it = e.Old
		}
		it.col.c.frames.add(e, enc, len(b))
	}
	return b, nil
}
