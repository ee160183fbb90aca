package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/startspec"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// containerSpec says what skiff-start shall make of a container; the overlay is
// missing yet.
func (r *Runtime) containerSpec(c *container, img *image.Image) (*startspec.Spec, error) {
	sec := c.config.GetLinux().GetSecurityContext()
	args, err := command(c.config, img)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(sec)
	if err != nil {
		return nil, err
	}
	oci := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: r.rootPath(c), Readonly: sec.GetReadonlyRootfs()},
		Process: &specs.Process{
			Args: args, Env: environment(c, img, r.hostname(c.sb)), Cwd: first(c.config.GetWorkingDir(), img.Config.Config.WorkingDir, "/"),
			Terminal: c.config.GetTty(), Capabilities: caps, NoNewPrivileges: sec.GetNoNewPrivs(),
		},
		Linux: &specs.Linux{
			CgroupsPath: c.rec.Cgroup,
			Resources:   ociResources(c.config.GetLinux().GetResources()),
		},
	}
	if p := sec.GetApparmor(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !sec.GetPrivileged() {
		oci.Process.ApparmorProfile = strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	}
	if !filepath.IsAbs(oci.Process.Cwd) {
		return nil, fmt.Errorf("working directory %q: must be an absolute path", oci.Process.Cwd)
	}
	if adj := int(c.config.GetLinux().GetResources().GetOomScoreAdj()); adj != 0 {
		oci.Process.OOMScoreAdj = &adj
	}
	if oci.Linux.Namespaces, err = r.namespaces(c); err != nil {
		return nil, err
	}
	if oci.Mounts, err = r.mounts(c); err != nil {
		return nil, err
	}
	if err := devices(c.config, oci); err != nil {
		return nil, err
	}
	if err := r.injectCDI(c.config, oci); err != nil {
		return nil, err
	}
	if !sec.GetPrivileged() {
		oci.Linux.MaskedPaths, oci.Linux.ReadonlyPaths = sec.GetMaskedPaths(), sec.GetReadonlyPaths()
	}
	// Mounts that shall be seen outside need a path to there.
	oci.Linux.RootfsPropagation = "rslave"
	for _, m := range c.config.GetMounts() {
		if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			oci.Linux.RootfsPropagation = "rshared"
		}
	}
	s := &startspec.Spec{OCI: oci, User: user(sec, img), Filters: filtersDir(r.Instance), Users: r.usersPath(c.sb)}
	s.User.Extra = append(s.User.Extra, oci.Process.User.AdditionalGids...)
	if err := seccomp(sec, s); err != nil {
		return nil, err
	}
	return s, nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// command puts the config's command and args over the image's: a command of its
// own drops the image's arguments too.
func command(config *runtimeapi.ContainerConfig, img *image.Image) ([]string, error) {
	cmd, args := config.GetCommand(), config.GetArgs()
	if len(cmd) == 0 {
		if len(args) == 0 {
			args = img.Config.Config.Cmd
		}
		cmd = img.Config.Config.Entrypoint
	}
	all := append(append([]string{}, cmd...), args...)
	if len(all) == 0 {
		return nil, errors.New("no command specified")
	}
	return all, nil
}

// environment is the image's, under the config's, the last of a name winning.
func environment(c *container, img *image.Image, hostname string) []string {
	var order []string
	values := map[string]string{}
	set := func(k, v string) {
		if _, ok := values[k]; !ok {
			order = append(order, k)
		}
		values[k] = v
	}
	k, v, _ := strings.Cut(defaultPath, "=")
	set(k, v)
	set("HOSTNAME", hostname)
	if c.config.GetTty() {
		set("TERM", "xterm")
	}
	for _, e := range img.Config.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			set(k, v)
		}
	}
	for _, e := range c.config.GetEnvs() {
		set(e.GetKey(), string(e.GetValue()))
	}
	out := make([]string, 0, len(order))
	for _, k := range order {
		out = append(out, k+"="+values[k])
	}
	return out
}

