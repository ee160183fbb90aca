package store

import (
	"context"
	"fmt"
	"sync"
)

// Stale is what Transformed tells about a value that should be written anew, to a
// caller that asks by WithStale.
type Stale struct {
	mu   sync.Mutex
	keys map[string]struct{}
}

// Keys returns the keys of stale values that were read.
func (s *Stale) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(s.keys))
	for k := range s.keys {
		keys = append(keys, k)
	}
	return keys
}

// Has tells whether key's value, as read, was stale.
func (s *Stale) Has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.keys[key]
	return ok
}

func (s *Stale) add(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil {
		s.keys = map[string]struct{}{}
	}
	s.keys[key] = struct{}{}
}

type staleKey struct{}

// WithStale makes reads with the returned context note in s which values were
// stale: encrypted with an old key, or not encrypted.
func WithStale(ctx context.Context, s *Stale) context.Context {
	return context.WithValue(ctx, staleKey{}, s)
}

// TransformError: a stored value could not be turned back. The key exists.
type TransformError struct {
	Key string
	Err error
}

func (e *TransformError) Error() string {
	return fmt.Sprintf("key %q: stored value cannot be decoded: %v", e.Key, e.Err)
}

func (e *TransformError) Unwrap() error { return e.Err }

// Transformed returns inner with every value passing t on its way in and out, the
// ones that errors and watches carry included. Closing it closes inner.
//
// A value that does not decode fails the Get or List that meets it, with a
// *TransformError, and ends the watch that meets it with one.
func Transformed(inner Store, t Transformer) Store {
	return &transformed{Store: inner, t: t, stop: make(chan struct{})}
}

type transformed struct {
	Store
	t Transformer

	mu     sync.Mutex // orders new watches and Close, for wg's sake
	closed bool
	stop   chan struct{}
	wg     sync.WaitGroup // the watches' goroutines
}

func (s *transformed) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	err := s.Store.Close()
	s.wg.Wait()
	return err
}

func (s *transformed) decode(ctx context.Context, kv *KV) error {
	v, stale, err := s.t.FromStore(ctx, kv.Key, kv.Value)
	if err != nil {
		return &TransformError{Key: kv.Key, Err: err}
	}
	kv.Value = v
	if stale {
		if note, ok := ctx.Value(staleKey{}).(*Stale); ok {
			note.add(kv.Key)
		}
	}
	return nil
}

// refusal decodes the value that a refused write's error carries.
func (s *transformed) refusal(ctx context.Context, err error) error {
	switch e := err.(type) { // the store returns these unwrapped
	case *ExistsError:
		d := *e
		if err := s.decode(ctx, &d.Current); err != nil {
			return err
		}
		return &d
	case *ConflictError:
		d := *e
		if err := s.decode(ctx, &d.Current); err != nil {
			return err
		}
		return &d
	}
	return err
}

func (s *transformed) Get(ctx context.Context, key string, rev int64) (KV, error) {
	kv, err := s.Store.Get(ctx, key, rev)
	if err != nil {
		return KV{}, err
	}
	if err := s.decode(ctx, &kv); err != nil {
		return KV{}, err
	}
	return kv, nil
}

func (s *transformed) List(ctx context.Context, prefix string, o ListOptions) (Page, error) {
	p, err := s.Store.List(ctx, prefix, o)
	if err != nil {
		return Page{}, err
	}
	for i := range p.KVs {
		if err := s.decode(ctx, &p.KVs[i]); err != nil {
			return Page{}, err
		}
	}
	return p, nil
}

// encode turns a value into what is stored. A value is never nil: nil deletes in
// an Op.
func (s *transformed) encode(ctx context.Context, key string, value []byte) ([]byte, error) {
	b, err := s.t.ToStore(ctx, key, value)
	if err != nil {
		return nil, fmt.Errorf("key %q: value cannot be encoded: %w", key, err)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}

func (s *transformed) Create(ctx context.Context, key string, value []byte, o WriteOptions) (int64, error) {
	b, err := s.encode(ctx, key, value)
	if err != nil {
		return 0, err
	}
	rev, err := s.Store.Create(ctx, key, b, o)
	return rev, s.refusal(ctx, err)
}

func (s *transformed) Update(ctx context.Context, key string, value []byte, expectRev int64, o WriteOptions) (int64, error) {
	b, err := s.encode(ctx, key, value)
	if err != nil {
		return 0, err
	}
	rev, err := s.Store.Update(ctx, key, b, expectRev, o)
	return rev, s.refusal(ctx, err)
}

func (s *transformed) Delete(ctx context.Context, key string, expectRev int64) (int64, error) {
	rev, err := s.Store.Delete(ctx, key, expectRev)
	return rev, s.refusal(ctx, err)
}

func (s *transformed) Batch(ctx context.Context, ops []Op) ([]OpResult, error) {
	results := make([]OpResult, len(ops))
	inner := make([]Op, 0, len(ops))
	at := make([]int, 0, len(ops)) // where inner's ops are in ops
	for i, op := range ops {
		if op.Value != nil {
			b, err := s.encode(ctx, op.Key, op.Value)
			if err != nil {
				results[i].Err = err
				continue
			}
			op.Value = b
		}
		inner, at = append(inner, op), append(at, i)
	}
	res, err := s.Store.Batch(ctx, inner)
	if err != nil {
		return nil, err
	}
	for j, r := range res {
		r.Err = s.refusal(ctx, r.Err)
		results[at[j]] = r
	}
	return results, nil
}

func (s *transformed) Watch(ctx context.Context, prefix string, after int64) (Watch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	inner, err := s.Store.Watch(ctx, prefix, after)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &transformedWatch{Watch: inner, out: make(chan Batch), done: make(chan struct{})}
	s.wg.Go(func() {
		defer close(w.out)
		defer close(w.done)
		defer cancel()
		w.err = w.run(ctx, s)
	})
	return w, nil
}

// transformedWatch decodes batches in a goroutine that ends with the inner watch,
// which is the one that is stopped and waited for.
type transformedWatch struct {
	Watch
	out  chan Batch
	done chan struct{}
	err  error // set before done closes
}

func (w *transformedWatch) run(ctx context.Context, s *transformed) error {
	for b := range w.Watch.Batches() {
		if len(b.Events) > 0 {
			// The inner batch may be shared.
			evs := make([]Event, len(b.Events))
			copy(evs, b.Events)
			for i := range evs {
				if evs[i].Type != Put {
					continue
				}
				if err := s.decode(ctx, &evs[i].KV); err != nil {
					return err
				}
			}
			b.Events = evs
		}
		select {
		case w.out <- b:
		case <-ctx.Done():
			return nil
		case <-s.stop:
			return ErrClosed
		}
	}
	return w.Watch.Err()
}

func (w *transformedWatch) Batches() <-chan Batch { return w.out }

func (w *transformedWatch) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}
