package runtime_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

// These are the ways out of a container that were found in runtimes, tried on
// skiff's. Most are closed by libcontainer; what skiff adds (exec, working
// directories, mounts, terminals) must not open them again.

// escape is a pod to break out of, and a file of the host that shows who has.
type escape struct {
	bench
	services cri.Services
	pod      *critest.Pod
	marker   string
}

func newEscape(t *testing.T) escape {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	e := escape{b, s, b.fixture(s).Run(t, nil), filepath.Join(t.TempDir(), "on-the-host")}
	if err := os.WriteFile(e.marker, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	return e
}

// attempt runs a container that may be refused. It returns what it wrote, and
// whether it was started.
func (e escape) attempt(t *testing.T, change func(*runtimeapi.ContainerConfig), script string) (string, bool) {
	t.Helper()
	c, err := e.pod.Create(change, "sh", "-c", script)
	if err == nil {
		err = e.services.Runtime.StartContainer(t.Context(), c.ID)
	}
	if err != nil {
		t.Logf("refused: %v", err)
		return "", false
	}
	c.Exited()
	return c.Log("stdout"), true
}

func mounted(host, container string, readOnly bool) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: host, ContainerPath: container, Readonly: readOnly})
	}
}

// proc keeps a setting of the host's kernel in sight that attacks go for.
func proc(t *testing.T) {
	t.Helper()
	const file = "/proc/sys/kernel/core_pattern"
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if now, err := os.ReadFile(file); !bytes.Equal(now, before) {
			t.Errorf("%s is %q, was %q: %v", file, now, before, err)
			if err := os.WriteFile(file, before, 0); err != nil {
				t.Error(err)
			}
		}
	})
}

// CVE-2019-5736: who executes /proc/self/exe in a container gets the starter's own
// file there, and must not be able to write to it, while it runs or after.
func TestEscapeByOwnProgram(t *testing.T) {
	e := newEscape(t)
	before, err := os.ReadFile(e.set.Start)
	if err != nil {
		t.Fatal(err)
	}
	c := e.pod.Start(nil, "sh", "-c", "busybox mkfifo /fifo; exec sleep 1000")
	critest.Until(t, "there is a pipe", func() bool { _, err := c.Exec("test", "-p", "/fifo"); return err == nil })
	var wg sync.WaitGroup
	wg.Go(func() { // it waits in the pipe for its file, as the starter
		_, _ = c.Exec("/proc/self/exe", "update", "/", "x", "/fifo")
	})
	const attack = `for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */busybox|"") continue ;; esac
(exec 5<$p/exe; echo found; (echo x >$p/exe) && echo WROTE; (echo x >/proc/self/fd/5) && echo WROTE
echo '{}' >/fifo; while [ -d $p ]; do usleep 1000; done; (echo x >/proc/self/fd/5) && echo WROTE; echo tried); done 2>/dev/null`
	out := ""
	critest.Until(t, "the starter is found", func() bool {
		out, err = c.Exec("sh", "-c", attack)
		return strings.Contains(out, "found")
	})
	wg.Wait()
	if err != nil || !strings.Contains(out, "tried") || strings.Contains(out, "WROTE") {
		t.Errorf("the attack says %q, %v", out, err)
	}
	now, err := os.ReadFile(e.set.Start)
	if err != nil || sha256.Sum256(now) != sha256.Sum256(before) {
		t.Errorf("the starter was written to: %v", err)
	}
}

// CVE-2024-21626: a working directory by way of a descriptor that leaked.
func TestEscapeByLeakedDescriptor(t *testing.T) {
	e := newEscape(t)
	out, ok := e.attempt(t, nil, "ls /proc/self/fd | tr '\\n' ' '")
	if !ok || out != "0 1 2 3 " { // 3 is ls's own, of that directory
		t.Errorf("descriptors of a container: %q", out)
	}
	seek := fmt.Sprintf("for up in . .. ../../../../../../../..; do [ -e $up%s ] && echo ESCAPED; done; true", e.marker)
	for n := 3; n < 20; n++ {
		dir := fmt.Sprintf("/proc/self/fd/%d", n)
		out, _ := e.attempt(t, func(c *runtimeapi.ContainerConfig) { c.WorkingDir = dir }, seek)
		if strings.Contains(out, "ESCAPED") {
			t.Errorf("from %s the host is seen", dir)
		}
	}
	// By exec: the container has made of its working directory what it likes.
	vol := t.TempDir()
	c := e.pod.Start(func(c *runtimeapi.ContainerConfig) {
		c.WorkingDir = "/data/in"
		mounted(vol, "/data", false)(c)
	}, "sh", "-c", "cd /; exec sleep 1000")
	if out, err := c.Exec("sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"); out != "0 1 2 3 " || err != nil {
		t.Errorf("descriptors of a process added: %q, %v", out, err)
	}
	for n := 3; n < 20; n++ {
		in := filepath.Join(vol, "in")
		if err := os.Remove(in); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", n), in); err != nil {
			t.Fatal(err)
		}
		if out, _ := c.Exec("sh", "-c", seek); strings.Contains(out, "ESCAPED") {
			t.Errorf("by exec from descriptor %d the host is seen", n)
		}
	}
}

