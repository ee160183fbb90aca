package mem

import (
	"slices"
	"strings"
	"time"

	"skiff/internal/store"
)

// schedule sets the timer to the earliest expiry, under the lock.
func (s *Store) schedule() {
	var next time.Time
	for _, at := range s.expiry {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if s.timer != nil && next.Equal(s.timerAt) {
		return
	}
	if s.timer != nil {
		s.timer()
		s.timer, s.timerAt = nil, time.Time{}
	}
	if next.IsZero() || s.closed {
		return
	}
	s.timerAt = next
	s.timer = s.afterFunc(max(next.Sub(s.now()), 0), s.Expire)
}

// Expire removes the keys whose time has come. The store does so by itself; a
// test with a clock of its own calls it after moving the clock.
func (s *Store) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	now := s.now()
	var due []string
	for key, at := range s.expiry {
		if !at.After(now) {
			due = append(due, key)
		}
	}
	slices.SortFunc(due, func(a, b string) int {
		if c := s.expiry[a].Compare(s.expiry[b]); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	for _, key := range due {
		delete(s.expiry, key)
		s.record(store.Event{Type: store.Delete, KV: store.KV{Key: key}})
	}
	if s.timer != nil {
		s.timer()
		s.timer, s.timerAt = nil, time.Time{}
	}
	s.schedule()
}
