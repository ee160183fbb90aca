package runtime

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/pod"
)

// What clients see of ends. Kubelets know these words from other runtimes.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	reasonUnknown    = "Unknown"
	exitStartError   = 128
)

// state needs Runtime.mu, as status does.
func (s *sandbox) state() runtimeapi.PodSandboxState {
	if s.ready() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	net := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range s.rec.IPs {
		if i == 0 {
			net.Ip = ip.String()
		} else {
			net.AdditionalIps = append(net.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
		}
	}
	ns := s.nsOptions()
	if ns == nil {
		ns = &runtimeapi.NamespaceOption{}
	}
	if !s.networked() {
		net = nil
	}
	return &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.rec.Created.UnixNano(),
		Network: net, Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: ns}},
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: s.rec.Handler,
	}
}

func (c *container) status() *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: c.state, CreatedAt: c.rec.Created.UnixNano(),
		Image: c.image(), ImageRef: c.rec.ImageRef, ImageId: c.rec.ImageID,
		Labels: c.config.GetLabels(), Annotations: c.annotations(), Mounts: c.config.GetMounts(),
		LogPath: c.rec.LogPath, StopSignal: signalOf(c.stopSignal()),
		Resources: &runtimeapi.ContainerResources{Linux: c.resources()},
	}
	if !c.proc.Started.IsZero() {
		st.StartedAt = c.proc.Started.UnixNano()
	}
	if c.state != runtimeapi.ContainerState_CONTAINER_EXITED {
		return st
	}
	p := c.proc
	st.FinishedAt, st.ExitCode = p.Finished.UnixNano(), int32(p.ExitCode)
	switch {
	case p.State == pod.Failed:
		st.ExitCode, st.Reason, st.Message = exitStartError, reasonStartError, p.Message
	case p.Lost:
		st.Reason, st.Message = reasonUnknown, "the pod process ended before the container"
	case p.OOMKilled:
		st.Reason = reasonOOMKilled
	case p.ExitCode == 0:
		st.Reason = reasonCompleted
	default:
		st.Reason = reasonError
	}
	return st
}

func (c *container) image() *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{
		Image: c.config.GetImage().GetImage(), UserSpecifiedImage: c.config.GetImage().GetUserSpecifiedImage(),
		Annotations: c.config.GetImage().GetAnnotations(),
	}
}

// resources needs Runtime.mu.
func (c *container) resources() *runtimeapi.LinuxContainerResources {
	if c.rec.Resources != nil {
		var res runtimeapi.LinuxContainerResources
		if proto.Unmarshal(c.rec.Resources, &res) == nil {
			return &res
		}
	}
	return c.config.GetLinux().GetResources()
}

// signalOf is CRI's name of a signal; the real-time ones that have none there
// are the default.
func signalOf(s syscall.Signal) runtimeapi.Signal {
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+unix.SignalName(s)])
}

// PodSandboxStatus returns a sandbox with its containers.
func (r *Runtime) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s, err := r.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.PodSandboxStatusResponse{Status: s.status(), Timestamp: r.Now().UnixNano()}
	for _, c := range r.conts {
		if c.sb == s {
			out.ContainersStatuses = append(out.ContainersStatuses, c.status())
		}
	}
	return out, nil
}

// ListPodSandbox lists sandboxes.
func (r *Runtime) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, s := range r.sandboxes {
		if !hasPrefix(s.id, f.GetId()) || f.GetState() != nil && f.GetState().GetState() != s.state() || !selects(f.GetLabelSelector(), s.config.GetLabels()) {
			continue
		}
		out.Items = append(out.Items, &runtimeapi.PodSandbox{
			Id: s.id, Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.rec.Created.UnixNano(),
			Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(), RuntimeHandler: s.rec.Handler,
		})
	}
	return out, nil
}

// StreamPodSandboxes is ListPodSandbox without a limit on the answer's size.
func (r *Runtime) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, st grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	l, err := r.ListPodSandbox(st.Context(), &runtimeapi.ListPodSandboxRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	for _, i := range l.GetItems() {
		if err := st.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: []*runtimeapi.PodSandbox{i}}); err != nil {
			return err
		}
	}
	return nil
}

// ContainerStatus returns a container.
func (r *Runtime) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	st := c.status()
	r.mu.Unlock()
	if p, err := c.process(); err == nil {
		u := &runtimeapi.LinuxContainerUser{Uid: int64(p.User.UID), Gid: int64(p.User.GID)}
		for _, g := range p.User.AdditionalGids {
			u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
		}
		st.User = &runtimeapi.ContainerUser{Linux: u}
	}
	return &runtimeapi.ContainerStatusResponse{Status: st}, nil
}

// ListContainers lists containers.
func (r *Runtime) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range r.conts {
		if !hasPrefix(c.id, f.GetId()) || !hasPrefix(c.sb.id, f.GetPodSandboxId()) ||
			f.GetState() != nil && f.GetState().GetState() != c.state || !selects(f.GetLabelSelector(), c.config.GetLabels()) {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{
			Id: c.id, PodSandboxId: c.sb.id, Metadata: c.config.GetMetadata(), Image: c.image(), ImageRef: c.rec.ImageRef,
			ImageId: c.rec.ImageID, State: c.state, CreatedAt: c.rec.Created.UnixNano(),
			Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
		})
	}
	return out, nil
}

// StreamContainers is ListContainers without a limit on the answer's size.
func (r *Runtime) StreamContainers(req *runtimeapi.StreamContainersRequest, st grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	l, err := r.ListContainers(st.Context(), &runtimeapi.ListContainersRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	for _, i := range l.GetContainers() {
		if err := st.Send(&runtimeapi.StreamContainersResponse{Containers: []*runtimeapi.Container{i}}); err != nil {
			return err
		}
	}
	return nil
}

func hasPrefix(s, prefix string) bool { return len(s) >= len(prefix) && s[:len(prefix)] == prefix }

func selects(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// Version tells what this is.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "skiff", RuntimeVersion: "0.1.0", RuntimeApiVersion: "v1"}, nil
}

// Status tells whether pods can be made.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	net := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := r.Network.Ready(); err != nil {
		net.Status, net.Reason, net.Message = false, "NetworkPluginNotReady", err.Error()
	}
	served := make([]*runtimeapi.RuntimeHandler, len(handlers))
	for i, name := range handlers {
		served[i] = &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: true, UserNamespaces: r.userNamespaces,
		}}
	}
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true}, net,
		}},
		RuntimeHandlers: served,
		Features:        &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}, nil
}

// RuntimeConfig names the cgroup driver.
func (r *Runtime) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// UpdateRuntimeConfig takes the node's pod CIDR, which the network knows by
// other ways.
func (r *Runtime) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// UpdatePodSandboxResources is told after the caller changed the pod's cgroup;
// nothing of ours depends on it.
func (r *Runtime) UpdatePodSandboxResources(_ context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if _, err := r.findSandbox(req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
