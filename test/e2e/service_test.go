package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// web is a Deployment of small web servers that tell their version and pod, and
// a Service in front of it.
func web(replicas int, version string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: busybox:1
        command: [sh, -c, 'mkdir /www; echo $VERSION $HOSTNAME > /www/index.html; exec httpd -f -p 8080 -h /www']
        env:
        - {name: VERSION, value: "%s"}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
`, replicas, version)
}

func fetch(url string) (string, error) { return get(url, nil) }

// get is fetch with connections made by dial.
func get(url string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (string, error) {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return strings.TrimSpace(string(b)), err
}

func (c *cluster) rollout(deployment string) {
	c.t.Helper()
	c.kubectl("rollout", "status", "deployment/"+deployment, "--timeout=60s")
}

// TestDeployment: a Deployment behind a Service, reached by cluster IP and node
// port, scaled, rolled and rolled back.
func TestDeployment(t *testing.T) {
	c := start(t, "deploy")
	c.importBusybox()
	c.apply(web(3, "one"))
	c.rollout("web")
	ip := c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	port := c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
	node := c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}")
	for _, url := range []string{"http://" + ip, "http://" + node + ":" + port} {
		pods := map[string]bool{}
		c.eventually("every pod answers at "+url, func() (bool, string) {
			out, err := fetch(url)
			if err != nil {
				return false, err.Error()
			}
			v, pod, _ := strings.Cut(out, " ")
			if v != "one" {
				t.Fatalf("%s says %q", url, out)
			}
			pods[pod] = true
			return len(pods) == 3, fmt.Sprint(pods)
		})
	}

	c.kubectl("scale", "deployment/web", "--replicas=5")
	c.rollout("web")
	if n := field(c.get("deployment", "web"), "status", "readyReplicas"); n != float64(5) {
		t.Errorf("%v replicas are ready, want 5", n)
	}
	c.kubectl("set", "env", "deployment/web", "VERSION=two")
	c.rollout("web")
	if out, err := fetch("http://" + ip); err != nil || !strings.HasPrefix(out, "two ") {
		t.Errorf("after the update the service says %q, %v", out, err)
	}
	if out := c.kubectl("rollout", "history", "deployment/web"); !strings.Contains(out, "1 ") || !strings.Contains(out, "2 ") {
		t.Errorf("history is %q", out)
	}
	c.kubectl("rollout", "undo", "deployment/web")
	c.rollout("web")
	if out, err := fetch("http://" + ip); err != nil || !strings.HasPrefix(out, "one ") {
		t.Errorf("after the undo the service says %q, %v", out, err)
	}
	c.kubectl("delete", "deployment/web", "service/web")
	c.eventually("all pods are gone", func() (bool, string) {
		out := c.kubectl("get", "pods,replicasets,endpoints,endpointslices", "-l", "app=web", "--no-headers")
		return strings.TrimSpace(out) == "", out
	})
	if out, err := fetch("http://" + ip); err == nil {
		t.Errorf("the deleted service answers %q", out)
	}
}

// TestDNS: names of services, from a pod.
func TestDNS(t *testing.T) {
	c := start(t, "dns")
	c.importBusybox()
	c.apply(web(1, "one"))
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:1", command: [sleep, "10000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{port: 8080}]
`)
	c.rollout("web")
	c.waitPod("client", ".status.phase", "Running")
	for _, name := range []string{"web", "web.default", "web.default.svc", "web.default.svc.cluster.local", "headless:8080"} {
		out := c.kubectl("exec", "client", "--", "load", "--once", "--url", "http://"+name+"/")
		if !strings.HasPrefix(out, "one web-") {
			t.Errorf("%s says %q", name, out)
		}
	}
	ip := c.kubectl("get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")
	if out := c.kubectl("exec", "client", "--", "nslookup", "kubernetes.default.svc.cluster.local"); !strings.Contains(out, ip) {
		t.Errorf("kubernetes is not %s: %s", ip, out)
	}
	if out, err := c.kubectlErr("exec", "client", "--", "nslookup", "nothing.default.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
		t.Errorf("a name that is not there: %v %s", err, out)
	}
	// The API itself is reached by its name, with the pod's own token.
	out := c.kubectl("exec", "client", "--", "sh", "-c", `cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && test -s /var/run/secrets/kubernetes.io/serviceaccount/ca.crt && echo " has a token"`)
	if out != "default has a token\n" {
		t.Errorf("service account files: %q", out)
	}
}