// CVE-2025-31133 and CVE-2025-52565: what is mounted over a masked path, or made
// of the console, is taken from /dev, where the attacker has left links to /proc.
func TestEscapeByDevice(t *testing.T) {
	proc(t)
	e := newEscape(t)
	for _, name := range []string{"null", "console", "pts", "ptmx", "tty", "shm", "mqueue"} {
		for _, tty := range []bool{false, true} {
			dev := t.TempDir()
			if err := os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(dev, name)); err != nil {
				t.Fatal(err)
			}
			// All else that a start looks for is there.
			for n, minor := range map[string]int{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
				if err := unix.Mknod(filepath.Join(dev, n), unix.S_IFCHR|0o666, int(unix.Mkdev(1, uint32(minor)))); err != nil && n != name {
					t.Fatal(err)
				}
			}
			for _, n := range []string{"pts", "shm", "mqueue"} {
				if err := os.Mkdir(filepath.Join(dev, n), 0o755); err != nil && n != name {
					t.Fatal(err)
				}
			}
			out, ok := e.attempt(t, func(c *runtimeapi.ContainerConfig) {
				c.Tty = tty
				mounted(dev, "/dev", false)(c)
			}, `for f in /proc/kcore /proc/timer_list /dev/console /dev/null /dev/ptmx /dev/tty; do [ -f $f ] && (echo '|pwned' >$f); done 2>/dev/null
[ "$(head -c1 /proc/kcore | wc -c)" = 0 ] || echo UNMASKED; (echo '|pwned' >/proc/sys/kernel/core_pattern) 2>/dev/null && echo WROTE; true`)
			if strings.Contains(out, "UNMASKED") || strings.Contains(out, "WROTE") {
				t.Errorf("/dev/%s leads to /proc, terminal %v (started: %v): %q", name, tty, ok, out)
			}
		}
	}
}

// CVE-2025-52881, CVE-2019-16884, CVE-2019-19921: something else where /proc is
// expected takes what is written there during the start.
func TestEscapeByProc(t *testing.T) {
	proc(t)
	e := newEscape(t)
	fake := t.TempDir()
	for _, f := range []string{"self/attr", "sys/kernel", "thread-self/attr"} {
		if err := os.MkdirAll(filepath.Join(fake, f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []string{"/proc", "/proc/self", "/proc/self/attr", "/proc/sys", "/proc/sys/kernel", "/dev/../proc/sys", "/sys/../proc"} {
		if out, ok := e.attempt(t, mounted(fake, at, false), "[ -e /proc/1/stat ] && ! [ -w /proc/sys/kernel/core_pattern ] && echo intact"); ok && out != "intact\n" {
			t.Errorf("%s was replaced: %q", at, out)
		}
	}
	// A link of the image in the place of /proc leads nowhere either.
	for _, name := range []string{"proc", "sys"} {
		dir := filepath.Join(e.inst.DataDir, "snapshots/lower", name)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/data", dir); err != nil {
			t.Fatal(err)
		}
		if out, ok := e.attempt(t, nil, "[ -e /data/1 ] || [ -e /data/kernel ]; echo $?"); ok && out != "1\n" {
			t.Errorf("/%s was mounted where a link led", name)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// CVE-2021-30465: a directory in a volume is exchanged for a link while something
// is mounted at it.
func TestEscapeByExchange(t *testing.T) {
	e := newEscape(t)
	vol, inner := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(inner, "inner"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	real, link := filepath.Join(vol, "dir"), filepath.Join(vol, "link")
	if err := os.MkdirAll(filepath.Join(real, "at"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/../../../../../../../../..", link); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	started := 0
	for range 12 {
		out, ok := e.attempt(t, func(c *runtimeapi.ContainerConfig) {
			mounted(vol, "/vol", false)(c)
			mounted(inner, "/vol/dir/at", false)(c)
		}, fmt.Sprintf("[ -e %[1]s ] || [ -e /vol/dir%[1]s ] || [ -e /vol/link%[1]s ] || [ -e /vol/dir/at%[1]s ]; echo $?", e.marker))
		if ok {
			started++
			if out != "1\n" {
				t.Errorf("the host is seen: %q", out)
			}
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d of 12 were started", started)
	if _, err := os.Lstat("/at"); err == nil {
		t.Error("the mount point was made on the host")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), inner) {
		t.Errorf("the host has the mount: %v", err)
	}
}
