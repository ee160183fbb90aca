package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"skiff/internal/host"
	"skiff/internal/runtime/cgroup"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/programs"
)

// Deps are what a Runtime is made of.
type Deps struct {
	Instance  host.Instance
	Journal   *host.Journal
	Images    Images
	Snapshots Snapshots
	Network   Network
	Programs  programs.Set
	Log       *slog.Logger
	// Now is the clock of sandboxes' and containers' times.
	Now func() time.Time
	// Socket is where CRI is served; "" for nowhere.
	Socket string
	// CDIDirs are where CDI specs are, later ones winning; /etc/cdi and
	// /var/run/cdi where empty.
	CDIDirs []string
	// Step, when not nil, hears of each step of the recovery table as it is
	// reached, by its name there.
	Step func(name string)
}

// Runtime implements the CRI services.
type Runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	Deps
	cg   *cgroup.Host
	boot string
	// userNamespaces: pods can have their own.
	userNamespaces bool
	stream         streaming.Server
	streamLn       net.Listener
	socketLn       net.Listener // nil without a socket
	events         broadcaster
	stopping       chan struct{} // closed when Run ends
	bg             struct {
		sync.Mutex
		sync.WaitGroup
		over bool
	}
	mu        sync.Mutex // guards what follows and the mutable fields of its values
	sandboxes map[string]*sandbox
	conts     map[string]*container
	names     map[string]string // reserved name -> ID
	execs     map[string]chan pod.Process
	holds     map[string]*hold // by the container's ID

	holdOp       sync.Mutex    // serialises what begins and ends holds
	holdsChanged chan struct{} // wakes endHolds
}

