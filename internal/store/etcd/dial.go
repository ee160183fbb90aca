package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"skiff/internal/store"
)

// DialConfig says how to reach an etcd cluster.
type DialConfig struct {
	// Endpoints are the members' client URLs. Required.
	Endpoints []string
	// TLS verifies the members and has the client's certificate; nil for http and
	// unix endpoints.
	TLS *tls.Config
	// Log gets what the client has to say at warning or above. Nil discards it.
	Log *slog.Logger
	// Now is the clock of the sharing of leases; time.Now where nil.
	Now func() time.Time
	// DialTimeout bounds Dial besides its context; 0 is 10 s.
	DialTimeout time.Duration
}

// remote is an etcd cluster reached by gRPC.
type remote struct {
	c    *clientv3.Client
	kv   pb.KVClient
	stop chan struct{}

	once   sync.Once
	closed error
	mu     sync.Mutex // orders new watches and close, for wg's sake
	wg     sync.WaitGroup

	compMu    sync.Mutex
	compFloor int64 // a revision known to be compacted
}

// Dial connects to an etcd cluster and returns once it has answered.
func Dial(ctx context.Context, c DialConfig) (*Store, error) {
	if len(c.Endpoints) == 0 {
		return nil, errors.New("store: Endpoints are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 10 * time.Second
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints,
		TLS:       c.TLS,
		// As kube-apiserver's: a member that is gone without a word is noticed.
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               newZap(c.Log, newFault()),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(c.Endpoints, ", "), err)
	}
	r := &remote{c: client, kv: clientv3.RetryKVClient(client), stop: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	if _, err := r.revision(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("etcd at %s does not answer: %w", strings.Join(c.Endpoints, ", "), err), client.Close())
	}
	never := make(chan struct{})
	return &Store{b: r, leases: newLeases(c.Now, r.grant), failed: never, cause: func() error { return nil }}, nil
}

// begin checks what every call checks.
func (r *remote) begin(ctx context.Context) error {
	select {
	case <-r.stop:
		return store.ErrClosed
	default:
		return ctx.Err()
	}
}

func (r *remote) over() error {
	select {
	case <-r.stop:
		return store.ErrClosed
	default:
		return errors.New("watch ended by etcd")
	}
}

