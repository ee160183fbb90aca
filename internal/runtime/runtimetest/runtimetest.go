// Package runtimetest gives tests of the runtime what they need of the machine:
// the helper programs, a root file system, cgroup names. Everything it makes is
// gone when the test ends.
package runtimetest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"skiff/internal/runtime/programs"
	"skiff/internal/runtime/programs/compile"
)

var build = sync.OnceValues(func() (programs.Set, error) {
	root, err := moduleRoot()
	if err != nil {
		return programs.Set{}, err
	}
	dir, err := os.MkdirTemp("", "skiff-test-programs-")
	if err != nil {
		return programs.Set{}, err
	}
	if err := compile.Build(root, dir); err != nil {
		return programs.Set{}, errors.Join(err, os.RemoveAll(dir))
	}
	return programs.Set{Pod: filepath.Join(dir, "skiff-pod"), Start: filepath.Join(dir, "skiff-start")}, nil
})

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	return filepath.Dir(strings.TrimSpace(string(out))), err
}

// Main runs a package's tests and removes what Programs built for them.
func Main(m *testing.M) int {
	defer func() {
		if set, err := build(); err == nil {
			os.RemoveAll(filepath.Dir(set.Pod))
		}
	}()
	return m.Run()
}

// Programs builds the helper programs from source, once per test binary. They
// need root; without it the test is skipped.
func Programs(t testing.TB) programs.Set {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("real containers need root")
	}
	set, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Busybox makes a root file system with a shell and the usual commands, owned
// by root and readable by all.
func Busybox(t testing.TB, dir string) string {
	t.Helper()
	src, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox is needed: apt-get install busybox-static")
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "var/log", "data", "usr/bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	bin, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/data:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
		"etc/group":  "root:x:0:\napps:x:1001:\nextra:x:2002:app\nnogroup:x:65534:\n",
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"sh", "echo", "cat", "sleep", "ls", "id", "env", "pwd", "ps", "mount", "hostname", "kill",
		"true", "false", "head", "tail", "dd", "yes", "seq", "grep", "awk", "stty", "nc", "sysctl", "touch", "tee", "ip",
		"printf", "wc", "sort", "mkdir", "stat", "df", "od", "tr", "date", "usleep", "readlink", "setsid", "test", "chmod", "chroot", "mknod", "find", "tty"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", c)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	return dir
}
