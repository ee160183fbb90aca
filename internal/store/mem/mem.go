// Package mem is the store in memory: for tests and simulation. It keeps the
// contract of package store whole, history, compaction and watches included,
// and forgets everything with the process.
//
// It works inside testing/synctest: its goroutines (one per watch) block on
// channels alone and end with the watch or the store, and its timers come from
// the clock in Config.
//
// Faults do what networks and disks do to the real store; see Faults.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"skiff/internal/store"
)

// Config of a store. The zero value is usable.
type Config struct {
	// Now is the clock of times to live; time.Now where nil.
	Now func() time.Time
	// AfterFunc runs f after d and returns what stops it; time.AfterFunc where
	// nil. It is only used for times to live.
	AfterFunc func(d time.Duration, f func()) (stop func() bool)
	// MaxValue is the largest value; 0 is 1.5 MiB, as etcd's largest request.
	MaxValue int
}

// Store implements store.Store.
type Store struct {
	Faults Faults

	now       func() time.Time
	afterFunc func(d time.Duration, f func()) (stop func() bool)
	maxValue  int
	done      chan struct{}
	wg        sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	rev       int64
	compacted int64
	keys      *btree.Map[string, []version] // versions of a key, oldest first
	log       []store.Event                 // every change from compacted on
	watches   map[*watch]struct{}
	expiry    map[string]time.Time
	timer     func() bool // stops the timer of the next expiry
	timerAt   time.Time
}

// version is a key's value from a revision on; a deleted one ends it.
type version struct {
	kv      store.KV
	deleted bool
}

var _ store.Store = (*Store)(nil)

