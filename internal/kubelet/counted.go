package kubelet

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counted is a runtime whose operations are counted, under upstream's names.
type counted struct {
	Runtime
	f *figures
}

// countedImages is the same for the images.
type countedImages struct {
	Images
	f *figures
}

// count counts one operation that began at a time.
func (f *figures) count(name string, begin time.Time, err error) {
	o := f.operation(name)
	o.total.Add(1)
	o.took.Observe(time.Since(begin).Seconds())
	if err != nil {
		o.errors.Add(1)
	}
}

func (o counted) Version(ctx context.Context, v string) (*runtimeapi.VersionResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.Version(ctx, v)
	o.f.count("version", begin, err)
	return out, err
}

func (o counted) Status(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.Status(ctx, verbose)
	o.f.count("status", begin, err)
	return out, err
}

func (o counted) UpdateRuntimeConfig(ctx context.Context, c *runtimeapi.RuntimeConfig) error {
	begin := time.Now()
	err := o.Runtime.UpdateRuntimeConfig(ctx, c)
	o.f.count("update_runtime_config", begin, err)
	return err
}

func (o counted) RunPodSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	begin := time.Now()
	out, err := o.Runtime.RunPodSandbox(ctx, c, handler)
	o.f.count("run_podsandbox", begin, err)
	return out, err
}

func (o counted) StopPodSandbox(ctx context.Context, id string) error {
	begin := time.Now()
	err := o.Runtime.StopPodSandbox(ctx, id)
	o.f.count("stop_podsandbox", begin, err)
	return err
}

func (o counted) RemovePodSandbox(ctx context.Context, id string) error {
	begin := time.Now()
	err := o.Runtime.RemovePodSandbox(ctx, id)
	o.f.count("remove_podsandbox", begin, err)
	return err
}

func (o counted) PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.PodSandboxStatus(ctx, id, verbose)
	o.f.count("podsandbox_status", begin, err)
	return out, err
}

func (o counted) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	begin := time.Now()
	out, err := o.Runtime.ListPodSandbox(ctx, f)
	o.f.count("list_podsandbox", begin, err)
	return out, err
}

func (o counted) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.PortForward(ctx, r)
	o.f.count("port_forward", begin, err)
	return out, err
}

func (o counted) CreateContainer(ctx context.Context, sandbox string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) (string, error) {
	begin := time.Now()
	out, err := o.Runtime.CreateContainer(ctx, sandbox, c, s)
	o.f.count("create_container", begin, err)
	return out, err
}

func (o counted) StartContainer(ctx context.Context, id string) error {
	begin := time.Now()
	err := o.Runtime.StartContainer(ctx, id)
	o.f.count("start_container", begin, err)
	return err
}

func (o counted) StopContainer(ctx context.Context, id string, timeout int64) error {
	begin := time.Now()
	err := o.Runtime.StopContainer(ctx, id, timeout)
	o.f.count("stop_container", begin, err)
	return err
}

func (o counted) RemoveContainer(ctx context.Context, id string) error {
	begin := time.Now()
	err := o.Runtime.RemoveContainer(ctx, id)
	o.f.count("remove_container", begin, err)
	return err
}

func (o counted) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	begin := time.Now()
	out, err := o.Runtime.ListContainers(ctx, f)
	o.f.count("list_containers", begin, err)
	return out, err
}

func (o counted) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.ContainerStatus(ctx, id, verbose)
	o.f.count("container_status", begin, err)
	return out, err
}

func (o counted) UpdateContainerResources(ctx context.Context, id string, r *runtimeapi.ContainerResources) error {
	begin := time.Now()
	err := o.Runtime.UpdateContainerResources(ctx, id, r)
	o.f.count("update_container", begin, err)
	return err
}

func (o counted) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.Exec(ctx, r)
	o.f.count("exec", begin, err)
	return out, err
}

func (o counted) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	begin := time.Now()
	out, err := o.Runtime.Attach(ctx, r)
	o.f.count("attach", begin, err)
	return out, err
}

func (o counted) ReopenContainerLog(ctx context.Context, id string) error {
	begin := time.Now()
	err := o.Runtime.ReopenContainerLog(ctx, id)
	o.f.count("reopen_container_log", begin, err)
	return err
}

func (o counted) ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	begin := time.Now()
	out, err := o.Runtime.ListContainerStats(ctx, f)
	o.f.count("list_container_stats", begin, err)
	return out, err
}

func (o counted) ListPodSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	begin := time.Now()
	out, err := o.Runtime.ListPodSandboxStats(ctx, f)
	o.f.count("list_podsandbox_stats", begin, err)
	return out, err
}

func (o counted) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error) {
	begin := time.Now()
	stdout, stderr, err = o.Runtime.ExecSync(ctx, id, cmd, timeout)
	o.f.count("exec_sync", begin, err)
	return stdout, stderr, err
}

func (o countedImages) ListImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	begin := time.Now()
	out, err := o.Images.ListImages(ctx, f)
	o.f.count("list_images", begin, err)
	return out, err
}

func (o countedImages) ImageStatus(ctx context.Context, i *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	begin := time.Now()
	out, err := o.Images.ImageStatus(ctx, i, verbose)
	o.f.count("image_status", begin, err)
	return out, err
}

func (o countedImages) PullImage(ctx context.Context, i *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, s *runtimeapi.PodSandboxConfig) (string, error) {
	begin := time.Now()
	out, err := o.Images.PullImage(ctx, i, auth, s)
	o.f.count("pull_image", begin, err)
	return out, err
}

func (o countedImages) RemoveImage(ctx context.Context, i *runtimeapi.ImageSpec) error {
	begin := time.Now()
	err := o.Images.RemoveImage(ctx, i)
	o.f.count("remove_image", begin, err)
	return err
}
