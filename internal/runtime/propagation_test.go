package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri/critest"
)

// On a host whose mounts are shared: nothing of ours is seen by others, and what
// is asked to be seen is.
func TestPropagation(t *testing.T) {
	b := newBench(t)
	c := b.childOf(t, childSpec{Instance: b.inst, Programs: b.set, Shared: true})
	ctx := t.Context()
	mounts := func() string {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	dir := t.TempDir()
	config := b.config(t, "p")
	cc := containerConfig("both", "sh", "-c", "mkdir -p /m/in && mount -t tmpfs in /m/in && echo mounted && sleep 1000")
	cc.Linux.SecurityContext.Privileged = true
	cc.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	sb, id, err := pod(ctx, c.Services, config, cc)
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(config.LogDirectory, "both.log")
	critest.Until(t, "the container has mounted", func() bool { return critest.ReadLog(t, log, "stdout") == "mounted\n" })
	if !strings.Contains(mounts(), dir+"/in ") {
		t.Error("a bidirectional mount does not reach the host")
	}
	if strings.Contains(mounts(), "rootfs-"+id) {
		t.Error("a root file system is mounted on the host")
	}
	// From the host into a container, and no way back.
	cc = containerConfig("in", "sh", "-c", "sleep 1000")
	cc.Linux.SecurityContext.Privileged = true
	cc.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/m", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
	in, err := c.Runtime.CreateContainer(ctx, sb, cc, config)
	if err == nil {
		err = c.Runtime.StartContainer(ctx, in)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Runtime.ExecSync(ctx, id, []string{"sh", "-c", "mkdir /m/late && mount -t tmpfs late /m/late && echo x > /m/late/file"}, 0); err != nil {
		t.Fatal(err)
	}
	if out, _, err := c.Runtime.ExecSync(ctx, in, []string{"cat", "/m/late/file"}, 0); string(out) != "x\n" || err != nil {
		t.Errorf("a host's mount does not reach the container: %q, %v", out, err)
	}
	if _, _, err := c.Runtime.ExecSync(ctx, in, []string{"sh", "-c", "mkdir /m/back && mount -t tmpfs back /m/back"}, 0); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(mounts(), dir+"/back ") {
		t.Error("a one-way mount leaks to the host")
	}
	if err := c.Runtime.RemovePodSandbox(ctx, sb); err != nil {
		t.Error(err)
	}
}
