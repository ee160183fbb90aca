package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/runtime/pod"
)

// cleanupTime is how long undoing may take when the caller's time is over.
const cleanupTime = 30 * time.Second

// sandbox is a pod. op serialises what changes it as a whole; the rest is
// guarded by Runtime.mu, but for what never changes: id, dir, config, users.
type sandbox struct {
	id     string
	dir    string
	config *runtimeapi.PodSandboxConfig
	users  *pod.Users // nil: the host's
	op     sync.Mutex

	rec     sandboxRecord
	client  *pod.Client // nil when the pod process is gone
	closing bool        // we are ending the pod process
}

func sandboxName(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

func (s *sandbox) nsOptions() *runtimeapi.NamespaceOption {
	return s.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (s *sandbox) hostNetwork() bool {
	return s.nsOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// networked tells that the pod is in a network: its host's or that of pods.
func (s *sandbox) networked() bool {
	return s.config.GetAnnotations()[cri.AnnotationNetwork] != cri.NetworkNone
}

func (s *sandbox) ready() bool { return s.rec.Phase == phaseReady && s.client != nil }

func (r *Runtime) shmDir(id string) string { return filepath.Join(mountsDir(r.Instance), "shm-"+id) }

func (r *Runtime) saveSandbox(s *sandbox, change func(*sandboxRecord)) error {
	r.mu.Lock()
	change(&s.rec)
	rec := s.rec
	r.mu.Unlock()
	return writeRecord(s.dir, sandboxFile, rec)
}

// handlers are the names under which a RuntimeClass may ask for this runtime: its
// default, its own name, and that of the usual default of others, by which classes
// are written. All are the same.
var handlers = []string{"", "runc", "skiff"}

// RunPodSandbox makes a pod: its process with the namespaces, and its network.
func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (_ *runtimeapi.RunPodSandboxResponse, err error) {
	config := req.GetConfig()
	if m := config.GetMetadata(); m.GetName() == "" || m.GetNamespace() == "" || m.GetUid() == "" {
		return nil, status.Error(codes.InvalidArgument, "sandbox config: metadata: name, namespace and uid are required")
	}
	if !slices.Contains(handlers, req.GetRuntimeHandler()) {
		return nil, status.Errorf(codes.InvalidArgument, "failed to get sandbox runtime: no runtime for %q is configured", req.GetRuntimeHandler())
	}
	users, err := usersOf(config)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "sandbox config: %v", err)
	}
	if users != nil && !r.userNamespaces {
		return nil, status.Error(codes.Unimplemented, "sandbox config: "+noUserNamespaces)
	}
	id := newID()
	s := &sandbox{id: id, dir: filepath.Join(podsDir(r.Instance), id), config: config, users: users}
	raw, err := encode(config)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "sandbox config: %v", err)
	}
	s.rec = sandboxRecord{ID: id, Config: raw, Handler: req.GetRuntimeHandler(), Created: r.Now(), Phase: phaseCreating, Boot: r.boot}
	name := sandboxName(config.GetMetadata())
	if err := r.reserve(name, id); err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		if cerr := r.demolish(ctx, s); cerr != nil {
			r.Log.Error("undo a sandbox that failed to start", "sandbox", id, "err", cerr)
		}
		r.unreserve(name)
	}()

	if err := os.MkdirAll(filepath.Join(s.dir, "containers"), 0o700); err != nil {
		return nil, fmt.Errorf("sandbox directory: %w", err)
	}
	if err := writeRecord(s.dir, sandboxFile, s.rec); err != nil {
		return nil, err
	}
	r.Step("sandbox-recorded")
	if err := r.writeFiles(s); err != nil {
		return nil, fmt.Errorf("sandbox files: %w", err)
	}
	if err := r.mountShm(s); err != nil {
		return nil, err
	}
	r.Step("sandbox-mounted")
	if err := r.spawn(ctx, s); err != nil {
		return nil, err
	}
	r.Step("sandbox-spawned")
	ips, err := r.attachNetwork(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("failed to setup network for sandbox %q: %w", id, err)
	}
	r.Step("sandbox-attached")
	if err := r.saveSandbox(s, func(rec *sandboxRecord) { rec.Phase, rec.IPs = phaseReady, ips }); err != nil {
		return nil, err
	}
	r.Step("sandbox-ready")
	r.mu.Lock()
	r.sandboxes[id] = s
	r.mu.Unlock()
	r.watchPod(s)
	r.notify(s, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	r.notify(s, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// spawn starts the pod process, connects to it, and moves it to its cgroup.
func (r *Runtime) spawn(ctx context.Context, s *sandbox) error {
	ns := s.nsOptions()
	o := pod.Options{
		Dir:         s.dir,
		Net:         !s.hostNetwork(),
		IPC:         ns.GetIpc() != runtimeapi.NamespaceMode_NODE,
		UTS:         !s.hostNetwork(),
		PID:         ns.GetPid() == runtimeapi.NamespaceMode_POD,
		Users:       s.users,
		Hostname:    r.hostname(s),
		Sysctls:     map[string]string{},
		OOMScoreAdj: -998,
	}
	if o.Net {
		// Every program may bind low ports and ping in its pod's own network.
		o.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		o.Sysctls["net.ipv4.ping_group_range"] = s.pingGroups()
	}
	for k, v := range s.config.GetLinux().GetSysctls() {
		o.Sysctls[strings.ReplaceAll(k, "/", ".")] = v
	}
	pid, nsinit, err := pod.Spawn(ctx, r.Programs.Pod, o)
	if err != nil {
		return err
	}
	client, err := pod.Connect(s.dir, func(p pod.Process) { r.processChanged(s, p) })
	if err != nil {
		return err
	}
	r.mu.Lock()
	s.client, s.rec.PID, s.rec.NSInit = client, pid, nsinit
	r.mu.Unlock()
	if err := client.Subscribe(ctx); err != nil {
		return err
	}
	// The move waits for the kernel's grace period; nothing waits for the move.
	r.background(func() {
		if err := r.cg.Join(podProcesses(r.Instance), pid); err != nil && pod.Alive(s.dir) {
			r.Log.Warn("move a pod process to its cgroup", "sandbox", s.id, "err", err)
		}
	})
	return nil
}

func (r *Runtime) networkSandbox(s *sandbox) NetworkSandbox {
	m := s.config.GetMetadata()
	n := NetworkSandbox{
		ID: s.id, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
	}
	r.mu.Lock()
	if s.rec.PID > 0 {
		n.NetNS = fmt.Sprintf("/proc/%d/ns/net", s.rec.PID)
	}
	r.mu.Unlock()
	for _, p := range s.config.GetPortMappings() {
		if p.GetHostPort() <= 0 {
			continue
		}
		ip, _ := netip.ParseAddr(p.GetHostIp())
		n.HostPorts = append(n.HostPorts, HostPort{
			Protocol: p.GetProtocol().String(), HostIP: ip,
			HostPort: uint16(p.GetHostPort()), ContainerPort: uint16(p.GetContainerPort()),
		})
	}
	return n
}

func (r *Runtime) attachNetwork(ctx context.Context, s *sandbox) ([]netip.Addr, error) {
	if s.hostNetwork() || !s.networked() {
		return nil, nil
	}
	res, err := r.Network.Attach(ctx, r.networkSandbox(s))
	return res.IPs, err
}

func (r *Runtime) mountShm(s *sandbox) error {
	if s.nsOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		return nil
	}
	dir := r.shmDir(s.id)
	if err := os.MkdirAll(dir, 0o1777); err != nil {
		return fmt.Errorf("shared memory: %w", err)
	}
	uid, gid := s.root()
	options := fmt.Sprintf("mode=1777,size=65536k,uid=%d,gid=%d", uid, gid)
	if err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount shared memory: %w", err)
	}
	return nil
}

