package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// serverPod is a pod that tells its name over TCP and UDP, at a port of its own that
// has the same name in all.
func serverPod(name, app string, port int, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 1
  hostname: %[1]s
  subdomain: headless
  containers:
  - name: main
    image: busybox:1
    command: [load, --serve, ":%[3]d", --udp]
    env: [{name: VERSION, value: "is"}]
    ports: [{name: tcp, containerPort: %[3]d}, {name: udp, containerPort: %[3]d, protocol: UDP}]
%[4]s
---`, name, app, port, more)
}

// TestServiceKinds: what a Service may say, each seen by a client in a pod.
func TestServiceKinds(t *testing.T) {
	c := start(t, "kinds")
	c.importBusybox()
	c.apply(clientPod)
	c.apply(serverPod("a", "web", 7001, "") + serverPod("b", "web", 7002, "") +
		serverPod("late", "late", 7003, "    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}"))
	c.apply(`
apiVersion: v1
kind: Service
metadata: {name: named}
spec:
  selector: {app: web}
  externalIPs: [198.18.7.7]
  ports:
  - {name: web, port: 80, targetPort: tcp}
  - {name: echo, port: 80, targetPort: udp, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  selector: {app: web}
  sessionAffinity: ClientIP
  ports: [{port: 80, targetPort: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: web, port: 80, targetPort: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: named.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec:
  selector: {app: late}
  ports: [{port: 80, targetPort: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec:
  selector: {app: late}
  publishNotReadyAddresses: true
  ports: [{port: 80, targetPort: tcp}]
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  selector: {app: web}
  internalTrafficPolicy: Local
  ports: [{port: 80, targetPort: tcp}]
`)
	for _, pod := range []string{"client", "a", "b", "late"} {
		c.waitPod(pod, ".status.phase", "Running")
	}
	ask := func(url string) (string, error) {
		args := []string{"exec", "client", "--", "load", "--once", "--timeout", "3s", "--url", url}
		if strings.HasPrefix(url, "udp://") {
			args[len(args)-1] = strings.TrimPrefix(url, "udp://")
			args = append(args, "--udp")
		}
		out, err := c.kubectlErr(args...)
		return strings.TrimSpace(out), err
	}
	reaches := func(url string, pods ...string) {
		t.Helper()
		seen := map[string]bool{}
		c.eventually(fmt.Sprintf("%s reaches %v", url, pods), func() (bool, string) {
			out, err := ask(url)
			if err != nil {
				return false, err.Error()
			}
			seen[strings.TrimPrefix(out, "is ")] = true
			for _, p := range pods {
				if !seen[p] {
					return false, fmt.Sprint(seen)
				}
			}
			if len(seen) != len(pods) {
				t.Fatalf("%s reaches %v, want %v", url, seen, pods)
			}
			return true, ""
		})
	}
	reaches("http://named", "a", "b")
	reaches("udp://named:80", "a", "b")
	reaches("http://198.18.7.7", "a", "b")
	reaches("udp://198.18.7.7:80", "a", "b")
	reaches("http://near", "a", "b")
	reaches("http://outside", "a", "b")
	reaches("http://a.headless:7001", "a")
	reaches("http://b.headless.default.svc.cluster.local:7002", "b")
	ip := c.kubectl("get", "pod", "a", "-o", "jsonpath={.status.podIP}")
	reaches("http://"+strings.ReplaceAll(ip, ".", "-")+".default.pod:7001", "a")
	reaches("http://early", "late")

	// One client, one endpoint.
	reachedBy, err := ask("http://sticky")
	for range 10 {
		out, err2 := ask("http://sticky")
		if err != nil || err2 != nil || out != reachedBy {
			t.Fatalf("with affinity to a client it reaches %q, then %q (%v, %v)", reachedBy, out, err, err2)
		}
	}
	look := func(args ...string) string {
		out, err := c.kubectlErr(append([]string{"exec", "client", "--", "nslookup"}, args...)...)
		if err != nil && !strings.Contains(out, "NXDOMAIN") {
			return err.Error()
		}
		return out
	}
	for _, want := range []string{"7001 a.headless.default.svc.cluster.local", "7002 b.headless.default.svc.cluster.local"} {
		if out := look("-type=srv", "_web._tcp.headless.default.svc.cluster.local"); !strings.Contains(out, want) {
			t.Errorf("SRV records of the headless service lack %q: %s", want, out)
		}
	}
	if out := look("-type=srv", "_echo._udp.named.default.svc.cluster.local"); !strings.Contains(out, "80 named.default.svc.cluster.local") {
		t.Errorf("SRV record of the UDP port: %s", out)
	}
	if out := look("-type=ptr", reverseName(t, ip)); !strings.Contains(out, "a.headless.default.svc.cluster.local") {
		t.Errorf("PTR record of a pod with a hostname: %s", out)
	}
	if out := look("-type=cname", "outside.default.svc.cluster.local"); !strings.Contains(out, "named.default.svc.cluster.local") {
		t.Errorf("CNAME record: %s", out)
	}

	// Nobody is ready: refused at once, until somebody is.
	if out, err := ask("http://late"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a service without a ready endpoint says %q, %v", out, err)
	}
	c.kubectl("exec", "late", "--", "touch", "/tmp/ready")
	reaches("http://late", "late")
}

// TestDNSConfig: names that the cluster's own config file tells, from a pod.
func TestDNSConfig(t *testing.T) {
	c := reserve(t, "dnsconf")
	config := c.data + ".yaml"
	if err := os.WriteFile(config, []byte(`
dnsUpstreams: ["127.0.0.1:9"]
dnsStubDomains: {corp.example: ["127.0.0.1:9"]}
dnsHosts: {db.corp.example: [198.18.0.9], registry.test: ["198.18.0.10", "fd00::10"]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c.args = []string{"--config", config}
	c.up()
	c.importBusybox()
	c.apply(clientPod)
	c.waitPod("client", ".status.phase", "Running")
	check := func() {
		t.Helper()
		for name, ip := range map[string]string{"db.corp.example": "198.18.0.9", "registry.test": "fd00::10", "198.18.0.9": "db.corp.example"} {
			if out, err := c.kubectlErr("exec", "client", "--", "nslookup", name); err != nil || !strings.Contains(out, ip) {
				t.Errorf("%s is not %s: %s %v", name, ip, out, err)
			}
		}
		// The resolvers that were said are none: the host's are not asked instead.
		if out, err := c.kubectlErr("exec", "client", "--", "nslookup", "-type=a", "www.corp.example."); err == nil || !strings.Contains(out, "SERVFAIL") {
			t.Errorf("a name of the stub domain: %s %v", out, err)
		}
	}
	check()
	// A start without the file knows it still.
	c.kill9()
	c.args = nil
	c.up()
	check()
}
