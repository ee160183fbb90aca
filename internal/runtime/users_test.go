package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

const usersBase, usersLength = 200 * 65536, 65536

func userNamespace(first, n uint32) *runtimeapi.UserNamespace {
	m := []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: n}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}
}

// usersConfig is a pod in a user namespace.
func (b bench) usersConfig(t testing.TB, name string) *runtimeapi.PodSandboxConfig {
	config := b.config(t, name)
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace(usersBase, usersLength)
	return config
}

func usersMount(t testing.TB, source, target string) *runtimeapi.Mount {
	u := userNamespace(usersBase, usersLength)
	return &runtimeapi.Mount{HostPath: source, ContainerPath: target, UidMappings: u.Uids, GidMappings: u.Gids}
}

func owner(t testing.TB, path string) string {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s := st.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", s.Uid, s.Gid)
}

// said waits until a container's log ends with a line "end" and returns what was before.
func said(t *testing.T, config *runtimeapi.PodSandboxConfig, name string) string {
	t.Helper()
	log := filepath.Join(config.LogDirectory, name+".log")
	var out string
	critest.Until(t, name+" has spoken", func() bool {
		var ok bool
		out, ok = strings.CutSuffix(critest.ReadLog(t, log, "stdout"), "end\n")
		return ok
	})
	return out
}

// A pod in a user namespace: its root is nobody on the host, may do in the pod what root
// of a user namespace may, and finds its files its own.
func TestUserNamespace(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	ctx := t.Context()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "in"), 1000, 2000); err != nil {
		t.Fatal(err)
	}
	config := b.usersConfig(t, "users")
	c := containerConfig("c", "sh", "-c", `
		echo $(cat /proc/self/uid_map) / $(cat /proc/self/gid_map)
		stat -c '%n %u:%g' / /bin/busybox /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/null /vol /vol/in /proc/self/ /dev/pts
		mkdir -p /own/dir; echo y > /own/file; stat -c '%n %u:%g' /own /own/file
		chown 1000:1000 /own/file && stat -c '%n %u:%g' /own/file
		echo z > /etc/passwd.new; rm -f /etc/group && ! ls /etc/group 2>/dev/null && echo removed
		echo w > /vol/out; echo v > /vol/other; chown 5:6 /vol/other
		echo log > /dev/stderr
		hostname other 2>/dev/null; hostname
		mount -t tmpfs t /own/dir && echo mounted
		cat /proc/sys/net/ipv4/ping_group_range
		mknod /own/d b 7 0 2>/dev/null || echo no device
		echo end; sleep 1000`)
	c.Mounts = []*runtimeapi.Mount{usersMount(t, dir, "/vol")}
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	sb, id, err := pod(ctx, s, config, c)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`0 %[1]d 65536 / 0 %[1]d 65536
/ 0:0
/bin/busybox 0:0
/etc/passwd 0:0
/etc/hosts 0:0
/etc/hostname 0:0
/etc/resolv.conf 0:0
/dev/shm 0:0
/dev/null 65534:65534
/vol 0:0
/vol/in 1000:2000
/proc/self/ 0:0
/dev/pts 0:0
/own 0:0
/own/file 0:0
/own/file 1000:1000
removed
other
mounted
0	65535
no device
`, usersBase)
	if got := said(t, config, "c"); got != want {
		t.Errorf("the container says\n%s\nwant\n%s", got, want)
	}
	for name, want := range map[string]string{"in": "1000:2000", "out": "0:0", "other": "5:6"} {
		if got := owner(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s belongs to %s on the host, want %s", name, got, want)
		}
	}
	st := status(t, s, id)
	if st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("status = %v", st)
	}
	out, _, err := s.Runtime.ExecSync(ctx, id, []string{"sh", "-c", "cat /proc/self/uid_map; id; echo through > /dev/stdout"}, 0)
	if got := strings.Join(strings.Fields(string(out)), " "); got != fmt.Sprintf("0 %d 65536 uid=0(root) gid=0 groups=0 through", usersBase) || err != nil {
		t.Errorf("exec: %q, %v", got, err)
	}
	if err := s.Runtime.StopPodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
	if err := s.Runtime.RemovePodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
}

