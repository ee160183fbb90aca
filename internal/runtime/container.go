package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/startspec"
)

// container is a container. op serialises start, stop and remove; state, proc,
// first and rec.Resources are guarded by Runtime.mu; the rest never changes.
type container struct {
	id     string
	sb     *sandbox
	dir    string
	config *runtimeapi.ContainerConfig
	rec    containerRecord
	op     sync.Mutex

	state runtimeapi.ContainerState
	proc  pod.Process
	// ended is closed when the container is no longer running, begun when it is no
	// longer only created.
	ended, begun chan struct{}
	// first is who is attached before the start, nil for nobody.
	first *firstClient
	// layer is what it wrote, when that was measured last.
	layer     *runtimeapi.FilesystemUsage
	layerTook time.Duration
}

func (r *Runtime) rootfsDir(id string) string {
	return filepath.Join(mountsDir(r.Instance), "rootfs-"+id)
}

func (s *sandbox) stateRoot() string { return filepath.Join(s.dir, "state") }

// CreateContainer prepares a container: its root file system and its spec.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (_ *runtimeapi.CreateContainerResponse, err error) {
	config := req.GetConfig()
	if config.GetMetadata().GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "container config: metadata: name is required")
	}
	s, err := r.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	ready := s.ready()
	r.mu.Unlock()
	if !ready {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q is not running", s.id)
	}
	img, err := r.resolveImage(ctx, config.GetImage())
	if err != nil {
		return nil, err
	}
	id := newID()
	name := config.GetMetadata().GetName() + "_" + fmt.Sprint(config.GetMetadata().GetAttempt()) + "_" + s.id
	if err := r.reserve(name, id); err != nil {
		return nil, err
	}
	c := &container{
		id: id, sb: s, dir: filepath.Join(s.dir, "containers", id), config: config,
		state: runtimeapi.ContainerState_CONTAINER_CREATED, ended: make(chan struct{}), begun: make(chan struct{}),
		rec: containerRecord{
			ID: id, SandboxID: s.id, ImageID: img.ID, ImageRef: imageRef(img), Created: r.Now(),
			StopSignal: img.Config.Config.StopSignal,
			Cgroup:     r.containerCgroup(s, id),
		},
	}
	defer func() {
		if err == nil {
			return
		}
		r.unreserve(name)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if cerr := r.removeFiles(ctx, c); cerr != nil {
			r.Log.Error("undo a container that was not created", "container", id, "err", cerr)
		}
	}()
	if config.GetLogPath() != "" && s.config.GetLogDirectory() != "" {
		c.rec.LogPath = filepath.Join(s.config.GetLogDirectory(), config.GetLogPath())
		if err := os.MkdirAll(filepath.Dir(c.rec.LogPath), 0o755); err != nil {
			return nil, fmt.Errorf("log directory: %w", err)
		}
	}
	if c.rec.Config, err = encode(config); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "container config: %v", err)
	}
	spec, err := r.containerSpec(c, img)
	if err != nil {
		return nil, fmt.Errorf("failed to generate container %q spec: %w", id, err)
	}
	if spec.Overlay, err = r.rootfs(ctx, c, img); err != nil {
		return nil, err
	}
	r.Step("container-prepared")
	if spec.Images, err = r.mountedImages(ctx, c); err != nil {
		return nil, err
	}
	if err := s.own(spec.Overlay.Upper); err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	for _, d := range []string{c.dir, r.rootfsDir(id)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("container directory: %w", err)
		}
	}
	if err := startspec.Write(filepath.Join(c.dir, startspec.File), spec); err != nil {
		return nil, fmt.Errorf("container spec: %w", err)
	}
	// A stop in between found no container to remove: no new one may appear.
	s.op.Lock()
	defer s.op.Unlock()
	r.mu.Lock()
	ready = s.ready()
	r.mu.Unlock()
	if !ready {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q is not running", s.id)
	}
	if err := r.takeOver(ctx, c); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.conts[id] = c
	r.mu.Unlock()
	r.notify(s, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

func (r *Runtime) containerCgroup(s *sandbox, id string) string {
	parent := s.config.GetLinux().GetCgroupParent()
	if parent == "" {
		parent = path.Join(r.Instance.CgroupParent, "pods", s.id)
	}
	return path.Join("/", parent, id)
}

// ownCgroup is a sandbox's cgroup where the caller named none.
func (r *Runtime) ownCgroup(s *sandbox) string {
	if s.config.GetLinux().GetCgroupParent() != "" {
		return ""
	}
	return path.Join(r.Instance.CgroupParent, "pods", s.id)
}

func imageRef(img *image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return img.ID
}

// StartContainer runs the container's program.
func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r.mu.Lock()
	state, client, ready := c.state, c.sb.client, c.sb.ready()
	r.mu.Unlock()
	if state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is in %s state", c.id, state)
	}
	if !ready {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox container %q is not running", c.sb.id)
	}
	if err := os.WriteFile(filepath.Join(c.dir, startedFile), nil, 0o600); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	if err := r.keepStart(c); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	r.Step("container-starting")
	start := pod.Start{
		ID: c.id, Starter: r.Programs.Start, Root: c.sb.stateRoot(), Bundle: c.dir, LogPath: c.rec.LogPath,
		TTY: c.config.GetTty(), Stdin: c.config.GetStdin(), StdinOnce: c.config.GetStdinOnce(),
		OOMFile: r.cg.OOMFile(c.rec.Cgroup),
	}
	if !c.ownPID() {
		start.ProcsFile = r.cg.ProcsFile(c.rec.Cgroup)
	}
	first := r.takeFirst(c)
	if err := first.into(c, &start); err != nil {
		return nil, err
	}
	// Not the caller's time: a start that was asked for is carried through.
	p, err := client.Start(context.WithoutCancel(ctx), start)
	first.close()
	r.Step("container-started")
	if errors.Is(err, syscall.EEXIST) {
		// An earlier runtime asked for it just before it died: that start counts.
		p, err = r.startedBefore(ctx, c, client)
	}
	if err != nil {
		r.failStart(c, err)
		return nil, fmt.Errorf("failed to start container %q: %w", c.id, err)
	}
	r.processChanged(c.sb, p)
	return &runtimeapi.StartContainerResponse{}, nil
}

