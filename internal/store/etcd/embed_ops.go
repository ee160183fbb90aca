package etcd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"skiff/internal/store"
)

func (e *embedded) read(ctx context.Context, key, end string, rev, limit int64, countOnly bool) (readResult, error) {
	if err := e.over(); err != nil {
		return readResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return readResult{}, err
	}
	if rev < 0 {
		return readResult{}, store.ErrCompacted
	}
	// A read of one key holds up writers for less time than the copy of their
	// buffer takes that spares them.
	mode, to := mvcc.SharedBufReadTxMode, []byte(nil)
	if end != "" {
		mode, to = mvcc.ConcurrentReadTxMode, []byte(end)
		if end == "\x00" {
			to = []byte{} // to the end of all keys
		}
	}
	txn := e.srv.KV().Read(mode, traceutil.TODO())
	defer txn.End()
	r, err := txn.Range(ctx, []byte(key), to, mvcc.RangeOptions{
		Rev: rev, Limit: limit, CountOnly: countOnly, WithTotalCount: true,
	})
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return readResult{}, store.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		return readResult{}, store.ErrFutureRev
	case err != nil:
		return readResult{}, err
	}
	return readResult{kvs: r.KVs, count: int64(r.Count), rev: r.Rev}, nil
}

func (e *embedded) write(ctx context.Context, r *pb.TxnRequest, grow int) (*pb.TxnResponse, error) {
	if err := e.admit(ctx, grow); err != nil {
		return nil, err
	}
	for {
		resp, err := e.srv.Txn(ctx, r)
		if errors.Is(err, etcderrors.ErrTooManyRequests) {
			// Not proposed: etcd applies slower than it is asked to.
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		return resp, e.writeError(ctx, err)
	}
}

// admit refuses a write that must not be tried.
func (e *embedded) admit(ctx context.Context, grow int) error {
	if err := e.over(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if grow > 0 {
		return e.space.admit(grow)
	}
	return nil
}

func (e *embedded) writeError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, etcderrors.ErrRequestTooLarge):
		return fmt.Errorf("%w: %w", store.ErrTooLarge, err)
	case errors.Is(err, etcderrors.ErrNoSpace):
		return fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	case errors.Is(err, lease.ErrLeaseNotFound):
		return errLeaseGone
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", store.ErrUnknown, ctx.Err())
	}
	select {
	case <-e.stop:
		// A write in flight while the store closes may have been done.
		return fmt.Errorf("%w: %w", store.ErrUnknown, store.ErrClosed)
	default:
	}
	if f := e.fault.get(); f != nil {
		return fmt.Errorf("%w: etcd failed: %w", store.ErrUnknown, f)
	}
	return fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

func (e *embedded) grant(ctx context.Context, ttl int64) (int64, error) {
	if err := e.admit(ctx, 64); err != nil {
		return 0, err
	}
	r, err := e.srv.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", e.writeError(ctx, err))
	}
	return r.ID, nil
}

func (e *embedded) compact(ctx context.Context, rev int64) error {
	if err := e.admit(ctx, 0); err != nil {
		return err
	}
	_, err := e.srv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	switch {
	case errors.Is(err, mvcc.ErrCompacted):
		return nil
	case errors.Is(err, mvcc.ErrFutureRev):
		return store.ErrFutureRev
	}
	return e.writeError(ctx, err)
}

func (e *embedded) compacted(context.Context) (int64, error) {
	if err := e.over(); err != nil {
		return 0, err
	}
	// etcd has -1 for never.
	return max(e.srv.KV().FirstRev(), 0), nil
}

func (e *embedded) revision(context.Context) (int64, error) {
	if err := e.over(); err != nil {
		return 0, err
	}
	return e.rev(), nil
}

// rev is the revision that reads see.
func (e *embedded) rev() int64 {
	// The other mode copies what is not yet in the database.
	txn := e.srv.KV().Read(mvcc.SharedBufReadTxMode, traceutil.TODO())
	defer txn.End()
	return txn.Rev()
}

// visible waits until reads see rev: etcd tells its watches of a change a moment
// before. Who has seen a change must not then read the state before it.
func (e *embedded) visible(rev int64) {
	for i := 0; e.rev() < rev; i++ {
		if i < 10 {
			runtime.Gosched()
			continue
		}
		t := time.NewTimer(50 * time.Microsecond)
		select {
		case <-t.C:
		case <-e.dead:
			t.Stop()
			return
		}
	}
}

// embeddedSource is a watch of etcd's memory.
type embeddedSource struct {
	e  *embedded
	ws mvcc.WatchStream
	id mvcc.WatchID
}

func (s *embeddedSource) responses() <-chan mvcc.WatchResponse { return s.ws.Chan() }
func (s *embeddedSource) progress()                            { s.ws.RequestProgress(s.id) }
func (s *embeddedSource) close()                               { s.ws.Close() }
func (s *embeddedSource) revision(ctx context.Context) (int64, error) {
	return s.e.revision(ctx)
}

func (s *embeddedSource) read(r mvcc.WatchResponse) (store.Batch, bool, error) {
	if r.CompactRevision != 0 {
		return store.Batch{}, false, store.ErrCompacted
	}
	b := toBatch(r.Events, r.Revision)
	s.e.visible(b.Revision)
	return b, true, nil
}

func (e *embedded) watch(ctx context.Context, prefix string, after int64) (store.Watch, error) {
	end := []byte(prefixEnd(prefix))
	if string(end) == "\x00" {
		end = []byte{}
	}
	from := []byte(prefix)
	if len(from) == 0 {
		from = []byte{0}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.over(); err != nil {
		return nil, err
	}
	src := &embeddedSource{e: e, ws: e.srv.Watchable().NewWatchStream()}
	var err error
	if src.id, err = src.ws.Watch(ctx, 0, from, end, after+1); err != nil {
		src.ws.Close()
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	w := newWatch(src.revision)
	e.wg.Go(func() { pump(ctx, w, src, after, e.dead, e.over) })
	return w, nil
}
