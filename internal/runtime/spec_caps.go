package runtime

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// capabilityNames are the kernel's, by number.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// defaultCapabilities are what a container has that asks for nothing.
var defaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW",
	"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// hostCapabilities are those that the host grants to us: more cannot be given.
func hostCapabilities() []string {
	b, _ := os.ReadFile("/proc/self/status")
	var set uint64
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "CapBnd:"); ok {
			set, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	var out []string
	for i, n := range capabilityNames {
		if set&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}

// capabilities of a container. What is added beyond what the host grants is
// left out, as the kernel would.
func capabilities(sec *runtimeapi.LinuxContainerSecurityContext) (*specs.LinuxCapabilities, error) {
	granted := hostCapabilities()
	has := map[string]bool{}
	for _, n := range defaultCapabilities {
		has[n] = true
	}
	c := sec.GetCapabilities()
	norm := func(n string) (string, error) {
		n = strings.TrimPrefix(strings.ToUpper(n), "CAP_")
		if n != "ALL" && !slices.Contains(capabilityNames, n) {
			return "", fmt.Errorf("unknown capability %q", "CAP_"+n)
		}
		return n, nil
	}
	set := func(names []string, on bool, all bool) error {
		for _, n := range names {
			n, err := norm(n)
			if err != nil {
				return err
			}
			if (n == "ALL") != all {
				continue
			}
			if n != "ALL" {
				has[n] = on
				continue
			}
			for _, k := range capabilityNames {
				has[k] = on
			}
		}
		return nil
	}
	if sec.GetPrivileged() {
		for _, n := range capabilityNames {
			has[n] = true
		}
	} else {
		// ALL first: "add ALL, drop KILL" and "drop ALL, add KILL" both mean it.
		for _, step := range []struct {
			names   []string
			on, all bool
		}{
			{c.GetAddCapabilities(), true, true}, {c.GetDropCapabilities(), false, true},
			{c.GetAddCapabilities(), true, false}, {c.GetDropCapabilities(), false, false},
		} {
			if err := set(step.names, step.on, step.all); err != nil {
				return nil, err
			}
		}
	}
	var list []string
	for _, n := range granted {
		if has[n] {
			list = append(list, "CAP_"+n)
		}
	}
	out := &specs.LinuxCapabilities{Bounding: list, Effective: list, Permitted: list}
	for _, n := range c.GetAddAmbientCapabilities() {
		n, err := norm(n)
		if err != nil {
			return nil, err
		}
		if slices.Contains(list, "CAP_"+n) {
			out.Ambient = append(out.Ambient, "CAP_"+n)
			out.Inheritable = append(out.Inheritable, "CAP_"+n)
		}
	}
	return out, nil
}
