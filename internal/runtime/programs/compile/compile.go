// Package compile builds skiff's helper programs from source, for the build and
// for tests. It needs gcc, libc6-dev and libseccomp-dev.
package compile

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// Names are the programs.
var Names = []string{"skiff-pod", "skiff-start"}

// Build compiles the programs of the module at root into dir.
func Build(root, dir string) error {
	if _, err := exec.LookPath("gcc"); err != nil {
		return errors.New("gcc is needed: apt-get install gcc libc6-dev libseccomp-dev")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	sources, err := filepath.Glob(filepath.Join(root, "cmd/skiff-pod/*.c"))
	if err != nil || len(sources) == 0 {
		return fmt.Errorf("no sources of skiff-pod below %s", root)
	}
	args := []string{"-std=gnu11", "-Os", "-static", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong",
		"-D_FORTIFY_SOURCE=2", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-s",
		"-o", filepath.Join(dir, "skiff-pod")}
	if err := run(root, nil, "gcc", append(args, sources...)...); err != nil {
		return err
	}
	root, err = filepath.Abs(root)
	if err != nil {
		return err
	}
	modfile, err := patched(root)
	if err != nil {
		return err
	}
	// Static, so that it runs on any distribution and is loaded quickly.
	return run(root, []string{"CGO_ENABLED=1", "GOFLAGS="}, "go", "build", "-buildvcs=false", "-trimpath", "-modfile="+modfile,
		"-tags=fieldsv1string,seccomp,compiled,netgo,osusergo",
		`-ldflags=-s -w -linkmode external -extldflags "-static"`,
		"-o", filepath.Join(dir, "skiff-start"), "./cmd/skiff-start")
}

func run(dir string, env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

// Pack compresses the programs in from to NAME.zst in to, leaving alone what
// would not change.
func Pack(from, to string) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		return err
	}
	defer enc.Close()
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, n := range Names {
		b, err := os.ReadFile(filepath.Join(from, n))
		if err != nil {
			return err
		}
		packed := enc.EncodeAll(b, nil)
		path := filepath.Join(to, n+".zst")
		if old, err := os.ReadFile(path); err == nil && string(old) == string(packed) {
			continue
		}
		if err := os.WriteFile(path, packed, 0o644); err != nil {
			return err
		}
	}
	return nil
}
