package etcd

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
)

// grants records what leases asks of etcd.
type grants struct {
	mu   sync.Mutex
	ttls []int64
	fail error
	hold chan struct{} // where set, a grant waits for it
}

func (g *grants) grant(ctx context.Context, ttl int64) (int64, error) {
	g.mu.Lock()
	hold := g.hold
	g.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fail != nil {
		return 0, g.fail
	}
	g.ttls = append(g.ttls, ttl)
	return int64(len(g.ttls)), nil
}

func TestLeaseSharing(t *testing.T) {
	now := time.Unix(1000, 0)
	var g grants
	l := newLeases(func() time.Time { return now }, g.grant)
	get := func(ttl time.Duration, want int64) {
		t.Helper()
		if id, err := l.get(t.Context(), ttl); err != nil || id != want {
			t.Fatalf("lease %d, %v; want %d", id, err, want)
		}
	}
	get(time.Hour, 1)
	if g.ttls[0] != 3660 {
		t.Fatalf("a lease for an hour lives %d s, want the hour and the minute of its sharing", g.ttls[0])
	}
	now = now.Add(59 * time.Second)
	get(time.Hour, 1)
	get(time.Minute, 2)
	if g.ttls[1] != 63 {
		t.Fatalf("a lease for a minute lives %d s, want 5%% more", g.ttls[1])
	}
	now = now.Add(time.Second)
	get(time.Hour, 3)
	for range leaseMaxKeys - 1 {
		get(time.Hour, 3)
	}
	get(time.Hour, 4)
	get(1500*time.Millisecond, 5)
	if g.ttls[4] != 2 {
		t.Fatalf("a lease for 1.5 s lives %d s, want 2", g.ttls[4])
	}
	get(1500*time.Millisecond, 6) // too short to be shared
	l.forget(4)
	get(time.Hour, 7)
}

// TestLeaseFailure: keys that wait for a lease that could not be made try
// themselves, and a failure is not kept.
func TestLeaseFailure(t *testing.T) {
	g := grants{hold: make(chan struct{})}
	l := newLeases(time.Now, g.grant)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := l.get(ctx, time.Hour); first <- err }()
	for made := false; !made; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		made = len(l.open) == 1
		l.mu.Unlock()
	}
	go func() { _, err := l.get(t.Context(), time.Hour); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("the maker got %v", err)
	}
	close(g.hold)
	if err := <-second; err != nil {
		t.Fatalf("the one who waited got %v", err)
	}
	g.fail = errors.New("no lease")
	l.forget(1)
	if _, err := l.get(t.Context(), time.Hour); !errors.Is(err, g.fail) {
		t.Fatalf("got %v", err)
	}
	g.fail = nil
	if _, err := l.get(t.Context(), time.Hour); err != nil {
		t.Fatalf("after a failure: %v", err)
	}
}
