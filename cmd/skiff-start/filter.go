//go:build compiled

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// compileFilter puts the program that a filter comes to in its place: from dir,
// or compiled now and kept there. Compiling it costs as much as the rest of a
// start, loading it nothing. libcontainer loads it where it would load its own,
// with the same flags. A filter that asks a listener is left to libcontainer.
//
// Whoever can write to dir decides over the filters of containers: it is root's.
func compileFilter(c *configs.Seccomp, dir string) (*configs.Seccomp, error) {
	asks := func(s *configs.Syscall) bool { return s.Action == configs.Notify }
	if c == nil || dir == "" || c.ListenerPath != "" || slices.ContainsFunc(c.Syscalls, asks) {
		return c, nil
	}
	program, err := compiledFilter(c, dir)
	// Should a libcontainer that knows no programs ever read this, it allows nothing.
	return &configs.Seccomp{DefaultAction: configs.Errno, Program: program}, err
}

// compiledFilter is the program of a filter.
func compiledFilter(c *configs.Seccomp, dir string) ([]byte, error) {
	key, err := filterKey(c)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%x.bpf", key))
	program, err := readFilter(path, key)
	if err == nil {
		return program, nil
	}
	if program, err = seccomp.Compile(c); err == nil {
		writeFilter(path, key, program)
	}
	return program, err
}

// filterKey is a hash of all that a program depends on: what the filter says,
// the libraries that compile it, whose version is in this program's path, and
// the kernel, of whose abilities they make use.
func filterKey(c *configs.Seccomp) ([]byte, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	says, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, part := range [][]byte{uts.Release[:], uts.Version[:], []byte(self), says} {
		fmt.Fprintf(h, "%d\n", len(part))
		h.Write(part)
	}
	return h.Sum(nil), nil
}

// A kept program follows a sum over it and its key: what was cut off, or stands
// under another name, is no program.
func filterSum(key, program []byte) []byte {
	s := sha256.Sum256(slices.Concat(key, program))
	return s[:]
}

func readFilter(path string, key []byte) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) <= sha256.Size || !bytes.Equal(b[:sha256.Size], filterSum(key, b[sha256.Size:])) {
		return nil, fs.ErrNotExist
	}
	return b[sha256.Size:], nil
}

// writeFilter keeps a program for others. That it could not be kept is no error:
// the next one compiles it again.
func writeFilter(path string, key, program []byte) {
	f, err := os.CreateTemp(filepath.Dir(path), ".filter-*")
	if err != nil {
		return
	}
	_, err = f.Write(slices.Concat(filterSum(key, program), program))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
}
