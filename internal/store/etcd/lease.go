package etcd

import (
	"context"
	"sync"
	"time"
)

// Keys with the same time to live share a lease: a lease costs a raft entry and
// a timer, and events come by the thousand.
const (
	leaseMaxReuse = 60 * time.Second
	leaseMaxKeys  = 1000
	// leaseReusePercent bounds by how much a short-lived key may outlive its time.
	leaseReusePercent = 5
)

// leases hands out leases by time to live.
type leases struct {
	now   func() time.Time
	grant func(ctx context.Context, ttl int64) (int64, error)

	mu   sync.Mutex
	open map[int64]*sharedLease // by whole seconds of time to live
}

// sharedLease lives for the asked time and the time during which it is reused,
// so that its last key also lives for the asked time.
type sharedLease struct {
	ready chan struct{} // closed once id or err is set
	id    int64
	err   error
	until time.Time
	keys  int
}

func newLeases(now func() time.Time, grant func(context.Context, int64) (int64, error)) *leases {
	return &leases{now: now, grant: grant, open: map[int64]*sharedLease{}}
}

// get returns a lease that lives for at least ttl from now.
func (l *leases) get(ctx context.Context, ttl time.Duration) (int64, error) {
	seconds := int64((ttl + time.Second - 1) / time.Second)
	reuse := min(time.Duration(seconds)*time.Second*leaseReusePercent/100, leaseMaxReuse).Truncate(time.Second)
	for {
		now := l.now()
		l.mu.Lock()
		s := l.open[seconds]
		if s != nil && s.keys < leaseMaxKeys && now.Before(s.until) {
			s.keys++
			l.mu.Unlock()
			select {
			case <-s.ready:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
			if s.err == nil {
				return s.id, nil
			}
			// Its maker failed, perhaps for a reason of its own: try again, as maker.
			l.drop(seconds, s)
			continue
		}
		s = &sharedLease{ready: make(chan struct{}), until: now.Add(reuse), keys: 1}
		for k, old := range l.open {
			if !now.Before(old.until) {
				delete(l.open, k)
			}
		}
		l.open[seconds] = s
		l.mu.Unlock()

		s.id, s.err = l.grant(ctx, seconds+int64(reuse/time.Second))
		close(s.ready)
		if s.err != nil {
			l.drop(seconds, s)
		}
		return s.id, s.err
	}
}

func (l *leases) drop(seconds int64, s *sharedLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[seconds] == s {
		delete(l.open, seconds)
	}
}

// forget drops a lease that the server no longer knows.
func (l *leases) forget(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, s := range l.open {
		select {
		case <-s.ready:
			if s.id == id {
				delete(l.open, k)
			}
		default:
		}
	}
}
