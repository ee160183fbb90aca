package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCNI: a CNI configuration that appears takes the place of the built-in
// network for the pods that follow. Services, names and host ports work for both;
// the plugins' pods outlive skiff, give their addresses back, and nothing is left
// after reset.
func TestCNI(t *testing.T) {
	if !apart(t) {
		return
	}
	const plugins = "/usr/lib/cni"
	for _, f := range []string{plugins + "/bridge", plugins + "/host-local", plugins + "/portmap", "/usr/sbin/iptables"} {
		if _, err := os.Stat(f); err != nil {
			t.Fatalf("%v: apt-get install containernetworking-plugins iptables", err)
		}
	}
	conf, addresses := t.TempDir(), filepath.Join(t.TempDir(), "addresses")
	path := filepath.Join(conf, "10-test.conflist")
	config := fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test", "plugins": [
	{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
	 "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.22.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`, addresses)
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := own(t, "cni", "/var/lib/skiff/NAME")
	before := observe(t, c.name)
	c.args = []string{"--cni-conf-dir", conf, "--cni-bin-dir", plugins}
	c.up()
	c.importBusybox()
	pod := func(name, more string) {
		t.Helper()
		c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'mkdir /www; echo %s > /www/index.html; exec httpd -f -p 8080 -h /www']
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    %s
---
apiVersion: v1
kind: Service
metadata: {name: at-%s}
spec: {type: NodePort, selector: {app: %s}, ports: [{port: 80, targetPort: 8080}]}
`, name, name, name, more, name, name))
		c.is("pod/"+name, readyPath, "True")
	}
	ip := func(name string) string { return c.jsonpath("pod/"+name, ".status.podIP") }
	pod("built-in", "")
	write(config)
	pod("first", "ports: [{containerPort: 8080, hostPort: 18080}]")
	pod("second", "")
	if strings.HasPrefix(ip("built-in"), "10.22.") {
		t.Errorf("the pod before the configuration has %s", ip("built-in"))
	}
	for _, p := range []string{"first", "second"} {
		if !strings.HasPrefix(ip(p), "10.22.0.") {
			t.Errorf("pod %s has %s, not the plugins' address", p, ip(p))
		}
	}
	answers := func() {
		t.Helper()
		for _, from := range []string{"built-in", "first", "second"} {
			for _, to := range []string{"built-in", "first", "second"} {
				c.eventually(from+" reaches "+to+" by name", func() (bool, string) {
					out, err := c.kubectlErr("exec", from, "--", "busybox", "timeout", "5", "wget", "-q", "-O", "-", "http://at-"+to)
					return err == nil && out == to+"\n", fmt.Sprint(out, err)
				})
			}
			if out, err := fetch("http://198.51.100.2:" + c.jsonpath("service/at-"+from, ".spec.ports[0].nodePort")); err != nil || out != from {
				t.Errorf("the node port of %s says %q, %v", from, out, err)
			}
		}
		if out, err := fetch("http://198.51.100.2:18080"); err != nil || out != "first" {
			t.Errorf("the host port says %q, %v", out, err)
		}
	}
	answers()

	// Skiff ends and comes back: its pods are as they were.
	state := func() string {
		return c.kubectl("get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.podIP} {.status.containerStatuses[0].containerID} {end}`)
	}
	was := state()
	c.kill9()
	if out, err := fetch("http://198.51.100.2:18080"); err != nil || out != "first" {
		t.Errorf("while skiff is away the host port says %q, %v", out, err)
	}
	c.up()
	answers()
	if now := state(); now != was {
		t.Errorf("the pods are\n%s, were\n%s", now, was)
	}

	// A pod that goes gives its address back, also to another configuration's name.
	held := func(addr string) bool {
		_, err := os.Stat(filepath.Join(addresses, "test", addr))
		return err == nil
	}
	addr := ip("second")
	if !held(addr) {
		t.Fatalf("the plugins do not hold %s: this test sees nothing", addr)
	}
	write(strings.Replace(config, `"name": "test"`, `"name": "other"`, 1))
	c.kubectl("delete", "pod", "second", "--wait")
	c.eventually("the address is given back", func() (bool, string) { return !held(addr), addr })

	// A configuration that is wrong makes the node not ready, and says why.
	write("{")
	c.eventually("the node is not ready", func() (bool, string) {
		out := c.jsonpath("nodes", `.items[0].status.conditions[?(@.type=="Ready")]`)
		return strings.Contains(out, `"status":"False"`) && strings.Contains(out, "NetworkPluginNotReady") && strings.Contains(out, path), out
	})
	write(config)
	c.eventually("the node is ready again", func() (bool, string) {
		out := c.jsonpath("nodes", `.items[0].status.conditions[?(@.type=="Ready")].status`)
		return out == "True", out
	})

	c.kill9()
	if out, err := c.skiff("reset", "--yes"); err != nil {
		t.Fatalf("reset: %v\n%s", err, out)
	}
	after := observe(t, c.name)
	// The plugins leave chains of their own in the host's tables; none is a pod's.
	for _, l := range after["nftables"] {
		if strings.Contains(l, "skiff") || strings.Contains(l, "10.22.0.") || strings.Contains(l, "CNI-DN-") {
			t.Errorf("left in nftables: %s", l)
		}
	}
	delete(after, "nftables")
	before.same(t, after)
	if left, err := filepath.Glob(addresses + "/*/10.22.*"); err != nil || len(left) > 0 {
		t.Errorf("addresses still held: %v %v", left, err)
	}
	if out, err := exec.Command("ip", "link", "show", "cnitest0").CombinedOutput(); err == nil {
		t.Errorf("the bridge is still there: %s", out)
	}
}