// New prepares the instance's directories, adopts what an earlier runtime left
// running and cleans what it left half done. Run must follow: it ends what New
// began.
func New(ctx context.Context, d Deps) (*Runtime, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Step == nil {
		d.Step = func(string) {}
	}
	cg, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	r := &Runtime{
		Deps: d, cg: cg, boot: bootID(), userNamespaces: userNamespaces(), stopping: make(chan struct{}),
		sandboxes: map[string]*sandbox{}, conts: map[string]*container{}, names: map[string]string{}, execs: map[string]chan pod.Process{},
		holds: map[string]*hold{}, holdsChanged: make(chan struct{}, 1),
	}
	if err := r.prepareHost(); err != nil {
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	if err := r.adopt(ctx); err != nil {
		r.release()
		return nil, fmt.Errorf("container runtime: adopt pods: %w", err)
	}
	if err := errors.Join(r.listenStreams(), r.listenSocket()); err != nil {
		r.release()
		return nil, fmt.Errorf("container runtime: %w", err)
	}
	return r, nil
}

func (r *Runtime) listenSocket() error {
	if r.Socket == "" {
		return nil
	}
	if err := os.Remove(r.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("CRI socket: %w", err)
	}
	ln, err := net.Listen("unix", r.Socket)
	if err != nil {
		return fmt.Errorf("CRI socket: %w", err)
	}
	r.socketLn = ln
	return os.Chmod(r.Socket, 0o600)
}

// Directories of an instance's runtime.
func podsDir(i host.Instance) string { return i.Run("runtime", "pods") }

// mountsDir is a small tmpfs that shares no mount events with anyone: what is
// mounted below it, in the host's or a container's mount namespace, stays there.
func mountsDir(i host.Instance) string { return i.Run("runtime", "mnt") }

// filtersDir keeps compiled seccomp filters, by what they were made of.
func filtersDir(i host.Instance) string { return i.Run("runtime", "filters") }

// podProcesses is the cgroup of all pod processes: apart from the program that
// starts them, which may be a service that is stopped with all its processes,
// and from the pods, whose limits are for containers.
func podProcesses(i host.Instance) string { return filepath.Join(i.CgroupParent, "pod-processes") }

func (r *Runtime) prepareHost() error {
	i := r.Instance
	for _, e := range []host.Entry{
		{Kind: host.KindDir, Name: i.RunDir},
		{Kind: host.KindCgroup, Name: i.CgroupParent},
		{Kind: host.KindMounts, Name: mountsDir(i)},
		{Kind: host.KindPodProcs, Name: podsDir(i)},
	} {
		if err := r.Journal.Record(e); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(i.RunDir, 0o711); err != nil {
		return err
	}
	for _, d := range []string{podsDir(i), mountsDir(i), filtersDir(i)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// What starts pods weighs as much as they do together.
	cpus := goruntime.NumCPU()
	if err := errors.Join(r.cg.SetCPUs(i.CgroupParent, 2*cpus), r.cg.SetCPUs(podProcesses(i), cpus)); err != nil {
		return err
	}
	if mounted(mountsDir(i)) {
		return nil
	}
	if err := unix.Mount("skiff", mountsDir(i), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=16m,mode=0700"); err != nil {
		return fmt.Errorf("mount %s: %w", mountsDir(i), err)
	}
	return unix.Mount("", mountsDir(i), "", unix.MS_PRIVATE, "")
}

// mounted tells whether something is mounted at dir itself.
func mounted(dir string) bool {
	var a, b unix.Stat_t
	return unix.Lstat(dir, &a) == nil && unix.Lstat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

func (r *Runtime) listenStreams() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	cfg := streaming.DefaultConfig
	cfg.Addr = ln.Addr().String()
	s, err := streaming.NewServer(cfg, streams{r})
	if err != nil {
		ln.Close()
		return fmt.Errorf("streaming server: %w", err)
	}
	r.stream, r.streamLn = s, ln
	return nil
}

// Run serves streams and the CRI socket until ctx is done. Pods go on running.
func (r *Runtime) Run(ctx context.Context) error {
	defer r.release()
	g, ctx := errgroup.WithContext(ctx)
	srv := &http.Server{Handler: r.stream, ReadHeaderTimeout: 30 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(r.streamLn); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve streams: %w", err)
		}
		return nil
	})
	g.Go(func() error { return r.endHolds(ctx) })
	gs := grpc.NewServer(grpc.MaxSendMsgSize(16<<20), grpc.MaxRecvMsgSize(16<<20))
	runtimeapi.RegisterRuntimeServiceServer(gs, r)
	runtimeapi.RegisterImageServiceServer(gs, r)
	if r.socketLn != nil {
		g.Go(func() error {
			if err := gs.Serve(r.socketLn); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve CRI: %w", err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		close(r.stopping)
		r.events.close() // or a subscriber would hold the server
		gs.Stop()
		return srv.Close()
	})
	return g.Wait()
}

// release ends what New began: connections to pods and the workers.
func (r *Runtime) release() {
	r.mu.Lock()
	select {
	case <-r.stopping:
	default:
		close(r.stopping)
	}
	var clients []*pod.Client
	for _, s := range r.sandboxes {
		if s.client != nil {
			clients = append(clients, s.client)
		}
	}
	r.mu.Unlock()
	for _, ln := range []net.Listener{r.streamLn, r.socketLn} {
		if ln != nil {
			ln.Close()
		}
	}
	for _, c := range clients {
		c.Close()
	}
	r.events.close()
	r.bg.Lock()
	r.bg.over = true
	r.bg.Unlock()
	r.bg.Wait()
}

// background runs f beside what goes on; release waits for it. After release it
// does not run: what it would have done is left to the next adoption.
func (r *Runtime) background(f func()) {
	r.bg.Lock()
	defer r.bg.Unlock()
	if !r.bg.over {
		r.bg.Go(f)
	}
}

func (r *Runtime) isStopping() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// reserve takes a name for an ID; another ID that has it is an error.
func (r *Runtime) reserve(name, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other, ok := r.names[name]; ok && other != id {
		return status.Errorf(codes.AlreadyExists, "name %q is reserved for %q", name, other)
	}
	r.names[name] = id
	return nil
}

func (r *Runtime) unreserve(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.names, name)
}

// findSandbox takes an ID or a prefix of one alone.
func (r *Runtime) findSandbox(id string) (*sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return find(r.sandboxes, id, "sandbox")
}

func (r *Runtime) findContainer(id string) (*container, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return find(r.conts, id, "container")
}

func find[T any](m map[string]T, id, what string) (T, error) {
	if v, ok := m[id]; ok {
		return v, nil
	}
	var zero, hit T
	n := 0
	for k, v := range m {
		if id != "" && strings.HasPrefix(k, id) {
			hit = v
			n++
		}
	}
	switch n {
	case 1:
		return hit, nil
	case 0:
		return zero, status.Errorf(codes.NotFound, "%s %q: not found", what, id)
	}
	return zero, status.Errorf(codes.NotFound, "%s %q: the ID is ambiguous", what, id)
}
