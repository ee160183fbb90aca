package app

import (
	"context"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"skiff/internal/admin"
	"skiff/internal/runtime"
)

// own is the runtime of this process's node; another one has a door of its own.
func (p *Process) own() (*runtime.Runtime, error) {
	if n := p.running.Load(); n != nil {
		return n.runtime, nil
	}
	return nil, admin.ErrNoContainer
}

func known(err error) error {
	if status.Code(err) == codes.NotFound || status.Code(err) == codes.FailedPrecondition {
		return admin.ErrNoContainer
	}
	return err
}

// Signal implements admin.Host.
func (p *Process) Signal(ctx context.Context, id string, signal int) error {
	r, err := p.own()
	if err != nil {
		return err
	}
	return known(r.Signal(ctx, id, syscall.Signal(signal)))
}

// Processes implements admin.Host.
func (p *Process) Processes(_ context.Context, id string) ([]int, error) {
	r, err := p.own()
	if err != nil {
		return nil, err
	}
	pids, err := r.Processes(id)
	return pids, known(err)
}
