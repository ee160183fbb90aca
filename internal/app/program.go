package app

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	utilversion "k8s.io/apimachinery/pkg/util/version"

	"skiff/internal/cli"
	"skiff/internal/runtime/programs"
)

// release is the version of this program, stamped when it is linked:
//
//	go build -ldflags "-X skiff/internal/app.release=v0.5.0" ./cmd/skiff
var release = devRelease

// devRelease is that of a program that nobody released. It is neither older nor
// newer than any other.
const devRelease = "dev"

// identity tells this program from others.
func identity() cli.Identity { return cli.Identity{Release: release, Build: buildOf("/proc/self/exe")} }

// buildOf is a short hash of what a Go program was built from, which its linker left
// in it; empty where it left none.
func buildOf(path string) string {
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	s := f.Section(".note.go.buildid")
	if s == nil {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(s.Open(), 4096))
	if err != nil {
		return ""
	}
	return contentOf(b, f.ByteOrder.Uint32)
}

// contentOf reads an ELF note (elf(5)) of Go's linker: ACTION/.../CONTENT.
func contentOf(note []byte, u32 func([]byte) uint32) string {
	if len(note) < 16 || u32(note) != 4 || string(note[12:16]) != "Go\x00\x00" {
		return ""
	}
	size := uint64(u32(note[4:]))
	if uint64(len(note)) < 16+size {
		return ""
	}
	id := string(note[16 : 16+size])
	id = id[strings.LastIndexByte(id, '/')+1:]
	return id[:min(len(id), 12)]
}

// Identity implements cli.Upgrader.
func (Local) Identity() cli.Identity { return identity() }

// Older implements cli.Upgrader.
func (Local) Older(a, b string) bool { return olderRelease(a, b) }

// olderRelease tells whether release a came before b. What does not say its release
// came before all that do.
func olderRelease(a, b string) bool {
	if a == devRelease || b == devRelease || a == b {
		return false
	}
	va, err := utilversion.ParseSemantic(a)
	if err != nil {
		return true
	}
	vb, err := utilversion.ParseSemantic(b)
	return err == nil && va.LessThan(vb)
}

// CanRun implements cli.Upgrader: it looks for all that would make a start fail
// which can be seen beside the skiff that runs, and touches nothing of that.
func (Local) CanRun(ctx context.Context, st cli.Start) error {
	set, err := startSettings(st)
	if err != nil {
		return err
	}
	if err := preflight(set, st.Role != cli.ServerOnly, thisMachine()); err != nil {
		return err
	}
	// Beside those of the other: each release has its own place.
	helpers, err := programs.Unpack(programs.Embedded(), set.Instance.Data("bin"))
	if err != nil {
		return err
	}
	for _, p := range []string{helpers.Pod, helpers.Start} {
		if err := executes(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// executes tells whether the machine can run a program at all: without arguments it
// ends at once, with whatever code.
func executes(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the program %s does not run here: %w", path, err)
	}
	return nil
}

// killAtEnv names a step of a pod's start or end (see package runtime) at which this
// process kills itself: for tests of what the next one finds.
const killAtEnv = "SKIFF_KILL_AT"

// killAt is for runtime.Deps.Step; nil where no step is named.
func killAt(step string) func(string) {
	if step == "" {
		return nil
	}
	return func(name string) {
		if name == step {
			if self, err := os.FindProcess(os.Getpid()); err == nil {
				_ = self.Kill()
			}
			select {} // no instruction after this one
		}
	}
}
