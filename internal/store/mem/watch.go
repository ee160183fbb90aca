package mem

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"skiff/internal/store"
)

// watch delivers what add puts into its queue, which has no bound.
type watch struct {
	s      *Store
	prefix string
	after  int64
	out    chan store.Batch
	wake   chan struct{}
	broken chan struct{}

	mu     sync.Mutex
	queue  []store.Batch
	reason error // why broken is closed
	err    error
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watch, error) {
	if after < 0 {
		return nil, fmt.Errorf("watch after revision %d: a revision is not negative", after)
	}
	if err := s.begin(ctx, Call{Op: "watch", Key: prefix, Revision: after}); err != nil {
		return nil, err
	}
	w := &watch{
		s: s, prefix: prefix, after: after,
		out:    make(chan store.Batch),
		wake:   make(chan struct{}, 1),
		broken: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	if after+1 < s.compacted {
		w.fail(store.ErrCompacted)
	} else {
		for _, e := range s.log {
			w.add(e)
		}
	}
	s.watches[w] = struct{}{}
	s.wg.Go(func() { w.run(ctx) })
	return w, nil
}

// add queues e if it is the watch's.
func (w *watch) add(e store.Event) {
	if e.KV.ModRev > w.after && strings.HasPrefix(e.KV.Key, w.prefix) {
		w.put(store.Batch{Events: []store.Event{e}, Revision: e.KV.ModRev})
	}
}

func (w *watch) put(b store.Batch) {
	w.mu.Lock()
	w.queue = append(w.queue, b)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take removes the first batch of the queue.
func (w *watch) take() (store.Batch, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return store.Batch{}, false
	}
	b := w.queue[0]
	w.queue = w.queue[1:]
	return b, true
}

func (w *watch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reason == nil {
		w.reason = err
		close(w.broken)
	}
}

func (w *watch) run(ctx context.Context) {
	err := w.deliver(ctx)
	w.s.mu.Lock()
	delete(w.s.watches, w)
	w.s.mu.Unlock()
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	close(w.out)
}

func (w *watch) deliver(ctx context.Context) error {
	ended := func() error {
		select {
		case <-w.broken:
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.reason
		default:
		}
		if ctx.Err() != nil {
			return nil
		}
		return store.ErrClosed
	}
	for {
		select {
		case <-w.broken:
			// Nothing may follow, least of all a progress that claims changes which
			// this watch never saw.
			return ended()
		default:
		}
		b, ok := w.take()
		if !ok {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
				return nil
			case <-w.broken:
				return ended()
			case <-w.s.done:
				return ended()
			}
		}
		if !w.s.Faults.wait(ctx.Done(), w.broken, w.s.done) {
			return ended()
		}
		select {
		case <-w.broken:
			return ended()
		default:
		}
		select {
		case w.out <- b:
		case <-ctx.Done():
			return nil
		case <-w.broken:
			return ended()
		case <-w.s.done:
			return ended()
		}
	}
}

// Batches implements store.Watch.
func (w *watch) Batches() <-chan store.Batch { return w.out }

// Err implements store.Watch.
func (w *watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// RequestProgress implements store.Watch.
func (w *watch) RequestProgress(ctx context.Context) error {
	if err := w.s.begin(ctx, Call{Op: "progress", Key: w.prefix}); err != nil {
		return err
	}
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.put(store.Batch{Revision: w.s.rev})
	return nil
}
