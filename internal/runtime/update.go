package runtime

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/startspec"
)

// UpdateContainerResources changes the limits of a container that runs, or that
// will.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r.mu.Lock()
	state, old := c.state, c.resources()
	r.mu.Unlock()
	res := merge(old, req.GetLinux())
	switch state {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		var spec startspec.Spec
		path := filepath.Join(c.dir, startspec.File)
		if err := startspec.Read(path, &spec); err != nil {
			return nil, err
		}
		devices := spec.OCI.Linux.Resources.Devices
		spec.OCI.Linux.Resources = ociResources(res)
		spec.OCI.Linux.Resources.Devices = devices
		if err := startspec.Write(path, &spec); err != nil {
			return nil, err
		}
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		if err := r.applyResources(ctx, c, res); err != nil {
			return nil, fmt.Errorf("failed to update resources of container %q: %w", c.id, err)
		}
	default:
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is in %s state", c.id, state)
	}
	raw, err := encode(res)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	c.rec.Resources = raw
	rec := c.rec
	r.mu.Unlock()
	if err := writeRecord(c.dir, containerFile, rec); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// applyResources has skiff-start change a running container: it knows both
// cgroup versions.
func (r *Runtime) applyResources(ctx context.Context, c *container, res *runtimeapi.LinuxContainerResources) error {
	file := filepath.Join(c.dir, "update.json")
	if err := startspec.Write(file, ociResources(res)); err != nil {
		return err
	}
	defer os.Remove(file)
	status, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer status.Close()
	cmd := exec.CommandContext(ctx, r.Programs.Start, "update", c.sb.stateRoot(), c.id, file)
	cmd.ExtraFiles = []*os.File{w}
	err = cmd.Run()
	w.Close()
	var said bytes.Buffer
	_, _ = said.ReadFrom(status)
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return nil
}

// merge puts what is given over what is: zero leaves as it is.
func merge(old, given *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		out = proto.Clone(old).(*runtimeapi.LinuxContainerResources)
	}
	unified := maps.Clone(out.GetUnified())
	proto.Merge(out, given)
	if len(unified) > 0 {
		maps.Copy(unified, given.GetUnified())
		out.Unified = unified
	}
	if given != nil && len(given.GetHugepageLimits()) > 0 {
		out.HugepageLimits = given.GetHugepageLimits()
	}
	return out
}
