package critest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// expect compares trimmed output.
func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("%s: got %q, want %q", what, strings.TrimSpace(got), want)
	}
}

func security(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { change(c.Linux.SecurityContext) }
}

func (f Fixture) testProcess(t *testing.T) {
	p := f.Run(t, nil)
	expect(t, "hostname", p.Output(nil, "sh", "-c", "hostname; echo $HOSTNAME; cat /etc/hostname"), "web-0\nweb-0\nweb-0")
	expect(t, "environment", p.Output(func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "A", Value: []byte("2")}, {Key: "PATH", Value: []byte("/bin:/x")}}
	}, "sh", "-c", "echo $A $PATH $HOME"), "2 /bin:/x /root")
	expect(t, "working directory that is not there", p.Output(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/new/dir" }, "pwd"), "/new/dir")
	expect(t, "command and args", p.Output(func(c *runtimeapi.ContainerConfig) { c.Command, c.Args = []string{"echo", "a"}, []string{"b"} }), "a b")
	expect(t, "PID 1", p.Output(nil, "sh", "-c", "echo $$"), "1")
	expect(t, "resolv.conf", p.Output(nil, "cat", "/etc/resolv.conf"),
		"search critest.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5")
	expect(t, "terminal", strings.ReplaceAll(p.Output(func(c *runtimeapi.ContainerConfig) { c.Tty = true }, "sh", "-c", "tty >/dev/null && echo $TERM"), "\r", ""), "xterm")
}

func (f Fixture) testUsers(t *testing.T) {
	p := f.Run(t, nil)
	n := func(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }
	for _, tc := range []struct {
		name, want string
		change     func(*runtimeapi.LinuxContainerSecurityContext)
	}{
		{"image's", "0 0 0", func(*runtimeapi.LinuxContainerSecurityContext) {}},
		{"number", "1000 1001 1001 2002", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = n(1000) }},
		{"name", "1000 1001 1001 2002", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "app" }},
		{"group", "1000 3000 3000 2002", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = n(1000), n(3000) }},
		{"unknown number", "4242 0 0", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = n(4242) }},
		{"supplemental", "1000 1001 1001 2002 5000", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups = n(1000), []int64{5000}
		}},
		{"strict", "1000 1001 1001 5000", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.SupplementalGroups, s.SupplementalGroupsPolicy = n(1000), []int64{5000}, runtimeapi.SupplementalGroupsPolicy_Strict
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := p.Start(security(tc.change), "sh", "-c", "echo $(id -u) $(id -g) $(id -G); echo x > /dev/stdout")
			st := c.Exited()
			expect(t, "id", c.Log("stdout"), tc.want+"\nx")
			if u := st.GetUser().GetLinux(); fmt.Sprint(u.GetUid(), " ", u.GetGid()) != strings.Join(strings.Fields(tc.want)[:2], " ") {
				t.Errorf("status says %v", u)
			}
		})
	}
	c, err := p.Create(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobodyhere" }), "true")
	if err == nil {
		err = f.Runtime.StartContainer(t.Context(), c.ID)
	}
	if err == nil || !strings.Contains(err.Error(), "nobodyhere") {
		t.Errorf("unknown name: %v", err)
	}
}

