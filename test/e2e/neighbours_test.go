package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// own is a cluster of a test that runs apart; it is removed at the end.
func own(t *testing.T, name, data string) *cluster {
	t.Helper()
	if _, err := os.Stat(skiffBin); err != nil {
		t.Fatalf("skiff is not built (make build): %v", err)
	}
	c := &cluster{t: t, bin: skiffBin, name: name + "-" + regexp.MustCompile(`\D`).ReplaceAllString(t.TempDir(), ""), carried: true}
	c.data = strings.ReplaceAll(data, "NAME", c.name)
	t.Cleanup(func() {
		if t.Failed() {
			c.dump()
		}
		if out, err := exec.Command(c.bin, "--name", c.name, "reset", "--yes").CombinedOutput(); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
	})
	return c
}

// TestResetByName: the name alone leads to a cluster whose data are elsewhere, and
// another directory than its own is refused; nothing of it is left, also where its
// data were removed by hand before.
func TestResetByName(t *testing.T) {
	if !apart(t) {
		return
	}
	c := own(t, "else", "/var/lib/elsewhere/NAME")
	if err := os.MkdirAll("/var/lib/elsewhere/wrong", 0o700); err != nil {
		t.Fatal(err)
	}
	before := observe(t, c.name)
	byName := func(args ...string) (string, error) {
		out, err := exec.Command(c.bin, append([]string{"--name", c.name}, args...)...).CombinedOutput()
		return string(out), err
	}
	says := func(want string, args ...string) {
		t.Helper()
		if out, _ := byName(args...); !strings.Contains(out, want) {
			t.Errorf("skiff %s says %q, want %q", strings.Join(args, " "), out, want)
		}
	}
	unknown := fmt.Sprintf("there is no cluster %q on this machine", c.name)
	for _, args := range []string{"status", "down", "reset --yes", "kubeconfig"} {
		says(unknown, strings.Fields(args)...)
	}
	before.same(t, observe(t, c.name)) // asking makes nothing

	c.up()
	c.importBusybox()
	c.apply(whole(18080, c.name))
	c.rollout("web")
	c.is("pod/all", readyPath, "True")
	says("Ready since", "status")
	if out, err := exec.Command(c.bin, "kubectl", "--name", c.name, "get", "pod/all", "-o", "name").CombinedOutput(); string(out) != "pod/all\n" {
		t.Errorf("kubectl by name: %s %v", out, err)
	}
	wrong := fmt.Sprintf("cluster %q has its data in %s, not in /var/lib/elsewhere/wrong", c.name, c.data)
	for _, args := range []string{"status", "down", "reset --yes", "up", "kubeconfig"} {
		says(wrong, append([]string{"--data-dir", "/var/lib/elsewhere/wrong"}, strings.Fields(args)...)...)
	}
	says(fmt.Sprintf("%s holds cluster %q, not %q", c.data, c.name, c.name+"x"), "--name", c.name+"x", "--data-dir", c.data, "down")

	c.kill9()
	if out, err := byName("reset", "--yes"); err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	before.same(t, observe(t, c.name))
	says(unknown, "status")

	// Data that were removed by hand: the host still remembers what it was given.
	c.up()
	if out, err := byName("down"); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if err := os.RemoveAll(c.data); err != nil {
		t.Fatal(err)
	}
	if out, err := byName("reset", "--yes"); err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	before.same(t, observe(t, c.name))
}

// TestNeighbours: two clusters on one host keep their services apart. Pods of one
// do not reach cluster IPs of the other, a node port that both want stays with the
// first and the second says so, and ranges are not shared.
func TestNeighbours(t *testing.T) {
	if !apart(t) {
		return
	}
	var both []*cluster
	for _, name := range []string{"left", "right"} {
		c := own(t, name, "/var/lib/skiff/NAME")
		c.up()
		c.importBusybox()
		c.apply(web(1, c.name) + `
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
`)
		both = append(both, c)
	}
	var ips []string
	for _, c := range both {
		c.rollout("web")
		c.is("pod/client", readyPath, "True")
		ips = append(ips, c.jsonpath("service/web", ".spec.clusterIP"))
	}
	for i, c := range both {
		if out := c.kubectl("exec", "client", "--", "busybox", "timeout", "5", "wget", "-q", "-O", "-", "http://"+ips[i]); !strings.HasPrefix(out, c.name) {
			t.Errorf("cluster %s: its own service says %q", c.name, out)
		}
		if out, err := c.kubectlErr("exec", "client", "--", "busybox", "timeout", "2", "wget", "-q", "-O", "-", "http://"+ips[1-i]); err == nil {
			t.Errorf("a pod of cluster %s reaches a cluster IP of the other: %q", c.name, out)
		}
		if out, err := fetch("http://" + ips[i]); err != nil || !strings.HasPrefix(out, c.name) {
			t.Errorf("the host reaches the service of cluster %s as %q, %v", c.name, out, err)
		}
	}

	// The second asks for the first one's node port.
	port := both[0].jsonpath("service/web", ".spec.ports[0].nodePort")
	both[1].apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: same}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: %s}]}
`, port))
	want := fmt.Sprintf("node port %s/TCP is not served on node %s: cluster %q on the same host has it",
		port, both[1].jsonpath("nodes", ".items[0].metadata.name"), both[0].name)
	both[1].eventually("an event tells of the port", func() (bool, string) {
		out := both[1].kubectl("get", "events", "--field-selector", "involvedObject.name=same,reason=NodePortInUse", "-o", "jsonpath={.items[*].message}")
		return out == want, out
	})
	url := "http://198.51.100.2:" + port
	for range 5 {
		if out, err := fetch(url); err != nil || !strings.HasPrefix(out, both[0].name) {
			t.Errorf("%s says %q, %v; want cluster %s", url, out, err, both[0].name)
		}
	}
	both[0].kubectl("delete", "service", "web")
	both[1].eventually("the port is the second one's when the first gives it up", func() (bool, string) {
		out, err := fetch(url)
		return err == nil && strings.HasPrefix(out, both[1].name), fmt.Sprint(out, err)
	})

	// A third that asks for a range of theirs is told, and what is free.
	third := own(t, "third", "/var/lib/skiff/NAME")
	field := both[0].serviceCIDR()
	out, err := third.skiff("up", "--service-cidr", field)
	if err == nil || !strings.Contains(out, fmt.Sprintf("serviceCIDR: %s overlaps %s of cluster %q on this machine; choose another one, ", field, field, both[0].name)) {
		t.Errorf("a third cluster with the ranges of the first: %v %s", err, out)
	}
}

// serviceCIDR is the range of the cluster's services.
func (c *cluster) serviceCIDR() string {
	c.t.Helper()
	return c.jsonpath("servicecidr/kubernetes", ".spec.cidrs[0]")
}
