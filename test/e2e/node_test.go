package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// place are namespaces of their own (network, mounts, host name), kept by a
// process, and a link from this host to them.
type place struct {
	t   *testing.T
	pid int
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// newPlace makes namespaces whose only link leads to this host: here has the
// first address, there the second.
func newPlace(t *testing.T, here, there string) *place {
	t.Helper()
	cmd := exec.Command("unshare", "--net", "--mount", "--uts", "--propagation", "private", "sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	p := &place{t, cmd.Process.Pid}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid)); err == nil && strings.TrimSpace(string(b)) == "sleep" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the namespaces were not made")
		}
	}
	a, b := fmt.Sprintf("e2a%d", os.Getpid()), fmt.Sprintf("e2b%d", os.Getpid())
	run(t, "ip", "link", "add", a, "type", "veth", "peer", "name", b, "netns", fmt.Sprint(p.pid))
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", a).Run() }) // it goes with the namespace too
	run(t, "ip", "addr", "add", here+"/24", "dev", a)
	run(t, "ip", "link", "set", a, "up")
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", there + "/24", "dev", b}, {"link", "set", b, "up"}} {
		run(t, append(append(p.enter(), "ip"), args...)...)
	}
	return p
}

func (p *place) enter() []string {
	return []string{"nsenter", "-t", fmt.Sprint(p.pid), "-n", "-m", "-u"}
}

// startNode runs skiff's node half until the returned function kills it, and
// returns when it says Ready.
func (c *cluster) startNode(args ...string) (kill func()) {
	c.t.Helper()
	cmd := c.command(append([]string{"node"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	logFile, err := os.OpenFile(c.data+".log", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	dead := false
	kill = func() {
		if dead {
			return
		}
		dead = true
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}
	c.t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "Ready\n" {
		kill()
		b, _ := os.ReadFile(c.data + ".log")
		if len(b) > 6000 {
			b = b[len(b)-6000:]
		}
		c.t.Fatalf("the node did not become Ready: %q, %v\n%s", line, err, b)
	}
	return kill
}

func pair(nodes ...string) string {
	var out strings.Builder
	for i, n := range nodes {
		fmt.Fprintf(&out, `---
apiVersion: v1
kind: Pod
metadata: {name: web-%d, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %s}
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'echo web-%d > /tmp/index.html; echo serving; exec httpd -f -p 8080 -h /tmp']
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, i, n, i)
	}
	return out.String() + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`
}

// TestSecondNode joins a node on a network of its own to a cluster: pods on both
// reach each other and the services, and the node outlives kill -9.
func TestSecondNode(t *testing.T) {
	const here, there = "10.199.77.1", "10.199.77.2"
	p := newPlace(t, here, there)
	c := start(t, "first", "--node-ip", here)
	c.importBusybox()
	first, _ := field(c.get("nodes"), "items", 0, "metadata", "name").(string)

	n := reserve(t, "second")
	n.enter = p.enter()
	kubeconfig := filepath.Join(t.TempDir(), "node.kubeconfig")
	out, err := c.skiff("kubeconfig", "--node", "second")
	if err != nil {
		t.Fatal(out)
	}
	if err := os.WriteFile(kubeconfig, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--kubeconfig", kubeconfig, "--node-ip", there}
	kill := n.startNode(flags...)
	n.importBusybox()
	c.kubectl("wait", "--for=condition=Ready", "node/second", "--timeout=60s")

	c.apply(pair(first, "second"))
	c.kubectl("wait", "--for=condition=Ready", "pod/web-0", "pod/web-1", "--timeout=60s")
	ip := func(i int) string {
		s, _ := field(c.get("pod", fmt.Sprintf("web-%d", i)), "status", "podIP").(string)
		return s
	}
	check := func() {
		t.Helper()
		for i := range 2 {
			from := fmt.Sprintf("web-%d", i)
			if out, err := c.kubectlErr("exec", from, "--", "wget", "-q", "-O", "-", "http://"+ip(1-i)+":8080/"); err != nil || out != fmt.Sprintf("web-%d\n", 1-i) {
				t.Errorf("from %s to the other node's pod: %q, %v", from, out, err)
			}
			seen := map[string]bool{}
			for k := 0; k < 40 && len(seen) < 2; k++ {
				out, err := c.kubectlErr("exec", from, "--", "wget", "-q", "-O", "-", "http://web.default.svc.cluster.local/")
				if err != nil {
					t.Fatalf("from %s to the service: %v", from, err)
				}
				seen[out] = true
			}
			if !seen["web-0\n"] || !seen["web-1\n"] {
				t.Errorf("the service answers %s with %v", from, seen)
			}
			if out := c.kubectl("logs", from); out != "serving\n" {
				t.Errorf("logs of %s: %q", from, out)
			}
		}
	}
	check()
	service, _ := field(c.get("service", "web"), "spec", "clusterIP").(string)
	if out, err := exec.Command(p.enter()[0], append(p.enter()[1:], "busybox", "wget", "-q", "-O", "-", "http://"+service+"/")...).Output(); err != nil || !strings.HasPrefix(string(out), "web-") {
		t.Errorf("the service from the second node's host: %q, %v", out, err)
	}
	if out, err := fetch("http://" + service + "/"); err != nil || !strings.HasPrefix(out, "web-") {
		t.Errorf("the service from the first node's host: %q, %v", out, err)
	}

	// The node asks for certificates of its pods with no more than a node's rights.
	c.apply(fmt.Sprintf(certifiedPod, "certified", "kubernetes.io/hostname: second"))
	r := c.certificateRequest("certified")
	if got := field(r, "spec", "nodeName"); got != "second" {
		t.Errorf("asked by %v", got)
	}
	c.issue(r)
	c.waitPod("certified", ".status.phase", "Running")

	id := field(c.get("pod", "web-1"), "status", "containerStatuses", 0, "containerID")
	kill()
	n.startNode(flags...)
	check()
	st := field(c.get("pod", "web-1"), "status", "containerStatuses", 0)
	if now := field(st, "containerID"); now != id || field(st, "restartCount") != float64(0) {
		t.Errorf("container was %v, is %v, restarted %v times", id, now, field(st, "restartCount"))
	}
}