// New returns an empty store at revision 1, as etcd's.
func New(c Config) *Store {
	s := &Store{
		now: c.Now, afterFunc: c.AfterFunc, maxValue: c.MaxValue,
		done:    make(chan struct{}),
		rev:     1,
		keys:    btree.NewMap[string, []version](0),
		watches: map[*watch]struct{}{},
		expiry:  map[string]time.Time{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.afterFunc == nil {
		s.afterFunc = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
	if s.maxValue == 0 {
		s.maxValue = 1.5 * 1024 * 1024
	}
	return s
}

// begin checks what every call checks, and runs the hook.
func (s *Store) begin(ctx context.Context, c Call) error {
	if err := s.Faults.before(ctx, c); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.ErrClosed
	}
	return nil
}

// at returns the revision to read for an asked one.
func (s *Store) at(rev int64) (int64, error) {
	switch {
	case s.closed:
		return 0, store.ErrClosed
	case rev == 0:
		return s.rev, nil
	case rev < 0 || rev < s.compacted:
		return 0, store.ErrCompacted
	case rev > s.rev:
		return 0, store.ErrFutureRev
	}
	return rev, nil
}

// find returns the value that vs had at rev.
func find(vs []version, rev int64) (store.KV, bool) {
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].kv.ModRev <= rev {
			return vs[i].kv, !vs[i].deleted
		}
	}
	return store.KV{}, false
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, rev int64) (store.KV, error) {
	if err := s.begin(ctx, Call{Op: "get", Key: key, Revision: rev}); err != nil {
		return store.KV{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rev, err := s.at(rev)
	if err != nil {
		return store.KV{}, err
	}
	vs, _ := s.keys.Get(key)
	kv, ok := find(vs, rev)
	if !ok {
		return store.KV{}, store.ErrNotFound
	}
	return kv, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	if err := s.begin(ctx, Call{Op: "list", Key: prefix, Revision: o.Revision}); err != nil {
		return store.Page{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rev, err := s.at(o.Revision)
	if err != nil {
		return store.Page{}, err
	}
	p := store.Page{Revision: rev}
	s.keys.Ascend(max(prefix, o.After), func(key string, vs []version) bool {
		if !strings.HasPrefix(key, prefix) {
			// Before the prefix there is nothing, behind it the list ends.
			return false
		}
		kv, ok := find(vs, rev)
		if !ok || (o.After != "" && key <= o.After) {
			return true
		}
		p.Count++
		switch {
		case o.CountOnly:
		case o.Limit > 0 && int64(len(p.KVs)) >= o.Limit:
			p.More = true
		default:
			p.KVs = append(p.KVs, kv)
		}
		return true
	})
	return p, nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, o store.WriteOptions) (int64, error) {
	return s.write(ctx, "create", store.Op{Key: key, Value: notNil(value), TTL: o.TTL})
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, expectRev int64, o store.WriteOptions) (int64, error) {
	return s.write(ctx, "update", store.Op{Key: key, Value: notNil(value), ExpectRev: expectRev, TTL: o.TTL})
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, expectRev int64) (int64, error) {
	return s.write(ctx, "delete", store.Op{Key: key, ExpectRev: expectRev})
}

func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// Batch implements store.Store.
func (s *Store) Batch(ctx context.Context, ops []store.Op) ([]store.OpResult, error) {
	seen := make(map[string]struct{}, len(ops))
	for i := range ops {
		if _, dup := seen[ops[i].Key]; dup {
			return nil, fmt.Errorf("key %q is named by two ops of a batch", ops[i].Key)
		}
		seen[ops[i].Key] = struct{}{}
	}
	if err := s.begin(ctx, Call{Op: "batch"}); err != nil {
		return nil, err
	}
	results := make([]store.OpResult, len(ops))
	for i, op := range ops {
		kind := "update"
		switch {
		case op.Value == nil:
			kind = "delete"
		case op.ExpectRev == 0:
			kind = "create"
		}
		results[i].Revision, results[i].Err = s.write(ctx, kind, op)
	}
	return results, nil
}

// write does one conditional write.
func (s *Store) write(ctx context.Context, kind string, op store.Op) (int64, error) {
	if err := s.begin(ctx, Call{Op: kind, Key: op.Key, Revision: op.ExpectRev}); err != nil {
		return 0, err
	}
	if len(op.Key)+len(op.Value) > s.maxValue {
		return 0, fmt.Errorf("%w: %d bytes of at most %d", store.ErrTooLarge, len(op.Value), s.maxValue)
	}
	fault := s.Faults.write(op.Value != nil)
	if fault.err != nil && !fault.applied {
		return 0, fault.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	rev, err := s.apply(kind, op)
	if fault.err != nil {
		return 0, fault.err
	}
	return rev, err
}

// apply does one write under the lock.
func (s *Store) apply(kind string, op store.Op) (int64, error) {
	vs, _ := s.keys.Get(op.Key)
	cur, exists := find(vs, s.rev)
	switch {
	case kind == "create" && exists:
		return 0, &store.ExistsError{Current: cur}
	case kind == "create":
	case !exists:
		return 0, store.ErrNotFound
	case cur.ModRev != op.ExpectRev:
		return 0, &store.ConflictError{Current: cur}
	}
	delete(s.expiry, op.Key)
	if op.Value == nil {
		return s.record(store.Event{Type: store.Delete, KV: store.KV{Key: op.Key}}), nil
	}
	kv := store.KV{Key: op.Key, Value: bytes.Clone(op.Value), CreateRev: cur.CreateRev}
	rev := s.record(store.Event{Type: store.Put, KV: kv})
	if op.TTL > 0 {
		s.expiry[op.Key] = s.now().Add(op.TTL)
		s.schedule()
	}
	return rev, nil
}

// record makes e the newest change and hands it to the watches.
func (s *Store) record(e store.Event) int64 {
	s.rev++
	e.KV.ModRev = s.rev
	if e.Type == store.Put && e.KV.CreateRev == 0 {
		e.KV.CreateRev = s.rev
	}
	vs, _ := s.keys.Get(e.KV.Key)
	s.keys.Set(e.KV.Key, append(vs, version{kv: e.KV, deleted: e.Type == store.Delete}))
	s.log = append(s.log, e)
	for w := range s.watches {
		w.add(e)
	}
	return s.rev
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (int64, error) {
	if err := s.begin(ctx, Call{Op: "revision"}); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev, nil
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev int64) error {
	if err := s.begin(ctx, Call{Op: "compact", Revision: rev}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev > s.rev {
		return store.ErrFutureRev
	}
	if rev <= s.compacted {
		return nil
	}
	s.compacted = rev
	var gone []string
	kept := map[string][]version{}
	s.keys.Scan(func(key string, vs []version) bool {
		first := 0 // the version that rev shows
		for i := range vs {
			if vs[i].kv.ModRev <= rev {
				first = i
			}
		}
		switch {
		case first == len(vs)-1 && vs[first].deleted:
			gone = append(gone, key)
		case first > 0:
			kept[key] = append([]version(nil), vs[first:]...)
		}
		return true
	})
	for _, key := range gone {
		s.keys.Delete(key)
	}
	for key, vs := range kept {
		s.keys.Set(key, vs)
	}
	n := 0
	for n < len(s.log) && s.log[n].KV.ModRev < rev {
		n++
	}
	s.log = append([]store.Event(nil), s.log[n:]...)
	return nil
}

// Compacted implements store.Store.
func (s *Store) Compacted(ctx context.Context) (int64, error) {
	if err := s.begin(ctx, Call{Op: "compacted"}); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compacted, nil
}

// Close implements store.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		if s.timer != nil {
			s.timer()
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}
