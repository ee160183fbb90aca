package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// reverseName is the name under which an address is looked up (RFC 1035, RFC 3596).
func reverseName(t *testing.T, ip string) string {
	t.Helper()
	a, err := netip.ParseAddr(ip)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	raw := a.AsSlice()
	for i := len(raw) - 1; i >= 0; i-- {
		if a.Is4() {
			fmt.Fprintf(&b, "%d.", raw[i])
		} else {
			fmt.Fprintf(&b, "%x.%x.", raw[i]&15, raw[i]>>4)
		}
	}
	if a.Is4() {
		return b.String() + "in-addr.arpa"
	}
	return b.String() + "ip6.arpa"
}

const clientPod = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sleep, "10000"]
    env:
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
`

// families are what a cluster is asked to show of its IP families.
type families struct {
	c *cluster
	// of each family, the primary one first.
	names []string
}

func (f families) check() {
	c, t := f.c, f.c.t
	t.Helper()
	c.importBusybox()
	c.apply(web(2, "one"))
	c.apply(clientPod)
	c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: last}
spec:
  ipFamilies: [%s]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: porter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'mkdir /www; echo porter > /www/index.html; exec httpd -f -p 8080 -h /www']
    ports: [{containerPort: 8080, hostPort: 38080}]
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, f.names[len(f.names)-1]))
	c.rollout("web")
	c.waitPod("client", ".status.phase", "Running")
	c.waitPod("porter", ".status.containerStatuses[0].ready", "true")
	ask := func(host string) string {
		t.Helper()
		return c.kubectl("exec", "client", "--", "load", "--once", "--url", "http://"+host+"/")
	}
	words := func(kind, name, path string) []string {
		t.Helper()
		args := append([]string{"get", kind}, strings.Fields(name)...)
		return strings.Fields(c.kubectl(append(args, "-o", "jsonpath={"+path+"}")...))
	}
	is := func(what string, ips []string, want ...string) {
		t.Helper()
		var got []string
		for _, ip := range ips {
			if a, err := netip.ParseAddr(ip); err == nil && a.Is4() {
				got = append(got, "IPv4")
			} else if err == nil {
				got = append(got, "IPv6")
			}
		}
		if len(ips) != len(got) || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s are %q, want %v", what, ips, want)
		}
	}
	node := strings.TrimSpace(c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	is("the node's addresses", words("node", node, `.status.addresses[?(@.type=="InternalIP")].address`), f.names...)
	if n := len(words("node", node, ".spec.podCIDRs[*]")); n != len(f.names) {
		t.Errorf("the node has %d pod ranges", n)
	}
	podIPs := words("pod", "client", ".status.podIPs[*].ip")
	is("a pod's addresses", podIPs, f.names...)
	is("its host's", words("pod", "client", ".status.hostIPs[*].ip"), f.names...)
	is("addresses in its environment", strings.Split(strings.TrimSpace(c.kubectl("exec", "client", "--", "sh", "-c", "echo $IPS")), ","), f.names...)
	is("its host's in its environment", strings.Split(strings.TrimSpace(c.kubectl("exec", "client", "--", "sh", "-c", "echo $HOSTS")), ","), f.names...)
	if hosts := c.kubectl("exec", "client", "--", "cat", "/etc/hosts"); strings.Count(hosts, "\tclient\n") != len(f.names) {
		t.Errorf("its hosts file is %q", hosts)
	}
	is("the DNS service's addresses", words("service", "kube-dns -n kube-system", ".spec.clusterIPs[*]"), f.names...)
	is("the API service's addresses", words("service", "kubernetes", ".spec.clusterIPs[*]"), f.names[0])
	is("a service's addresses by default", words("service", "web", ".spec.clusterIPs[*]"), f.names[0])
	is("a service's addresses of the last family", words("service", "last", ".spec.clusterIPs[*]"), f.names[len(f.names)-1])
	both := words("service", "both", ".spec.clusterIPs[*]")
	is("addresses of a service that prefers both", both, f.names...)
	slices := words("endpointslices", "-l kubernetes.io/service-name=both", ".items[*].addressType")
	if len(slices) != len(f.names) {
		t.Errorf("slices are of %q", slices)
	}

	// Every way in, by every family.
	ways := []string{"web", "both", "last", "headless:8080"}
	for i, ip := range both {
		ways = append(ways, net.JoinHostPort(ip, "80"))
		if out := c.kubectl("exec", "client", "--", "nslookup", "-type=ptr", reverseName(t, ip)); !strings.Contains(out, "both.default.svc.cluster.local") {
			t.Errorf("%s is called %s", ip, out)
		}
		typ := map[string]string{"IPv4": "A", "IPv6": "AAAA"}[f.names[i]]
		if out := c.kubectl("exec", "client", "--", "nslookup", "-type="+typ, "both.default.svc.cluster.local"); !strings.Contains(out, ip) {
			t.Errorf("the %s record of the service is not %s: %s", typ, ip, out)
		}
	}
	nodePort := c.kubectl("get", "service", "both", "-o", "jsonpath={.spec.ports[0].nodePort}")
	for _, ip := range words("node", node, `.status.addresses[?(@.type=="InternalIP")].address`) {
		ways = append(ways, net.JoinHostPort(ip, nodePort))
		if out, err := fetch("http://" + net.JoinHostPort(ip, nodePort)); err != nil || !strings.HasPrefix(out, "one ") {
			t.Errorf("node port at %s from the host: %q, %v", ip, out, err)
		}
		if out, err := fetch("http://" + net.JoinHostPort(ip, "38080")); err != nil || out != "porter" {
			t.Errorf("host port at %s: %q, %v", ip, out, err)
		}
	}
	for _, ip := range both {
		if out, err := fetch("http://" + net.JoinHostPort(ip, "80")); err != nil || !strings.HasPrefix(out, "one ") {
			t.Errorf("%s from the host: %q, %v", ip, out, err)
		}
	}
	for _, way := range ways {
		if out := ask(way); !strings.HasPrefix(out, "one web-") {
			t.Errorf("%s says %q", way, out)
		}
	}
	// The API server's own ways to pods.
	for path, want := range map[string]string{"pods/porter:8080": "porter", "services/both:http": "one web-"} {
		if out := c.kubectl("get", "--raw", "/api/v1/namespaces/default/"+path+"/proxy/"); !strings.HasPrefix(out, want) {
			t.Errorf("%s by proxy says %q", path, out)
		}
	}
	// A pod reaches itself through its service.
	c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: self}\nspec: {ipFamilyPolicy: PreferDualStack, selector: {app: self}, ports: [{port: 80, targetPort: 8080}]}\n")
	c.kubectl("label", "pod", "porter", "app=self")
	for _, ip := range words("service", "self", ".spec.clusterIPs[*]") {
		c.eventually("a pod reaches itself by "+ip, func() (bool, string) {
			out, err := c.kubectlErr("exec", "porter", "--", "load", "--once", "--timeout", "2s", "--url", "http://"+net.JoinHostPort(ip, "80")+"/")
			return err == nil && strings.HasPrefix(out, "porter"), fmt.Sprint(out, err)
		})
	}
}

// TestDualStack: a cluster of both families, IPv4 first.
func TestDualStack(t *testing.T) {
	c := start(t, "dual", "--pod-cidr", "10.203.0.0/16,fd00:10:203::/56", "--service-cidr", "10.204.0.0/16,fd00:10:204::/112")
	families{c, []string{"IPv4", "IPv6"}}.check()
	if out, err := c.kubectlIn(strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}\n"), "create", "-f", "-"); err != nil {
		t.Errorf("a service that requires both families: %v %s", err, out)
	}
	// What runs goes on over a restart, and DNS of both families with it.
	c.kill9()
	c.up()
	for _, way := range []string{"both", "last"} {
		if out := c.kubectl("exec", "client", "--", "load", "--once", "--url", "http://"+way+"/"); !strings.HasPrefix(out, "one web-") {
			t.Errorf("after a restart %s says %q", way, out)
		}
	}
}

// TestIPv6: a cluster of IPv6 alone.
func TestIPv6(t *testing.T) {
	c := start(t, "six", "--pod-cidr", "fd00:10:205::/56", "--service-cidr", "fd00:10:206::/112")
	families{c, []string{"IPv6"}}.check()
	_, err := c.kubectlIn(strings.NewReader("apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}\n"), "create", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "this cluster is not configured for dual-stack services") {
		t.Errorf("a service that requires both families: %v", err)
	}
}
