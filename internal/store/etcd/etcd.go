// Package etcd is the durable store: etcd inside this process (Open), or an
// etcd cluster reached by network (Dial).
//
// The embedded etcd is a member that runs alone, without a listener: every call
// is a function call. Its data directory is etcd's own, and etcd's tools work on
// it while the store is closed. A directory belongs to one process at a time.
//
// What etcd answers by ending its process (a damaged directory, a disk that
// fails) is an error here: of Open, or, later, of every call; Failed tells.
//
// Writes that grow the store are refused with store.ErrNoSpace when the bytes
// in use exceed the quota or the disk has less than MinFree left. Deletions,
// reads and compactions go on, and the state ends by itself once there is room.
package etcd

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"

	"skiff/internal/store"
)

const (
	// listPage is how many keys one read of etcd asks for; a longer list is read
	// in several at one revision.
	listPage = 10_000
	// batchParallel is how many writes of a Batch are in flight. etcd puts what
	// waits together into one write of its log, so that these share an fsync.
	batchParallel = 128
)

// backend is what the embedded and the external etcd do differently. Errors are
// already the store's.
type backend interface {
	// read returns the keys of [key, end), or key alone where end is empty, as of
	// rev; 0 is the newest, linearizable. limit 0 is no limit.
	read(ctx context.Context, key, end string, rev, limit int64, countOnly bool) (readResult, error)
	// write does one transaction; grow is by how many bytes it makes the store
	// larger.
	write(ctx context.Context, r *pb.TxnRequest, grow int) (*pb.TxnResponse, error)
	grant(ctx context.Context, ttl int64) (int64, error)
	compact(ctx context.Context, rev int64) error
	compacted(ctx context.Context) (int64, error)
	revision(ctx context.Context) (int64, error)
	watch(ctx context.Context, prefix string, after int64) (store.Watch, error)
	close() error
}

type readResult struct {
	kvs   []*mvccpb.KeyValue
	count int64
	rev   int64 // the store's revision
}

// Store implements store.Store.
type Store struct {
	b      backend
	leases *leases
	failed <-chan struct{}
	cause  func() error
}

var _ store.Store = (*Store)(nil)

// Failed is closed when the embedded etcd cannot go on; the process should then
// end with Err's text and start anew. It stays open for an external one.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Err tells why Failed is closed; nil before.
func (s *Store) Err() error { return s.cause() }

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string, rev int64) (store.KV, error) {
	r, err := s.b.read(ctx, key, "", rev, 0, false)
	if err != nil {
		return store.KV{}, err
	}
	if len(r.kvs) == 0 {
		return store.KV{}, store.ErrNotFound
	}
	return toKV(r.kvs[0]), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	from, end := prefix, prefixEnd(prefix)
	if o.After >= prefix {
		from = o.After + "\x00"
	}
	p := store.Page{Revision: o.Revision}
	if end != "\x00" && from >= end {
		// Nothing can follow After; the revision is still to be checked and told.
		r, err := s.b.read(ctx, prefix, "", o.Revision, 1, true)
		if err == nil && p.Revision == 0 {
			p.Revision = r.rev
		}
		return p, err
	}
	for {
		limit := int64(listPage)
		if o.Limit > 0 {
			limit = min(limit, o.Limit-int64(len(p.KVs)))
		}
		r, err := s.b.read(ctx, from, end, p.Revision, limit, o.CountOnly)
		if err != nil {
			return store.Page{}, err
		}
		if p.Revision == 0 {
			p.Revision = r.rev
		}
		if len(p.KVs) == 0 {
			p.Count = r.count
		}
		if o.CountOnly {
			return p, nil
		}
		if p.KVs == nil && len(r.kvs) > 0 {
			n := p.Count
			if o.Limit > 0 {
				n = min(n, o.Limit)
			}
			p.KVs = make([]store.KV, 0, n)
		}
		for _, kv := range r.kvs {
			p.KVs = append(p.KVs, toKV(kv))
		}
		p.More = int64(len(p.KVs)) < p.Count
		if !p.More || len(r.kvs) == 0 || (o.Limit > 0 && int64(len(p.KVs)) >= o.Limit) {
			return p, nil
		}
		from = p.KVs[len(p.KVs)-1].Key + "\x00"
	}
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string, value []byte, o store.WriteOptions) (int64, error) {
	return s.put(ctx, key, value, 0, o.TTL)
}

