package v2

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed init.sh
var initScript []byte

// patience bounds the machine's life. It is some 15 times slower than this one.
const patience = 10 * time.Minute

// modules that skiff uses and Debian's cloud kernel does not have built in.
var modules = []string{
	"overlay", "veth", "dummy", "vxlan", "nf_tables", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_numgen",
	"nft_reject", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject_inet", "nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet",
	"nf_conntrack_netlink",
}

// program is what runs in the machine: a package's tests and their flags.
type program struct{ name, pkg, flags string }

// TestMachine runs what is about cgroups on a machine with cgroup v2 alone.
func TestMachine(t *testing.T) {
	boot(t, "SKIFF_V2_KERNEL", []program{
		{"runtime-cgroup", "./internal/runtime/cgroup", ""},
		{"kubelet-cgroup", "./internal/kubelet/cgroup", "-test.skip ^TestRemoveBeside$"}, // it is about hosts that have both
		{"e2e", "./test/e2e", "-test.run ^TestLimits"},
	})
}

// TestMachineUsers runs pods with a user namespace of their own there. They need a
// kernel that maps the IDs of a tmpfs (6.3).
func TestMachineUsers(t *testing.T) {
	boot(t, "SKIFF_V2_KERNEL_NEW", []program{{"e2e", "./test/e2e", "-test.run ^TestPodSpec$/^(users|resources|security)$"}})
}

// boot runs programs on a machine with the kernel that is in a directory, which
// the variable names.
func boot(t *testing.T, variable string, programs []program) {
	kernel := os.Getenv(variable)
	if kernel == "" {
		t.Skipf("no kernel: make test-v2 fetches one and names it in %s", variable)
	}
	images, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		t.Fatalf("kernels in %s: %v, %v", kernel, images, err)
	}
	archive := filepath.Join(t.TempDir(), "initramfs")
	if err := pack(t, kernel, archive, programs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Without cx16: the emulation of that instruction spoils flags, on which newer
	// kernels' allocators fall over.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", "3G",
		"-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio", "-nic", "none",
		"-kernel", images[0], "-initrd", archive,
		"-append", "console=ttyS0 quiet cgroup_no_v1=all panic=-1 rdinit=/init")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	// It ends with this test, however that ends: the thread that starts it stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: apt-get install qemu-system-x86", err)
	}
	said, ended := watch(t, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the machine: %v", err)
	}
	if !ended {
		t.Error("the machine did not come to the end of its tests")
	}
	for _, p := range programs {
		code, ok := said[p.name]
		if !ok || code != "0" {
			t.Errorf("%s: exit code %q", p.pkg, code)
		}
	}
}

// watch repeats what the machine says, and returns the exit codes in it. Tests
// that were skipped are failures: they are run there because they cannot be here.
func watch(t *testing.T, r io.Reader) (codes map[string]string, ended bool) {
	codes = map[string]string{}
	began := time.Now()
	ran := 0
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		l := strings.TrimRight(s.Text(), "\r")
		fmt.Printf("%7.2fs %s\n", time.Since(began).Seconds(), l)
		rest, ours := strings.CutPrefix(l, "v2: ")
		name, code, ok := strings.Cut(rest, " exit ")
		switch {
		case ours && ok:
			if codes[name] = code; ran == 0 {
				t.Errorf("%s ran no test", name)
			}
			ran = 0
		case ours && rest == "end":
			ended = true
		case strings.HasPrefix(l, "--- SKIP:"):
			t.Errorf("skipped there: %s", l)
		case strings.HasPrefix(l, "--- PASS:"):
			ran++
		}
	}
	return codes, ended
}

// pack writes the initramfs.
func pack(t *testing.T, kernel, path string, programs []program) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: apt-get install busybox-static", err)
	}
	skiff := os.Getenv("SKIFF")
	if skiff == "" {
		skiff = filepath.Join(root, "bin/skiff")
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	a := &initramfs{w: f, seen: map[string]bool{}}
	a.entry("init", 0o100755, initScript)
	a.program("bin/busybox", busybox)
	a.program("bin/skiff", skiff)
	a.entry("etc/passwd", 0o100644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.entry("etc/hosts", 0o100644, []byte("127.0.0.1 localhost\n"))
	if err := a.modules(kernel, modules...); err != nil {
		return err
	}
	dir := t.TempDir()
	var list strings.Builder
	for _, p := range programs {
		if err := compile(root, nil, filepath.Join(dir, p.name), "test", "-c", p.pkg); err != nil {
			return err
		}
		a.program("tests/"+p.name, filepath.Join(dir, p.name))
		fmt.Fprintln(&list, p.name, p.flags)
	}
	if err := compile(root, []string{"CGO_ENABLED=0"}, filepath.Join(dir, "load"), "build", "./test/load"); err != nil {
		return err
	}
	a.program("tests/load", filepath.Join(dir, "load"))
	a.entry("tests/list", 0o100644, []byte(list.String()))
	a.entry("tests/env", 0o100644, []byte("SKIFF=/bin/skiff SKIFF_LOAD=/tests/load\n"))
	return a.end()
}

// compile runs go with the flag -o before the last argument.
func compile(root string, env []string, out string, args ...string) error {
	last := len(args) - 1
	cmd := exec.Command("go", append(append(append([]string{}, args[:last]...), "-ldflags=-s -w", "-o", out), args[last])...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, b)
	}
	return nil
}
