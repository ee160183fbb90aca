// Package critest is the contract of a container runtime: what a kubelet relies
// on, tested against real containers through cri.Services, whatever is behind it.
package critest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
)

// Fixture is the runtime under test.
type Fixture struct {
	cri.Services
	// Image is a present image with a busybox at /bin and "app" (1000:1001, in
	// group extra, 2002) among its users; it has no entrypoint and no command.
	Image string
	// CgroupParent is where pods may have their cgroups, as a kubelet makes it.
	CgroupParent string
}

// Wait is how long anything may take that should be quick: machines are loaded.
const Wait = 60 * time.Second

// Pod is one sandbox of a test.
type Pod struct {
	t      testing.TB
	f      Fixture
	ID     string
	Config *runtimeapi.PodSandboxConfig
	n      int
}

// Run makes a sandbox by the default handler, which goes when the test ends.
func (f Fixture) Run(t testing.TB, change func(*runtimeapi.PodSandboxConfig)) *Pod {
	t.Helper()
	return f.RunBy(t, "", change)
}

// RunBy is Run by the handler named.
func (f Fixture) RunBy(t testing.TB, handler string, change func(*runtimeapi.PodSandboxConfig)) *Pod {
	t.Helper()
	var uid [8]byte
	_, _ = rand.Read(uid[:])
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(t.Name()))
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "critest", Uid: hex.EncodeToString(uid[:])},
		Hostname:     "web-0",
		LogDirectory: t.TempDir(),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"critest.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"critest": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: filepath.Join(f.CgroupParent, "pod"+hex.EncodeToString(uid[:])),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
	if change != nil {
		change(c)
	}
	p := &Pod{t: t, f: f, Config: c}
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	id, err := f.Runtime.RunPodSandbox(ctx, c, handler)
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	p.ID = id
	t.Cleanup(p.Remove)
	return p
}

// Remove stops and removes the sandbox; twice is once.
func (p *Pod) Remove() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	if err := p.f.Runtime.StopPodSandbox(ctx, p.ID); err != nil {
		p.t.Errorf("stop sandbox: %v", err)
	}
	if err := p.f.Runtime.RemovePodSandbox(ctx, p.ID); err != nil {
		p.t.Errorf("remove sandbox: %v", err)
	}
}

// Container is one container of a test.
type Container struct {
	*Pod
	ID      string
	LogPath string
}

// Create makes a container that runs args; change may change anything of it.
func (p *Pod) Create(change func(*runtimeapi.ContainerConfig), args ...string) (*Container, error) {
	p.t.Helper()
	p.n++
	name := "c" + string(rune('0'+p.n/10)) + string(rune('0'+p.n%10))
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: p.f.Image},
		Command:  args,
		LogPath:  name + ".log",
		Labels:   map[string]string{"critest": p.Config.GetLabels()["critest"]},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore", "/proc/timer_list", "/sys/firmware"},
				ReadonlyPaths:    []string{"/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
	if change != nil {
		change(c)
	}
	id, err := p.f.Runtime.CreateContainer(p.t.Context(), p.ID, c, p.Config)
	return &Container{Pod: p, ID: id, LogPath: filepath.Join(p.Config.GetLogDirectory(), c.GetLogPath())}, err
}

// Start creates and starts a container.
func (p *Pod) Start(change func(*runtimeapi.ContainerConfig), args ...string) *Container {
	p.t.Helper()
	c, err := p.Create(change, args...)
	if err != nil {
		p.t.Fatalf("create container: %v", err)
	}
	if err := p.f.Runtime.StartContainer(p.t.Context(), c.ID); err != nil {
		p.t.Fatalf("start container: %v", err)
	}
	return c
}

// Output runs a container to its end and returns its stdout.
func (p *Pod) Output(change func(*runtimeapi.ContainerConfig), args ...string) string {
	p.t.Helper()
	c := p.Start(change, args...)
	if st := c.Exited(); st.GetExitCode() != 0 {
		p.t.Errorf("%v: exit code %d: %s%s", args, st.GetExitCode(), c.Log("stdout"), c.Log("stderr"))
	}
	return c.Log("stdout")
}

// Status of the container.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	r, err := c.f.Runtime.ContainerStatus(ctx, c.ID, false)
	if err != nil {
		c.t.Fatalf("container status: %v", err)
	}
	return r.GetStatus()
}

// Exited waits for the container's end.
func (c *Container) Exited() *runtimeapi.ContainerStatus {
	c.t.Helper()
	var st *runtimeapi.ContainerStatus
	Until(c.t, "the container has ended", func() bool {
		st = c.Status()
		return st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

// Exec runs a command in the container.
func (c *Container) Exec(cmd ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Wait)
	defer cancel()
	out, _, err := c.f.Runtime.ExecSync(ctx, c.ID, cmd, 0)
	return string(out), err
}

// Log returns what the container wrote to a stream.
func (c *Container) Log(stream string) string {
	c.t.Helper()
	return ReadLog(c.t, c.LogPath, stream)
}

// ReadLog joins the records of one stream; a missing log is empty.
func ReadLog(t testing.TB, path, stream string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for l := range strings.Lines(string(b)) {
		f := strings.SplitN(l, " ", 4)
		if len(f) != 4 || f[1] != "stdout" && f[1] != "stderr" || f[2] != "F" && f[2] != "P" {
			t.Fatalf("%s: not a CRI log record: %.200q", path, l)
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if f[1] != stream {
			continue
		}
		if f[2] == "P" {
			f[3] = strings.TrimSuffix(f[3], "\n")
		}
		out.WriteString(f[3])
	}
	return out.String()
}

// Until waits for a condition that nothing announces.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(Wait)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", Wait, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