// Update implements store.Store.
func (s *Store) Update(ctx context.Context, key string, value []byte, expectRev int64, o store.WriteOptions) (int64, error) {
	if expectRev <= 0 {
		return 0, s.mismatch(ctx, key)
	}
	return s.put(ctx, key, value, expectRev, o.TTL)
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string, expectRev int64) (int64, error) {
	if expectRev <= 0 {
		return 0, s.mismatch(ctx, key)
	}
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)},
	}}
	return s.txn(ctx, key, expectRev, del, 0)
}

// put writes key if its ModRev is expect; 0: if it does not exist.
func (s *Store) put(ctx context.Context, key string, value []byte, expect int64, ttl time.Duration) (int64, error) {
	for try := 0; ; try++ {
		var lease int64
		if ttl > 0 {
			var err error
			if lease, err = s.leases.get(ctx, ttl); err != nil {
				return 0, err
			}
		}
		op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, Lease: lease},
		}}
		// 256 is what etcd reckons a key costs besides its bytes.
		rev, err := s.txn(ctx, key, expect, op, len(key)+len(value)+256)
		if lease != 0 && err == errLeaseGone && try < 3 {
			s.leases.forget(lease)
			continue
		}
		return rev, err
	}
}

// errLeaseGone: the lease of a write has ended between its grant and its use;
// the write was not done.
var errLeaseGone = fmt.Errorf("lease has ended: %w", store.ErrUnknown)

// txn does op if key's ModRev is expect, and else tells the key as it is.
func (s *Store) txn(ctx context.Context, key string, expect int64, op *pb.RequestOp, grow int) (int64, error) {
	k := []byte(key)
	resp, err := s.b.write(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: k, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: expect},
		}},
		Success: []*pb.RequestOp{op},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: k}}}},
	}, grow)
	if err != nil {
		return 0, err
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return 0, store.ErrNotFound
	}
	if expect == 0 {
		return 0, &store.ExistsError{Current: toKV(kvs[0])}
	}
	return 0, &store.ConflictError{Current: toKV(kvs[0])}
}

// mismatch answers a conditional write that no existing key can satisfy.
func (s *Store) mismatch(ctx context.Context, key string) error {
	kv, err := s.Get(ctx, key, 0)
	if err != nil {
		return err
	}
	return &store.ConflictError{Current: kv}
}

// Batch implements store.Store. Each op is a transaction of its own, so that it
// has a revision of its own: a client that has seen one change of a revision and
// resumes after it would miss the others. They are in flight together and share
// etcd's log writes, which is where the time goes.
func (s *Store) Batch(ctx context.Context, ops []store.Op) ([]store.OpResult, error) {
	results := make([]store.OpResult, len(ops))
	seen := make(map[string]struct{}, len(ops))
	for i := range ops {
		if _, dup := seen[ops[i].Key]; dup {
			return nil, fmt.Errorf("key %q is named by two ops of a batch", ops[i].Key)
		}
		seen[ops[i].Key] = struct{}{}
	}
	var g errgroup.Group
	g.SetLimit(batchParallel)
	for i := range ops {
		g.Go(func() error {
			r := &results[i]
			r.Revision, r.Err = s.do(ctx, ops[i])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
	if err := s.cause(); err != nil {
		return nil, fmt.Errorf("%w: etcd failed: %w", store.ErrUnknown, err)
	}
	return results, nil
}

func (s *Store) do(ctx context.Context, op store.Op) (int64, error) {
	switch {
	case op.Value == nil:
		return s.Delete(ctx, op.Key, op.ExpectRev)
	case op.ExpectRev == 0:
		return s.Create(ctx, op.Key, op.Value, store.WriteOptions{TTL: op.TTL})
	default:
		return s.Update(ctx, op.Key, op.Value, op.ExpectRev, store.WriteOptions{TTL: op.TTL})
	}
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (int64, error) { return s.b.revision(ctx) }

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (store.Watch, error) {
	if after < 0 {
		return nil, fmt.Errorf("watch after revision %d: a revision is not negative", after)
	}
	return s.b.watch(ctx, prefix, after)
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev int64) error { return s.b.compact(ctx, rev) }

// Compacted implements store.Store.
func (s *Store) Compacted(ctx context.Context) (int64, error) { return s.b.compacted(ctx) }

// Close implements store.Store.
func (s *Store) Close() error { return s.b.close() }

func toKV(kv *mvccpb.KeyValue) store.KV {
	return store.KV{Key: string(kv.Key), Value: kv.Value, CreateRev: kv.CreateRevision, ModRev: kv.ModRevision}
}

// prefixEnd is the first key after all that start with prefix, in etcd's
// notation: "\x00" is the end of all keys.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return "\x00"
}
