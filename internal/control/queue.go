package control

import (
	"context"
	"sync"
	"time"

	"skiff/internal/metrics"
)

// Back-off of a failing key: firstRetry, doubling up to lastRetry.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 1000 * time.Second
)

// Queue hands keys to workers, first in first out. A key that is waiting is held
// once, however often it is added; a key that is being worked on is never handed
// to a second worker: added meanwhile, it comes again after Done. All methods may
// be called from any goroutine, and are without effect after Close.
type Queue[K comparable] struct {
	mu      sync.Mutex
	wake    *sync.Cond
	waiting []K
	state   map[K]held
	retries map[K]int
	delayed map[K]*delayedAdd
	closed  bool
	adds    uint64
	redo    uint64
	waited  *metrics.Histogram
	worked  *metrics.Histogram
}

// held is a key that waits or is worked on.
type held struct {
	keyState
	added   time.Time // queued, dirty
	started time.Time // of the work that goes on; zero while the key rests
}

type keyState uint8

const (
	queued  keyState = 1 + iota // in waiting
	working                     // with a worker
	dirty                       // with a worker, and added since
)

type delayedAdd struct {
	at    time.Time
	timer *time.Timer
}

// NewQueue returns an empty queue.
func NewQueue[K comparable]() *Queue[K] {
	q := &Queue[K]{
		state: map[K]held{}, retries: map[K]int{}, delayed: map[K]*delayedAdd{},
		waited: metrics.NewHistogram(queueSeconds), worked: metrics.NewHistogram(queueSeconds),
	}
	q.wake = sync.NewCond(&q.mu)
	return q
}

// Add makes k wait for a worker.
func (q *Queue[K]) Add(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(k)
}

func (q *Queue[K]) add(k K) {
	if q.closed {
		return
	}
	h := q.state[k]
	switch h.keyState {
	case queued, dirty:
		return
	case working:
		h.keyState, h.added = dirty, time.Now()
		q.state[k] = h
	default:
		q.state[k] = held{keyState: queued, added: time.Now()}
		q.waiting = append(q.waiting, k)
		q.wake.Signal()
	}
	q.adds++
}

// AddAfter adds k when d has passed. Of several delayed adds of a key the
// earliest holds: a reconciliation asks anew for what it still waits for.
func (q *Queue[K]) AddAfter(k K, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if d <= 0 {
		q.add(k)
		return
	}
	at := time.Now().Add(d)
	if old, ok := q.delayed[k]; ok {
		if !at.Before(old.at) {
			return
		}
		old.timer.Stop()
	}
	e := &delayedAdd{at: at}
	q.delayed[k] = e
	e.timer = time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.delayed[k] == e {
			delete(q.delayed, k)
			q.add(k)
		}
	})
}

// Retry adds k after its back-off, which doubles with every Retry since Forget.
func (q *Queue[K]) Retry(k K) {
	q.mu.Lock()
	n := q.retries[k]
	q.retries[k] = n + 1
	q.redo++
	q.mu.Unlock()
	q.AddAfter(k, backoff(n))
}

func backoff(failures int) time.Duration {
	if failures >= 18 {
		return lastRetry
	}
	return min(firstRetry<<failures, lastRetry)
}

// Forget ends the back-off of k.
func (q *Queue[K]) Forget(k K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.retries, k)
}

// Retries returns how often k was retried since it was forgotten.
func (q *Queue[K]) Retries(k K) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.retries[k]
}

// Get waits for a key; false means that the queue is closed. The worker calls
// Done when it has finished with the key.
func (q *Queue[K]) Get() (K, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && !q.closed {
		q.wake.Wait()
	}
	var zero K
	if q.closed {
		return zero, false
	}
	k := q.waiting[0]
	q.waiting[0] = zero
	q.waiting = q.waiting[1:]
	now := time.Now()
	q.waited.Observe(now.Sub(q.state[k].added).Seconds())
	q.state[k] = held{keyState: working, started: now}
	return k, true
}

// Done gives k back. With rest, k is not handed out again before rest has passed:
// changes that come meanwhile are met by one reconciliation.
func (q *Queue[K]) Done(k K, rest time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	was := q.state[k]
	if !was.started.IsZero() {
		q.worked.Observe(time.Since(was.started).Seconds())
	}
	if rest > 0 {
		was.started = time.Time{}
		q.state[k] = was
		time.AfterFunc(rest, func() { q.Done(k, 0) })
		return
	}
	delete(q.state, k)
	if was.keyState == dirty && !q.closed {
		q.state[k] = held{keyState: queued, added: was.added}
		q.waiting = append(q.waiting, k)
		q.wake.Signal()
	}
}

// Busy is how many keys wait, are worked on, or rest.
func (q *Queue[K]) Busy() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.state)
}

// Close wakes all workers and drops what waits.
func (q *Queue[K]) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.waiting = nil
	for _, e := range q.delayed {
		e.timer.Stop()
	}
	clear(q.delayed)
	q.wake.Broadcast()
}

// QueueStats are counters for metrics (workqueue_depth, workqueue_adds_total,
// workqueue_retries_total).
type QueueStats struct {
	Depth         int
	Adds, Retries uint64
	// Unfinished is how long the work that goes on has taken so far, of all keys
	// together, and Longest of the one that has been worked on for longest, seconds.
	Unfinished, Longest float64
	// Waited and Worked are of the time that keys waited and were worked on.
	Waited, Worked *metrics.Histogram
}

// Stats returns the counters.
func (q *Queue[K]) Stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := QueueStats{Depth: len(q.waiting), Adds: q.adds, Retries: q.redo, Waited: q.waited, Worked: q.worked}
	now := time.Now()
	for _, h := range q.state {
		if !h.started.IsZero() {
			took := now.Sub(h.started).Seconds()
			s.Unfinished += took
			s.Longest = max(s.Longest, took)
		}
	}
	return s
}

// Work takes keys and hands them to f, with n workers, until ctx ends. An error
// brings the key back after its back-off; rest is what Done says.
func (q *Queue[K]) Work(ctx context.Context, n int, f func(ctx context.Context, k K) (rest time.Duration, err error)) {
	stop := context.AfterFunc(ctx, q.Close)
	defer stop()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for {
				k, ok := q.Get()
				if !ok {
					return
				}
				rest, err := f(ctx, k)
				if err != nil {
					q.Retry(k)
				} else {
					q.Forget(k)
				}
				q.Done(k, rest)
			}
		})
	}
	wg.Wait()
}