func user(sec *runtimeapi.LinuxContainerSecurityContext, img *image.Image) startspec.User {
	u := startspec.User{Strict: sec.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict}
	switch {
	case sec.GetRunAsUser() != nil:
		u.User = strconv.FormatInt(sec.GetRunAsUser().GetValue(), 10)
	case sec.GetRunAsUsername() != "":
		u.User = sec.GetRunAsUsername()
	default:
		u.User, u.Group, _ = strings.Cut(img.Config.Config.User, ":")
	}
	if g := sec.GetRunAsGroup(); g != nil {
		u.Group = strconv.FormatInt(g.GetValue(), 10)
	}
	for _, g := range sec.GetSupplementalGroups() {
		u.Extra = append(u.Extra, uint32(g))
	}
	return u
}

func (r *Runtime) namespaces(c *container) ([]specs.LinuxNamespace, error) {
	r.mu.Lock()
	pid, nsinit := c.sb.rec.PID, c.sb.rec.NSInit
	r.mu.Unlock()
	of := func(pid int, t specs.LinuxNamespaceType, file string) specs.LinuxNamespace {
		return specs.LinuxNamespace{Type: t, Path: fmt.Sprintf("/proc/%d/ns/%s", pid, file)}
	}
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if c.sb.users != nil {
		out = append(out, specs.LinuxNamespace{Type: specs.UserNamespace, Path: pod.UsersPath(pid)})
	}
	if !c.sb.hostNetwork() {
		out = append(out, of(pid, specs.NetworkNamespace, "net"), of(pid, specs.UTSNamespace, "uts"))
	}
	if c.sb.nsOptions().GetIpc() != runtimeapi.NamespaceMode_NODE {
		out = append(out, of(pid, specs.IPCNamespace, "ipc"))
	}
	sec := c.config.GetLinux().GetSecurityContext()
	switch sec.GetNamespaceOptions().GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case runtimeapi.NamespaceMode_POD:
		if nsinit == 0 {
			return nil, errors.New("the pod was made without a shared PID namespace")
		}
		out = append(out, of(nsinit, specs.PIDNamespace, "pid"))
	case runtimeapi.NamespaceMode_TARGET:
		t, _, err := r.running(sec.GetNamespaceOptions().GetTargetId())
		if err != nil {
			return nil, fmt.Errorf("invalid target container: %w", err)
		}
		if t.sb != c.sb {
			return nil, fmt.Errorf("invalid target container: %s is in another pod", t.id)
		}
		r.mu.Lock()
		out = append(out, of(t.proc.PID, specs.PIDNamespace, "pid"))
		r.mu.Unlock()
	}
	if r.cg.V2 && !sec.GetPrivileged() {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return out, nil
}

func seccomp(sec *runtimeapi.LinuxContainerSecurityContext, s *startspec.Spec) error {
	if sec.GetPrivileged() || sec.GetSeccomp() == nil {
		return nil
	}
	switch p := sec.GetSeccomp(); p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		s.DefaultSeccomp = true
	case runtimeapi.SecurityProfile_Localhost:
		path := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("failed to load seccomp profile %q: %w", path, err)
		}
		s.OCI.Linux.Seccomp = &specs.LinuxSeccomp{}
		if err := json.Unmarshal(b, s.OCI.Linux.Seccomp); err != nil {
			return fmt.Errorf("failed to decode seccomp profile %q: %w", path, err)
		}
	}
	return nil
}

// ociResources are a container's limits. What is zero is not limited.
func ociResources(res *runtimeapi.LinuxContainerResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if res == nil {
		return out
	}
	cpu := &specs.LinuxCPU{Cpus: res.GetCpusetCpus(), Mems: res.GetCpusetMems()}
	if n := res.GetCpuShares(); n > 0 {
		v := uint64(n)
		cpu.Shares = &v
	}
	if n := res.GetCpuQuota(); n != 0 {
		cpu.Quota = &n
	}
	if n := res.GetCpuPeriod(); n > 0 {
		v := uint64(n)
		cpu.Period = &v
	}
	out.CPU = cpu
	if n := res.GetMemoryLimitInBytes(); n != 0 {
		out.Memory = &specs.LinuxMemory{Limit: &n}
		if s := res.GetMemorySwapLimitInBytes(); s != 0 && swapLimits() {
			out.Memory.Swap = &s
		}
	}
	for _, h := range res.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if len(res.GetUnified()) > 0 {
		out.Unified = res.GetUnified()
	}
	return out
}

// swapLimits tells whether this kernel can limit swap.
func swapLimits() bool {
	for _, f := range []string{"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/cgroup.controllers"} {
		if _, err := os.Stat(f); err == nil {
			return true
		}
	}
	return false
}
