package mem

import (
	"context"
	"sync"
	"time"

	"skiff/internal/store"
)

// Call is one call of a store, as a hook sees it.
type Call struct {
	// Op is get, list, create, update, delete, batch, revision, watch, compact,
	// compacted or progress. Each write of a batch is a call too.
	Op string
	// Key of the call, or its prefix.
	Key string
	// Revision that the call names.
	Revision int64
}

// Faults makes a store fail. Its methods may be called at any time from any
// goroutine.
type Faults struct {
	mu     sync.Mutex
	hook   func(context.Context, Call) error
	writes []writeFault
	full   bool
	delay  time.Duration
	held   chan struct{} // watches wait while it is set and open
}

type writeFault struct {
	err     error
	applied bool
}

// Before runs f before every call, outside of the store's locks: f may itself
// use the store (compact it under a reader, write in between), wait, or return
// an error, which the call then returns. Nil ends it.
func (f *Faults) Before(hook func(context.Context, Call) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// FailWrites lets the next n writes return store.ErrUnknown, and be done or not.
func (f *Faults) FailWrites(n int, applied bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range n {
		f.writes = append(f.writes, writeFault{err: store.ErrUnknown, applied: applied})
	}
}

// Full refuses every write that is no deletion with store.ErrNoSpace.
func (f *Faults) Full(full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = full
}

// DelayWatches lets every batch be delivered d late.
func (f *Faults) DelayWatches(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// HoldWatches stops the delivery of batches until the returned function is
// called. Batches that wait already may still be received.
func (f *Faults) HoldWatches() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan struct{})
	f.held = ch
	var once sync.Once
	return func() { once.Do(func() { close(ch) }) }
}

func (f *Faults) before(ctx context.Context, c Call) error {
	f.mu.Lock()
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, c)
}

func (f *Faults) write(grows bool) writeFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full && grows {
		return writeFault{err: store.ErrNoSpace}
	}
	if len(f.writes) == 0 {
		return writeFault{}
	}
	w := f.writes[0]
	f.writes = f.writes[1:]
	return w
}

// wait holds a delivery back; false if one of the watch's ends came meanwhile.
func (f *Faults) wait(ended, broken, closed <-chan struct{}) bool {
	f.mu.Lock()
	held, delay := f.held, f.delay
	f.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ended:
			return false
		case <-broken:
			return false
		case <-closed:
			return false
		}
	}
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ended:
			return false
		case <-broken:
			return false
		case <-closed:
			return false
		}
	}
	return true
}

// BreakWatches ends every running watch with err.
func (s *Store) BreakWatches(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watches {
		w.fail(err)
	}
}