func unmount(dir string) error {
	for { // one may lie over another
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// StopPodSandbox ends all of the pod's processes and releases its network. The
// containers' records stay. Stopping a stopped or unknown one is no error.
func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	s, err := r.findSandbox(req.GetPodSandboxId())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.stop(ctx, s); err != nil {
		return nil, fmt.Errorf("failed to stop sandbox %q: %w", s.id, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// stop is StopPodSandbox with op held. It can be repeated, and carries on where
// an earlier one was interrupted.
func (r *Runtime) stop(ctx context.Context, s *sandbox) error {
	r.mu.Lock()
	was := s.ready()
	r.mu.Unlock()
	if err := r.saveSandbox(s, func(rec *sandboxRecord) { rec.Phase = phaseStopped }); err != nil {
		return err
	}
	r.Step("stop-recorded")
	var g errgroup.Group
	for _, c := range r.containersOf(s) {
		g.Go(func() error { return r.stopContainer(ctx, c, 0) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.Step("stop-killed")
	if !s.hostNetwork() && s.networked() {
		if err := r.Network.Detach(ctx, r.networkSandbox(s)); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	r.Step("stop-detached")
	if err := r.endPod(ctx, s); err != nil {
		return err
	}
	r.Step("stop-ended")
	if err := unmount(r.shmDir(s.id)); err != nil {
		return err
	}
	if own := r.ownCgroup(s); own != "" {
		if err := r.cg.Kill(ctx, own); err != nil {
			return err
		}
		if err := r.cg.Remove(ctx, own); err != nil {
			return err
		}
	}
	if was {
		r.notify(s, s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	return nil
}

// endPod ends the pod process, whether we are connected to it or not.
func (r *Runtime) endPod(ctx context.Context, s *sandbox) error {
	r.mu.Lock()
	s.closing = true
	client := s.client
	r.mu.Unlock()
	if client == nil {
		var err error
		if client, err = pod.Adopt(ctx, s.dir, nil); errors.Is(err, pod.ErrGone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	err := client.Shutdown(ctx)
	client.Close()
	if err != nil {
		return fmt.Errorf("end the pod process: %w", err)
	}
	r.mu.Lock()
	s.client = nil
	r.mu.Unlock()
	return nil
}

// demolish removes every trace of a sandbox, op held: its creation failed, or
// it is being removed.
func (r *Runtime) demolish(ctx context.Context, s *sandbox) error {
	if err := r.stop(ctx, s); err != nil {
		return err
	}
	for _, c := range r.containersOf(s) {
		if err := r.removeContainer(ctx, c); err != nil {
			return err
		}
	}
	r.Step("remove-emptied")
	if err := os.RemoveAll(r.keptSandbox(s)); err != nil {
		return err
	}
	if err := removeAll(s.dir); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sandboxes, s.id)
	return nil
}

// RemovePodSandbox removes the pod with all its containers, stopping what runs.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	s, err := r.findSandbox(req.GetPodSandboxId())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	s.op.Lock()
	defer s.op.Unlock()
	if err := r.demolish(ctx, s); err != nil {
		return nil, fmt.Errorf("failed to remove sandbox %q: %w", s.id, err)
	}
	r.unreserve(sandboxName(s.config.GetMetadata()))
	r.notify(s, s.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (r *Runtime) containersOf(s *sandbox) []*container {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*container
	for _, c := range r.conts {
		if c.sb == s {
			out = append(out, c)
		}
	}
	return out
}
