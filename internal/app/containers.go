package app

import (
	"context"
	"net/http"
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

// Hold implements admin.Host.
func (p *Process) Hold(ctx context.Context, id string) error {
	r, err := p.own()
	if err != nil {
		return err
	}
	err = r.Hold(ctx, id, runtime.HoldTime)
	if status.Code(err) == codes.NotFound {
		return admin.ErrNoContainer
	}
	return err
}

// Command implements admin.Host.
func (p *Process) Command(w http.ResponseWriter, req *http.Request, id string, c admin.Command) error {
	r, err := p.own()
	if err != nil {
		return err
	}
	return known(r.ServeCommand(w, req, id, command(c), c.Stdin, c.TTY))
}

// StartCommand implements admin.Host.
func (p *Process) StartCommand(ctx context.Context, id string, c admin.Command) error {
	r, err := p.own()
	if err != nil {
		return err
	}
	return known(r.StartCommand(ctx, id, command(c)))
}

func command(c admin.Command) runtime.Command {
	return runtime.Command{Args: c.Args, User: c.User, Dir: c.Dir, Env: c.Env}
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
