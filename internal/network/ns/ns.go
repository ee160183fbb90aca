// Package ns does things in another network namespace than the process's.
//
// Most work needs no switch: a netlink socket stays in the namespace it was
// opened in, whichever thread uses it. So a switch lasts for opening sockets and
// for the few files below /proc/sys/net, which show the namespace of the thread
// that opens them.
package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// NS is a network namespace. The zero value is the process's own.
type NS struct{ f *os.File }

// Open opens the namespace at path, /proc/<pid>/ns/net say. An empty path means
// the process's own namespace. The namespace lives as long as it is open.
func Open(path string) (NS, error) {
	if path == "" {
		return NS{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return NS{}, fmt.Errorf("network namespace: %w", err)
	}
	return NS{f: f}, nil
}

// Close closes the namespace; sockets opened in it go on working.
func (n NS) Close() error {
	if n.f == nil {
		return nil
	}
	return n.f.Close()
}

// Fd returns the descriptor, 0 for the process's own namespace.
func (n NS) Fd() int {
	if n.f == nil {
		return 0
	}
	return int(n.f.Fd())
}

// Do calls fn on a thread that is in the namespace. fn must not start
// goroutines that are meant to be in it too.
func (n NS) Do(fn func() error) error {
	if n.f == nil {
		return fn()
	}
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = fn()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: it ends with its goroutine instead of
		// serving others from the wrong namespace.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Sysctl reads a setting by its dotted name (net.ipv4.ip_forward) in n.
func (n NS) Sysctl(name string) (string, error) {
	var b []byte
	err := n.Do(func() (err error) {
		b, err = os.ReadFile(sysctlPath(name))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// SetSysctl writes a setting in n.
func (n NS) SetSysctl(name, value string) error {
	err := n.Do(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0o644) })
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", name, value, err)
	}
	return nil
}

// sysctlPath maps dots to slashes and, as sysctl(8) does, slashes (in the name
// of a link with a dot) to dots.
func sysctlPath(name string) string {
	swap := strings.NewReplacer(".", "/", "/", ".")
	return filepath.Join("/proc/sys", swap.Replace(name))
}
