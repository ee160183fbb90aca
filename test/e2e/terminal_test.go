package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// session is a program that runs on, and what it has written so far.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	pty  *os.File // nil without a terminal
	done chan struct{}
	err  error

	mu  sync.Mutex
	out strings.Builder
}

func (s *session) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// background starts kubectl and reads what it says.
func (c *cluster) background(args ...string) *session {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{t: c.t, cmd: c.kubectlCmd(ctx, args...), done: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	// kubectl is a child of skiff's command: both end.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.Cancel = func() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) }
	if err := s.cmd.Start(); err != nil {
		cancel()
		c.t.Fatal(err)
	}
	go func() { s.err = s.cmd.Wait(); close(s.done) }()
	c.t.Cleanup(func() { cancel(); <-s.done })
	return s
}

// onTerminal starts kubectl on a terminal of a size.
func (c *cluster) onTerminal(rows, cols uint16, args ...string) *session {
	c.t.Helper()
	return c.commandOnTerminal(rows, cols, func(ctx context.Context) *exec.Cmd { return c.kubectlCmd(ctx, args...) })
}

// skiffOnTerminal starts skiff on a terminal of a size.
func (c *cluster) skiffOnTerminal(rows, cols uint16, args ...string) *session {
	c.t.Helper()
	return c.commandOnTerminal(rows, cols, func(ctx context.Context) *exec.Cmd {
		cmd := c.command(args...)
		bound := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
		bound.Env = os.Environ()
		return bound
	})
}

func (c *cluster) commandOnTerminal(rows, cols uint16, command func(context.Context) *exec.Cmd) *session {
	c.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		c.t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		c.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{t: c.t, cmd: command(ctx), pty: master, done: make(chan struct{})}
	// When a terminal's session ends, the kernel throws away what was not read yet.
	// So the session is a shell's, which says where the output ends and stays until
	// that was read.
	shell := exec.CommandContext(ctx, "sh", append([]string{"-c", `"$@"; code=$?; printf '\036'; read -r _ <&3; exit $code`, "sh", s.cmd.Path}, s.cmd.Args[1:]...)...)
	shell.Env = s.cmd.Env
	s.cmd = shell
	wait, release, err := os.Pipe()
	if err != nil {
		c.t.Fatal(err)
	}
	s.cmd.ExtraFiles = []*os.File{wait}
	s.resize(rows, cols)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	s.cmd.Cancel = func() error { return syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) }
	if err := s.cmd.Start(); err != nil {
		cancel()
		c.t.Fatal(err)
	}
	slave.Close()
	wait.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer release.Close()
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			text, _, ended := bytes.Cut(buf[:n], []byte{0o36})
			_, _ = s.Write(text)
			if ended {
				release.Close()
			}
			if err != nil { // EIO: nobody has the other end any more
				return
			}
		}
	}()
	go func() { s.err = s.cmd.Wait(); <-read; close(s.done) }()
	c.t.Cleanup(func() { cancel(); <-s.done; master.Close() })
	return s
}

func (s *session) resize(rows, cols uint16) {
	s.t.Helper()
	if err := unix.IoctlSetWinsize(int(s.pty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) types(text string) {
	s.t.Helper()
	if _, err := s.pty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// says waits until the program has written a text.
func (s *session) says(want string) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for !strings.Contains(s.text(), want) {
		select {
		case <-s.done:
			if !strings.Contains(s.text(), want) {
				s.t.Fatalf("%v ended (%v) without saying %q; it said %q", s.cmd.Args, s.err, want, s.text())
			}
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%v does not say %q within %v; it said %q", s.cmd.Args, want, patience, s.text())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// exits waits until the program has ended, and returns its exit code.
func (s *session) exits() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(patience):
		s.t.Fatalf("%v does not end within %v; it said %q", s.cmd.Args, patience, s.text())
	}
	var exit *exec.ExitError
	if s.err == nil {
		return 0
	} else if errors.As(s.err, &exit) {
		return exit.ExitCode()
	}
	s.t.Fatal(s.err)
	return -1
}
