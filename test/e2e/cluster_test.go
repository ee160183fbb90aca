// Package e2e runs a real cluster and drives it with kubectl, as its users do.
package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait: the machine may be busy.
const patience = 60 * time.Second

// cluster is a skiff instance of its own.
type cluster struct {
	t    *testing.T
	bin  string
	name string
	data string
	// cache is where kubectl remembers what servers have.
	cache string
	// ns is the namespace that kubectl is told of; empty for its default.
	ns string
	// carried makes kubectl the one of this release that skiff carries, where
	// otherwise the machine's own is preferred.
	carried bool
	// minor is kubectl's minor version, in the tests that look at what it says.
	minor int
	// args are more flags of up, enter a command that runs what follows it in
	// other namespaces.
	args, enter []string
}

var skiffBin = func() string {
	if p := os.Getenv("SKIFF"); p != "" {
		return p
	}
	p, err := filepath.Abs("../../bin/skiff")
	if err != nil {
		panic(err)
	}
	return p
}()

// start brings a cluster up and takes it away, with everything it put on the
// host, at the end of the test.
func start(t *testing.T, name string, args ...string) *cluster {
	t.Helper()
	c := reserve(t, name)
	c.args = args
	c.up()
	return c
}

// reserve is start without the start.
func reserve(t *testing.T, name string) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("these tests need root: they run containers")
	}
	if _, err := os.Stat(skiffBin); err != nil {
		t.Fatalf("skiff is not built (make build): %v", err)
	}
	c := &cluster{t: t, bin: skiffBin, name: fmt.Sprintf("%s-%d", name, os.Getpid()), data: t.TempDir() + "/data", cache: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			c.dump()
		}
		if out, err := c.skiff("reset", "--yes"); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
	})
	return c
}

func (c *cluster) dump() {
	for _, args := range [][]string{
		{"get", "pods,deploy,rs,svc,ep,nodes", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		out, _ := c.kubectlErr(args...)
		c.t.Logf("kubectl %s\n%s", strings.Join(args, " "), out)
	}
	if b, err := os.ReadFile("/run/skiff/" + c.name + "/skiff.log"); err == nil {
		if len(b) > 6000 {
			b = b[len(b)-6000:]
		}
		c.t.Logf("skiff.log\n%s", b)
	}
}

func (c *cluster) skiff(args ...string) (string, error) {
	out, err := c.command(args...).CombinedOutput()
	return string(out), err
}

func (c *cluster) command(args ...string) *exec.Cmd {
	args = append(append(append([]string{}, c.enter...), c.bin, "--name", c.name, "--data-dir", c.data), args...)
	return exec.Command(args[0], args[1:]...)
}

func (c *cluster) up() {
	c.t.Helper()
	if out, err := c.skiff(append([]string{"up"}, c.args...)...); err != nil {
		c.t.Fatalf("skiff up: %v\n%s", err, out)
	}
}

// pid of the skiff process.
func (c *cluster) pid() int {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.data, "lock"))
	if err != nil {
		c.t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// kill9 kills skiff and waits until it is gone.
func (c *cluster) kill9() {
	c.t.Helper()
	pid := c.pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Fatal(err)
	}
	c.eventually("skiff is gone", func() (bool, string) {
		// A zombie, whose parent is busy, holds nothing any more: once its other
		// threads are gone too, which may end after the first one.
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		if err != nil {
			c.t.Fatal(err)
		}
		var alive strings.Builder
		for _, dir := range threads {
			stat, err := os.ReadFile(dir + "/stat")
			if err != nil || strings.Contains(string(stat), ") Z ") {
				continue
			}
			stack, err := os.ReadFile(dir + "/stack")
			fmt.Fprintf(&alive, "%s%s%v\n", stat, stack, err)
		}
		return alive.Len() == 0, alive.String()
	})
}

func (c *cluster) kubectlErr(args ...string) (string, error) {
	return c.kubectlIn(nil, args...)
}

// kubectlCmd is a kubectl that is yet to be run.
func (c *cluster) kubectlCmd(ctx context.Context, args ...string) *exec.Cmd {
	if c.ns != "" {
		args = append([]string{"-n", c.ns}, args...)
	}
	cmd := exec.CommandContext(ctx, "kubectl", args...)
	if _, err := exec.LookPath("kubectl"); err != nil || c.carried {
		cmd = exec.CommandContext(ctx, c.bin, append([]string{"kubectl", "--name", c.name, "--data-dir", c.data}, args...)...)
	}
	// What kubectl remembers of a server, by its port, is of this cluster alone.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.data+"/admin.kubeconfig", "KUBECACHEDIR="+c.cache)
	return cmd
}

func (c *cluster) kubectlIn(in io.Reader, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := c.kubectlCmd(ctx, args...)
	cmd.Stdin = in
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if err != nil {
		return out.String() + stderr.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String(), nil
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.kubectlErr(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cluster) apply(manifest string) {
	c.t.Helper()
	if _, err := c.kubectlIn(strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		c.t.Fatal(err)
	}
}

// get reads an object.
func (c *cluster) get(args ...string) map[string]any {
	c.t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(c.kubectl(append([]string{"get", "-o", "json"}, args...)...)), &m); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// field follows a path of keys and list indices; nil where it leads nowhere.
func field(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, ok := v.(map[string]any)
			if !ok {
				return nil
			}
			v = m[p]
		case int:
			l, ok := v.([]any)
			if !ok || p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// eventually waits for a condition; ok's second result says how things stand.
func (c *cluster) eventually(what string, ok func() (bool, string)) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, state := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %v; last: %s", what, patience, state)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *cluster) waitPod(name, jsonpath, want string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("pod %s has %s=%s", name, jsonpath, want), func() (bool, string) {
		out, err := c.kubectlErr("get", "pod", name, "-o", "jsonpath={"+jsonpath+"}")
		return err == nil && out == want, out
	})
}

// importBusybox makes the image busybox:1 from the host's static busybox.
func (c *cluster) importBusybox() {
	c.t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		c.t.Fatal("busybox is missing: apt-get install busybox-static")
	}
	bin, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	if f, err := elf.NewFile(bytes.NewReader(bin)); err != nil {
		c.t.Fatal(err)
	} else if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		c.t.Fatalf("%s is not static (%v): apt-get install busybox-static", path, libs)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(h); err != nil {
			c.t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/"} {
		add(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	for _, a := range []string{"sh", "echo", "sleep", "cat", "wget", "nslookup", "ls", "kill", "true", "false", "id", "httpd", "hostname", "touch", "rm", "stat", "stty", "nc", "env", "seq", "head", "test"} {
		add(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	load, err := os.ReadFile(loadProgram(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	add(&tar.Header{Name: "bin/load", Typeflag: tar.TypeReg, Mode: 0o755}, load)
	add(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nextra:x:4000:web\n"))
	if err := tw.Close(); err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(c.bin, "--name", c.name, "--data-dir", c.data, "image", "import", "--rootfs", "--cmd", "/bin/sh", "-", "busybox:1")
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("image import: %v\n%s", err, out)
	}
}

var loadOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skiff-load-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "load")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "skiff/test/load")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/load: %w\n%s", err, out)
	}
	return path, nil
})

// loadProgram builds test/load, once, static; SKIFF_LOAD names one that is built.
func loadProgram(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SKIFF_LOAD"); path != "" { // where there is no compiler
		return path
	}
	path, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv("SKIFF_LOAD") == "" {
		if path, err := loadOnce(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
	}
	if otherDir != "" {
		os.RemoveAll(otherDir)
	}
	os.Exit(code)
}
