package runtime_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

// probe puts testdata/probe.c into the image, at /bin/probe.
func (b bench) probe(t *testing.T) {
	t.Helper()
	to := filepath.Join(b.inst.DataDir, "snapshots/lower/bin/probe")
	if out, err := exec.Command("gcc", "-static", "-O1", "-o", to, "testdata/probe.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func filtersIn(t *testing.T, b bench) []string {
	t.Helper()
	names, err := filepath.Glob(b.inst.Run("runtime", "filters", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// What the kernel says without a filter, and what the default one makes of it.
const (
	unfiltered = "keyctl=EOPNOTSUPP add_key=EFAULT io_uring_setup=EFAULT clone3=EINVAL unknown=ENOSYS vsock=0 personality=0 " +
		"quotactl=EINVAL mkdir=ENOENT compat_keyctl=EOPNOTSUPP unshare_user=0 unshare_fs=0 no_new_privs=0 seccomp=0"
	filtered = "keyctl=EPERM add_key=EPERM io_uring_setup=EPERM clone3=ENOSYS unknown=ENOSYS vsock=EPERM personality=EPERM " +
		"quotactl=EPERM mkdir=ENOENT compat_keyctl=EPERM unshare_user=EPERM unshare_fs=EPERM no_new_privs=0 seccomp=2"
)

// A filter refuses the same whether it was compiled for this container, comes from
// the ones that are kept, or is that of a process which is added later.
func TestSeccomp(t *testing.T) {
	b := newBench(t)
	b.probe(t)
	r, _ := b.start(t, nil)
	p := b.fixture(cri.InProcess(r)).Run(t, nil)
	type sec = *runtimeapi.LinuxContainerSecurityContext
	probe := func(what, want string, change func(sec)) {
		t.Helper()
		c := p.Start(func(c *runtimeapi.ContainerConfig) {
			if change != nil {
				change(c.Linux.SecurityContext)
			}
		}, "sh", "-c", "probe; echo done; exec sleep 1000")
		critest.Until(t, "it has asked", func() bool { return strings.Contains(c.Log("stdout"), "done\n") })
		got := strings.Join(strings.Fields(strings.TrimSuffix(c.Log("stdout"), "done\n")), " ")
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
		out, err := c.Exec("probe")
		if got := strings.Join(strings.Fields(out), " "); got != want || err != nil {
			t.Errorf("%s, a process added: %v\n got %s\nwant %s", what, err, got, want)
		}
	}
	kept := func(want int) []string {
		t.Helper()
		names := filtersIn(t, b)
		if len(names) != want {
			t.Errorf("%d filters are kept, want %d: %v", len(names), want, names)
		}
		return names
	}
	probe("compiled", filtered, nil)
	kept(1)
	probe("kept", filtered, nil)
	first := kept(1)[0]
	nnp := strings.Replace(filtered, "no_new_privs=0", "no_new_privs=EEXIST", 1)
	probe("no_new_privs", nnp, func(s sec) { s.NoNewPrivs = true })
	probe("a user, no capabilities", nnp, func(s sec) {
		s.NoNewPrivs, s.RunAsUser = true, &runtimeapi.Int64Value{Value: 1000}
	})
	kept(1)
	// Capabilities open what needs them.
	admin := strings.NewReplacer("quotactl=EPERM", "quotactl=EINVAL", "clone3=ENOSYS", "clone3=EINVAL", "unshare_user=EPERM", "unshare_user=0", "unshare_fs=EPERM", "unshare_fs=0").Replace(filtered)
	probe("CAP_SYS_ADMIN", admin, func(s sec) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}} })
	second := kept(2)
	probe("privileged", unfiltered, func(s sec) { s.Privileged = true })
	profile := func(k runtimeapi.SecurityProfile_ProfileType, ref string) func(sec) {
		return func(s sec) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: k, LocalhostRef: ref} }
	}
	probe("unconfined", unfiltered, profile(runtimeapi.SecurityProfile_Unconfined, ""))
	kept(2)
	own := filepath.Join(t.TempDir(), "own.json")
	if err := os.WriteFile(own, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": [
		{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 76},
		{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 0, "value": 268435456, "op": "SCMP_CMP_EQ"}]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	mine := strings.NewReplacer("mkdir=ENOENT", "mkdir=ENOTUNIQ", "unshare_user=0", "unshare_user=EPERM", "seccomp=0", "seccomp=2").Replace(unfiltered)
	for range 2 {
		probe("a profile of its own", mine, profile(runtimeapi.SecurityProfile_Localhost, "localhost/"+own))
	}
	kept(3)

	// What is not the filter that was kept is none: cut off, changed, another's.
	other := second[0]
	if other == first {
		other = second[1]
	}
	good, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte{}, good...)
	changed[len(changed)-8]++
	for what, content := range map[string][]byte{"empty": nil, "cut off": good[:len(good)-8], "changed": changed, "another's": bad} {
		if err := os.WriteFile(first, content, 0o600); err != nil {
			t.Fatal(err)
		}
		probe("the kept filter was "+what, filtered, nil)
		// Not the same bytes: the parts of a program have no order.
		if now, err := os.ReadFile(first); string(now) == string(content) || len(now) != len(good) || err != nil {
			t.Errorf("%s: the filter was not made anew: %v", what, err)
		}
	}
}
