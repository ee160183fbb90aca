package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// deviceDriver is test/dradriver at work.
type deviceDriver struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	calls []string
}

// count is how often the driver was asked for that.
func (d *deviceDriver) count(call string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, c := range d.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (d *deviceDriver) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	<-d.done
}

// drive runs the driver NAME with devices of the only node.
func (c *cluster) drive(bin, name string, devices int) *deviceDriver {
	c.t.Helper()
	node := strings.TrimSpace(c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	// A socket's path must be short.
	data, err := os.MkdirTemp("", "dra")
	if err != nil {
		c.t.Fatal(err)
	}
	d := &deviceDriver{done: make(chan struct{}), cmd: exec.Command(bin, "--kubeconfig", c.data+"/admin.kubeconfig", "--name", name, "--node", node,
		"--registry", c.data+"/kubelet/plugins_registry", "--data", data, "--devices", fmt.Sprint(devices))}
	var log lockedBuffer
	d.cmd.Stderr = &log
	out, err := d.cmd.StdoutPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(d.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			d.mu.Lock()
			d.calls = append(d.calls, lines.Text())
			d.mu.Unlock()
		}
		_ = d.cmd.Wait()
	}()
	c.t.Cleanup(func() {
		d.stop()
		os.RemoveAll(data)
		if c.t.Failed() {
			s := log.String()
			c.t.Logf("driver: %s", s[max(0, len(s)-3000):])
		}
	})
	return d
}

// TestDevices: a driver publishes devices; pods with claims get them, as the driver
// says by CDI; who finds none waits, and runs when one is given back.
func TestDevices(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "dradriver")
	build := exec.Command("go", "build", "-C", "../dradriver", "-o", bin, ".")
	build.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build test/dradriver: %v\n%s", err, out)
	}
	c := start(t, "dra")
	c.importBusybox()
	name := fmt.Sprintf("e2e-%d.skiff.dev", os.Getpid())
	c.apply(`
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: toy}
spec:
  selectors: [{cel: {expression: 'device.driver == "` + name + `"'}}]
  extendedResourceName: skiff.dev/toy
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one}
spec: {spec: {devices: {requests: [{name: toy, exactly: {deviceClassName: toy}}]}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: shared}
spec: {devices: {requests: [{name: toy, exactly: {deviceClassName: toy}}]}}
`)
	pod := func(name, claim string) {
		t.Helper()
		c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: ` + name + `}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  resourceClaims: [{name: dev, ` + claim + `}]
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo "got $DEVICES"; sleep 100000']
    resources: {claims: [{name: dev}]}
