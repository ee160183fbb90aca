//go:build cgo && seccomp

// Added to libcontainer's package patchbpf by package compile.

package patchbpf

import (
	"errors"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// Program is what PatchAndLoad loads, and the flags that it loads it with.
func Program(config *configs.Seccomp, filter *libseccomp.ScmpFilter) ([]unix.SockFilter, uint, error) {
	code, err := enosysPatchFilter(config, filter)
	if err != nil {
		return nil, 0, err
	}
	flags, noNewPrivs, err := filterFlags(config, filter)
	if err == nil && noNewPrivs {
		err = errors.New("the filter asks for no_new_privs")
	}
	return code, flags, err
}

// Load installs a program.
func Load(flags uint, code []unix.SockFilter) (int, error) {
	return sysSeccompSetFilter(flags, code)
}