// failure turns an error of the client into the store's. For a write, whatever is
// not a plain refusal leaves its outcome unknown.
func (r *remote) failure(ctx context.Context, err error, write bool) error {
	if err == nil {
		return nil
	}
	etcd := rpctypes.Error(err)
	for _, known := range []struct{ etcd, store error }{
		{rpctypes.ErrCompacted, store.ErrCompacted},
		{rpctypes.ErrFutureRev, store.ErrFutureRev},
	} {
		if errors.Is(etcd, known.etcd) {
			return known.store
		}
	}
	switch {
	case errors.Is(etcd, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%w: %w", store.ErrTooLarge, etcd)
	case strings.Contains(err.Error(), "trying to send message larger than max"),
		strings.Contains(err.Error(), "received message larger than max"):
		// gRPC's limit, on either end, comes before etcd's.
		return fmt.Errorf("%w: %w", store.ErrTooLarge, rpctypes.ErrRequestTooLarge)
	case errors.Is(etcd, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", store.ErrNoSpace, etcd)
	case errors.Is(etcd, rpctypes.ErrLeaseNotFound):
		return errLeaseGone
	}
	if c := ctx.Err(); c != nil {
		err = c
	}
	select {
	case <-r.stop:
		if !write {
			return store.ErrClosed
		}
	default:
	}
	if write {
		return fmt.Errorf("%w: %w", store.ErrUnknown, err)
	}
	return err
}

func (r *remote) read(ctx context.Context, key, end string, rev, limit int64, countOnly bool) (readResult, error) {
	if err := r.begin(ctx); err != nil {
		return readResult{}, err
	}
	if rev < 0 {
		return readResult{}, store.ErrCompacted
	}
	if key == "" {
		key = "\x00" // the first key, for etcd; no key is empty
	}
	req := &pb.RangeRequest{Key: []byte(key), Revision: rev, Limit: limit, CountOnly: countOnly}
	if end != "" {
		req.RangeEnd = []byte(end)
	}
	resp, err := r.kv.Range(ctx, req)
	if err != nil {
		return readResult{}, r.failure(ctx, err, false)
	}
	return readResult{kvs: resp.Kvs, count: resp.Count, rev: resp.Header.Revision}, nil
}

func (r *remote) write(ctx context.Context, req *pb.TxnRequest, _ int) (*pb.TxnResponse, error) {
	for {
		if err := r.begin(ctx); err != nil {
			return nil, err
		}
		resp, err := r.kv.Txn(ctx, req)
		if errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyRequests) {
			// Not proposed: etcd applies slower than it is asked to.
			if err := sleep(ctx, 5*time.Millisecond); err != nil {
				return nil, err
			}
			continue
		}
		return resp, r.failure(ctx, err, true)
	}
}

func (r *remote) grant(ctx context.Context, ttl int64) (int64, error) {
	if err := r.begin(ctx); err != nil {
		return 0, err
	}
	l, err := r.c.Grant(ctx, ttl)
	if err != nil {
		return 0, fmt.Errorf("grant a lease: %w", r.failure(ctx, err, true))
	}
	return int64(l.ID), nil
}

func (r *remote) compact(ctx context.Context, rev int64) error {
	if err := r.begin(ctx); err != nil {
		return err
	}
	_, err := r.kv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	if err = r.failure(ctx, err, true); errors.Is(err, store.ErrCompacted) {
		return nil
	}
	return err
}

// compacted finds the revision by halving: etcd does not tell it, but refuses to
// read below it.
func (r *remote) compacted(ctx context.Context) (int64, error) {
	now, err := r.revision(ctx)
	if err != nil {
		return 0, err
	}
	r.compMu.Lock()
	defer r.compMu.Unlock()
	floor := max(r.compFloor, 1)
	var failed error
	// The first revision that can be read is the one compacted to, or 1, that of an
	// empty store, where none was.
	first := floor + int64(sort.Search(int(now-floor), func(i int) bool {
		if failed != nil {
			return true
		}
		_, err := r.read(ctx, "\x00", "", floor+int64(i), 1, true)
		if err != nil && !errors.Is(err, store.ErrCompacted) {
			failed = err
		}
		return err == nil
	}))
	if failed != nil {
		return 0, failed
	}
	r.compFloor = first
	if first == 1 {
		return 0, nil
	}
	return first, nil
}

func (r *remote) revision(ctx context.Context) (int64, error) {
	resp, err := r.read(ctx, "\x00", "", 0, 1, true)
	return resp.rev, err
}

// remoteSource is a watch of a cluster, on a gRPC stream of its own: progress is
// told per stream, and only when all its watches have caught up.
type remoteSource struct {
	ctx    context.Context // names the stream within the client
	cancel context.CancelFunc
	w      clientv3.Watcher
	ch     clientv3.WatchChan
}

func (s *remoteSource) responses() <-chan clientv3.WatchResponse { return s.ch }

func (s *remoteSource) progress() {
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	// What fails is asked for again.
	_ = s.w.RequestProgress(ctx)
}

func (s *remoteSource) close() {
	s.cancel()
	_ = s.w.Close()
}

func (s *remoteSource) read(r clientv3.WatchResponse) (store.Batch, bool, error) {
	if err := r.Err(); err != nil {
		if r.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted) {
			return store.Batch{}, false, store.ErrCompacted
		}
		return store.Batch{}, false, fmt.Errorf("watch: %w", err)
	}
	if len(r.Events) == 0 && !r.IsProgressNotify() {
		return store.Batch{}, false, nil
	}
	return toBatch(clientEvents(r.Events), r.Header.Revision), true, nil
}

func (r *remote) watch(ctx context.Context, prefix string, after int64) (store.Watch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	// A watch of a member without a leader would be silent for ever.
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	src := &remoteSource{ctx: wctx, cancel: cancel, w: clientv3.NewWatcher(r.c)}
	opts := []clientv3.OpOption{clientv3.WithRev(after + 1), clientv3.WithFragment(), clientv3.WithProgressNotify()}
	from := prefix
	if prefix == "" {
		from = "\x00"
		opts = append(opts, clientv3.WithFromKey())
	} else {
		opts = append(opts, clientv3.WithRange(prefixEnd(prefix)))
	}
	w := newWatch(r.revision)
	// The client's Watch waits for the stream.
	r.wg.Go(func() {
		src.ch = src.w.Watch(wctx, from, opts...)
		pump(ctx, w, src, after, r.stop, r.over)
	})
	return w, nil
}

func (r *remote) close() error {
	r.once.Do(func() {
		r.mu.Lock()
		close(r.stop)
		r.mu.Unlock()
		r.closed = r.c.Close()
		r.wg.Wait()
	})
	return r.closed
}
