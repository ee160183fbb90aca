package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"skiff/internal/admin"
	"skiff/internal/pki"
)

// exitOf runs skiff and returns its exit code with what it wrote.
func (c *cluster) exitOf(args ...string) (int, string) {
	c.t.Helper()
	out, err := c.skiff(args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), out
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return 0, out
}

// TestProgram: what skiff tells of itself. Status says how each part is, in words,
// as JSON, and by its exit code; logs shows skiff's own log; certs lists the
// certificates and renews them, under a watch that goes on.
func TestProgram(t *testing.T) {
	c := reserve(t, "program")
	// Ports of its own: it is down for a while, and others look for free ones then.
	c.args = []string{"--api-port", "18094", "--kubelet-port", "18095"}
	if code, out := c.exitOf("status"); code != 3 || !strings.Contains(out, "there is no cluster") {
		t.Errorf("status of none: %d\n%s", code, out)
	}
	c.up()
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
`)
	c.is("pod/one", readyPath, "True")

	code, out := c.exitOf("status")
	if code != 0 || !strings.Contains(out, c.name+", Ready since") || !strings.Contains(out, "Memory ") {
		t.Errorf("status: %d\n%s", code, out)
	}
	var st struct {
		admin.Status
		admin.Health
		Running bool
	}
	code, out = c.exitOf("status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 || !st.Running || !st.Ready || !st.Healthy || st.Process.Memory < 10<<20 {
		t.Errorf("status: %d, %v\n%s", code, err, out)
	}
	figures := map[string]float64{}
	for _, p := range st.Parts {
		if !p.Healthy || p.State == "" {
			t.Errorf("%s: %s", p.Name, p.State)
		}
		figures[p.Name] = float64(p.Goroutines)
		for _, f := range p.Figures {
			figures[p.Name+" "+f.Name] = f.Value
		}
	}
	for _, want := range []string{
		"etcd database", "etcd revision", "API server objects", "API server stored", "API server watches", "API server", "controllers controllers",
		"scheduler", "certificates first ends in", "kubelet", "runtime pods", "runtime containers", "runtime pod processes", "services", "DNS",
	} {
		if figures[want] <= 0 {
			t.Errorf("status says of %s %v: %v", want, figures[want], figures)
		}
	}
	if figures["runtime pods"] != 1 || figures["runtime containers"] != 1 {
		t.Errorf("%v pods, %v containers", figures["runtime pods"], figures["runtime containers"])
	}

	if code, out := c.exitOf("logs", "--tail", "3"); code != 0 || strings.Count(out, "\n") > 3 {
		t.Errorf("logs: %d\n%s", code, out)
	}
	if code, out := c.exitOf("logs", "--level", "debug", "--since", "1h"); code != 0 {
		t.Errorf("logs: %d\n%s", code, out)
	}

	var certs []pki.Certificate
	code, out = c.exitOf("certs", "-o", "json")
	if err := json.Unmarshal([]byte(out), &certs); err != nil || code != 0 || len(certs) < 8 {
		t.Errorf("certs: %d, %v\n%s", code, err, out)
	}
	if code, out := c.exitOf("certs"); code != 0 || !strings.Contains(out, "kubernetes-admin (kubeadm:cluster-admins)") {
		t.Errorf("certs: %d\n%s", code, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch := c.kubectlCmd(ctx, "get", "configmaps", "--watch-only", "-o", "name")
	pipe, err := watch.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = watch.Wait() }()
	seen := bufio.NewScanner(pipe)
	see := func(name string) {
		t.Helper()
		c.kubectl("create", "configmap", name, "--from-literal=k=v")
		got := make(chan bool, 1)
		go func() { got <- seen.Scan() }()
		select {
		case ok := <-got:
			if !ok || !strings.HasPrefix(seen.Text(), "configmap/"+name) {
				t.Fatalf("the watch says %q, %v", seen.Text(), seen.Err())
			}
		case <-time.After(patience):
			t.Fatalf("the watch does not show configmap %s", name)
		}
	}
	c.eventually("the watch is open", func() (bool, string) {
		h, err := admin.Dial("/run/skiff/" + c.name + "/admin.sock").Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range h.Parts {
			for _, f := range p.Figures {
				if f.Name == "watches" {
					return f.Value > figures["API server watches"], ""
				}
			}
		}
		return false, "no such figure"
	})
	see("before")
	old, err := os.ReadFile(c.data + "/admin.kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	if code, out := c.exitOf("certs", "renew"); code != 0 || !strings.Contains(out, "renewed apiserver\n") || !strings.Contains(out, "renewed kubelet\n") {
		t.Errorf("certs renew: %d\n%s", code, out)
	}
	see("after")
	if now, err := os.ReadFile(c.data + "/admin.kubeconfig"); err != nil || string(now) == string(old) {
		t.Errorf("the kubeconfig was not renewed: %v", err)
	}
	c.kubectl("exec", "one", "--", "true") // through the API server to the kubelet
	var again []pki.Certificate
	_, out = c.exitOf("certs", "-o", "json")
	if err := json.Unmarshal([]byte(out), &again); err != nil {
		t.Fatal(err)
	}
	for i, cert := range again {
		if authority := cert.Renews.IsZero(); cert.Name != certs[i].Name || authority != (cert.Serial == certs[i].Serial) {
			t.Errorf("%s %s, before: %s %s", cert.Name, cert.Serial, certs[i].Name, certs[i].Serial)
		}
	}
	if code, out := c.exitOf("certs", "renew", "ca"); code != 1 || !strings.Contains(out, "is an authority") {
		t.Errorf("certs renew ca: %d\n%s", code, out)
	}
	// A copy of the kubeconfig from before goes on being good.
	kept := t.TempDir() + "/kubeconfig"
	if err := os.WriteFile(kept, old, 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl("--kubeconfig", kept, "get", "nodes")

	if out, err := c.skiff("down"); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	if code, out := c.exitOf("status"); code != 3 || !strings.Contains(out, "is not running. Start it with: skiff up") {
		t.Errorf("status: %d\n%s", code, out)
	}
	if code, out := c.exitOf("certs", "renew", "admin"); code != 0 || out != "renewed admin\n" {
		t.Errorf("certs renew while skiff is down: %d\n%s", code, out)
	}
	c.up()
	c.kubectl("get", "nodes")
}
