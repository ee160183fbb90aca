package runtime

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/cgroup"
	"skiff/internal/runtime/snapshot"
)

func u64(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func (r *Runtime) cpuMemory(u cgroup.Usage) (*runtimeapi.CpuUsage, *runtimeapi.MemoryUsage) {
	now := r.Now().UnixNano()
	m := &runtimeapi.MemoryUsage{
		Timestamp: now, WorkingSetBytes: u64(u.WorkingSet), UsageBytes: u64(u.Memory), RssBytes: u64(u.RSS),
		PageFaults: u64(u.PageFaults), MajorPageFaults: u64(u.MajorFaults),
	}
	if u.MemoryLimit > 0 {
		m.AvailableBytes = u64(u.MemoryLimit - min(u.MemoryLimit, u.WorkingSet))
	}
	return &runtimeapi.CpuUsage{Timestamp: now, UsageCoreNanoSeconds: u64(uint64(u.CPU))}, m
}

// stats of a container, without processors and memory when it has no cgroup (any
// more); what it wrote may be as old as age.
func (r *Runtime) stats(ctx context.Context, c *container, age time.Duration) (*runtimeapi.ContainerStats, error) {
	out := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.id, Metadata: c.config.GetMetadata(), Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
	}}
	u, err := r.cg.Usage(c.rec.Cgroup)
	if err == nil {
		out.Cpu, out.Memory = r.cpuMemory(u)
		out.Swap = &runtimeapi.SwapUsage{Timestamp: out.Memory.Timestamp, SwapUsageBytes: u64(u.Swap)}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out.WritableLayer, err = r.written(ctx, c, age)
	return out, err
}

// layerAge is how old what a container wrote may be in a list: to measure it is to walk
// its files, and lists are asked for every few seconds, for processors and memory. What
// is measured soon is measured more often: so that it takes a hundredth of the time, but
// not more often than layerLeast.
const (
	layerAge   = time.Minute
	layerLeast = 5 * time.Second
)

// written tells what a container wrote, measured at most age ago.
func (r *Runtime) written(ctx context.Context, c *container, age time.Duration) (*runtimeapi.FilesystemUsage, error) {
	now := r.Now()
	r.mu.Lock()
	u, took := c.layer, c.layerTook
	r.mu.Unlock()
	if age > 0 {
		age = min(age, max(100*took, layerLeast))
	}
	if u != nil && now.Sub(time.Unix(0, u.Timestamp)).Abs() < age {
		return u, nil
	}
	begin := time.Now()
	bytes, inodes, err := r.Snapshots.Usage(ctx, c.id)
	if err != nil && !errors.Is(err, snapshot.ErrNotFound) { // another container has it now
		return nil, err
	}
	took = time.Since(begin)
	dir := u.GetFsId().GetMountpoint()
	if dir == "" {
		if dir, _, _, err = r.Images.Usage(ctx); err != nil {
			return nil, err
		}
	}
	u = &runtimeapi.FilesystemUsage{
		Timestamp: now.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir}, UsedBytes: u64(bytes), InodesUsed: u64(inodes),
	}
	r.mu.Lock()
	c.layer, c.layerTook = u, took
	r.mu.Unlock()
	return u, nil
}

// ContainerStats tells what a container uses.
func (r *Runtime) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	s, err := r.stats(ctx, c, 0)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s}, nil
}

// ListContainerStats tells what running containers use.
func (r *Runtime) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := req.GetFilter()
	out := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range r.runningContainers() {
		if !hasPrefix(c.id, f.GetId()) || !hasPrefix(c.sb.id, f.GetPodSandboxId()) || !selects(f.GetLabelSelector(), c.config.GetLabels()) {
			continue
		}
		s, err := r.stats(ctx, c, layerAge)
		if err != nil && r.gone(c) {
			continue // removed while it was measured
		}
		if err != nil {
			return nil, err
		}
		out.Stats = append(out.Stats, s)
	}
	return out, nil
}

// StreamContainerStats is ListContainerStats without a limit on the size.
func (r *Runtime) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, st grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	l, err := r.ListContainerStats(st.Context(), &runtimeapi.ListContainerStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	for _, i := range l.GetStats() {
		if err := st.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: []*runtimeapi.ContainerStats{i}}); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) runningContainers() []*container {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*container
	for _, c := range r.conts {
		if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, c)
		}
	}
	return out
}

func (r *Runtime) gone(c *container) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conts[c.id] != c
}

func (r *Runtime) podStats(ctx context.Context, s *sandbox) (*runtimeapi.PodSandboxStats, error) {
	linux := &runtimeapi.LinuxPodSandboxStats{}
	if u, err := r.cg.Usage(path.Dir(r.containerCgroup(s, "x"))); err == nil {
		linux.Cpu, linux.Memory = r.cpuMemory(u)
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: linux.Cpu.Timestamp, ProcessCount: u64(u.Processes)}
	}
	for _, c := range r.containersOf(s) {
		r.mu.Lock()
		running := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING
		r.mu.Unlock()
		if !running {
			continue
		}
		cs, err := r.stats(ctx, c, layerAge)
		if err != nil && r.gone(c) {
			continue
		}
		if err != nil {
			return nil, err
		}
		linux.Containers = append(linux.Containers, cs)
	}
	linux.Network = r.networkUsage(s)
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: s.id, Metadata: s.config.GetMetadata(), Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(),
		},
		Linux: linux,
	}, nil
}

// PodSandboxStats tells what a pod uses.
func (r *Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	s, err := r.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := r.podStats(ctx, s)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats tells what running pods use.
func (r *Runtime) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	f := req.GetFilter()
	r.mu.Lock()
	var pods []*sandbox
	for _, s := range r.sandboxes {
		if s.ready() && hasPrefix(s.id, f.GetId()) && selects(f.GetLabelSelector(), s.config.GetLabels()) {
			pods = append(pods, s)
		}
	}
	r.mu.Unlock()
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for _, s := range pods {
		st, err := r.podStats(ctx, s)
		if err != nil {
			return nil, err
		}
		out.Stats = append(out.Stats, st)
	}
	return out, nil
}

// StreamPodSandboxStats is ListPodSandboxStats without a limit on the size.
func (r *Runtime) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, st grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	l, err := r.ListPodSandboxStats(st.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	for _, i := range l.GetStats() {
		if err := st.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: []*runtimeapi.PodSandboxStats{i}}); err != nil {
			return err
		}
	}
	return nil
}