// Containers of a pod in a user namespace that share their processes, one after the
// other and beside each other, with an image as a volume, also after a runtime was killed.
func TestUserNamespaceShared(t *testing.T) {
	b := newBench(t)
	child := b.child(t, "")
	ctx := t.Context()
	config := b.usersConfig(t, "shared")
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	config.Linux.Sysctls = map[string]string{"net.core.somaxconn": "333", "kernel.shm_rmid_forced": "1", "user.max_user_namespaces": "7"}
	shared := func(name, script string) *runtimeapi.ContainerConfig {
		c := containerConfig(name, "sh", "-c", script)
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		return c
	}
	first := shared("first", "trap 'exit 3' TERM; echo up > /dev/shm/x; echo $(stat -c %u:%g /dev/shm/x); echo end; while :; do sleep 0.1; done")
	sb, id, err := pod(ctx, child.Services, config, first)
	if err != nil {
		t.Fatal(err)
	}
	if got := said(t, config, "first"); got != "0:0\n" {
		t.Errorf("first: %q", got)
	}
	child.kill()
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	if st := status(t, s, id); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("status after the runtime was killed = %v", st)
	}
	second := shared("second", `
		ps -o user,args | grep -c '[t]rap'
		cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced /proc/sys/user/max_user_namespaces /dev/shm/x
		stat -c '%n %u:%g' /image /image/bin/busybox; touch /image/x 2>/dev/null || echo read-only
		ls /proc/1/root/ 2>/dev/null | grep -c usr
		echo 0 2>/dev/null > /proc/sys/net/ipv4/ip_forward || echo proc read-only
		echo end; sleep 1000`)
	m := usersMount(t, "", "/image")
	m.Image, m.Readonly = &runtimeapi.ImageSpec{Image: testImage}, true
	second.Mounts = []*runtimeapi.Mount{m}
	second.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
	run := func(c *runtimeapi.ContainerConfig) string {
		t.Helper()
		id, err := s.Runtime.CreateContainer(ctx, sb, c, config)
		if err == nil {
			err = s.Runtime.StartContainer(ctx, id)
		}
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	run(second)
	want := "1\n333\n1\n7\nup\n/image 0:0\n/image/bin/busybox 0:0\nread-only\n0\nproc read-only\n"
	if got := said(t, config, "second"); got != want {
		t.Errorf("second says\n%s\nwant\n%s", got, want)
	}
	if err := s.Runtime.StopContainer(ctx, id, 30); err != nil {
		t.Error(err)
	}
	if st := status(t, s, id); st.GetExitCode() != 3 {
		t.Errorf("status of the first = %v", st)
	}
	// Root of an unmasked container sets what is its network's.
	unmasked := shared("unmasked", "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward; echo end; sleep 1000")
	unmasked.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	run(unmasked)
	if got := said(t, config, "unmasked"); got != "1\n" {
		t.Errorf("unmasked says %q", got)
	}
	term := shared("term", "stty -onlcr; test -t 1 && echo terminal; stat -c %u:%g $(tty); echo end; sleep 1000")
	term.Tty = true
	run(term)
	if got := said(t, config, "term"); got != "terminal\n0:5\n" {
		t.Errorf("with a terminal: %q", got)
	}
	// The next instance of the first, as a user of the image.
	again := shared("again", "id; echo through > /dev/stdout; echo end; sleep 1000")
	again.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	again.Linux.SecurityContext.SupplementalGroups = []int64{3000}
	run(again)
	if got, want := said(t, config, "again"), "uid=1000(app) gid=1001(apps) groups=1001(apps),2002(extra),3000\nthrough\n"; got != want {
		t.Errorf("again says %q, want %q", got, want)
	}
	if err := s.Runtime.RemovePodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
}

// What cannot be mounted with its owners mapped is told in the words that others know.
func TestUserNamespaceRefused(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	c := containerConfig("c", "sleep", "1000")
	c.Mounts = []*runtimeapi.Mount{usersMount(t, "/proc/tty", "/vol")}
	sb, _, err := pod(t.Context(), s, b.usersConfig(t, "p"), c)
	const want = "failed to set MOUNT_ATTR_IDMAP on /proc/tty: invalid argument (maybe the filesystem used doesn't support idmap mounts on this kernel?)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	if err := s.Runtime.RemovePodSandbox(t.Context(), sb); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*runtimeapi.NamespaceOption){
		"can have no other namespace of the host": func(n *runtimeapi.NamespaceOption) { n.Network = runtimeapi.NamespaceMode_NODE },
		"uids: ID 0 must be mapped":               func(n *runtimeapi.NamespaceOption) { n.UsernsOptions.Uids = nil },
		"the host's root cannot be mapped":        func(n *runtimeapi.NamespaceOption) { n.UsernsOptions = userNamespace(0, 65536) },
		"a mapping has no length":                 func(n *runtimeapi.NamespaceOption) { n.UsernsOptions = userNamespace(65536, 0) },
		"are too many":                            func(n *runtimeapi.NamespaceOption) { n.UsernsOptions = userNamespace(1<<32-1, 2) },
		"mode CONTAINER is none":                  func(n *runtimeapi.NamespaceOption) { n.UsernsOptions.Mode = runtimeapi.NamespaceMode_CONTAINER },
		"has no mappings of its own":              func(n *runtimeapi.NamespaceOption) { n.UsernsOptions.Mode = runtimeapi.NamespaceMode_NODE },
	} {
		config := b.usersConfig(t, "wrong")
		change(config.Linux.SecurityContext.NamespaceOptions)
		if _, err := s.Runtime.RunPodSandbox(t.Context(), config, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// The process that keeps a shared PID namespace has nothing for a container that may
// trace it.
func TestPauseHasNothing(t *testing.T) {
	both(t, "shared", func(t *testing.T, configOf func(bench, testing.TB, string) *runtimeapi.PodSandboxConfig) {
		b := newBench(t)
		r, _ := b.start(t, nil)
		config := configOf(b, t, "p")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		c := containerConfig("c", "sh", "-c", "grep -e ^Uid -e ^CapPrm /proc/1/status; cat /proc/1/root/etc/passwd 2>/dev/null; ls -A /proc/1/root/ /proc/1/cwd/ 2>/dev/null | grep -v '^/\\|^$'; echo end; sleep 1000")
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE"}}
		sb, _, err := pod(t.Context(), cri.InProcess(r), config, c)
		if err != nil {
			t.Fatal(err)
		}
		want := "Uid:\t65535\t65535\t65535\t65535\nCapPrm:\t0000000000000000\n"
		if got := said(t, config, "c"); got != want {
			t.Errorf("it has\n%s\nwant\n%s", got, want)
		}
		if _, err := r.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Error(err)
		}
	})
}
