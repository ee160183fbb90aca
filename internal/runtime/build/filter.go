package build

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DefaultFilter returns the seccomp filter that containers have by default, for
// commands with the default capabilities. starter names skiff-start, which knows
// how to make it; dir is where that keeps filters, and may be missing. A filter is
// what skiff-start says: the flags of seccomp(2) and instructions.
func DefaultFilter(starter func() (string, error), dir string) func(context.Context) ([]byte, error) {
	var mu sync.Mutex
	var made []byte
	return func(ctx context.Context) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if made != nil {
			return made, nil
		}
		program, err := starter()
		if err != nil {
			return nil, err
		}
		said, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer said.Close()
		var out, why bytes.Buffer
		caps := strings.Join(slices.Sorted(maps.Values(allowedCaps)), ",")
		cmd := exec.CommandContext(ctx, program, "filter", dir, caps, "-")
		cmd.Stdout, cmd.ExtraFiles = &out, []*os.File{w}
		err = cmd.Run()
		w.Close()
		_, _ = why.ReadFrom(said)
		if err != nil {
			return nil, fmt.Errorf("seccomp filter: %w: %s", err, strings.TrimSpace(why.String()))
		}
		made = out.Bytes()
		return made, nil
	}
}

// loadFilter filters what this thread, and the program that it becomes, asks of
// the kernel from now on.
func loadFilter(b []byte) error {
	if b == nil {
		return nil
	}
	if len(b) < 12 || len(b)%8 != 4 {
		return errors.New("seccomp filter: cut off")
	}
	flags := binary.LittleEndian.Uint32(b)
	var code []unix.SockFilter
	for b = b[4:]; len(b) > 0; b = b[8:] {
		code = append(code, unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])})
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("seccomp filter: %w", errno)
	}
	return nil
}
