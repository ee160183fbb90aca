package runtime

import (
	"context"
	"errors"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Signal sends a signal to the first process of a running container. It is no part
// of CRI.
func (r *Runtime) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	c, client, err := r.running(id)
	if err != nil {
		return err
	}
	err = client.Signal(ctx, c.id, sig, false)
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENOENT) {
		return status.Errorf(codes.FailedPrecondition, "container %q has just ended", c.id)
	}
	return err
}

// Processes are those of a running container, by their numbers on the host. It is no
// part of CRI.
func (r *Runtime) Processes(id string) ([]int, error) {
	c, _, err := r.running(id)
	if err != nil {
		return nil, err
	}
	return r.cg.Pids(c.rec.Cgroup), nil
}
