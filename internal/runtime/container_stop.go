package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/pod"
)

// StopContainer asks with the stop signal, waits for the grace period, then
// kills. It returns when the container has ended.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.stopContainer(ctx, c, time.Duration(req.GetTimeout())*time.Second); err != nil {
		return nil, fmt.Errorf("failed to stop container %q: %w", c.id, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *Runtime) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	r.mu.Lock()
	running, client := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING, c.sb.client
	r.mu.Unlock()
	if !running {
		return nil
	}
	if client == nil {
		return r.loseContainer(ctx, c)
	}
	if grace > 0 {
		if err := client.Signal(ctx, c.id, c.stopSignal(), false); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	if err := client.Signal(ctx, c.id, syscall.SIGKILL, !c.ownPID()); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	select {
	case <-c.ended:
		return nil
	case <-client.Done():
		return r.loseContainer(ctx, c)
	case <-ctx.Done():
		return fmt.Errorf("wait for it to end after SIGKILL: %w", ctx.Err())
	}
}

// stopSignal is the config's, the image's, or SIGTERM.
func (c *container) stopSignal() syscall.Signal {
	name := c.rec.StopSignal
	if s := c.config.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name = criSignalName(s)
	}
	sig, err := parseSignal(name)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}

// RemoveContainer removes the container and what it wrote, killing it first if
// it runs. Its log stays.
func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := r.findContainer(req.GetContainerId())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := r.removeContainer(ctx, c); err != nil {
		return nil, fmt.Errorf("failed to remove container %q: %w", c.id, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (r *Runtime) removeContainer(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := r.stopContainer(ctx, c, 0); err != nil {
		return err
	}
	r.mu.Lock()
	client, known := c.sb.client, r.conts[c.id] != nil
	r.mu.Unlock()
	if !known {
		return nil
	}
	if client != nil {
		if err := client.Forget(ctx, c.id); err != nil && !errors.Is(err, syscall.ENOENT) {
			return err
		}
	}
	r.Step("remove-forgotten")
	if err := r.cg.Remove(ctx, c.rec.Cgroup); err != nil {
		return err
	}
	if err := r.removeFiles(ctx, c); err != nil {
		return err
	}
	r.Step("remove-removed")
	r.mu.Lock()
	delete(r.conts, c.id)
	first := c.first
	c.first = nil
	c.begin()
	for name, id := range r.names {
		if id == c.id {
			delete(r.names, name)
		}
	}
	r.mu.Unlock()
	first.close() // it waited in vain
	r.notify(c.sb, c.id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return nil
}

// removeFiles removes a container from disk: its directory, which makes it
// exist, goes last.
func (r *Runtime) removeFiles(ctx context.Context, c *container) error {
	if err := r.dropKept(c); err != nil {
		return err
	}
	if !r.isHeld(c.id) {
		if err := r.Snapshots.Remove(ctx, c.id); err != nil {
			return fmt.Errorf("root file system: %w", err)
		}
	}
	if err := unmount(r.rootfsDir(c.id)); err != nil {
		return err
	}
	if err := r.removeImageMounts(ctx, c); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(c.sb.stateRoot(), c.id)); err != nil {
		return err
	}
	if err := pod.RemoveExit(c.sb.dir, c.id); err != nil {
		return err
	}
	return removeAll(c.dir)
}

// criSignalName turns SIGNAL_SIGRTMINPLUS3 into SIGRTMIN+3.
func criSignalName(s runtimeapi.Signal) string {
	n := strings.TrimPrefix(s.String(), "SIGNAL_")
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(n)
}

// parseSignal takes SIGTERM, TERM, 15, SIGRTMIN+3, RTMAX-1.
func parseSignal(name string) (syscall.Signal, error) {
	if name == "" {
		return syscall.SIGTERM, nil
	}
	n := strings.TrimPrefix(strings.ToUpper(name), "SIG")
	var k int
	if _, err := fmt.Sscanf(n, "%d", &k); err == nil && fmt.Sprint(k) == n && k > 0 && k <= 64 {
		return syscall.Signal(k), nil
	}
	if s := unix.SignalNum("SIG" + n); s != 0 {
		return s, nil
	}
	const rtMin, rtMax = 34, 64
	switch {
	case n == "RTMIN":
		return rtMin, nil
	case n == "RTMAX":
		return rtMax, nil
	}
	if _, err := fmt.Sscanf(n, "RTMIN+%d", &k); err == nil && k >= 0 && rtMin+k <= rtMax {
		return syscall.Signal(rtMin + k), nil
	}
	if _, err := fmt.Sscanf(n, "RTMAX-%d", &k); err == nil && k >= 0 && rtMax-k >= rtMin {
		return syscall.Signal(rtMax - k), nil
	}
	return 0, fmt.Errorf("unknown signal %q", name)
}
