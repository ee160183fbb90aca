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

// count counts one operation that began at a time, and ends now with an error or none.
func (f *figures) count(name string, begin time.Time, err *error) {
	o := f.operation(name)
	o.total.Add(1)
	o.took.Observe(time.Since(begin).Seconds())
	if *err != nil {
		o.errors.Add(1)
	}
}

func (o counted) Version(ctx context.Context, v string) (_ *runtimeapi.VersionResponse, err error) {
	defer o.f.count("version", time.Now(), &err)
	return o.Runtime.Version(ctx, v)
}

func (o counted) Status(ctx context.Context, verbose bool) (_ *runtimeapi.StatusResponse, err error) {
	defer o.f.count("status", time.Now(), &err)
	return o.Runtime.Status(ctx, verbose)
}

func (o counted) UpdateRuntimeConfig(ctx context.Context, c *runtimeapi.RuntimeConfig) (err error) {
	defer o.f.count("update_runtime_config", time.Now(), &err)
	return o.Runtime.UpdateRuntimeConfig(ctx, c)
}

func (o counted) RunPodSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (_ string, err error) {
	defer o.f.count("run_podsandbox", time.Now(), &err)
	return o.Runtime.RunPodSandbox(ctx, c, handler)
}

func (o counted) StopPodSandbox(ctx context.Context, id string) (err error) {
	defer o.f.count("stop_podsandbox", time.Now(), &err)
	return o.Runtime.StopPodSandbox(ctx, id)
}

func (o counted) RemovePodSandbox(ctx context.Context, id string) (err error) {
	defer o.f.count("remove_podsandbox", time.Now(), &err)
	return o.Runtime.RemovePodSandbox(ctx, id)
}

func (o counted) PodSandboxStatus(ctx context.Context, id string, verbose bool) (_ *runtimeapi.PodSandboxStatusResponse, err error) {
	defer o.f.count("podsandbox_status", time.Now(), &err)
	return o.Runtime.PodSandboxStatus(ctx, id, verbose)
}

func (o counted) ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) (_ []*runtimeapi.PodSandbox, err error) {
	defer o.f.count("list_podsandbox", time.Now(), &err)
	return o.Runtime.ListPodSandbox(ctx, f)
}

func (o counted) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (_ *runtimeapi.PortForwardResponse, err error) {
	defer o.f.count("port_forward", time.Now(), &err)
	return o.Runtime.PortForward(ctx, r)
}

func (o counted) CreateContainer(ctx context.Context, sandbox string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) (_ string, err error) {
	defer o.f.count("create_container", time.Now(), &err)
	return o.Runtime.CreateContainer(ctx, sandbox, c, s)
}

func (o counted) StartContainer(ctx context.Context, id string) (err error) {
	defer o.f.count("start_container", time.Now(), &err)
	return o.Runtime.StartContainer(ctx, id)
}

func (o counted) StopContainer(ctx context.Context, id string, timeout int64) (err error) {
	defer o.f.count("stop_container", time.Now(), &err)
	return o.Runtime.StopContainer(ctx, id, timeout)
}

func (o counted) RemoveContainer(ctx context.Context, id string) (err error) {
	defer o.f.count("remove_container", time.Now(), &err)
	return o.Runtime.RemoveContainer(ctx, id)
}

func (o counted) ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) (_ []*runtimeapi.Container, err error) {
	defer o.f.count("list_containers", time.Now(), &err)
	return o.Runtime.ListContainers(ctx, f)
}

func (o counted) ContainerStatus(ctx context.Context, id string, verbose bool) (_ *runtimeapi.ContainerStatusResponse, err error) {
	defer o.f.count("container_status", time.Now(), &err)
	return o.Runtime.ContainerStatus(ctx, id, verbose)
}

func (o counted) UpdateContainerResources(ctx context.Context, id string, r *runtimeapi.ContainerResources) (err error) {
	defer o.f.count("update_container", time.Now(), &err)
	return o.Runtime.UpdateContainerResources(ctx, id, r)
}

func (o counted) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (_ *runtimeapi.ExecResponse, err error) {
	defer o.f.count("exec", time.Now(), &err)
	return o.Runtime.Exec(ctx, r)
}

func (o counted) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (_ *runtimeapi.AttachResponse, err error) {
	defer o.f.count("attach", time.Now(), &err)
	return o.Runtime.Attach(ctx, r)
}

func (o counted) ReopenContainerLog(ctx context.Context, id string) (err error) {
	defer o.f.count("reopen_container_log", time.Now(), &err)
	return o.Runtime.ReopenContainerLog(ctx, id)
}

func (o counted) ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) (_ []*runtimeapi.ContainerStats, err error) {
	defer o.f.count("list_container_stats", time.Now(), &err)
	return o.Runtime.ListContainerStats(ctx, f)
}

func (o counted) ListPodSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) (_ []*runtimeapi.PodSandboxStats, err error) {
	defer o.f.count("list_podsandbox_stats", time.Now(), &err)
	return o.Runtime.ListPodSandboxStats(ctx, f)
}

func (o counted) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error) {
	defer o.f.count("exec_sync", time.Now(), &err)
	return o.Runtime.ExecSync(ctx, id, cmd, timeout)
}

func (o countedImages) ListImages(ctx context.Context, f *runtimeapi.ImageFilter) (_ []*runtimeapi.Image, err error) {
	defer o.f.count("list_images", time.Now(), &err)
	return o.Images.ListImages(ctx, f)
}

func (o countedImages) ImageStatus(ctx context.Context, i *runtimeapi.ImageSpec, verbose bool) (_ *runtimeapi.ImageStatusResponse, err error) {
	defer o.f.count("image_status", time.Now(), &err)
	return o.Images.ImageStatus(ctx, i, verbose)
}

func (o countedImages) PullImage(ctx context.Context, i *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, s *runtimeapi.PodSandboxConfig) (_ string, err error) {
	defer o.f.count("pull_image", time.Now(), &err)
	return o.Images.PullImage(ctx, i, auth, s)
}

func (o countedImages) RemoveImage(ctx context.Context, i *runtimeapi.ImageSpec) (err error) {
	defer o.f.count("remove_image", time.Now(), &err)
	return o.Images.RemoveImage(ctx, i)
}
