package fake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

var _ internalapi.RuntimeService = (*Runtime)(nil)

// id makes identifiers that sort by age.
func (r *Runtime) id(prefix string) string {
	r.seq++
	return fmt.Sprintf("%s%08d", prefix, r.seq)
}

// Version implements RuntimeVersioner.
func (r *Runtime) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1.0.0", RuntimeApiVersion: "v1"}, nil
}

// RunPodSandbox implements PodSandboxManager.
func (r *Runtime) RunPodSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	after, err := r.enter(ctx, "RunPodSandbox", c.Metadata.Name, true)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.Config.Metadata.Uid == c.Metadata.Uid && s.Config.Metadata.Attempt == c.Metadata.Attempt {
			return "", fmt.Errorf("name of pod %s attempt %d is reserved for %s", c.Metadata.Name, c.Metadata.Attempt, s.Status.Id)
		}
	}
	id := r.id("sandbox")
	st := &runtimeapi.PodSandboxStatus{
		Id: id, Metadata: c.Metadata, State: runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: time.Now().UnixNano(), Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: handler,
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: c.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
		Network: &runtimeapi.PodSandboxNetworkStatus{},
	}
	if c.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE {
		st.Network.Ip = fmt.Sprintf("10.244.0.%d", r.nextIP)
		r.nextIP++
	}
	r.sandboxes[id] = &Sandbox{Config: c, Status: st}
	r.emit(id, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return id, after(nil)
}