func (f Fixture) testSecurity(t *testing.T) {
	p := f.Run(t, nil)
	caps := func(c *Container) string {
		c.Exited()
		return strings.TrimSpace(c.Log("stdout"))
	}
	show := []string{"sh", "-c", "grep -E 'CapEff|CapBnd' /proc/self/status | awk '{print $2}'"}
	if got := caps(p.Start(nil, show...)); got != "00000000a80425fb\n00000000a80425fb" {
		t.Errorf("default capabilities: %q", got)
	}
	drop := func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
	}
	if got := caps(p.Start(security(drop), show...)); got != "0000000000000400\n0000000000000400" {
		t.Errorf("drop ALL, add one: %q", got)
	}
	if got := caps(p.Start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}), show...)); got != "0000000000000000\n00000000a80425fb" {
		t.Errorf("not root: %q", got)
	}
	b, _ := os.ReadFile("/proc/self/status")
	var host string
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "CapBnd:"); ok {
			host = strings.TrimSpace(v)
		}
	}
	priv := security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true; s.Seccomp = nil })
	if got := caps(p.Start(priv, show...)); got != host+"\n"+host {
		t.Errorf("privileged: %q, host %q", got, host)
	}
	expect(t, "privileged may mount and sees devices", p.Output(priv, "sh", "-c", "mount -t tmpfs t /tmp && [ -c /dev/kmsg -o -c /dev/fuse -o -c /dev/net/tun -o -b /dev/vda ] && [ -w /proc/sys ] && echo yes"), "yes")
	expect(t, "seccomp and no mount", p.Output(nil, "sh", "-c", "grep Seccomp: /proc/self/status | awk '{print $2}'; mount -t tmpfs t /tmp 2>/dev/null || echo no"), "2\nno")
	expect(t, "unconfined", p.Output(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}), "sh", "-c", "grep Seccomp: /proc/self/status | awk '{print $2}'"), "0")
	expect(t, "read-only root", p.Output(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }),
		"sh", "-c", "touch /x 2>/dev/null || echo no; echo > /dev/shm/x && echo shm"), "no\nshm")
	expect(t, "writable root", p.Output(nil, "sh", "-c", "echo x > /x; cat /x"), "x")
	for want, nnp := range map[string]bool{"0": false, "1": true} {
		expect(t, "no_new_privs", p.Output(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = nnp }),
			"sh", "-c", "grep NoNewPrivs /proc/self/status | awk '{print $2}'"), want)
	}
	expect(t, "masked and read-only paths", p.Output(nil, "sh", "-c", "head -c1 /proc/kcore | wc -c; echo 0 2>/dev/null > /proc/sys/vm/swappiness || echo no"), "0\nno")
	expect(t, "devices", p.Output(nil, "sh", "-c", "cd /dev; echo $(ls | grep -v core); head -c3 /dev/zero | wc -c; mknod /tmp/d b 7 0 && cat /tmp/d 2>&1 | grep -o 'not permitted'"),
		"fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n3\nnot permitted")
}

func (f Fixture) testMounts(t *testing.T) {
	p := f.Run(t, nil)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	with := func(m ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Mounts = m }
	}
	expect(t, "bind", p.Output(with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/mnt/a/b"}), "sh", "-c", "cat /mnt/a/b/file; echo new > /mnt/a/b/new"), "content")
	if b, err := os.ReadFile(filepath.Join(dir, "new")); string(b) != "new\n" {
		t.Errorf("written through: %q, %v", b, err)
	}
	expect(t, "read-only", p.Output(with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", Readonly: true}), "sh", "-c", "touch /m/x 2>/dev/null || echo no"), "no")
	expect(t, "recursively read-only", p.Output(with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/m", Readonly: true, RecursiveReadOnly: true}), "sh", "-c", "touch /m/x 2>/dev/null || echo no"), "no")
	expect(t, "a file over a file of ours", p.Output(with(&runtimeapi.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/hosts"}), "cat", "/etc/hosts"), "content")
	expect(t, "nested, whatever the order", p.Output(with(
		&runtimeapi.Mount{HostPath: filepath.Join(dir, "file"), ContainerPath: "/m/deep/file"},
		&runtimeapi.Mount{HostPath: filepath.Join(dir, "fresh"), ContainerPath: "/m"},
	), "cat", "/m/deep/file"), "content")
	image := func(sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: f.Image}, ImageSubPath: sub, ContainerPath: "/m", Readonly: true}
	}
	expect(t, "an image", p.Output(with(image("")), "sh", "-c", "cmp /bin/busybox /m/bin/busybox && touch /m/x 2>/dev/null || echo read-only; /m/bin/busybox true 2>/dev/null || echo not executable"), "read-only\nnot executable")
	expect(t, "a directory of an image", p.Output(with(image("bin")), "sh", "-c", "cmp /bin/busybox /m/busybox && echo same"), "same")
	expect(t, "a file of an image", p.Output(with(image("bin/busybox")), "sh", "-c", "cmp /bin/busybox /m && echo same"), "same")
	for _, sub := range []string{"../etc", "/etc", "bin/../../etc"} {
		if _, err := p.Create(with(image(sub)), "true"); err == nil {
			t.Errorf("image_sub_path %q is accepted", sub)
		}
	}
	if id, err := p.Create(with(image("not/there")), "true"); err != nil {
		t.Errorf("create: %v", err)
	} else if err := f.Runtime.StartContainer(t.Context(), id.ID); err == nil || !strings.Contains(err.Error(), `the image has no "not/there"`) {
		t.Errorf("a part that the image does not have: %v", err)
	}
	if _, err := p.Create(with(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "not.there/image:1"}, ContainerPath: "/m"}), "true"); err == nil {
		t.Error("an image that is not there is mounted")
	}
	if _, err := p.Create(with(&runtimeapi.Mount{HostPath: "relative", ContainerPath: "/m"}), "true"); err == nil {
		t.Error("relative host path")
	}
	if _, err := p.Create(with(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/"}), "true"); err == nil {
		t.Error("mount over the root")
	}
}

func (f Fixture) testNamespaces(t *testing.T) {
	t.Run("two containers share the pod", func(t *testing.T) {
		p := f.Run(t, nil)
		a := p.Start(nil, "sh", "-c", "echo shared > /dev/shm/x; nc -l -p 8080 -e echo hi")
		Until(t, "it listens", func() bool {
			out, _ := a.Exec("cat", "/proc/net/tcp", "/proc/net/tcp6")
			return strings.Contains(out, ":1F90")
		})
		expect(t, "shm and loopback", p.Output(nil, "sh", "-c", "cat /dev/shm/x; nc 127.0.0.1 8080"), "shared\nhi")
		expect(t, "processes of its own", p.Output(nil, "sh", "-c", "echo /proc/[0-9]*"), "/proc/1")
	})
	t.Run("shared processes", func(t *testing.T) {
		p := f.Run(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		})
		a := p.Start(nil, "sleep", "12345")
		if out := p.Output(nil, "ps"); !strings.Contains(out, "sleep 12345") {
			t.Errorf("ps:\n%s", out)
		}
		if err := f.Runtime.StopContainer(t.Context(), a.ID, 0); err != nil {
			t.Error(err)
		}
		if st := a.Status(); st.GetExitCode() != 137 {
			t.Errorf("status = %v", st)
		}
	})
	t.Run("host", func(t *testing.T) {
		p := f.Run(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE,
			}
		})
		out := strings.Fields(p.Output(nil, "sh", "-c", "for n in net ipc pid uts; do readlink /proc/self/ns/$n; done"))
		for i, n := range []string{"net", "ipc", "pid", "uts"} {
			if host, _ := os.Readlink("/proc/self/ns/" + n); len(out) != 4 || out[i] != host {
				t.Errorf("%s namespace: %v, host %v", n, out, host)
			}
		}
	})
	t.Run("target", func(t *testing.T) {
		p := f.Run(t, nil)
		a := p.Start(nil, "sleep", "54321")
		if out := p.Output(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: a.ID}
		}), "ps"); !strings.Contains(out, "1 root     sleep 54321") {
			t.Errorf("ps:\n%s", out)
		}
	})
	t.Run("sysctls", func(t *testing.T) {
		p := f.Run(t, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "333", "kernel.shm_rmid_forced": "1"}
		})
		expect(t, "values", p.Output(nil, "cat", "/proc/sys/net/core/somaxconn", "/proc/sys/kernel/shm_rmid_forced", "/proc/sys/net/ipv4/ip_unprivileged_port_start"), "333\n1\n0")
	})
}

