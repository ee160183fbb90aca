package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// reserved checks that so much of the CPU, in thousandths, and of the memory is kept
// from the pods: one by one, and together.
func (c *cluster) reserved(cpu, memory int64) {
	c.t.Helper()
	quantity := func(path string) resource.Quantity {
		q, err := resource.ParseQuantity(c.jsonpath("node", ".items[0].status."+path))
		if err != nil {
			c.t.Fatal(err)
		}
		return q
	}
	has, may := quantity("capacity.cpu"), quantity("allocatable.cpu")
	if kept := has.MilliValue() - may.MilliValue(); kept != cpu {
		c.t.Errorf("%dm of the CPU are kept, want %dm", kept, cpu)
	}
	has, may = quantity("capacity.memory"), quantity("allocatable.memory")
	const threshold = 100 << 20 // below which pods are evicted
	if kept := has.Value() - may.Value(); kept != memory+threshold {
		c.t.Errorf("%d bytes of memory are kept, want %d", kept, memory+threshold)
	}
	c.event("one", "NodeAllocatableEnforced Updated Node Allocatable limit across pods\n")
	limit := strconv.FormatInt(has.Value()-memory, 10)
	findCgroups(c.t).has(c.t, "/skiff-"+c.name+"/kubepods", []string{"memory.limit_in_bytes " + limit}, []string{"memory.max " + limit})
}

// TestKubelet sets the node's own side up in the config file: a directory of static
// pods, small logs, what is kept from pods, and what a pod may have on the disk.
func TestKubelet(t *testing.T) {
	dir := t.TempDir()
	manifests := filepath.Join(dir, "pods")
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "skiff.yaml")
	text := fmt.Sprintf(`
kubelet:
  staticPodPath: %s
  containerLogMaxSize: 64Ki
  containerLogMaxFiles: 3
  systemReserved: {cpu: 100m, memory: 256Mi}
  kubeReserved: {memory: 256Mi, pid: "1000"}
`, manifests)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, "kubelet", "--config", config, "--node-name", "one")
	c.importBusybox()
	c.reserved(100, 512<<20)

	// A container that writes ten thousand lines a second, for over two rotations.
	const lines = 220_000
	c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: chatty}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:1
    command: [/bin/busybox, awk, 'BEGIN {for (i = 0; i < %d; i++) {print i; if (i %% 1000 == 0) {fflush(); system("/bin/busybox usleep 90000")}}}']
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'dd if=/dev/zero of=/scratch/big bs=1M count=5; exec sleep 100000']
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]
`, lines))
	c.waitPod("chatty", ".status.phase", "Running")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	follow := c.kubectlCmd(ctx, "logs", "-f", "chatty")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}

	manifest := `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo begun; exec sleep 100000']
`
	path := filepath.Join(manifests, "web.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	c.waitPod("web-one", ".status.phase", "Running")
	c.eventually("the static pod's log", func() (bool, string) {
		out, err := c.kubectlErr("logs", "web-one")
		return err == nil && out == "begun\n", out
	})
	id := c.kubectl("get", "pod", "web-one", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	uid := c.kubectl("get", "pod", "web-one", "-o", "jsonpath={.metadata.uid}")
	c.kubectl("delete", "pod", "web-one", "--wait=false")
	c.eventually("another mirror", func() (bool, string) {
		got, err := c.kubectlErr("get", "pod", "web-one", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}")
		now, container, _ := strings.Cut(got, " ")
		return err == nil && now != uid && container == id, got
	})

	c.waitPod("greedy", ".status.reason", "Evicted")
	if m := c.kubectl("get", "pod", "greedy", "-o", "jsonpath={.status.phase}: {.status.message}"); m != `Failed: Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". ` {
		t.Errorf("status: %s", m)
	}

	next := 0
	for s := bufio.NewScanner(out); s.Scan(); next++ {
		if n, err := strconv.Atoi(s.Text()); err != nil || n != next {
			t.Fatalf("line %d of the log is %q", next, s.Text())
		}
	}
	if err := follow.Wait(); err != nil || next != lines {
		t.Errorf("%d lines were followed, %v, want %d", next, err, lines)
	}
	logs, err := filepath.Glob(filepath.Join(c.data, "logs", "default_chatty_*", "main", "0.log*"))
	if err != nil || len(logs) < 2 || len(logs) > 3 {
		t.Errorf("logs: %v, %v", logs, err)
	}

	c.kill9()
	c.up()
	c.eventually("the static pod after a restart", func() (bool, string) {
		got, err := c.kubectlErr("get", "pod", "web-one", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].containerID}")
		return err == nil && got == "Running "+id, got
	})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	c.eventually("the static pod's end", func() (bool, string) {
		out, err := c.kubectlErr("get", "pod", "web-one")
		return err != nil && strings.Contains(out, "NotFound"), out
	})
	figures := c.kubectl("get", "--raw", "/api/v1/nodes/one/proxy/metrics")
	for _, want := range []string{"kubelet_running_pods 0\n", "kubelet_runtime_operations_total{operation_type=\"list_containers\"} ", "kubelet_mirror_pods 0\n"} {
		if !strings.Contains(figures, want) {
			t.Errorf("no %s in\n%s", want, figures)
		}
	}
}
