package build

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
)

// platform is what an image runs on.
type platform struct{ os, arch, variant string }

func machinePlatform() platform { return platform{os: "linux", arch: runtime.GOARCH}.normal() }

func (p platform) String() string {
	s := p.os + "/" + p.arch
	if p.variant != "" {
		s += "/" + p.variant
	}
	return s
}

// normal gives what has several names one, as the OCI image index does.
func (p platform) normal() platform {
	p.os, p.arch, p.variant = strings.ToLower(p.os), strings.ToLower(p.arch), strings.ToLower(p.variant)
	switch p.arch {
	case "x86_64", "x86-64":
		p.arch = "amd64"
	case "aarch64":
		p.arch = "arm64"
	case "i386", "i686":
		p.arch = "386"
	case "armhf":
		p.arch, p.variant = "arm", "v7"
	case "armel":
		p.arch, p.variant = "arm", "v6"
	}
	switch {
	case p.arch == "arm64" && (p.variant == "8" || p.variant == "v8"), p.arch == "amd64" && p.variant == "v1":
		p.variant = ""
	case p.arch == "arm" && p.variant == "":
		p.variant = "v7"
	case p.arch == "arm" && len(p.variant) == 1:
		p.variant = "v" + p.variant
	}
	return p
}

// same tells whether images of the one run on the other; variants are the
// processor's business.
func (p platform) same(q platform) bool { return p.os == q.os && p.arch == q.arch }

var platformPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// parsePlatform reads os/arch[/variant], or one of os and arch with the
// machine's other.
func parsePlatform(s string) (platform, error) {
	parts := strings.Split(s, "/")
	for _, part := range parts {
		if !platformPart.MatchString(part) {
			return platform{}, fmt.Errorf("platform %q: %q is an invalid component", s, part)
		}
	}
	switch len(parts) {
	case 1:
		if osName := strings.ToLower(s); osName == "linux" || osName == "windows" || osName == "darwin" || osName == "freebsd" {
			return platform{os: osName, arch: runtime.GOARCH}.normal(), nil
		}
		return platform{os: "linux", arch: s}.normal(), nil
	case 2:
		return platform{os: parts[0], arch: parts[1]}.normal(), nil
	case 3:
		return platform{os: parts[0], arch: parts[1], variant: parts[2]}.normal(), nil
	}
	return platform{}, fmt.Errorf("platform %q: must be os/arch or os/arch/variant", s)
}

// qemuNames are the names under which binfmt_misc knows other processors.
var qemuNames = map[string]string{
	"arm64": "aarch64", "arm": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x", "amd64": "x86_64", "386": "i386",
	"mips64le": "mips64el", "loong64": "loongarch64",
}

// runs tells whether this machine runs programs for p: its own, or with an
// interpreter that the kernel has open already (binfmt_misc, flag F).
func (p platform) runs() bool {
	if p.same(machinePlatform()) {
		return true
	}
	name, ok := qemuNames[p.arch]
	if !ok || p.os != "linux" {
		return false
	}
	entry, err := os.ReadFile("/proc/sys/fs/binfmt_misc/qemu-" + name)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(entry)) {
		if flags, ok := strings.CutPrefix(strings.TrimSpace(line), "flags: "); ok {
			return strings.HasPrefix(string(entry), "enabled") && strings.Contains(flags, "F")
		}
	}
	return false
}