`)
	}
	const mine = "resourceClaimTemplateName: one"
	ready := func(pod string) {
		t.Helper()
		c.waitPod(pod, `.status.conditions[?(@.type=="Ready")].status`, "True")
	}
	device := func(pod string) string {
		t.Helper()
		var log string
		c.eventually("pod "+pod+" says what it got", func() (bool, string) {
			log, _ = c.kubectlErr("logs", pod)
			return strings.HasPrefix(log, "got "), log
		})
		return strings.TrimSpace(strings.TrimPrefix(log, "got "))
	}
	claimOf := func(pod string) string {
		t.Helper()
		s, _ := field(c.get("pod", pod), "status", "resourceClaimStatuses", 0, "resourceClaimName").(string)
		if !strings.HasPrefix(s, pod+"-dev-") {
			t.Fatalf("the claim of pod %s is called %q", pod, s)
		}
		return s
	}

	pod("early", mine)
	c.eventually("a pod without devices is refused", func() (bool, string) {
		out := c.kubectl("get", "pod", "early", "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`)
		return strings.HasPrefix(out, "0/1 nodes are available: 1 cannot allocate all claims."), out
	})
	driver := c.drive(bin, name, 2)
	ready("early")
	first := claimOf("early")
	if got := device("early"); got != "d0" && got != "d1" {
		t.Fatalf("the pod has device %q", got)
	}
	pod("second", mine)
	ready("second")
	if a, b := device("early"), device("second"); a == b {
		t.Fatalf("both pods have device %s", a)
	}

	// The last device is taken: the next pod waits until it is given back.
	pod("third", mine)
	c.eventually("the third pod is refused", func() (bool, string) {
		out := c.kubectl("get", "pod", "third", "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`)
		return strings.HasPrefix(out, "0/1 nodes are available: 1 cannot allocate all claims."), out
	})

	// A restart of skiff prepares nothing again, and the driver registers anew.
	c.kill9()
	c.up()
	c.eventually("the driver has published its devices again", func() (bool, string) {
		out := c.kubectl("get", "resourceslices", "-o", "jsonpath={.items[*].spec.driver}")
		return out == name, out
	})
	if n := driver.count("prepare default/" + first); n != 1 {
		t.Errorf("the first claim was prepared %d times", n)
	}
	was := device("early")
	c.kubectl("delete", "pod", "early")
	ready("third")
	if got := device("third"); got != was {
		t.Errorf("the third pod has device %s, want the one given back, %s", got, was)
	}
	c.eventually("the first claim is unprepared and gone", func() (bool, string) {
		out := c.kubectl("get", "resourceclaims", "-o", "name")
		return driver.count("unprepare default/"+first) == 1 && !strings.Contains(out, first), out
	})

	// How healthy devices are is in the pod's status.
	health := func(pod, want string) {
		t.Helper()
		c.eventually("the status of pod "+pod+" says that its device is "+want, func() (bool, string) {
			out := c.kubectl("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health}")
			return out == want, out
		})
	}
	health("third", "Healthy")
	if err := driver.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	health("third", "Unhealthy")

	// Two pods share a claim, one after the other has ended.
	c.kubectl("delete", "pod", "second", "third")
	pod("sharer-a", "resourceClaimName: shared")
	pod("sharer-b", "resourceClaimName: shared")
	ready("sharer-a")
	ready("sharer-b")
	if a, b := device("sharer-a"), device("sharer-b"); a != b {
		t.Errorf("the pods that share a claim have devices %s and %s", a, b)
	}
	if n := driver.count("prepare default/shared"); n != 1 {
		t.Errorf("the shared claim was prepared %d times", n)
	}
	c.kubectl("delete", "pod", "sharer-a")
	if n := driver.count("unprepare default/shared"); n != 0 {
		t.Errorf("the shared claim was unprepared under a pod")
	}
	c.kubectl("delete", "pod", "sharer-b")
	c.eventually("the shared claim is free", func() (bool, string) {
		out := c.kubectl("get", "resourceclaim", "shared", "-o", "jsonpath={.status.allocation}{.metadata.finalizers}")
		return out == "" && driver.count("unprepare default/shared") == 1, out
	})

	// A resource that a class stands for.
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: extended}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo "got $DEVICES"; sleep 100000']
    resources: {limits: {skiff.dev/toy: 2}}
`)
	ready("extended")
	if got := device("extended"); got != "d0,d1" && got != "d1,d0" {
		t.Errorf("the pod with an extended resource has %q", got)
	}
	c.kubectl("delete", "pod", "extended")

	// Without its driver a pod does not start, and says so; its slices go.
	pod("late", "resourceClaimName: shared")
	ready("late")
	c.kubectl("delete", "pod", "late")
	// A pod without a grace period is gone before its devices are given back.
	c.eventually("all that was prepared is unprepared", func() (bool, string) {
		specs, err := filepath.Glob("/var/run/cdi/" + name + "-*.json")
		return err == nil && len(specs) == 0, fmt.Sprint(specs, err)
	})
	driver.stop()
	c.apply(strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: orphan}
spec:
  terminationGracePeriodSeconds: 0
  resourceClaims: [{name: dev, resourceClaimName: shared}]
  containers:
  - {name: main, image: "busybox:1", command: [sleep, "100000"], resources: {claims: [{name: dev}]}}
`, "\t", "  "))
	c.eventually("an event says what is missing", func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=orphan,reason=FailedPrepareDynamicResources", "-o", "jsonpath={.items[*].message}")
		return strings.Contains(out, "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver "+name+" is not registered"), out
	})
	started := time.Now()
	c.eventually("the slices of the driver are gone", func() (bool, string) {
		out := c.kubectl("get", "resourceslices", "-o", "name")
		return out == "", fmt.Sprint(time.Since(started), out)
	})
	c.kubectl("delete", "pod", "orphan", "--wait=false")
	driver = c.drive(bin, name, 1)
	c.gone("pod/orphan")
}