func (f Fixture) testResources(t *testing.T) {
	p := f.Run(t, nil)
	var c *Container
	read := func(v1, v2 string) string {
		out, err := c.Exec("sh", "-c", "cat /sys/fs/cgroup/"+v1+" 2>/dev/null || cat /sys/fs/cgroup/"+v2)
		if err != nil {
			t.Errorf("%s: %v", v1, err)
		}
		return strings.TrimSpace(out)
	}
	c = p.Start(func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500}
	}, "sleep", "1000")
	expect(t, "memory", read("memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint(64<<20))
	expect(t, "quota", strings.Fields(read("cpu/cpu.cfs_quota_us", "cpu.max"))[0], "50000")
	if s := read("cpu/cpu.shares", "cpu.weight"); s != "512" && s != "20" && s != "59" {
		t.Errorf("shares = %s", s)
	}
	out, err := c.Exec("cat", "/proc/1/oom_score_adj")
	if err != nil {
		t.Error(err)
	}
	expect(t, "oom_score_adj", out, "500")
	if err := f.Runtime.UpdateContainerResources(t.Context(), c.ID, &runtimeapi.ContainerResources{
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 80000, CpuPeriod: 100000},
	}); err != nil {
		t.Fatal(err)
	}
	expect(t, "updated memory", read("memory/memory.limit_in_bytes", "memory.max"), fmt.Sprint(128<<20))
	expect(t, "updated quota", strings.Fields(read("cpu/cpu.cfs_quota_us", "cpu.max"))[0], "80000")
	if r := c.Status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpuQuota() != 80000 || r.GetCpuShares() != 512 {
		t.Errorf("status says %v", r)
	}
	low := p.Output(func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.OomScoreAdj = -997 }, "cat", "/proc/self/oom_score_adj")
	if s := strings.TrimSpace(low); s != "-997" && s != "0" { // 0 where the host refuses
		t.Errorf("oom_score_adj = %s", s)
	}
}

