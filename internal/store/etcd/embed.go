package etcd

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"skiff/internal/store"
)

// Settings of the member that runs alone. Small snapshots keep its log in
// memory short (21 instead of 72 MiB with etcd's defaults).
const (
	tickMs                 = 100
	electionTicks          = 5
	snapshotCount          = 1000
	snapshotCatchUpEntries = 100

	segmentBytes = 16 << 20

	defaultQuota           = 8 << 30
	defaultMinFree         = 256 << 20
	defaultMaxRequestBytes = 1.5 * 1024 * 1024
	defaultStartTimeout    = 30 * time.Second
	stopTimeout            = 10 * time.Second

	// peerURL is the address this member is known by. It is written down in the
	// data directory and not listened on while the member is alone.
	peerURL = "http://localhost:2380"
)

// Config says how to open an embedded etcd.
type Config struct {
	// Dir is the data directory; it is made where it does not exist. Required.
	Dir string
	// Name of the member; "default" where empty.
	Name string
	// Log gets what etcd has to say at warning or above. Nil discards it.
	Log *slog.Logger
	// Now is the clock of the sharing of leases; time.Now where nil.
	Now func() time.Time
	// Quota is the most bytes in use; 0 is 8 GiB.
	Quota int64
	// MinFree is how many bytes of the disk stay free; 0 is 256 MiB.
	MinFree uint64
	// MaxRequestBytes is the largest write; 0 is 1.5 MiB, etcd's default.
	MaxRequestBytes uint
	// StartTimeout bounds Open besides its context; 0 is 30 s.
	StartTimeout time.Duration
}

func (c *Config) complete() error {
	if c.Dir == "" {
		return errors.New("store: Dir is required")
	}
	if c.Name == "" {
		c.Name = "default"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Quota == 0 {
		c.Quota = defaultQuota
	}
	if c.MinFree == 0 {
		c.MinFree = defaultMinFree
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = defaultMaxRequestBytes
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = defaultStartTimeout
	}
	return nil
}

// embedded is an etcd in this process, a cluster of itself alone.
//
// Being alone, a read of its own memory is linearizable: a write is answered
// after it was applied there. Open waits until all that earlier processes wrote
// is applied.
type embedded struct {
	srv    *etcdserver.EtcdServer
	fault  *fault
	lock   *dirLock
	space  *space
	stop   chan struct{} // closed by close
	dead   chan struct{} // closed with stop, or with the fault
	bury   sync.Once     // closes dead
	once   sync.Once
	closed error
	mu     sync.Mutex // orders new watches and close, for wg's sake
	wg     sync.WaitGroup
}

// Open starts the etcd in c.Dir and returns when it takes writes. After an error
// other than that of a directory in use, parts of etcd may be left running: the
// process should end.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	e := &embedded{fault: newFault(), lock: lock, stop: make(chan struct{}), dead: make(chan struct{})}
	ctx, cancel := context.WithTimeoutCause(ctx, c.StartTimeout,
		fmt.Errorf("it did not become ready within %s", c.StartTimeout))
	defer cancel()
	if err := e.start(ctx, c); err != nil {
		err = fmt.Errorf("data directory %q cannot be opened (damaged, or of another etcd?): %w", c.Dir, err)
		return nil, errors.Join(err, e.abandon())
	}
	e.wg.Go(e.watchFault)
	return &Store{b: e, leases: newLeases(c.Now, e.grant), failed: e.fault.ch, cause: e.fault.get}, nil
}

// start runs etcd's own start in a goroutine of its own, since etcd ends the
// goroutine in which it meets damage.
func (e *embedded) start(ctx context.Context, c Config) error {
	cfg, err := serverConfig(c, newZap(c.Log, e.fault))
	if err != nil {
		return err
	}
	raftStatus.Lock()
	defer raftStatus.Unlock()
	setSegments()
	made := make(chan *etcdserver.EtcdServer, 1)
	if err := e.guard(ctx, c.Log, func() error {
		if err := checkLog(c.Dir); err != nil {
			return err
		}
		srv, err := etcdserver.NewServer(cfg)
		if err == nil {
			made <- srv
		}
		return err
	}); err != nil {
		return err
	}
	e.srv = <-made
	e.space = &space{dir: c.Dir, quota: c.Quota, minFree: c.MinFree, inUse: e.srv.Backend().SizeInUse, start: time.Now()}
	e.srv.Start()
	if n := len(e.srv.Cluster().Members()); n > 1 {
		return fmt.Errorf("it belongs to a cluster of %d members and cannot run alone", n)
	}
	return e.guard(ctx, c.Log, func() error { return e.lead(ctx) })
}

// setSegments makes the files of etcd's log smaller than its 64 MB: a start reads
// all that are there, twice. It is set before the first server of the process.
var setSegments = sync.OnceFunc(func() { wal.SegmentSizeBytes = segmentBytes })

