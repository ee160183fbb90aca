package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestStartFaults: what is wrong with the machine or the data directory is one
// clear sentence with a way out, at once, and what is right again starts.
func TestStartFaults(t *testing.T) {
	if !apart(t) {
		return
	}
	c := own(t, "fault", "/var/lib/skiff/NAME")
	refused := func(want string, args ...string) {
		t.Helper()
		began := time.Now()
		out, err := exec.Command(c.bin, append([]string{"--name", c.name}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("skiff %s: %v, says\n%s\nwant %q", strings.Join(args, " "), err, out, want)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("skiff %s takes %v to fail", strings.Join(args, " "), took)
		}
		last := out[strings.LastIndexByte(strings.TrimSpace(string(out)), '\n')+1:]
		if !strings.HasPrefix(string(last), "skiff: ") {
			t.Errorf("skiff %s: more than a sentence:\n%s", strings.Join(args, " "), out)
		}
	}
	tmpfs := func(options string, flags uintptr) string {
		t.Helper()
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		return dir
	}
	busy := func(network, addr string) func() {
		t.Helper()
		if network == "udp" {
			pc, err := net.ListenPacket(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			return func() { pc.Close() }
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		return func() { l.Close() }
	}

	small := tmpfs("size=64m", 0)
	refused(fmt.Sprintf("the disk of %s has 64 MiB left, skiff needs 300; free some space or choose another --data-dir", small), "--data-dir", small+"/data", "up")
	fixed := tmpfs("", syscall.MS_RDONLY)
	refused(fixed+" cannot be written to (read-only file system); choose another --data-dir", "--data-dir", fixed+"/data", "up")
	newer := t.TempDir()
	if err := os.WriteFile(newer+"/format", []byte("7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(newer+` was written by a newer skiff (its data have format 7, this skiff knows formats up to 1); use that skiff, or choose another --data-dir`, "--data-dir", newer, "up")
	conf := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(conf, []byte("apiPort: 6500\npodRange: 10.0.0.0/8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(`config file `+conf+`: unknown field "podRange"`, "up", "--config", conf)

	free := busy("tcp", ":18081")
	refused("apiPort: port 18081 is in use by another program; choose another one, or end that program", "up", "--api-port", "18081")
	refused("kubeletPort: port 18081 is in use by another program; choose another one, or end that program", "up", "--kubelet-port", "18081")
	free()
	for _, network := range []string{"tcp", "udp"} {
		free := busy(network, "0.0.0.0:53")
		refused(":53, where this node's pods look up names, is in use by another program, which may listen on port 53 of all addresses; have it listen on the addresses that it needs, or end it", "up", "--api-port", "18084")
		free()
		busy("tcp", ":18084")() // what the start had opened is free again
	}

	// None of that is in the way of a start.
	c.args = []string{"--api-port", "18082", "--kubelet-port", "18083"}
	c.up()
	for i := range 20 {
		c.kubectl("create", "configmap", fmt.Sprint("kept-", i), "--from-literal=k=v")
	}
	down := func() {
		t.Helper()
		if out, err := c.skiff("down"); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
	}
	down()
	etcd := filepath.Join(c.data, "etcd")
	saved := t.TempDir() + "/etcd"
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	run("cp", "-a", etcd, saved)
	file := func(pattern string) string {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(etcd, pattern))
		if err != nil || len(all) == 0 {
			t.Fatalf("no file %s in %s: %v", pattern, etcd, err)
		}
		return all[0]
	}
	scribble := func(path string, at int64, n int) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(strings.Repeat("damage!\n", n/8)), at); err != nil {
			t.Fatal(err)
		}
	}
	const wayOut = "put a copy of %s back, or move it away to begin with an empty cluster"
	for what, d := range map[string]struct {
		do func()
		// heals says that the log has everything that the file had.
		heals bool
	}{
		"truncated database": {func() { run("truncate", "-s", "5000", file("member/snap/db")) }, false},
		"scribbled database": {func() { scribble(file("member/snap/db"), 0, 16384) }, false},
		"scribbled log":      {func() { scribble(file("member/wal/*.wal"), 0, 4096) }, false},
		"truncated log":      {func() { run("truncate", "-s", "40", file("member/wal/*.wal")) }, false},
		"missing log":        {func() { run("rm", file("member/wal/*.wal")) }, false},
		"empty database":     {func() { run("truncate", "-s", "0", file("member/snap/db")) }, true},
		"missing database":   {func() { run("rm", file("member/snap/db")) }, true},
	} {
		t.Log(what)
		run("rm", "-rf", etcd)
		run("cp", "-a", saved, etcd)
		d.do()
		if !d.heals {
			refused(fmt.Sprintf(wayOut, etcd), "up")
			continue
		}
		c.up()
		if out := c.kubectl("get", "configmaps", "-o", "name"); strings.Count(out, "configmap/kept-") != 20 {
			t.Errorf("%s: of 20 objects are left\n%s", what, out)
		}
		down()
	}
	run("rm", "-rf", etcd)
	run("cp", "-a", saved, etcd)
	c.up()
	if out := c.kubectl("get", "configmap", "kept-19", "-o", "name"); out != "configmap/kept-19\n" {
		t.Errorf("with the copy put back: %q", out)
	}
	down()
	run("rm", "-rf", etcd)
	c.up() // an empty cluster, as was said
	if out, err := c.kubectlErr("get", "configmap", "kept-19"); err == nil || !strings.Contains(out, "NotFound") {
		t.Errorf("with no database: %q, %v", out, err)
	}
}

// TestOldGo: make says which Go it needs, and where it is.
func TestOldGo(t *testing.T) {
	old := filepath.Join(t.TempDir(), "go")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho go1.19.8\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for compiler, want := range map[string]string{
		old:          "skiff needs Go 1.26 or newer; this is go1.19.8. Install it from https://go.dev/dl",
		"/nosuch/go": "skiff needs Go 1.26 or newer: install it from https://go.dev/dl",
	} {
		out, err := exec.Command("make", "-C", "../..", "check-go", "GO="+compiler).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("make GO=%s: %v, says %q, want %q", compiler, err, out, want)
		}
	}
}
