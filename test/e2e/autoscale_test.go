package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usage reads what a container's cgroup has used so far of processors, in
// nanoseconds, and its working set in bytes.
func (g cgroups) usage(t *testing.T, group string) (cpu, memory int64) {
	t.Helper()
	read := func(file string) string {
		dir := g.mem
		if strings.HasPrefix(file, "cpuacct.") {
			dir = "/sys/fs/cgroup/cpuacct"
		} else if strings.HasPrefix(file, "cpu") {
			dir = g.cpu
		}
		b, err := os.ReadFile(filepath.Join(dir, group, file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	entry := func(file, name string) int64 {
		for l := range strings.Lines(read(file)) {
			if v, ok := strings.CutPrefix(l, name+" "); ok {
				return number(strings.TrimSpace(v))
			}
		}
		t.Fatalf("%s has no %s", file, name)
		return 0
	}
	if g.v2 {
		return entry("cpu.stat", "usage_usec") * 1000, number(read("memory.current")) - entry("memory.stat", "inactive_file")
	}
	return number(read("cpuacct.usage")), number(read("memory.usage_in_bytes")) - entry("memory.stat", "total_inactive_file")
}

// top reads a line of kubectl top: processors in thousandths, memory in MiB. The
// fields are counted from the end.
func (c *cluster) top(what, line string, cpu, memory int) (milli, mib int64, ok bool) {
	c.t.Helper()
	out, err := c.kubectlErr(strings.Fields("top " + what + " --no-headers")...)
	if err != nil {
		return 0, 0, false
	}
	for l := range strings.Lines(out) {
		f := strings.Fields(l)
		if strings.Join(f[:len(f)-2], " ") != line && f[0] != line {
			continue
		}
		milli, errC := strconv.ParseInt(strings.TrimSuffix(f[cpu], "m"), 10, 64)
		mib, errM := strconv.ParseInt(strings.TrimSuffix(f[memory], "Mi"), 10, 64)
		if errC != nil || errM != nil {
			c.t.Fatalf("top %s: %q", what, l)
		}
		return milli, mib, true
	}
	return 0, 0, false
}

// TestAutoscale: pods that burn processor time are scaled up, and down when they rest;
// kubectl top says what the kernel says, with nothing installed.
func TestAutoscale(t *testing.T) {
	g := findCgroups(t)
	c := start(t, "autoscale")
	c.importBusybox()
	control := t.TempDir()
	burn := filepath.Join(control, "burn")
	if err := os.WriteFile(burn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      volumes: [{name: control, hostPath: {path: %s}}]
      containers:
      - name: main
        image: busybox:1
        command: [sh, -c, 'while :; do if [ -e /control/burn ]; then i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; else sleep 0.2; fi; done']
        resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m}}
        volumeMounts: [{name: control, mountPath: /control}]
      - name: idle
        image: busybox:1
        command: [sleep, "100000"]
        resources: {requests: {cpu: 10m, memory: 8Mi}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  maxReplicas: 3
  metrics:
  - {type: ContainerResource, containerResource: {name: cpu, container: main, target: {type: Utilization, averageUtilization: 40}}}
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 1Gi}}}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: nobody}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: nobody}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: queue}
spec:
  selector: {matchLabels: {app: queue}}
  template:
    metadata: {labels: {app: queue}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: queue}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: queue}
  maxReplicas: 3
  metrics: [{type: External, external: {metric: {name: waiting}, target: {type: Value, value: "5"}}}]
