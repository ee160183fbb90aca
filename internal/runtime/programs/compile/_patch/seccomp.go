//go:build cgo && seccomp

// Added to libcontainer's package seccomp by package compile: filters that are
// compiled once and loaded many times.

package seccomp

import (
	"encoding/binary"
	"errors"

	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp/patchbpf"
)

// Compile makes the filter of config and loads it nowhere: the flags of
// seccomp(2), and the program's instructions of 8 bytes each, all little endian.
func Compile(config *configs.Seccomp) ([]byte, error) {
	var out []byte
	_, err := build(config, func(config *configs.Seccomp, filter *libseccomp.ScmpFilter) (int, error) {
		code, flags, err := patchbpf.Program(config, filter)
		if err != nil {
			return -1, err
		}
		out = binary.LittleEndian.AppendUint32(nil, uint32(flags))
		for _, in := range code {
			out = binary.LittleEndian.AppendUint16(out, in.Code)
			out = append(out, in.Jt, in.Jf)
			out = binary.LittleEndian.AppendUint32(out, in.K)
		}
		return -1, nil
	})
	return out, err
}

// InitSeccomp loads the filter of config: as it was compiled, where it was.
func InitSeccomp(config *configs.Seccomp) (int, error) {
	if config == nil || config.Program == nil {
		return build(config, patchbpf.PatchAndLoad)
	}
	b := config.Program
	if len(b) < 12 || len(b)%8 != 4 {
		return -1, errors.New("cannot initialize Seccomp - the compiled filter is cut off")
	}
	flags := binary.LittleEndian.Uint32(b)
	code := make([]unix.SockFilter, 0, len(b)/8)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		code = append(code, unix.SockFilter{Code: binary.LittleEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.LittleEndian.Uint32(b[4:])})
	}
	return patchbpf.Load(uint(flags), code)
}
