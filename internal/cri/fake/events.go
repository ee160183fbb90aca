package fake

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// emit sends an event to every stream; a stream that does not read loses it.
func (r *Runtime) emit(sandboxID, id string, t runtimeapi.ContainerEventType) {
	if r.loseEvents {
		return
	}
	e := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: t, CreatedAt: time.Now().UnixNano()}
	if s := r.sandboxes[sandboxID]; s != nil {
		e.PodSandboxStatus = cloneSandbox(s.Status)
	}
	for cid, c := range r.containers {
		if c.SandboxID == sandboxID {
			e.ContainersStatuses = append(e.ContainersStatuses, clone(r.containers[cid].Status))
		}
	}
	for ch := range r.streams {
		select {
		case ch <- e:
		default:
		}
	}
}

// GetContainerEvents implements ContainerManager. It blocks until ctx ends.
func (r *Runtime) GetContainerEvents(ctx context.Context, out chan *runtimeapi.ContainerEventResponse, connected func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	if _, err := r.enter(ctx, "GetContainerEvents", "", false); err != nil {
		return err
	}
	r.mu.Lock()
	if r.noEvents {
		r.mu.Unlock()
		return status.Error(codes.Unimplemented, "method GetContainerEvents not implemented")
	}
	ch := make(chan *runtimeapi.ContainerEventResponse, 1000)
	r.streams[ch] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.streams, ch)
		r.mu.Unlock()
	}()
	if connected != nil {
		connected(nil)
	}
	for {
		select {
		case e := <-ch:
			select {
			case out <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func unimplemented(op string) error {
	return status.Errorf(codes.Unimplemented, "method %s not implemented", op)
}

// CheckpointContainer implements ContainerManager.
func (r *Runtime) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) error {
	return unimplemented("CheckpointContainer")
}

// UpdatePodSandboxResources implements PodSandboxManager.
func (r *Runtime) UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return nil, unimplemented("UpdatePodSandboxResources")
}

// CheckpointPod implements PodSandboxManager.
func (r *Runtime) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) error {
	return unimplemented("CheckpointPod")
}

// RestorePod implements PodSandboxManager.
func (r *Runtime) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, unimplemented("RestorePod")
}

// ContainerStats implements ContainerStatsManager.
func (r *Runtime) ContainerStats(_ context.Context, id string) (*runtimeapi.ContainerStats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[id]
	if c == nil {
		return nil, notFound("container", id)
	}
	return stats(c), nil
}

func stats(c *Container) *runtimeapi.ContainerStats {
	now := time.Now().UnixNano()
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.Status.Id, Metadata: c.Status.Metadata, Labels: c.Status.Labels, Annotations: c.Status.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: 1e9}},
		Memory:     &runtimeapi.MemoryUsage{Timestamp: now, WorkingSetBytes: &runtimeapi.UInt64Value{Value: 1 << 20}, UsageBytes: &runtimeapi.UInt64Value{Value: 2 << 20}},
	}
}

// ListContainerStats implements ContainerStatsManager.
func (r *Runtime) ListContainerStats(_ context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.ContainerStats
	for _, c := range r.containers {
		if c.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING && (f == nil || matches(f.LabelSelector, c.Status.Labels)) {
			out = append(out, stats(c))
		}
	}
	return out, nil
}

// PodSandboxStats implements ContainerStatsManager.
func (r *Runtime) PodSandboxStats(context.Context, string) (*runtimeapi.PodSandboxStats, error) {
	return nil, unimplemented("PodSandboxStats")
}

// ListPodSandboxStats implements ContainerStatsManager.
func (r *Runtime) ListPodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	return nil, unimplemented("ListPodSandboxStats")
}

// ListMetricDescriptors implements ContainerStatsManager.
func (r *Runtime) ListMetricDescriptors(context.Context) ([]*runtimeapi.MetricDescriptor, error) {
	return nil, unimplemented("ListMetricDescriptors")
}

// ListPodSandboxMetrics implements ContainerStatsManager.
func (r *Runtime) ListPodSandboxMetrics(context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	return nil, unimplemented("ListPodSandboxMetrics")
}