func (f Fixture) testStats(t *testing.T) {
	p := f.Run(t, nil)
	c := p.Start(nil, "sh", "-c", "head -c 1000000 /dev/zero > /data/file; echo ok; sleep 1000")
	Until(t, "it is done", func() bool { return c.Log("stdout") == "ok\n" })
	s, err := f.Runtime.ContainerStats(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetWritableLayer().GetUsedBytes().GetValue() < 1000000 {
		t.Errorf("stats = %v", s)
	}
	l, err := f.Runtime.ListContainerStats(t.Context(), &runtimeapi.ContainerStatsFilter{PodSandboxId: p.ID})
	if err != nil || len(l) != 1 {
		t.Errorf("list = %v, %v", l, err)
	}
	ps, err := f.Runtime.PodSandboxStats(t.Context(), p.ID)
	if err != nil || len(ps.GetLinux().GetContainers()) != 1 || ps.GetLinux().GetMemory().GetUsageBytes().GetValue() == 0 {
		t.Errorf("pod stats = %v, %v", ps, err)
	}
}

func (f Fixture) testImages(t *testing.T) {
	ctx := t.Context()
	r, err := f.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: f.Image}, false)
	if err != nil || r.GetImage().GetId() == "" {
		t.Fatalf("status = %v, %v", r, err)
	}
	if r, err = f.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: "critest.invalid/none:1"}, false); err != nil || r.GetImage() != nil {
		t.Errorf("missing: %v, %v", r, err)
	}
	if l, err := f.Images.ListImages(ctx, nil); err != nil || len(l) == 0 {
		t.Errorf("list = %v, %v", l, err)
	}
	if i, err := f.Images.ImageFsInfo(ctx); err != nil || len(i.GetImageFilesystems()) == 0 {
		t.Errorf("fs info = %v, %v", i, err)
	}
	if err := f.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: "critest.invalid/none:1"}); err != nil {
		t.Errorf("remove a missing one: %v", err)
	}
	p := f.Run(t, nil)
	if _, err := p.Create(func(c *runtimeapi.ContainerConfig) { c.Image.Image = "critest.invalid/none:1" }, "true"); status.Code(err) != codes.NotFound {
		t.Errorf("create from a missing one: %v", err)
	}
}

func (f Fixture) testBadInput(t *testing.T) {
	ctx := t.Context()
	for name, config := range map[string]*runtimeapi.PodSandboxConfig{
		"nothing":     nil,
		"no metadata": {},
		"no name":     {Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "a", Uid: "b"}},
	} {
		if _, err := f.Runtime.RunPodSandbox(ctx, config, ""); err == nil {
			t.Errorf("sandbox of %s", name)
		}
	}
	p := f.Run(t, nil)
	if _, err := f.Runtime.RunPodSandbox(ctx, p.Config, "no-such-handler"); err == nil || !strings.Contains(err.Error(), `no runtime for "no-such-handler" is configured`) {
		t.Errorf("unknown handler: %v", err)
	}
	if _, err := f.Runtime.CreateContainer(ctx, p.ID, nil, nil); err == nil {
		t.Error("container of nothing")
	}
	if _, err := p.Create(func(c *runtimeapi.ContainerConfig) { c.Command = nil }); err == nil || !strings.Contains(err.Error(), "no command specified") {
		t.Errorf("no command: %v", err)
	}
	if _, err := p.Create(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
	}), "true"); err == nil || !strings.Contains(err.Error(), "CAP_FLY") {
		t.Errorf("unknown capability: %v", err)
	}
	if _, err := p.Create(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "here" }, "true"); err == nil {
		t.Error("relative working directory")
	}
	for name, err := range map[string]error{
		"start":  f.Runtime.StartContainer(ctx, "none"),
		"reopen": f.Runtime.ReopenContainerLog(ctx, "none"),
		"update": f.Runtime.UpdateContainerResources(ctx, "none", nil),
	} {
		if status.Code(err) != codes.NotFound {
			t.Errorf("%s of an unknown container: %v", name, err)
		}
	}
	if err := f.Runtime.StopContainer(ctx, "none", 1); err != nil {
		t.Errorf("stop of an unknown container: %v", err)
	}
	if _, err := f.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: "none", Cmd: []string{"true"}, Stdout: true}); status.Code(err) != codes.NotFound {
		t.Errorf("exec in an unknown container: %v", err)
	}
	c := p.Start(nil, "true")
	c.Exited()
	if _, err := c.Exec("true"); err == nil {
		t.Error("exec in an ended container")
	}
	_, err := f.Runtime.RunPodSandbox(ctx, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "bad-sysctl"},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.no.such": "1"}},
	}, "")
	if err == nil || !strings.Contains(err.Error(), "net.no.such") {
		t.Errorf("unknown sysctl: %v", err)
	}
}