// startedBefore waits until a start that is under way has come to something.
func (r *Runtime) startedBefore(ctx context.Context, c *container, client *pod.Client) (pod.Process, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := client.List(ctx)
		if err != nil {
			return pod.Process{}, err
		}
		for _, p := range list {
			if p.ID != c.id || p.State == pod.Starting {
				continue
			}
			if p.State == pod.Failed {
				return p, errors.New(p.Message)
			}
			return p, nil
		}
		select {
		case <-ctx.Done():
			return pod.Process{}, ctx.Err()
		case <-tick.C:
		}
	}
}

func (c *container) ownPID() bool {
	return c.config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_CONTAINER
}

// failStart keeps why a container did not start, where the pod process has not.
func (r *Runtime) failStart(c *container, err error) {
	p, rerr := pod.ReadExit(c.sb.dir, c.id)
	if rerr != nil {
		p = pod.Process{ID: c.id, State: pod.Failed, Finished: r.Now(), Message: err.Error()}
		if werr := pod.WriteExit(c.sb.dir, p); werr != nil {
			r.Log.Error("record a failed start", "container", c.id, "err", werr)
		}
	}
	r.processChanged(c.sb, p)
}

// processChanged takes in what a pod process tells, and tells it on. It runs on
// the connection's goroutine too, and may hear the same twice.
func (r *Runtime) processChanged(s *sandbox, p pod.Process) {
	r.mu.Lock()
	if p.Exec {
		if ch := r.execs[p.ID]; ch != nil && (p.State == pod.Exited || p.State == pod.Failed) {
			delete(r.execs, p.ID)
			ch <- p
		}
		r.mu.Unlock()
		return
	}
	c := r.conts[p.ID]
	if c == nil || c.state == runtimeapi.ContainerState_CONTAINER_EXITED {
		r.mu.Unlock()
		return
	}
	var event runtimeapi.ContainerEventType
	switch p.State {
	case pod.Running:
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.mu.Unlock()
			return
		}
		c.begin()
		c.state, event = runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	case pod.Exited, pod.Failed:
		c.state, event = runtimeapi.ContainerState_CONTAINER_EXITED, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		c.begin()
		close(c.ended)
		r.background(func() {
			r.keepEnd(c, p)
			r.dropCgroup(c)
		})
	default:
		r.mu.Unlock()
		return
	}
	c.proc = p
	r.mu.Unlock()
	r.notify(s, c.id, event)
}

// dropCgroup removes the cgroup of an ended container.
func (r *Runtime) dropCgroup(c *container) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	err := r.cg.Kill(ctx, c.rec.Cgroup)
	if err == nil {
		err = r.cg.Remove(ctx, c.rec.Cgroup)
	}
	if err != nil {
		r.Log.Warn("remove a container's cgroup", "container", c.id, "err", err)
	}
}

// ReopenContainerLog opens the log anew after it was moved away.
func (r *Runtime) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, client, err := r.running(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := client.Reopen(ctx, c.id); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// running finds a container that runs, and its pod process.
func (r *Runtime) running(id string) (*container, *pod.Client, error) {
	c, err := r.findContainer(id)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING || c.sb.client == nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "container %q is not running: it is in %s state", c.id, c.state)
	}
	return c, c.sb.client, nil
}
