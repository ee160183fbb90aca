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
)

// told waits until the pod's first container waits for a reason, and events say
// each text.
func (c *cluster) told(pod, reason string, events ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("pod %s says %s", pod, reason), func() (bool, string) {
		out := c.jsonpath("pod/"+pod, ".status.containerStatuses[0].state")
		return strings.Contains(out, `"reason":"`+reason+`"`), out
	})
	for _, e := range events {
		c.eventually(fmt.Sprintf("an event of pod %s says %q", pod, e), func() (bool, string) {
			out := c.kubectl("get", "events", "--field-selector", "involvedObject.name="+pod)
			return strings.Contains(out, e), out
		})
	}
}

// TestBadPods: what is wrong with a pod shows in its status and its events.
func TestBadPods(t *testing.T) {
	c := start(t, "bad")
	c.carried = true
	c.importBusybox()
	one := func(name, container, pod string) {
		t.Helper()
		c.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers: [{name: main, %s}]\n%s\n", name, container, pod))
	}
	one("noimage", `image: "nosuch.invalid/image:1", command: [sleep, "1"]`, "")
	one("never", `image: "busybox:nosuch", imagePullPolicy: Never`, "")
	one("nocommand", `image: "busybox:1", command: [/nosuch]`, "")
	one("nosecret", `image: "busybox:1", command: [sleep, "1000"], env: [{name: K, valueFrom: {secretKeyRef: {name: absent, key: k}}}]`, "")
	one("nomount", `image: "busybox:1", command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]`, "  volumes: [{name: v, configMap: {name: absent}}]")
	one("eater", `image: "busybox:1", command: [sh, -c, 'x=0123456789; while true; do x=$x$x; done'], resources: {limits: {memory: 16Mi}}`, "  restartPolicy: Never")
	one("crash", `image: "busybox:1", command: [sh, -c, 'exit 3']`, "")
	one("nonode", `image: "busybox:1"`, "  nodeSelector: {disk: ssd}")
	one("toobig", `image: "busybox:1", resources: {requests: {cpu: "1000"}}`, "")

	c.told("noimage", "ImagePullBackOff", `Failed to pull image "nosuch.invalid/image:1"`, "Error: ErrImagePull", `Back-off pulling image "nosuch.invalid/image:1"`, "Error: ImagePullBackOff")
	c.told("never", "ErrImageNeverPull", `Container image "busybox:nosuch" is not present with pull policy of Never`)
	c.told("nosecret", "CreateContainerConfigError", `Error: secret "absent" not found`)
	c.told("nomount", "ContainerCreating", `MountVolume.SetUp failed for volume "v" : configmap "absent" not found`)
	c.eventually("the bad command is told", func() (bool, string) {
		out := c.jsonpath("pod/nocommand", ".status.containerStatuses[0]")
		return strings.Contains(out, "no such file or directory") && strings.Contains(out, "/nosuch"), out
	})
	c.is("pod/eater", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled")
	c.is("pod/eater", ".status.containerStatuses[0].state.terminated.exitCode", "137")
	c.told("crash", "CrashLoopBackOff", "Back-off restarting failed container main in pod crash_default(")
	c.is("pod/crash", ".status.containerStatuses[0].lastState.terminated.exitCode", "3")
	unschedulable := func(pod, want string) {
		t.Helper()
		c.eventually("it is told why pod "+pod+" waits", func() (bool, string) {
			out := c.jsonpath("pod/"+pod, `.status.conditions[?(@.type=="PodScheduled")].message`)
			return strings.HasPrefix(out, want), out
		})
	}
	unschedulable("nonode", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.")
	unschedulable("toobig", "0/1 nodes are available: 1 Insufficient cpu.")
	// What was missing comes: the pods run.
	c.kubectl("create", "secret", "generic", "absent", "--from-literal=k=v")
	c.kubectl("create", "configmap", "absent")
	c.is("pod/nosecret", readyPath, "True")
	c.is("pod/nomount", readyPath, "True")
}

// TestBadStart: what makes a start impossible is one clear sentence, and nothing
// is left of it.
func TestBadStart(t *testing.T) {
	c := start(t, "second")
	pid := c.pid()
	if out, err := c.skiff("up"); err != nil || !strings.Contains(out, fmt.Sprintf("is running already (pid %d). Nothing was changed.", pid)) || c.pid() != pid {
		t.Errorf("a second up says %q, %v", out, err)
	}
	refused := func(cmd *exec.Cmd, want ...string) {
		t.Helper()
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("%v is not refused: %s", cmd.Args, out)
		}
		has(t, string(out), want...)
	}
	name := c.name + "-x"
	cleanup := func(data string) {
		t.Cleanup(func() {
			_, _ = exec.Command(c.bin, "--name", name, "--data-dir", data, "reset", "--yes").CombinedOutput()
		})
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "letters"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(exec.Command(c.bin, "--name", name, "--data-dir", foreign, "up"), foreign+" is not empty and not a data directory of skiff; choose another --data-dir")
	if b, err := os.ReadFile(filepath.Join(foreign, "letters")); string(b) != "mine" {
		t.Errorf("the foreign file is %q, %v", b, err)
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	data := t.TempDir() + "/data"
	cleanup(data)
	refused(exec.Command(c.bin, "--name", name, "--data-dir", data, "up", "--api-port", port), port, "in use")
	bin := filepath.Join(t.TempDir(), "skiff")
	b, err := os.ReadFile(c.bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, b, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(bin); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	nobody := exec.Command(bin, "--name", name+"y", "up")
	nobody.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	nobody.Dir = "/"
	refused(nobody, "skiff needs root to run containers; run it with sudo")
}
