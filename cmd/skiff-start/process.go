package main

import (
	"os"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process converts the spec's process. User, group, and capabilities are always
// given: for libcontainer nil means root with everything.
func process(p *specs.Process) *libcontainer.Process {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Label:           p.SelinuxLabel,
		Capabilities:    &configs.Capabilities{},
		LogLevel:        "2",
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	if c := p.Capabilities; c != nil {
		*lp.Capabilities = configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted,
			Inheritable: c.Inheritable, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		if t, ok := rlimits[strings.TrimPrefix(r.Type, "RLIMIT_")]; ok {
			lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: t, Hard: r.Hard, Soft: r.Soft})
		}
	}
	if p.Terminal {
		lp.ConsoleSocket = os.NewFile(consoleFD, "console")
		if p.ConsoleSize != nil {
			lp.ConsoleWidth = uint16(p.ConsoleSize.Width)
			lp.ConsoleHeight = uint16(p.ConsoleSize.Height)
		}
		return lp
	}
	lp.Stdin, lp.Stdout, lp.Stderr = os.Stdin, os.Stdout, os.Stderr
	return lp
}

var rlimits = map[string]int{
	"CORE": unix.RLIMIT_CORE, "MEMLOCK": unix.RLIMIT_MEMLOCK, "NOFILE": unix.RLIMIT_NOFILE,
	"NPROC": unix.RLIMIT_NPROC, "STACK": unix.RLIMIT_STACK,
}
