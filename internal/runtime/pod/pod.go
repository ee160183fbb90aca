// Package pod drives skiff-pod: the resident process that holds a pod's
// namespaces and its containers while skiff comes and goes.
package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skiff/internal/runtime/wire"
)

// socket is the name of a pod's socket in its directory.
const socket = "pod.sock"

// lockFile is locked by the process that lives in the directory.
const lockFile = "lock"

// Options are what a pod process sets up for its pod.
type Options struct {
	// Dir is the pod's state directory, of mode 0700: the socket and the exit
	// records are in it.
	Dir string
	// Namespaces of its own: of net, ipc, uts, pid (one for all containers).
	Net, IPC, UTS, PID bool
	Hostname           string
	// Users, where set, gives the pod a user namespace of its own, to which the other
	// namespaces belong.
	Users *Users
	// Sysctls are set inside the namespaces.
	Sysctls     map[string]string
	OOMScoreAdj int
}

// Users are the IDs of a user namespace, as uid_map(5) and gid_map(5) have them.
type Users struct{ UIDs, GIDs []IDRange }

// IDRange is a range of IDs: Inside, as the namespace has its first, and Outside, as
// the host does.
type IDRange struct{ Inside, Outside, Length uint32 }

// Outside is what the host has for an ID of the namespace.
func Outside(ranges []IDRange, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.Inside && id-r.Inside < r.Length {
			return r.Outside + id - r.Inside, true
		}
	}
	return 0, false
}

func idMap(ranges []IDRange) string {
	var b strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&b, "%d %d %d\n", r.Inside, r.Outside, r.Length)
	}
	return b.String()
}

// UsersPath is where a pod's user namespace is found while the pod process lives. It must
// not begin with the process's directory as everyone writes it: libcontainer would take
// the namespace for the one that the process is in.
func UsersPath(pid int) string { return fmt.Sprintf("/proc/./%d/fd/20", pid) }

// Spawn starts a pod process and returns when it answers. It is a child of init
// then, not of the caller. NSInit is PID 1 of the pod's PID namespace, 0 without.
func Spawn(ctx context.Context, program string, o Options) (pid, nsinit int, err error) {
	var ns []string
	for name, on := range map[string]bool{"net": o.Net, "ipc": o.IPC, "uts": o.UTS, "pid": o.PID} {
		if on {
			ns = append(ns, name)
		}
	}
	args := []string{"pod", o.Dir, "ns=" + strings.Join(ns, ","), "oom=" + strconv.Itoa(o.OOMScoreAdj)}
	if o.Hostname != "" {
		args = append(args, "hostname="+o.Hostname)
	}
	if o.Users != nil {
		args = append(args, "uidmap="+idMap(o.Users.UIDs), "gidmap="+idMap(o.Users.GIDs))
	}
	for k, v := range o.Sysctls {
		args = append(args, "sysctl."+k+"="+v)
	}
	return spawn(ctx, program, args)
}

// SpawnKeeper starts a keeper of descriptors with its socket in dir.
func SpawnKeeper(ctx context.Context, program, dir string) (pid int, err error) {
	pid, _, err = spawn(ctx, program, []string{"keeper", dir})
	return pid, err
}