// TestProbes: liveness restarts, readiness takes out of the service, startup
// holds the others back.
func TestProbes(t *testing.T) {
	c := start(t, "probes")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'touch /tmp/ok; sleep 2; rm /tmp/ok; sleep 1000']
    livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: ready, labels: {app: ready}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'touch /tmp/ok; exec httpd -f -p 7000 -h /tmp']
    startupProbe: {tcpSocket: {port: 7000}, periodSeconds: 1, failureThreshold: 30}
    readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: ready}
spec:
  selector: {app: ready}
  ports: [{port: 80}]
`)
	c.eventually("the pod that fails its liveness probe is restarted", func() (bool, string) {
		out := c.kubectl("get", "pod", "live", "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
		return out != "" && out != "0", out
	})
	c.eventually("an event says why", func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=live")
		return strings.Contains(out, "Liveness probe failed: cat: can't open '/tmp/ok'") && strings.Contains(out, "failed liveness probe, will be restarted"), out
	})
	ready := func(want string) {
		t.Helper()
		c.eventually("endpoint is ready="+want, func() (bool, string) {
			out := c.kubectl("get", "endpointslices", "-l", "kubernetes.io/service-name=ready", "-o", "jsonpath={.items[0].endpoints[0].conditions.ready}")
			return out == want, out
		})
	}
	ready("true")
	c.kubectl("exec", "ready", "--", "rm", "/tmp/ok")
	ready("false")
	c.kubectl("exec", "ready", "--", "touch", "/tmp/ok")
	ready("true")
	if n := c.kubectl("get", "pod", "ready", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("readiness restarted the container %s times", n)
	}
}

// TestServiceRanges: a further range of services is ready by itself and gives
// addresses, and stays after its deletion as long as a service has one of them.
func TestServiceRanges(t *testing.T) {
	c := start(t, "ranges")
	c.importBusybox()
	c.apply(web(1, "here"))
	c.rollout("web")
	ready := func(name, status, message string) {
		t.Helper()
		c.eventually(name+" says "+message, func() (bool, string) {
			out := c.jsonpath("servicecidr/"+name, `.status.conditions[?(@.type=="Ready")]`)
			return strings.Contains(out, `"status":"`+status+`"`) && strings.Contains(out, message), out
		})
	}
	ready("kubernetes", "True", "Kubernetes Service CIDR is ready")
	c.apply("apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [192.168.251.0/28]}\n")
	ready("more", "True", "Kubernetes Service CIDR is ready")
	if out := c.jsonpath("servicecidr/more", ".metadata.finalizers"); out != `["networking.k8s.io/service-cidr-finalizer"]` {
		t.Errorf("finalizers are %s", out)
	}
	c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: there}\nspec: {clusterIP: 192.168.251.5, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n")
	c.eventually("the service of the further range answers", func() (bool, string) {
		out, err := fetch("http://192.168.251.5")
		return err == nil && strings.HasPrefix(out, "here"), fmt.Sprint(out, err)
	})
	c.kubectl("delete", "servicecidr", "more", "--wait=false")
	ready("more", "False", "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR")
	if out, err := c.kubectlIn(strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: late}\nspec: {clusterIP: 192.168.251.6, ports: [{port: 80}]}\n"), "create", "-f", "-"); err == nil {
		t.Errorf("an address of a range that goes is given out: %s", out)
	}
	c.kubectl("delete", "service", "there")
	c.gone("servicecidr/more")
}
