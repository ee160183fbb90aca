package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/startspec"
)

const (
	// execSyncLimit is how much output of a stream ExecSync returns.
	execSyncLimit = 16 << 20
	// drainTime is how long output is read after its process has ended: others
	// may hold the pipe for ever.
	drainTime = 2 * time.Second
)

// process is what skiff-start left of the container's process.
func (c *container) process() (*specs.Process, error) {
	var p specs.Process
	return &p, startspec.Read(filepath.Join(c.dir, startspec.ProcessFile), &p)
}

// execution is a process on its way in a container.
type execution struct {
	r      *Runtime
	id     string
	client *pod.Client
	file   string
	exit   chan pod.Process
}

// exec starts cmd. files are its stdin, stdout and stderr, or with tty a socket
// for the terminal's master. done must be called.
func (r *Runtime) exec(ctx context.Context, id string, cmd Command, tty bool, files ...*os.File) (*execution, error) {
	c, client, err := r.running(id)
	if err != nil {
		return nil, err
	}
	if len(cmd.Args) == 0 {
		return nil, status.Error(codes.InvalidArgument, "cmd: required")
	}
	p, err := c.process()
	if err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	p.Terminal = tty
	cmd.change(p)
	if tty && !hasEnv(p.Env, "TERM") {
		p.Env = append(p.Env, "TERM=xterm")
	}
	e := &execution{r: r, id: "exec-" + newID()[:32], client: client, exit: make(chan pod.Process, 1)}
	e.file = filepath.Join(c.dir, e.id+".json")
	if err := startspec.Write(e.file, startspec.Exec{Process: *p, As: cmd.user()}); err != nil {
		return nil, fmt.Errorf("exec in container %q: %w", c.id, err)
	}
	r.mu.Lock()
	r.execs[e.id] = e.exit
	r.mu.Unlock()
	_, err = client.Exec(ctx, pod.Exec{
		ID: e.id, Container: c.id, Starter: r.Programs.Start, Root: c.sb.stateRoot(), SpecFile: e.file, TTY: tty, Files: files,
	})
	if err != nil {
		e.done()
		return nil, fmt.Errorf("failed to exec in container %q: %w", c.id, err)
	}
	return e, nil
}

func hasEnv(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

func (e *execution) done() {
	e.r.mu.Lock()
	delete(e.r.execs, e.id)
	e.r.mu.Unlock()
	_ = os.Remove(e.file) // goes with the container at the latest
}

// wait returns the exit; when ctx ends first, the process is killed.
func (e *execution) wait(ctx context.Context) (pod.Process, error) {
	select {
	case p := <-e.exit:
		return p, nil
	case <-e.client.Done():
		return pod.Process{}, status.Error(codes.Unavailable, "the pod process is gone")
	case <-ctx.Done():
	}
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := e.client.Signal(kill, e.id, syscall.SIGKILL, false); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.ENOENT) {
		return pod.Process{}, err
	}
	select {
	case <-e.exit:
	case <-e.client.Done():
	case <-kill.Done():
	}
	return pod.Process{}, ctx.Err()
}

// pipe is an os.Pipe whose reading end is copied to w by a group.
func copyTo(g *errgroup.Group, w io.Writer) (*os.File, *os.File, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	g.Go(func() error {
		defer pr.Close()
		_, err := io.Copy(w, pr)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, pr) // or the process would get SIGPIPE
		}
		return err
	})
	return pr, pw, nil
}

// limited keeps the first bytes and takes all.
type limited struct{ b []byte }

func (l *limited) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), execSyncLimit-len(l.b))]...)
	return len(p), nil
}

// ExecSync runs a command and returns its output and exit code.
func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	timeout := time.Duration(req.GetTimeout()) * time.Second
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var stdout, stderr limited
	code, err := r.execPipes(ctx, req.GetContainerId(), Command{Args: req.GetCmd()}, nil, &stdout, &stderr)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, status.Errorf(codes.DeadlineExceeded, "failed to exec in container: timeout %v exceeded: %v", timeout, err)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout.b, Stderr: stderr.b, ExitCode: int32(code)}, nil
}

// execPipes runs a command without a terminal.
func (r *Runtime) execPipes(ctx context.Context, id string, cmd Command, in io.Reader, stdout, stderr io.Writer) (int, error) {
	var g errgroup.Group
	or, ow, err := copyTo(&g, stdout)
	if err != nil {
		return 0, err
	}
	er, ew, err := copyTo(&g, stderr)
	if err != nil {
		ow.Close()
		return 0, errors.Join(err, g.Wait())
	}
	ir, err := os.Open(os.DevNull)
	var iw *os.File
	if err == nil && in != nil {
		ir.Close()
		ir, iw, err = os.Pipe()
	}
	var e *execution
	if err == nil {
		e, err = r.exec(ctx, id, cmd, false, ir, ow, ew)
		ir.Close()
	}
	ow.Close()
	ew.Close()
	if err != nil {
		if iw != nil {
			iw.Close()
		}
		_ = g.Wait() // nothing was written
		return 0, err
	}
	defer e.done()
	if iw != nil {
		// The client's input ends with its connection, not with the process:
		// nobody waits for it.
		r.background(func() {
			_, _ = io.Copy(iw, in)
			iw.Close()
			// What a process leaves unread must not stand in the way of its outcome.
			_, _ = io.Copy(io.Discard, in)
		})
	}
	p, err := e.wait(ctx)
	for _, f := range []*os.File{or, er} {
		_ = f.SetReadDeadline(time.Now().Add(drainTime))
	}
	if gerr := g.Wait(); err == nil {
		err = gerr
	}
	return p.ExitCode, err
}

// execTerminal runs a command with a terminal.
func (r *Runtime) execTerminal(ctx context.Context, id string, cmd Command, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) (int, error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	e, err := r.exec(ctx, id, cmd, true, theirs)
	theirs.Close()
	if err != nil {
		return 0, err
	}
	defer e.done()
	master, err := receiveFile(ours)
	if err != nil {
		return 0, fmt.Errorf("receive the terminal: %w", err)
	}
	defer master.Close()
	stop := make(chan struct{})
	defer close(stop)
	r.terminal(master, in, resize, stop)
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(out, master)
		if errors.Is(err, syscall.EIO) || errors.Is(err, os.ErrDeadlineExceeded) { // its last holder left
			return nil
		}
		return err
	})
	p, err := e.wait(ctx)
	_ = master.SetReadDeadline(time.Now().Add(drainTime))
	if gerr := g.Wait(); err == nil {
		err = gerr
	}
	return p.ExitCode, err
}

// terminal copies input to it and sets its size, until stop is closed.
func (r *Runtime) terminal(master *os.File, in io.Reader, resize <-chan remotecommand.TerminalSize, stop <-chan struct{}) {
	if in != nil {
		r.background(func() { _, _ = io.Copy(master, in) })
	}
	r.background(func() {
		for {
			select {
			case <-stop:
				return
			case s, ok := <-resize:
				if !ok {
					return
				}
				setSize(master, s)
			}
		}
	})
}

func setSize(master *os.File, s remotecommand.TerminalSize) {
	rc, err := master.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
	})
}

func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "console")
	defer f.Close()
	theirs := os.NewFile(uintptr(fds[1]), "console")
	c, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

func receiveFile(c *net.UnixConn) (*os.File, error) {
	if err := c.SetReadDeadline(time.Now().Add(cleanupTime)); err != nil {
		return nil, err
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) == 0 {
		return nil, fmt.Errorf("no descriptor came: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return nil, fmt.Errorf("no descriptor came: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
