package build

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/cgroup"
	"skiff/internal/runtime/snapshot"
)

// Executor runs the commands of RUN instructions.
type Executor interface {
	// Run runs a command to its end and returns its exit code; an error only
	// where it could not be run, or ctx ended first. Then and afterwards nothing
	// that the command started is left.
	Run(ctx context.Context, spec ExecSpec) (exitCode int, err error)
}

// ExecSpec is a command in a root file system.
type ExecSpec struct {
	// Rootfs is not mounted anywhere; the executor mounts it where only the
	// command sees it.
	Rootfs snapshot.Rootfs
	Args   []string
	Env    []string
	Cwd    string // made where missing
	User   User
	// Stdout and Stderr get the command's output. Its input is empty.
	Stdout, Stderr io.Writer `json:"-"`
	// NoNetwork gives the command a network namespace of its own, with nothing
	// in it; otherwise it has the host's.
	NoNetwork bool
	// Scripts are executable files, by name, in the directory ScriptDir.
	Scripts map[string]string
	Mounts  []Mount
	// Insecure gives all capabilities, without a filter, and a writable /sys.
	Insecure bool
	// Hostname is "skiff-build" where empty; Hosts are further names with their
	// addresses.
	Hostname string
	Hosts    map[string]string
	// ShmSize is the size of /dev/shm, bytes; 64 MiB where 0.
	ShmSize int64
}

// ScriptDir is where a command finds ExecSpec.Scripts.
const ScriptDir = "/dev/pipes"

// User is who runs a command.
type User struct {
	UID, GID int
	Groups   []int
	Home     string
}

// Mount is a further mount of a command. Target is made where missing.
type Mount struct {
	Target string
	// Source is a directory or file of the host; with Rootfs, a path in that.
	// Both empty means a new tmpfs.
	Source   string
	Rootfs   *snapshot.Rootfs
	ReadOnly bool
	// Scratch lets the command write to what Source and Rootfs name, and forgets
	// what it wrote.
	Scratch bool
	// Size limits a tmpfs, bytes; 0 is no limit of its own.
	Size int64
	// File makes it a file, in memory alone.
	File *MemoryFile
}

// MemoryFile is a file that is never on disk.
type MemoryFile struct {
	Content  []byte
	Mode     uint32
	UID, GID int
}

// HelperName is the name (argv[0]) under which the program runs itself to start
// a command: a program that uses NewExecutor calls Helper first thing.
const HelperName = "skiff-build-run"

// NamespaceExecutor runs commands in new mount, process, host name and IPC
// namespaces, as root in the user's own build: with Docker's default
// capabilities, a /dev and /proc of their own, the host's network and name
// servers.
type NamespaceExecutor struct {
	// Program is started as HelperName; the running program where empty.
	Program string
	// Filter returns the seccomp filter of commands, as DefaultFilter does; nil
	// for none.
	Filter func(context.Context) ([]byte, error)
	// Cgroup is the group below which each command has its own while it runs; ""
	// leaves it in the caller's.
	Cgroup string

	// joining is held while a group is made below Cgroup, or Cgroup removed.
	joining sync.Mutex
}

// helperSpec is what the helper reads.
type helperSpec struct {
	ExecSpec
	ResolvConf string
	// Cgroups are the files by which the command joins its cgroup.
	Cgroups []string
	Filter  []byte
}

// Run implements Executor.
func (e *NamespaceExecutor) Run(ctx context.Context, spec ExecSpec) (int, error) {
	if len(spec.Args) == 0 {
		return 0, errors.New("no command")
	}
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	hs := helperSpec{ExecSpec: spec}
	if conf, err := os.ReadFile("/etc/resolv.conf"); err == nil && !spec.NoNetwork {
		hs.ResolvConf = string(conf)
	}
	if e.Filter != nil && !spec.Insecure {
		var err error
		if hs.Filter, err = e.Filter(ctx); err != nil {
			return 0, err
		}
	}
	leave, err := e.joinCgroup(&hs)
	if err != nil {
		return 0, err
	}
	code, err := e.run(ctx, hs)
	return code, errors.Join(err, leave())
}

// joinCgroup makes a cgroup for one command; leave ends what is in it and removes it.
func (e *NamespaceExecutor) joinCgroup(hs *helperSpec) (leave func() error, err error) {
	if e.Cgroup == "" {
		return func() error { return nil }, nil
	}
	h, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	group := filepath.Join(e.Cgroup, rand.Text())
	leave = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
		defer cancel()
		err := errors.Join(h.Kill(ctx, group), h.Remove(ctx, group))
		e.joining.Lock()
		defer e.joining.Unlock()
		h.RemoveEmpty(e.Cgroup)
		return err
	}
	e.joining.Lock()
	hs.Cgroups, err = h.Procs(group)
	e.joining.Unlock()
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}

// leaveTime bounds the removal of a command's cgroup.
const leaveTime = 30 * time.Second

func (e *NamespaceExecutor) run(ctx context.Context, spec helperSpec) (int, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return 0, err
	}
	specFile, err := memFile("spec", data)
	if err != nil {
		return 0, err
	}
	defer specFile.Close()
	// What goes wrong before the command itself comes through this pipe; the
	// command's start closes it.
	errRead, errWrite, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer errRead.Close()
	defer errWrite.Close()

	program := e.Program
	if program == "" {
		program = "/proc/self/exe"
	}
	// The parent death signal is that of the thread: it must outlive the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, program)
	cmd.Args = []string{HelperName}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = spec.Stdout, spec.Stderr
	cmd.ExtraFiles = []*os.File{specFile, errWrite}
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if spec.NoNetwork {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start command: %w", err)
	}
	errWrite.Close()
	failure, readErr := io.ReadAll(io.LimitReader(errRead, 64<<10))
	// The helper is process 1 of its namespace: when it is gone, all are.
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if len(failure) > 0 {
		return 0, errors.New(string(failure))
	}
	var exit *exec.ExitError
	if errors.As(waitErr, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if err := errors.Join(waitErr, readErr); err != nil {
		return 0, fmt.Errorf("wait for command: %w", err)
	}
	return 0, nil
}

// memFile is an anonymous file with that content, at its start.
func memFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = io.Copy(f, bytes.NewReader(data)); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