`, control))
	pod := ""
	c.eventually("a pod of web is ready", func() (bool, string) {
		out, err := c.kubectlErr("get", "pods", "-l", "app=web", "-o", `jsonpath={.items[0].metadata.name} {.items[0].status.conditions[?(@.type=="Ready")].status}`)
		name, ready, _ := strings.Cut(out, " ")
		pod = name
		return err == nil && ready == "True", out
	})

	t.Run("top", func(t *testing.T) {
		o := c.get("pod", pod)
		group := ""
		for i := range 2 {
			if field(o, "status", "containerStatuses", i, "name") == "main" {
				_, id, _ := strings.Cut(field(o, "status", "containerStatuses", i, "containerID").(string), "://")
				group = filepath.Join("/skiff-"+c.name, "kubepods", "burstable", "pod"+field(o, "metadata", "uid").(string), id)
			}
		}
		// Two windows of the figures, so that one of them lies within.
		before, _ := g.usage(t, group)
		begin := time.Now()
		time.Sleep(32 * time.Second)
		milli, mib, ok := c.top("pod --containers", pod+" main", 2, 3)
		after, memory := g.usage(t, group)
		if !ok {
			t.Fatalf("top does not know %s", pod)
		}
		want := (after - before) / time.Since(begin).Milliseconds() / 1000
		if milli < want*3/4-10 || milli > want*5/4+10 || want < 50 {
			t.Errorf("top says %dm, the kernel %dm", milli, want)
		}
		if d := mib<<20 - memory; d < -2<<20 || d > 2<<20 {
			t.Errorf("top says %d MiB, the kernel %d bytes", mib, memory)
		}
		whole, _, ok := c.top("pod", pod, 1, 2)
		if !ok || whole < milli/2 {
			t.Errorf("the pod uses %dm, its container %dm", whole, milli)
		}
		name := field(o, "spec", "nodeName").(string)
		if node, mib, ok := c.top("node", name, 1, 3); !ok || node < want/2 || mib < 50 {
			t.Errorf("the node uses %dm and %d MiB", node, mib)
		}
	})

	scaled := func(n string) {
		t.Helper()
		c.eventually("web is scaled to "+n, func() (bool, string) {
			out, _ := c.kubectlErr("get", "deploy", "web", "-o", "jsonpath={.spec.replicas}")
			why, _ := c.kubectlErr("get", "hpa", "web", "-o", "jsonpath={.status}")
			return out == n, why
		})
	}
	event := func(name, reason, message string) {
		t.Helper()
		c.eventually("event "+reason, func() (bool, string) {
			out, _ := c.kubectlErr("get", "events", "--field-selector", "involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name="+name+",reason="+reason, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
			return strings.Contains(out, message), out
		})
	}
	scaled("3")
	event("web", "SuccessfulRescale", "New size: 3; reason: cpu container resource utilization (percentage of request) above target")
	if err := os.Remove(burn); err != nil {
		t.Fatal(err)
	}
	scaled("1")
	event("web", "SuccessfulRescale", "New size: 1; reason: All metrics below target")
	c.eventually("the status is told", func() (bool, string) {
		o := c.get("hpa", "web")
		current, _ := field(o, "status", "currentMetrics", 0, "containerResource", "current", "averageUtilization").(float64)
		s := fmt.Sprint(field(o, "status"))
		return field(o, "status", "observedGeneration") == field(o, "metadata", "generation") && field(o, "status", "lastScaleTime") != nil &&
			field(o, "status", "currentMetrics", 1, "resource", "current", "averageValue") != nil && current < 40 &&
			field(o, "status", "currentReplicas") == 1.0 && field(o, "status", "desiredReplicas") == 1.0, s
	})

	// What cannot be: upstream's conditions.
	for _, bad := range []struct{ name, reason, message string }{
		{"nobody", "FailedGetScale", `the HPA controller was unable to get the target's current scale: deployments.apps "nobody" not found`},
		{"queue", "FailedGetExternalMetric", "the HPA was unable to compute the replica count: unable to get external metric default/waiting/nil: unable to fetch metrics from external metrics API: the server could not find the requested resource (get waiting.external.metrics.k8s.io)"},
	} {
		c.eventually("the conditions of "+bad.name, func() (bool, string) {
			out, _ := c.kubectlErr("get", "hpa", bad.name, "-o", `jsonpath={range .status.conditions[*]}{.status} {.reason}: {.message}{"\n"}{end}`)
			return strings.Contains(out, "False "+bad.reason+": "+bad.message+"\n"), out
		})
		event(bad.name, bad.reason, "")
	}
}