// guard runs f and returns its error, or that of etcd or of ctx where f does not
// come to its end.
func (e *embedded) guard(ctx context.Context, log *slog.Logger, f func() error) error {
	errc := make(chan error, 1)
	e.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				log.Error("etcd panicked at start", "err", p, "stack", string(debug.Stack()))
				e.fault.set(fmt.Errorf("etcd cannot make sense of its files: %v", p))
			}
		}()
		errc <- f()
	})
	select {
	case err := <-errc:
		if f := e.fault.get(); f != nil {
			return f
		}
		return err
	case <-e.fault.ch:
		return e.fault.get()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// raftStatus guards etcd's published raft status, which is that of the server
// made last in this process, from NewServer until that server leads.
var raftStatus sync.Mutex

// lead makes the member the leader and waits until it has applied its log. It is
// called in a goroutine of its own, as start.
//
// raft would wait for one to two election timeouts. The message by which a leader
// asks a follower to take over ends the wait. It must not come before raft has
// taken note that its log is applied: raft would look through the entries in
// between for changes of membership, and etcd drops these from memory as soon as
// it has applied them.
func (e *embedded) lead(ctx context.Context) error {
	id := uint64(e.srv.MemberID())
	status, _ := expvar.Get("raft.status").(expvar.Func)
	poll := time.NewTicker(500 * time.Microsecond)
	defer poll.Stop()
	asked := false
	for e.srv.Lead() == 0 {
		// Without a status, raft's own election comes a little later.
		if st, ok := status.Value().(raft.Status); ok && !asked && st.ID == id && st.Commit != nil &&
			st.Applied > 0 && st.Applied == *st.Commit {
			msg := &raftpb.Message{To: &id, From: &id, Type: raftpb.MsgTimeoutNow.Enum()}
			if err := e.srv.Process(ctx, msg); err != nil {
				return fmt.Errorf("start an election: %w", err)
			}
			asked = true
		}
		select {
		case <-poll.C:
		case <-e.srv.StopNotify():
			return errors.New("etcd stopped")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// A linearizable read waits until everything in the log is applied.
	if _, err := e.srv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, CountOnly: true}); err != nil {
		return err
	}
	for _, a := range e.srv.Alarms() {
		if a.Alarm != pb.AlarmType_NOSPACE {
			return fmt.Errorf("etcd's alarm %s is on", a.Alarm)
		}
		// Another etcd's quota was exceeded; this one has its own.
		if _, err := e.srv.Alarm(ctx, &pb.AlarmRequest{
			Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: a.Alarm,
		}); err != nil {
			return fmt.Errorf("end etcd's alarm %s: %w", a.Alarm, err)
		}
	}
	return nil
}

func serverConfig(c Config, log *zap.Logger) (config.ServerConfig, error) {
	peers, err := types.NewURLs([]string{peerURL})
	if err != nil {
		return config.ServerConfig{}, err
	}
	return config.ServerConfig{
		Name:                   c.Name,
		DataDir:                c.Dir,
		PeerURLs:               peers,
		InitialPeerURLsMap:     types.URLsMap{c.Name: peers},
		InitialClusterToken:    "skiff",
		NewCluster:             true,
		SnapshotCount:          snapshotCount,
		SnapshotCatchUpEntries: snapshotCatchUpEntries,
		MaxSnapFiles:           2,
		MaxWALFiles:            2,
		TickMs:                 tickMs,
		ElectionTicks:          electionTicks,
		PreVote:                true,
		// The quota is kept by space: etcd's counts the file and not what is in use,
		// and its alarm stays until somebody ends it by hand.
		QuotaBackendBytes:       -1,
		MaxTxnOps:               128,
		MaxRequestBytes:         c.MaxRequestBytes,
		StrictReconfigCheck:     true,
		MaxLearners:             1,
		BcryptCost:              10,
		DowngradeCheckTime:      time.Minute,
		WarningApplyDuration:    time.Second,
		CompactionSleepInterval: 10 * time.Millisecond,
		ServerFeatureGate:       features.NewDefaultServerFeatureGate(c.Name, log),
		Metrics:                 "basic",
		V2Deprecation:           config.V2DeprDefault,
		Logger:                  log,
	}, nil
}

// watchFault stops the rest of etcd once a part has ended, so that callers do
// not wait for answers that cannot come.
func (e *embedded) watchFault() {
	select {
	case <-e.fault.ch:
		e.bury.Do(func() { close(e.dead) })
		e.halt()
	case <-e.stop:
	}
}

// halt ends etcd, and leaves behind what does not end in time: after a fault,
// parts of it may wait for each other.
func (e *embedded) halt() bool {
	done := make(chan struct{})
	e.wg.Go(func() {
		defer close(done)
		e.srv.HardStop()
	})
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// abandon frees what a failed start has taken.
func (e *embedded) abandon() error {
	if e.srv != nil {
		e.halt()
	}
	return e.lock.release()
}

func (e *embedded) close() error {
	e.once.Do(func() {
		e.mu.Lock()
		close(e.stop)
		e.bury.Do(func() { close(e.dead) })
		e.mu.Unlock()
		if e.halt() {
			e.wg.Wait()
		} else {
			e.closed = errors.New("etcd did not stop in time")
		}
		e.closed = errors.Join(e.closed, e.lock.release())
	})
	return e.closed
}

// over returns why no call can succeed any more; nil while they can.
func (e *embedded) over() error {
	select {
	case <-e.stop:
		return store.ErrClosed
	default:
	}
	if err := e.fault.get(); err != nil {
		return fmt.Errorf("%w: etcd failed: %w", store.ErrClosed, err)
	}
	return nil
}

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
