// Command skiff-start makes one container, or one more process in a running
// container, and is gone; the process becomes a child of the skiff-pod that
// started it.
//
//	skiff-start run  ROOT ID BUNDLE   the container of BUNDLE/spec.json
//	skiff-start exec ROOT ID FILE     the process in FILE, a startspec.Exec
//	skiff-start update ROOT ID FILE   the OCI resources in FILE, for a running one
//	skiff-start filter DIR CAPS -     the default seccomp filter of a process that
//	                                  can come to have CAPS (separated by commas),
//	                                  compiled, to stdout; see filter.go for DIR
//
// ROOT is libcontainer's state directory. Descriptors: 0 to 2 become the
// process's; 3 takes "pid N\n" on success and otherwise one sentence; 4, where a
// terminal is asked for, takes the terminal's master.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // or device rules are refused
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/startspec"
)

const (
	statusFD  = 3
	consoleFD = 4
)

// libcontainer executes this program again inside the new namespaces; that must
// be seen before anything else runs.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

func main() {
	unix.CloseOnExec(statusFD)
	unix.CloseOnExec(consoleFD)
	logrus.SetLevel(logrus.PanicLevel) // what matters comes back as an error
	verbs := map[string]func(root, id, file string) (int, error){"run": run, "exec": execIn, "update": update, "filter": filter}
	if len(os.Args) != 5 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: skiff-start run|exec|update|filter ROOT ID BUNDLE|FILE (started by skiff)")
		os.Exit(2)
	}
	do := verbs[os.Args[1]]
	status := os.NewFile(statusFD, "status")
	pid, err := guarded(do)
	if err != nil {
		fmt.Fprintf(status, "%v", err)
		os.Exit(1)
	}
	fmt.Fprintf(status, "pid %d\n", pid)
}

// guarded makes an error of a panic: stderr belongs to the container's log.
func guarded(do func(root, id, file string) (int, error)) (pid int, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("skiff-start: %v", r)
		}
	}()
	return do(os.Args[2], os.Args[3], os.Args[4])
}

func run(root, id, bundle string) (int, error) {
	var s startspec.Spec
	if err := startspec.Read(filepath.Join(bundle, startspec.File), &s); err != nil {
		return 0, err
	}
	var users *os.File
	var err error
	if s.Users != "" {
		if users, err = os.Open(s.Users); err != nil {
			return 0, fmt.Errorf("user namespace: %w", err)
		}
		defer users.Close()
		if err := makeRoot(s.OCI.Root.Path); err != nil {
			return 0, err
		}
	}
	if s.Overlay != nil {
		if err := mountOverlay(s.OCI.Root.Path, s.Overlay, users); err != nil {
			return 0, fmt.Errorf("mount root file system: %w", err)
		}
	}
	for _, i := range s.Images {
		if err := mountImage(i, users); err != nil {
			return 0, fmt.Errorf("mount image: %w", err)
		}
	}
	if s.OCI.Process.Capabilities == nil {
		s.OCI.Process.Capabilities = &specs.LinuxCapabilities{}
	}
	if s.DefaultSeccomp {
		p, err := seccomp.GetDefaultProfile(s.OCI)
		if err != nil {
			return 0, fmt.Errorf("default seccomp profile: %w", err)
		}
		s.OCI.Linux.Seccomp = p
	}
	if s.OCI.Process.User, err = lookUp(s.OCI.Root.Path, s.User); err != nil {
		return 0, err
	}
	if err := startspec.Write(filepath.Join(bundle, startspec.ProcessFile), s.OCI.Process); err != nil {
		return 0, err
	}
	adjustOOM(s.OCI.Process)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName: id,
		Spec:       s.OCI,
	})
	if err != nil {
		return 0, err
	}
	if config.Seccomp, err = compileFilter(config.Seccomp, s.Filters); err != nil {
		return 0, err
	}
	if users != nil {
		if err := giveStdio(config); err != nil {
			return 0, err
		}
	}
	c, err := libcontainer.Create(root, id, config)
	if err != nil {
		return 0, err
	}
	p := process(s.OCI.Process)
	p.Init = true
	if err := c.Run(p); err != nil {
		_ = c.Destroy() // the error of Run says what went wrong
		return 0, err
	}
	return p.Pid()
}

func execIn(root, id, file string) (int, error) {
	var x startspec.Exec
	if err := startspec.Read(file, &x); err != nil {
		return 0, err
	}
	adjustOOM(&x.Process)
	c, err := libcontainer.Load(root, id)
	if err != nil {
		return 0, err
	}
	if x.As != nil {
		if x.User, err = lookUpIn(c, *x.As); err != nil {
			return 0, err
		}
	}
	config := c.Config()
	if config.Namespaces.Contains(configs.NEWUSER) {
		// libcontainer begins there, also for this.
		if err := errors.Join(makeRoot(config.Rootfs), giveStdio(&config)); err != nil {
			return 0, err
		}
	}
	p := process(&x.Process)
	if err := c.Run(p); err != nil {
		return 0, err
	}
	return p.Pid()
}

// update changes the limits of a running container.
func update(root, id, file string) (int, error) {
	var res specs.LinuxResources
	if err := startspec.Read(file, &res); err != nil {
		return 0, err
	}
	c, err := libcontainer.Load(root, id)
	if err != nil {
		return 0, err
	}
	config := c.Config()
	to := config.Cgroups.Resources
	if cpu := res.CPU; cpu != nil {
		if cpu.Shares != nil {
			to.CpuShares = *cpu.Shares
			to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		if cpu.Quota != nil {
			to.CpuQuota = *cpu.Quota
		}
		if cpu.Period != nil {
			to.CpuPeriod = *cpu.Period
		}
		to.CpusetCpus, to.CpusetMems = cpu.Cpus, cpu.Mems
	}
	if m := res.Memory; m != nil {
		if m.Limit != nil {
			to.Memory = *m.Limit
		}
		if m.Swap != nil {
			to.MemorySwap = *m.Swap
		}
	}
	if res.Unified != nil {
		to.Unified = res.Unified
	}
	return 0, c.Set(config)
}

// filter writes a compiled filter for others to load.
func filter(dir, caps, _ string) (int, error) {
	bounding := strings.Split(caps, ",")
	p, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: bounding}}})
	if err != nil {
		return 0, fmt.Errorf("default seccomp profile: %w", err)
	}
	c, err := specconv.SetupSeccomp(p)
	if err != nil {
		return 0, err
	}
	program, err := compiledFilter(c, dir)
	if err == nil {
		_, err = os.Stdout.Write(program)
	}
	return 0, err
}

// adjustOOM applies the score to this process, whose descendants inherit it. A
// score below the inherited one needs CAP_SYS_RESOURCE: without it the score is
// the lowest that is allowed.
func adjustOOM(p *specs.Process) {
	if p.OOMScoreAdj == nil {
		return
	}
	want := *p.OOMScoreAdj
	p.OOMScoreAdj = nil
	write := func(n int) error { return os.WriteFile("/proc/self/oom_score_adj", fmt.Append(nil, n), 0) }
	if err := write(want); err != nil && want < 0 {
		_ = write(0) // refused too: the inherited score stays
	}
}
