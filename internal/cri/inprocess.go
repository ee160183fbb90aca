package cri

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// InProcess calls a server directly: no socket, no encoding. Requests and answers
// are shared, not copied.
func InProcess(s Server) Services { return Services{local{s}, localImages{s}} }

type local struct{ s Server }

func (l local) Version(ctx context.Context, v string) (*runtimeapi.VersionResponse, error) {
	return l.s.Version(ctx, &runtimeapi.VersionRequest{Version: v})
}

func (l local) CreateContainer(ctx context.Context, pod string, c *runtimeapi.ContainerConfig, sc *runtimeapi.PodSandboxConfig) (string, error) {
	r, err := l.s.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: sc})
	return r.GetContainerId(), err
}

func (l local) StartContainer(ctx context.Context, id string) error {
	_, err := l.s.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (l local) StopContainer(ctx context.Context, id string, timeout int64) error {
	_, err := l.s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: timeout})
	return err
}

func (l local) RemoveContainer(ctx context.Context, id string) error {
	_, err := l.s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (l local) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	r, err := l.s.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: f})
	return r.GetContainers(), err
}

func (l local) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	return l.s.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}

func (l local) UpdateContainerResources(ctx context.Context, id string, res *runtimeapi.ContainerResources) error {
	_, err := l.s.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: res.GetLinux(), Windows: res.GetWindows(),
	})
	return err
}

func (l local) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, []byte, error) {
	r, err := l.s.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64(timeout.Seconds())})
	if status.Code(err) == codes.DeadlineExceeded {
		err = fmt.Errorf("%w: %q timed out after %s", ErrCommandTimedOut, strings.Join(cmd, " "), timeout)
	}
	if err != nil {
		return nil, nil, err
	}
	if r.GetExitCode() != 0 {
		err = utilexec.CodeExitError{
			Err:  fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), r.GetExitCode(), r.GetStderr()),
			Code: int(r.GetExitCode()),
		}
	}
	return r.GetStdout(), r.GetStderr(), err
}

func (l local) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return l.s.Exec(ctx, r)
}

func (l local) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return l.s.Attach(ctx, r)
}

func (l local) ReopenContainerLog(ctx context.Context, id string) error {
	_, err := l.s.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	return err
}

func (l local) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) error {
	_, err := l.s.CheckpointContainer(ctx, r)
	return err
}

// GetContainerEvents subscribes, calls established (with nil: there is no
// stream), and returns when ctx is done or the runtime ends the subscription.
func (l local) GetContainerEvents(ctx context.Context, ch chan *runtimeapi.ContainerEventResponse, established func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	return l.s.GetContainerEvents(&runtimeapi.GetEventsRequest{}, &eventStream{ctx: ctx, ch: ch, established: established})
}

// eventStream is a server's stream that ends in a channel. The server asks for
// its context when it has subscribed.
type eventStream struct {
	grpc.ServerStream
	ctx         context.Context // of the one call that the stream lives for
	ch          chan *runtimeapi.ContainerEventResponse
	established func(runtimeapi.RuntimeService_GetContainerEventsClient)
	called      bool
}

func (e *eventStream) Context() context.Context {
	if !e.called && e.established != nil {
		e.established(nil)
	}
	e.called = true
	return e.ctx
}

func (e *eventStream) Send(m *runtimeapi.ContainerEventResponse) error {
	select {
	case e.ch <- m:
		return nil
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

func (l local) RunPodSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	r, err := l.s.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	return r.GetPodSandboxId(), err
}

func (l local) StopPodSandbox(ctx context.Context, id string) error {
	_, err := l.s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (l local) RemovePodSandbox(ctx context.Context, id string) error {
	_, err := l.s.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (l local) PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	return l.s.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: verbose})
}

func (l local) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	r, err := l.s.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: f})
	return r.GetItems(), err
}

func (l local) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return l.s.PortForward(ctx, r)
}

func (l local) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return l.s.UpdatePodSandboxResources(ctx, r)
}

func (l local) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) error {
	_, err := l.s.CheckpointPod(ctx, r)
	return err
}

func (l local) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return l.s.RestorePod(ctx, r)
}

func (l local) ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error) {
	r, err := l.s.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	return r.GetStats(), err
}

func (l local) ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	r, err := l.s.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: f})
	return r.GetStats(), err
}

func (l local) PodSandboxStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error) {
	r, err := l.s.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	return r.GetStats(), err
}

func (l local) ListPodSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	r, err := l.s.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: f})
	return r.GetStats(), err
}

func (l local) ListMetricDescriptors(ctx context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	r, err := l.s.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	return r.GetDescriptors(), err
}

func (l local) ListPodSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	r, err := l.s.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	return r.GetPodMetrics(), err
}

func (l local) UpdateRuntimeConfig(ctx context.Context, c *runtimeapi.RuntimeConfig) error {
	_, err := l.s.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: c})
	return err
}

func (l local) Status(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	return l.s.Status(ctx, &runtimeapi.StatusRequest{Verbose: verbose})
}

func (l local) RuntimeConfig(ctx context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return l.s.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
}

func (local) Close(context.Context) error { return nil }

type localImages struct{ s Server }

func (l localImages) ListImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	r, err := l.s.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: f})
	return r.GetImages(), err
}

func (l localImages) ImageStatus(ctx context.Context, i *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	return l.s.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: i, Verbose: verbose})
}

func (l localImages) PullImage(ctx context.Context, i *runtimeapi.ImageSpec, a *runtimeapi.AuthConfig, p *runtimeapi.PodSandboxConfig) (string, error) {
	r, err := l.s.PullImage(ctx, &runtimeapi.PullImageRequest{Image: i, Auth: a, SandboxConfig: p})
	return r.GetImageRef(), err
}

func (l localImages) RemoveImage(ctx context.Context, i *runtimeapi.ImageSpec) error {
	_, err := l.s.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: i})
	return err
}

func (l localImages) ImageFsInfo(ctx context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	return l.s.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
}

func (localImages) Close(context.Context) error { return nil }
