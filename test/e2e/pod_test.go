package e2e

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPod is the first step of all: a pod from an imported root file system is
// created, read, and deleted, over HTTPS and etcd.
func TestPod(t *testing.T) {
	c := start(t, "pod")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: hello, labels: {app: hello}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo hello from $NAME; exec sleep 1000']
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`)
	c.waitPod("hello", ".status.conditions[?(@.type==\"Ready\")].status", "True")
	if out := c.kubectl("logs", "hello"); out != "hello from hello\n" {
		t.Errorf("logs are %q", out)
	}
	if out := c.kubectl("exec", "hello", "--", "id", "-u"); strings.TrimSpace(out) != "0" {
		t.Errorf("exec id says %q", out)
	}
	if out := c.kubectl("get", "pod", "hello", "-o", "wide", "--no-headers"); !strings.Contains(out, "1/1") || !strings.Contains(out, "Running") {
		t.Errorf("get -o wide says %q", out)
	}
	started := time.Now()
	c.kubectl("delete", "pod", "hello")
	if _, err := c.kubectlErr("get", "pod", "hello"); err == nil || !strings.Contains(err.Error(), `pods "hello" not found`) {
		t.Errorf("the pod is still there: %v", err)
	}
	// The shell became sleep, which as process 1 ignores TERM: it is killed after
	// the grace period.
	if took := time.Since(started); took < 4*time.Second {
		t.Errorf("deletion took %v, less than the grace period", took)
	}
}

// TestKillWhileLogging kills skiff again and again while a pod writes numbered
// lines: the pod is not restarted and no line is lost or doubled.
func TestKillWhileLogging(t *testing.T) {
	c := start(t, "klog")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'i=0; while true; do echo $i; i=$((i+1)); [ $((i%50)) = 0 ] && sleep 0.02; done']
`)
	c.waitPod("counter", ".status.phase", "Running")
	id := field(c.get("pod", "counter"), "status", "containerStatuses", 0, "containerID")
	for range 4 {
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
		c.kill9()
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
		c.up()
	}
	p := c.get("pod", "counter")
	if now := field(p, "status", "containerStatuses", 0, "containerID"); now != id {
		t.Errorf("container was %v, is %v", id, now)
	}
	if n := field(p, "status", "containerStatuses", 0, "restartCount"); n != float64(0) {
		t.Errorf("restart count is %v", n)
	}
	lines := strings.Split(strings.TrimSpace(c.kubectl("logs", "counter")), "\n")
	if len(lines) < 500 {
		t.Fatalf("only %d lines", len(lines))
	}
	for i, l := range lines {
		if l != strconv.Itoa(i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

// TestKillWhileExiting lets containers exit while no skiff runs: their exit codes
// are reported, and none is run again.
func TestKillWhileExiting(t *testing.T) {
	c := start(t, "kexit")
	c.importBusybox()
	const pods = 5
	for i := range pods {
		c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: exit-%d}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; sleep %d.%d; echo ended; exit %d']
    volumeMounts: [{name: go, mountPath: /tmp}]
  volumes: [{name: go, hostPath: {path: %s, type: DirectoryOrCreate}}]
`, i, i/4, (i*3)%10, 10+i, c.data+"-go"))
	}
	for i := range pods {
		c.waitPod(fmt.Sprintf("exit-%d", i), ".status.phase", "Running")
	}
	c.kubectl("exec", "exit-0", "--", "touch", "/tmp/go")
	time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
	c.kill9()
	time.Sleep(2500 * time.Millisecond) // all have ended by now
	c.up()
	for i := range pods {
		name := fmt.Sprintf("exit-%d", i)
		c.waitPod(name, ".status.phase", "Failed")
		p := c.get("pod", name)
		term := field(p, "status", "containerStatuses", 0, "state", "terminated")
		if code := field(term, "exitCode"); code != float64(10+i) {
			t.Errorf("%s: exit code %v, want %d", name, code, 10+i)
		}
		if n := field(p, "status", "containerStatuses", 0, "restartCount"); n != float64(0) {
			t.Errorf("%s: restart count is %v", name, n)
		}
		if out := c.kubectl("logs", name); out != "begun\nended\n" {
			t.Errorf("%s: logs are %q", name, out)
		}
	}
}
