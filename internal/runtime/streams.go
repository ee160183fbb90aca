package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// streams serves the streaming server.
type streams struct{ r *Runtime }

// Exec runs a command with the client's streams. Its exit code comes back as
// the error that the protocol carries.
func (s streams) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	code, err := s.r.execStreams(ctx, id, Command{Args: cmd}, in, out, errOut, tty, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("error executing command %v, exit code %d", cmd, code), Code: code}
	}
	return nil
}

// execStreams runs a command with a client's streams, each of which may be nil.
func (r *Runtime) execStreams(ctx context.Context, id string, cmd Command, in io.Reader, out, errOut io.Writer, tty bool, resize <-chan remotecommand.TerminalSize) (int, error) {
	discard := func(w io.Writer, given bool) io.Writer {
		if !given {
			return io.Discard
		}
		return w
	}
	if tty {
		return r.execTerminal(ctx, id, cmd, in, discard(out, out != nil), resize)
	}
	return r.execPipes(ctx, id, cmd, in, discard(out, out != nil), discard(errOut, errOut != nil))
}

// Attach connects the client to the container's own streams until the container
// ends or the client leaves. A container that is only created is waited for, and its
// client sees all that it writes.
func (s streams) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.r.attachable(id)
	if err != nil {
		return err
	}
	var g errgroup.Group
	var or, ow, er, ew *os.File
	if out != nil {
		if or, ow, err = copyTo(&g, out); err != nil {
			return err
		}
	}
	if errOut != nil && !c.config.GetTty() {
		if er, ew, err = copyTo(&g, errOut); err != nil {
			if ow != nil {
				ow.Close()
			}
			return errors.Join(err, g.Wait())
		}
	}
	stop := make(chan struct{})
	defer close(stop)
	// Before the start already: who waits for it must be able to leave.
	s.r.onEnd(ctx, stop, func() {
		for _, f := range []*os.File{or, er} {
			if f != nil {
				_ = f.SetReadDeadline(time.Now())
			}
		}
	})
	input, err := s.join(ctx, c, in != nil, ow, ew, resize)
	if err == nil && input != nil {
		switch {
		case c.config.GetTty():
			defer input.Close()
			s.r.terminal(input, in, resize, stop)
		case in != nil:
			s.r.background(func() {
				_, _ = io.Copy(input, in)
				input.Close()
				if _, client, err := s.r.running(c.id); err == nil && c.config.GetStdinOnce() {
					ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
					defer cancel()
					_ = client.CloseStdin(ctx, c.id) // it ends with the container
				}
			})
		default:
			input.Close()
		}
	}
	if err == nil && or == nil && er == nil { // input alone
		select {
		case <-c.ended:
		case <-ctx.Done():
		case <-s.r.stopping:
		}
	}
	return errors.Join(err, g.Wait())
}

// join connects the writing ends of the client's pipes with a container that runs,
// or is started while it waits, and returns its input where that is wanted. The files
// are closed.
func (s streams) join(ctx context.Context, c *container, in bool, ow, ew *os.File, resize <-chan remotecommand.TerminalSize) (*os.File, error) {
	first := &firstClient{out: ow, err: ew}
	attached, err := s.r.attachFirst(ctx, c, first, resize)
	if err != nil {
		return nil, err
	}
	out, errOut := ow, ew
	if attached {
		out, errOut = nil, nil
	} else {
		defer first.close()
	}
	_, client, err := s.r.running(c.id)
	if err != nil {
		if attached {
			return nil, nil // it has ended; what it wrote is on its way
		}
		return nil, err
	}
	if attached && !in && !c.config.GetTty() {
		return nil, nil
	}
	input, err := client.Attach(ctx, c.id, in, out, errOut)
	switch {
	case attached && err != nil:
		return nil, nil
	case err == nil && input != nil && !attached && first.size != nil:
		setSize(input, *first.size) // read for a start that came before it
	}
	return input, err
}

// onEnd calls f when the client leaves or the runtime stops, unless stop is
// closed before.
func (r *Runtime) onEnd(ctx context.Context, stop <-chan struct{}, f func()) {
	r.background(func() {
		select {
		case <-stop:
			return
		case <-ctx.Done():
		case <-r.stopping:
		}
		f()
	})
}

// Exec prepares a stream.
func (r *Runtime) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, _, err := r.running(req.GetContainerId()); err != nil {
		return nil, err
	}
	return r.stream.GetExec(req)
}

// Attach prepares a stream.
func (r *Runtime) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := r.attachable(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	req.Tty = c.config.GetTty()
	if req.Tty {
		req.Stderr = false
	}
	return r.stream.GetAttach(req)
}