// StopPodSandbox implements PodSandboxManager.
func (r *Runtime) StopPodSandbox(ctx context.Context, id string) error {
	after, err := r.enter(ctx, "StopPodSandbox", r.sandboxName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopSandbox(id)
	return after(nil)
}

// RemovePodSandbox implements PodSandboxManager.
func (r *Runtime) RemovePodSandbox(ctx context.Context, id string) error {
	after, err := r.enter(ctx, "RemovePodSandbox", r.sandboxName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopSandbox(id)
	for cid, c := range r.containers {
		if c.SandboxID == id {
			delete(r.containers, cid)
		}
	}
	delete(r.sandboxes, id)
	return after(nil)
}

func (r *Runtime) sandboxName(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[id]; s != nil {
		return s.Config.Metadata.Name
	}
	return id
}

func (r *Runtime) containerName(id string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return id
	}
	return c.Config.Labels["io.kubernetes.pod.name"] + "/" + c.Config.Metadata.Name
}

// PodSandboxStatus implements PodSandboxManager.
func (r *Runtime) PodSandboxStatus(ctx context.Context, id string, _ bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	after, err := r.enter(ctx, "PodSandboxStatus", "", false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[id]
	if s == nil {
		return nil, notFound("sandbox", id)
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: cloneSandbox(s.Status)}, after(nil)
}

// ListPodSandbox implements PodSandboxManager.
func (r *Runtime) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	after, err := r.enter(ctx, "ListPodSandbox", "", false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.PodSandbox
	for _, s := range r.sandboxes {
		if f != nil && (f.Id != "" && f.Id != s.Status.Id || f.State != nil && f.State.State != s.Status.State || !matches(f.LabelSelector, s.Status.Labels)) {
			continue
		}
		out = append(out, &runtimeapi.PodSandbox{Id: s.Status.Id, Metadata: s.Status.Metadata, State: s.Status.State,
			CreatedAt: s.Status.CreatedAt, Labels: s.Status.Labels, Annotations: s.Status.Annotations, RuntimeHandler: s.Status.RuntimeHandler})
	}
	return out, after(nil)
}

func matches(sel, labels map[string]string) bool {
	for k, v := range sel {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// CreateContainer implements ContainerManager.
func (r *Runtime) CreateContainer(ctx context.Context, sandboxID string, c *runtimeapi.ContainerConfig, sc *runtimeapi.PodSandboxConfig) (string, error) {
	after, err := r.enter(ctx, "CreateContainer", sc.Metadata.Name+"/"+c.Metadata.Name, true)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[sandboxID]
	if s == nil {
		return "", notFound("sandbox", sandboxID)
	}
	if s.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return "", status.Errorf(codes.FailedPrecondition, "sandbox %q is not ready", sandboxID)
	}
	for _, o := range r.containers {
		if o.SandboxID == sandboxID && o.Config.Metadata.Name == c.Metadata.Name && o.Config.Metadata.Attempt == c.Metadata.Attempt {
			return "", fmt.Errorf("name of container %s attempt %d is reserved for %s", c.Metadata.Name, c.Metadata.Attempt, o.Status.Id)
		}
	}
	id := r.id("container")
	name := c.Image.UserSpecifiedImage
	if name == "" {
		name = c.Image.Image
	}
	r.containers[id] = &Container{Config: c, SandboxID: sandboxID, stopped: make(chan struct{}), Status: &runtimeapi.ContainerStatus{
		Id: id, Metadata: c.Metadata, State: runtimeapi.ContainerState_CONTAINER_CREATED, CreatedAt: time.Now().UnixNano(),
		Image: &runtimeapi.ImageSpec{Image: name}, ImageRef: c.Image.Image, ImageId: c.Image.Image,
		Labels: c.Labels, Annotations: c.Annotations, Mounts: c.Mounts, Resources: &runtimeapi.ContainerResources{Linux: c.GetLinux().GetResources()},
		LogPath: filepath.Join(sc.LogDirectory, c.LogPath),
	}}
	r.emit(sandboxID, id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return id, after(nil)
}

// StartContainer implements ContainerManager.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	after, err := r.enter(ctx, "StartContainer", r.containerName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	c := r.containers[id]
	if c == nil {
		r.mu.Unlock()
		return notFound("container", id)
	}
	if c.Status.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		r.mu.Unlock()
		return status.Errorf(codes.FailedPrecondition, "container %q is not in the created state", id)
	}
	s := clone(c.Status)
	s.State, s.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	c.Status = s
	if dir := filepath.Dir(s.LogPath); filepath.IsAbs(dir) {
		if err := os.MkdirAll(dir, 0o755); err == nil {
			if f, err := os.OpenFile(s.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640); err == nil {
				f.Close()
			}
		}
	}
	r.emit(c.SandboxID, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	hook := r.OnStart
	r.mu.Unlock()
	if hook != nil {
		hook(id, c.Config)
	}
	return after(nil)
}

// StopContainer implements ContainerManager.
func (r *Runtime) StopContainer(ctx context.Context, id string, timeout int64) error {
	after, err := r.enter(ctx, "StopContainer", r.containerName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	c := r.containers[id]
	if c == nil {
		r.mu.Unlock()
		return notFound("container", id)
	}
	c.StopTimeouts = append(c.StopTimeouts, timeout)
	if c.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		r.mu.Unlock()
		return after(nil)
	}
	if !r.IgnoreTerm[c.Config.Metadata.Name] {
		r.exit(id, 143, "")
		r.mu.Unlock()
		return after(nil)
	}
	r.mu.Unlock()
	t := time.NewTimer(time.Duration(timeout) * time.Second)
	defer t.Stop()
	select {
	case <-c.stopped:
	case <-t.C:
		r.Exit(id, 137, "")
	case <-ctx.Done():
		return ctx.Err()
	}
	return after(nil)
}

// RemoveContainer implements ContainerManager.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	after, err := r.enter(ctx, "RemoveContainer", r.containerName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[id]; c != nil {
		r.exit(id, 137, "")
		delete(r.containers, id)
	}
	return after(nil)
}

// ListContainers implements ContainerManager.
func (r *Runtime) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	after, err := r.enter(ctx, "ListContainers", "", false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.Container
	for _, c := range r.containers {
		if f != nil && (f.Id != "" && f.Id != c.Status.Id || f.PodSandboxId != "" && f.PodSandboxId != c.SandboxID ||
			f.State != nil && f.State.State != c.Status.State || !matches(f.LabelSelector, c.Status.Labels)) {
			continue
		}
		out = append(out, &runtimeapi.Container{Id: c.Status.Id, PodSandboxId: c.SandboxID, Metadata: c.Status.Metadata,
			Image: c.Status.Image, ImageRef: c.Status.ImageRef, State: c.Status.State, CreatedAt: c.Status.CreatedAt,
			Labels: c.Status.Labels, Annotations: c.Status.Annotations})
	}
	return out, after(nil)
}

// ContainerStatus implements ContainerManager.
func (r *Runtime) ContainerStatus(ctx context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	after, err := r.enter(ctx, "ContainerStatus", "", false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil, notFound("container", id)
	}
	return &runtimeapi.ContainerStatusResponse{Status: clone(c.Status)}, after(nil)
}

// UpdateContainerResources implements ContainerManager.
func (r *Runtime) UpdateContainerResources(ctx context.Context, id string, res *runtimeapi.ContainerResources) error {
	after, err := r.enter(ctx, "UpdateContainerResources", r.containerName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return notFound("container", id)
	}
	s := clone(c.Status)
	s.Resources = res
	c.Status = s
	return after(nil)
}

// ExecSync implements ContainerManager.
func (r *Runtime) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, []byte, error) {
	after, err := r.enter(ctx, "ExecSync", r.containerName(id), false)
	if err != nil {
		return nil, nil, err
	}
	r.mu.Lock()
	c := r.containers[id]
	hook := r.OnExec
	r.mu.Unlock()
	if c == nil {
		return nil, nil, notFound("container", id)
	}
	if hook == nil {
		return nil, nil, after(nil)
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	out, serr, code, err := hook(ctx, c.Config.Metadata.Name, cmd)
	if ctx.Err() == context.DeadlineExceeded {
		return nil, nil, status.Errorf(codes.DeadlineExceeded, "failed to exec in container: timeout %v exceeded", timeout)
	}
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command '%s' exited with %d: %s", cmd, code, serr), Code: code}
	}
	return []byte(out), []byte(serr), after(err)
}

