package etcd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"skiff/internal/store"
)

const (
	// progressRetry is how long after an unanswered request for progress it is
	// made again: etcd drops it while a watch catches up.
	progressRetry = 10 * time.Millisecond
	// progressEvery is how often a quiet watch reports progress by itself.
	progressEvery = time.Minute
	// mergeEvents bounds a batch made of several for a slow receiver.
	mergeEvents = 1024
)

// source is etcd's side of a watch.
type source[T any] interface {
	// responses has what etcd sends; it is closed when the watch has ended.
	responses() <-chan T
	// read turns one response into a batch; ok is false for one without meaning.
	read(T) (b store.Batch, ok bool, err error)
	// progress asks for a progress response, which may never come.
	progress()
	close()
}

// watch is a running watch of either kind.
type watch struct {
	out      chan store.Batch
	want     atomic.Int64 // revision that some caller wants to see reported
	wake     chan struct{}
	revision func(ctx context.Context) (int64, error)

	mu  sync.Mutex
	err error
}

func newWatch(revision func(ctx context.Context) (int64, error)) *watch {
	return &watch{
		out:      make(chan store.Batch, 16),
		wake:     make(chan struct{}, 1),
		revision: revision,
	}
}

func (w *watch) Batches() <-chan store.Batch { return w.out }

func (w *watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *watch) RequestProgress(ctx context.Context) error {
	rev, err := w.revision(ctx)
	if err != nil {
		return err
	}
	for {
		old := w.want.Load()
		if old >= rev || w.want.CompareAndSwap(old, rev) {
			break
		}
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// pump moves batches from src to w until ctx ends, stop closes, or src breaks.
// The queue between them has no bound: a slow receiver loses nothing.
func pump[T any](ctx context.Context, w *watch, src source[T], after int64, stop <-chan struct{}, stopErr func() error) {
	var (
		queue  []store.Batch
		seen   = after // revision up to which everything is in queue or delivered
		told   int64   // revision of the last batch in queue or delivered
		ending error
	)
	defer close(w.out)
	defer func() {
		w.mu.Lock()
		w.err = ending
		w.mu.Unlock()
	}()
	defer src.close()

	retry := time.NewTimer(progressRetry)
	retry.Stop()
	defer retry.Stop()
	quiet := time.NewTicker(progressEvery)
	defer quiet.Stop()
	in := src.responses()
	// asked: a request for progress waits for a batch that reaches what it wants.
	asked := false
	ask := func() {
		want := w.want.Load()
		switch {
		case in == nil || !asked:
		case seen >= want:
			// etcd stays silent on a watch that begins after its newest revision.
			asked, told = false, max(told, want)
			queue = enqueue(queue, store.Batch{Revision: told})
		default:
			src.progress()
			retry.Reset(progressRetry)
		}
	}
	for {
		var out chan store.Batch
		var head store.Batch
		if len(queue) > 0 {
			out, head = w.out, queue[0]
		} else if in == nil {
			return // broken, and all that came before is delivered
		}
		select {
		case <-ctx.Done():
			return
		case <-stop:
			ending = stopErr()
			return
		case out <- head:
			queue[0] = store.Batch{}
			queue = queue[1:]
		case r, ok := <-in:
			if !ok {
				if ctx.Err() == nil && ending == nil {
					ending = stopErr()
				}
				in = nil
				continue
			}
			b, ok, err := src.read(r)
			if err != nil {
				select {
				case <-stop:
					// What broke is the consequence.
					err = stopErr()
				default:
				}
				ending, in = err, nil
				continue
			}
			if !ok || (len(b.Events) == 0 && b.Revision < seen) {
				continue
			}
			seen, told = max(seen, b.Revision), max(told, b.Revision)
			if b.Revision >= w.want.Load() {
				asked = false
			}
			queue = enqueue(queue, b)
		case <-w.wake:
			asked = true
			ask()
		case <-retry.C:
			ask()
		case <-quiet.C:
			if in != nil {
				src.progress()
			}
		}
	}
}

// enqueue appends b, merged with the last batch that waits where it may be.
func enqueue(queue []store.Batch, b store.Batch) []store.Batch {
	if n := len(queue); n > 0 {
		last := &queue[n-1]
		if len(last.Events)+len(b.Events) <= mergeEvents {
			last.Events = append(last.Events, b.Events...)
			last.Revision = max(last.Revision, b.Revision)
			return queue
		}
	}
	return append(queue, b)
}

// toBatch converts etcd's events. rev counts only where there are none: while a
// watch catches up, etcd names the store's revision and not the events' last.
func toBatch(evs []*mvccpb.Event, rev int64) store.Batch {
	if len(evs) == 0 {
		return store.Batch{Revision: rev}
	}
	b := store.Batch{Events: make([]store.Event, len(evs))}
	for i, e := range evs {
		ev := &b.Events[i]
		ev.KV = store.KV{Key: string(e.Kv.Key), ModRev: e.Kv.ModRevision}
		if e.Type == mvccpb.Event_DELETE {
			ev.Type = store.Delete
		} else {
			ev.KV.Value, ev.KV.CreateRev = e.Kv.Value, e.Kv.CreateRevision
		}
		b.Revision = max(b.Revision, e.Kv.ModRevision)
	}
	return b
}

// clientEvents turns the client's events, which are the same, into etcd's.
func clientEvents(evs []*clientv3.Event) []*mvccpb.Event {
	out := make([]*mvccpb.Event, len(evs))
	for i, e := range evs {
		out[i] = (*mvccpb.Event)(e)
	}
	return out
}