func spawn(ctx context.Context, program string, args []string) (pid, nsinit int, err error) {
	lock, err := os.OpenFile(filepath.Join(args[1], lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, 0, fmt.Errorf("pod process: %w", err)
	}
	defer lock.Close() // the process holds its copy
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return 0, 0, fmt.Errorf("pod process: another one is alive in %s: %w", args[1], err)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{lock}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = []string{}
	if err := cmd.Run(); err != nil {
		if s := strings.TrimSpace(stderr.String()); s != "" {
			return 0, 0, fmt.Errorf("pod process: %s", s)
		}
		return 0, 0, fmt.Errorf("pod process: %w", err)
	}
	if _, err := fmt.Sscanf(stdout.String(), "ok %d %d", &pid, &nsinit); err != nil {
		return 0, 0, fmt.Errorf("pod process answered %q", stdout.String())
	}
	return pid, nsinit, nil
}

// Alive tells whether a pod process, or a keeper, lives in dir or is about to:
// it holds a lock there from before its first instruction to its end.
func Alive(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil
}

// Adopt connects to the pod process of dir, waiting for one that is just
// starting. ErrGone says that there is none.
func Adopt(ctx context.Context, dir string, onEvent func(Process)) (*Client, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		alive := Alive(dir) // asked before connecting: it may end in between
		c, err := Connect(dir, onEvent)
		if err == nil {
			return c, nil
		}
		if !alive {
			return nil, fmt.Errorf("%s: %w", dir, ErrGone)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// ErrGone says that a pod process has ended.
var ErrGone = errors.New("pod process is gone")

// State of a process in a pod.
type State string

// States.
const (
	Starting State = "starting"
	Running  State = "running"
	Exited   State = "exited"
	Failed   State = "failed"
)

// Process is a container, or a process started in one with Exec.
type Process struct {
	ID                string
	Exec              bool
	State             State
	PID               int
	Started, Finished time.Time
	// ExitCode is 128 plus the signal for a process that a signal ended.
	ExitCode, Signal int
	OOMKilled        bool
	// Lost says that nobody saw the end: the pod process was gone before.
	Lost bool
	// Message says why a Failed one did not start.
	Message string
	// DroppedLines could not be written to the log.
	DroppedLines int64
}

func process(m wire.Msg) Process {
	return Process{
		ID: m.Fields["id"], Exec: m.Fields["kind"] == "exec", State: State(m.Fields["state"]),
		PID: int(m.Int("pid")), Started: m.Time("started"), Finished: m.Time("finished"),
		ExitCode: int(m.Int("code")), Signal: int(m.Int("sig")), OOMKilled: m.Int("oom") != 0, Lost: m.Int("lost") != 0,
		Message: m.Fields["msg"], DroppedLines: m.Int("dropped"),
	}
}

// Info is a pod process about itself.
type Info struct {
	Proto, PID, NSInit int
	Started            time.Time
}

// Client talks to one pod process.
type Client struct {
	w   *wire.Conn
	dir string
}

// Connect reaches the pod process of dir. onEvent gets each change of a process
// after Subscribe; see wire.Dial for what it may do.
func Connect(dir string, onEvent func(Process)) (*Client, error) {
	w, err := wire.Dial(dir, socket, func(m wire.Msg) {
		if onEvent != nil {
			onEvent(process(m))
		}
	})
	if err != nil {
		return nil, err
	}
	return &Client{w: w, dir: dir}, nil
}

// Close ends the connection, not the pod.
func (c *Client) Close() { c.w.Close() }

// Done is closed when the pod process is gone, or the connection was closed.
func (c *Client) Done() <-chan struct{} { return c.w.Done() }

// Hello asks the process about itself.
func (c *Client) Hello(ctx context.Context) (Info, error) {
	m, _, err := c.w.Call(ctx, "hello", nil)
	if err != nil {
		return Info{}, err
	}
	return Info{Proto: int(m.Int("proto")), PID: int(m.Int("pid")), NSInit: int(m.Int("nsinit")), Started: m.Time("started")}, nil
}

// Start is a container to start.
type Start struct {
	ID string
	// Starter is the skiff-start program, Root libcontainer's state directory,
	// Bundle where the container's spec is.
	Starter, Root, Bundle string
	LogPath               string
	TTY, Stdin, StdinOnce bool
	// OOMFile is a cgroup file with a line "oom_kill N". ProcsFile lists the
	// container's processes where they do not end with its first one.
	OOMFile, ProcsFile string
	// Stdout and Stderr are pipes for a client that is attached from the start, or
	// nil. They may be closed once Start has returned.
	Stdout, Stderr *os.File
}

// Start starts a container and returns when its program runs.
func (c *Client) Start(ctx context.Context, s Start) (Process, error) {
	f := map[string]string{
		"id": s.ID, "starter": s.Starter, "root": s.Root, "bundle": s.Bundle, "log": s.LogPath,
		"tty": flag(s.TTY), "stdin": flag(s.Stdin), "stdinonce": flag(s.StdinOnce), "oom": s.OOMFile, "procs": s.ProcsFile,
	}
	for name, file := range map[string]*os.File{"out": s.Stdout, "err": s.Stderr} {
		if file != nil {
			f[name] = flag(true)
		}
	}
	m, _, err := c.w.Call(ctx, "start", f, given(s.Stdout, s.Stderr)...)
	return process(m), err
}

// given are those files that are not nil.
func given(files ...*os.File) []*os.File {
	var out []*os.File
	for _, f := range files {
		if f != nil {
			out = append(out, f)
		}
	}
	return out
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// Exec is one more process in a running container.
type Exec struct {
	ID, Container, Starter, Root string
	// SpecFile holds the OCI process.
	SpecFile string
	// Files are stdin, stdout, stderr; or, for a terminal, one unix socket over
	// which its master comes.
	TTY   bool
	Files []*os.File
}

// Exec starts a process. Its exit comes as an event and is kept nowhere.
func (c *Client) Exec(ctx context.Context, e Exec) (Process, error) {
	m, _, err := c.w.Call(ctx, "exec", map[string]string{
		"id": e.ID, "container": e.Container, "starter": e.Starter, "root": e.Root, "spec": e.SpecFile, "tty": flag(e.TTY),
	}, e.Files...)
	return process(m), err
}

// Subscribe makes events come from now on.
func (c *Client) Subscribe(ctx context.Context) error {
	_, _, err := c.w.Call(ctx, "subscribe", nil)
	return err
}

// List returns all that the pod process knows of.
func (c *Client) List(ctx context.Context) ([]Process, error) {
	_, items, err := c.w.Call(ctx, "list", nil)
	if err != nil {
		return nil, err
	}
	out := make([]Process, 0, len(items))
	for _, m := range items {
		out = append(out, process(m))
	}
	return out, nil
}

// Signal sends sig to a process; with all, to every process of its cgroup.
// Errors wrap ESRCH when it does not run, ENOENT when it is unknown.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return c.simple(ctx, "signal", id, map[string]string{"sig": strconv.Itoa(int(sig)), "all": flag(all)})
}

// Reopen opens the log anew, at its path, after someone moved it.
func (c *Client) Reopen(ctx context.Context, id string) error {
	return c.simple(ctx, "reopen", id, nil)
}

// CloseStdin ends the container's input.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.simple(ctx, "closestdin", id, nil)
}

// Forget drops an ended container.
func (c *Client) Forget(ctx context.Context, id string) error {
	return c.simple(ctx, "forget", id, nil)
}

func (c *Client) simple(ctx context.Context, verb, id string, more map[string]string) error {
	f := map[string]string{"id": id}
	maps.Copy(f, more)
	_, _, err := c.w.Call(ctx, verb, f)
	return err
}

// Attach copies the container's output to stdout and stderr (pipes; nil for
// none) from now on, and returns its stdin (nil when it has none), or its
// terminal.
func (c *Client) Attach(ctx context.Context, id string, stdin bool, stdout, stderr *os.File) (*os.File, error) {
	f := map[string]string{"id": id, "in": flag(stdin), "out": flag(stdout != nil), "err": flag(stderr != nil)}
	m, _, err := c.w.Call(ctx, "attach", f, given(stdout, stderr)...)
	return m.File, err
}

// Shutdown kills what runs and ends the pod process; it returns when that is
// gone.
func (c *Client) Shutdown(ctx context.Context) error {
	if _, _, err := c.w.Call(ctx, "shutdown", nil); err != nil && !errors.Is(err, wire.ErrClosed) {
		return err
	}
	select {
	case <-c.w.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReadExit reads the durable record of a container's end; fs.ErrNotExist when
// there is none.
func ReadExit(dir, id string) (Process, error) {
	b, err := os.ReadFile(filepath.Join(dir, id+".exit"))
	if err != nil {
		return Process{}, err
	}
	return process(wire.Parse(b)), nil
}

// RemoveExit removes the record.
func RemoveExit(dir, id string) error {
	err := os.Remove(filepath.Join(dir, id+".exit"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// WriteExit leaves the record of an end that the pod process could not.
func WriteExit(dir string, p Process) error {
	var b strings.Builder
	for _, f := range []string{
		"id=" + p.ID, "kind=container", "state=" + string(p.State), "pid=" + strconv.Itoa(p.PID),
		"started=" + nanos(p.Started), "finished=" + nanos(p.Finished),
		"code=" + strconv.Itoa(p.ExitCode), "sig=" + strconv.Itoa(p.Signal), "oom=" + flag(p.OOMKilled),
		"lost=" + flag(p.Lost), "msg=" + strings.ReplaceAll(p.Message, "\x00", ""),
	} {
		b.WriteString(f + "\x00")
	}
	tmp := filepath.Join(dir, "."+p.ID+".exit")
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, p.ID+".exit"))
}

func nanos(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return strconv.FormatInt(t.UnixNano(), 10)
}
