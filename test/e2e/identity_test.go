package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// request writes a new key to a file, and makes an object that asks for its
// certificate.
func request(t *testing.T, name, keyFile string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: []string{"devs"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {name: %s}\n"+
		"spec: {signerName: kubernetes.io/kube-apiserver-client, usages: [client auth], expirationSeconds: 86400, request: %s}\n",
		name, base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})))
}

// TestCertificateRequests: kubectl certificate approve and deny; the certificate logs
// in. And a token that a Secret asks for.
func TestCertificateRequests(t *testing.T) {
	c := start(t, "certs")
	dir := t.TempDir()
	keyFile, certFile := filepath.Join(dir, "jane.key"), filepath.Join(dir, "jane.crt")
	c.apply(request(t, "jane", keyFile))
	c.apply(request(t, "mallory", filepath.Join(dir, "mallory.key")))
	condition := func(name string) string {
		return strings.TrimSpace(c.kubectl("get", "csr", name, "--no-headers"))
	}
	if out := condition("jane"); !strings.HasSuffix(out, "Pending") {
		t.Errorf("jane's request: %s", out)
	}
	c.kubectl("certificate", "approve", "jane")
	c.kubectl("certificate", "deny", "mallory")
	c.eventually("jane's certificate is issued", func() (bool, string) {
		out := condition("jane")
		return strings.HasSuffix(out, "Approved,Issued"), out
	})
	if out := condition("mallory"); !strings.HasSuffix(out, "Denied") {
		t.Errorf("mallory's request: %s", out)
	}
	if out := c.kubectl("get", "csr", "mallory", "-o", "jsonpath={.status.certificate}"); out != "" {
		t.Errorf("mallory has a certificate: %s", out)
	}
	cert, err := base64.StdEncoding.DecodeString(c.kubectl("get", "csr", "jane", "-o", "jsonpath={.status.certificate}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(certFile, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := base64.StdEncoding.DecodeString(c.kubectl("config", "view", "--raw", "-o", "jsonpath={.clusters[0].cluster.certificate-authority-data}"))
	if err != nil {
		t.Fatal(err)
	}
	caFile := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(caFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	// Nothing of the administrator's credentials is used.
	bare := []string{"--kubeconfig=/dev/null", "--server=" + c.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"), "--certificate-authority=" + caFile}
	as := func(args ...string) (string, error) {
		return c.kubectlErr(append(append(slices.Clone(bare), "--client-certificate="+certFile, "--client-key="+keyFile), args...)...)
	}
	if out, err := as("get", "pods"); err == nil || !strings.Contains(out, `User "jane" cannot list resource "pods"`) {
		t.Errorf("jane asks for pods: %s %v", out, err)
	}
	c.kubectl("create", "rolebinding", "jane", "--clusterrole=view", "--group=devs")
	if out, err := as("get", "pods"); err != nil {
		t.Errorf("jane, who may see, asks for pods: %s", out)
	}

	c.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: robot, annotations: {kubernetes.io/service-account.name: default}}\ntype: kubernetes.io/service-account-token\n")
	var token []byte
	c.eventually("the secret has a token", func() (bool, string) {
		out := c.kubectl("get", "secret", "robot", "-o", "jsonpath={.data.token}")
		token, err = base64.StdEncoding.DecodeString(out)
		return err == nil && len(token) > 0, out
	})
	if out, err := c.kubectlErr(append(slices.Clone(bare), "--token="+string(token), "get", "pods")...); err == nil || !strings.Contains(out, `User "system:serviceaccount:default:default" cannot list resource "pods"`) {
		t.Errorf("with the token: %s %v", out, err)
	}
}

// fetch gets a page as a client in the place.
func (p *place) fetch(url string) (string, error) {
	// The thread comes back: were it to end, what it started would be killed.
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return nil, err
		}
		defer home.Close()
		away, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.pid))
		if err != nil {
			return nil, err
		}
		defer away.Close()
		if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		defer func() {
			if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
				panic(err) // no test may go on in another's place
			}
		}()
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	return get(url, dial)
}

// TestLoadBalancer: a client outside of the pod network reaches a service at the
// address that it was given; another service that wants its port waits.
func TestLoadBalancer(t *testing.T) {
	c := start(t, "balancer")
	c.importBusybox()
	const port = "18080"
	c.apply(strings.ReplaceAll(strings.ReplaceAll(web(2, "one"), "type: NodePort", "type: LoadBalancer"), "port: 80,", "port: "+port+","))
	c.rollout("web")
	ingress := func(name string) string {
		return c.kubectl("get", "service", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	}
	node := c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}")
	c.eventually("the service has the node's address", func() (bool, string) { return ingress("web") == node, ingress("web") })

	outside := newPlace(t, "198.51.100.1", "198.51.100.2")
	run(t, append(outside.enter(), "ip", "route", "add", "default", "via", "198.51.100.1")...)
	ask := func() (string, error) {
		return outside.fetch("http://" + node + ":" + port)
	}
	pods := map[string]bool{}
	c.eventually("both pods answer a client outside", func() (bool, string) {
		out, err := ask()
		if err != nil || !strings.HasPrefix(out, "one web-") {
			return false, fmt.Sprint(out, err)
		}
		pods[out] = true
		return len(pods) == 2, out
	})
	if out, err := fetch("http://" + node + ":" + port); err != nil || !strings.HasPrefix(out, "one ") {
		t.Errorf("from the node itself: %s %v", out, err)
	}

	c.apply("apiVersion: v1\nkind: Service\nmetadata: {name: other}\nspec: {type: LoadBalancer, selector: {app: other}, ports: [{port: " + port + "}]}\n")
	c.eventually("the other service is told that it waits", func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=other,reason=SyncLoadBalancerFailed", "-o", "jsonpath={.items[*].message}")
		return strings.HasSuffix(out, "is taken by service default/web"), out
	})
	if out := ingress("other"); out != "" {
		t.Errorf("the other service has %s", out)
	}

	c.kubectl("patch", "service", "web", "-p", `{"spec":{"externalTrafficPolicy":"Local"}}`)
	c.eventually("the Local policy serves, there are endpoints on the node", func() (bool, string) {
		out, err := ask()
		return err == nil && strings.HasPrefix(out, "one "), fmt.Sprint(out, err)
	})
	health := c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.healthCheckNodePort}")
	c.eventually("a balancer is told of the node's endpoints", func() (bool, string) {
		out, err := outside.fetch("http://" + node + ":" + health + "/healthz")
		return err == nil && strings.Contains(out, `"localEndpoints": 2`), fmt.Sprint(out, err)
	})
	c.kubectl("patch", "service", "web", "-p", `{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24"]}}`)
	c.eventually("a client of no range is not served", func() (bool, string) {
		out, err := ask()
		return err != nil, out
	})
	c.kubectl("patch", "service", "web", "-p", `{"spec":{"loadBalancerSourceRanges":["203.0.113.0/24","198.51.100.0/24"]}}`)
	c.eventually("a client of a range is served", func() (bool, string) {
		out, err := ask()
		return err == nil && strings.HasPrefix(out, "one "), fmt.Sprint(out, err)
	})
	c.kubectl("delete", "service", "web")
	c.eventually("the other service gets the address", func() (bool, string) { return ingress("other") == node, ingress("other") })
}