// Exec implements ContainerManager.
func (r *Runtime) Exec(_ context.Context, q *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return &runtimeapi.ExecResponse{Url: r.StreamURL + "/exec/" + q.ContainerId}, nil
}

// Attach implements ContainerManager.
func (r *Runtime) Attach(_ context.Context, q *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return &runtimeapi.AttachResponse{Url: r.StreamURL + "/attach/" + q.ContainerId}, nil
}

// PortForward implements PodSandboxManager.
func (r *Runtime) PortForward(_ context.Context, q *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return &runtimeapi.PortForwardResponse{Url: r.StreamURL + "/portforward/" + q.PodSandboxId}, nil
}

// ReopenContainerLog implements ContainerManager.
func (r *Runtime) ReopenContainerLog(ctx context.Context, id string) error {
	after, err := r.enter(ctx, "ReopenContainerLog", r.containerName(id), true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return notFound("container", id)
	}
	f, err := os.OpenFile(c.Status.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	f.Close()
	return after(nil)
}

// UpdateRuntimeConfig implements RuntimeService.
func (r *Runtime) UpdateRuntimeConfig(context.Context, *runtimeapi.RuntimeConfig) error { return nil }

// RuntimeConfig implements RuntimeService.
func (r *Runtime) RuntimeConfig(context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// Status implements RuntimeService.
func (r *Runtime) Status(ctx context.Context, _ bool) (*runtimeapi.StatusResponse, error) {
	after, err := r.enter(ctx, "Status", "", false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: r.networkUp}
	if !r.networkUp {
		network.Reason, network.Message = "NetworkPluginNotReady", "cni plugin not initialized"
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, network,
	}}, RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Features: &runtimeapi.RuntimeHandlerFeatures{UserNamespaces: r.userns}}}}, after(nil)
}

// Close implements RuntimeService and ImageManagerService.
func (r *Runtime) Close(context.Context) error { return nil }
