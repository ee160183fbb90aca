package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

const certifiedPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeSelector: {%s}
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000}
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'until rm /work/stop 2>/dev/null; do sleep 0.1; done']
    volumeMounts: [{name: tls, mountPath: /tls}, {name: work, mountPath: /work}]
  volumes:
  - {name: work, emptyDir: {}}
  - name: tls
    projected:
      sources:
      - podCertificate: {signerName: example.com/signer, keyType: ECDSAP384, credentialBundlePath: all.pem, maxExpirationSeconds: 7200, userAnnotations: {example.com/team: a}}
`

// certificateRequests are what the kubelet asks for a pod and nobody answered.
func (c *cluster) certificateRequests(pod string) []any {
	c.t.Helper()
	var out []any
	list, _ := c.get("podcertificaterequests")["items"].([]any)
	for _, r := range list {
		if field(r, "spec", "podName") == pod && field(r, "status", "conditions") == nil {
			out = append(out, r)
		}
	}
	return out
}

// certificateRequest waits for one of them.
func (c *cluster) certificateRequest(pod string) (r any) {
	c.t.Helper()
	c.eventually("a certificate is asked for "+pod, func() (bool, string) {
		if list := c.certificateRequests(pod); len(list) > 0 {
			r = list[0]
		}
		return r != nil, ""
	})
	return r
}

// answer answers a request, as its signer.
func (c *cluster) answer(r any, condition string, status map[string]any) {
	c.t.Helper()
	status["conditions"] = []any{map[string]any{
		"type": condition, "status": "True", "reason": "Test", "message": "as it is", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	}}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		c.t.Fatal(err)
	}
	c.kubectl("patch", "podcertificaterequest", fmt.Sprint(field(r, "metadata", "name")), "--subresource=status", "--type=merge", "-p", string(patch))
}

// issue answers a request with a certificate in the pod's name, for an hour.
func (c *cluster) issue(r any) {
	c.t.Helper()
	der, err := base64.StdEncoding.DecodeString(fmt.Sprint(field(r, "spec", "stubPKCS10Request")))
	if err != nil {
		c.t.Fatal(err)
	}
	stub, err := x509.ParseCertificateRequest(der)
	if err != nil {
		c.t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	from := time.Now().UTC().Truncate(time.Second)
	to := from.Add(time.Hour)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: fmt.Sprint(field(r, "spec", "podName"))}, NotBefore: from, NotAfter: to}
	if der, err = x509.CreateCertificate(rand.Reader, template, template, stub.PublicKey, ca); err != nil {
		c.t.Fatal(err)
	}
	c.answer(r, "Issued", map[string]any{
		"certificateChain": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"notBefore":        from.Format(time.RFC3339), "notAfter": to.Format(time.RFC3339), "beginRefreshAt": to.Add(-20 * time.Minute).Format(time.RFC3339),
	})
}

// TestPodCertificate: a pod waits for its certificate, has a key that fits it and that
// nobody else can read, and keeps both over kill -9 of skiff.
func TestPodCertificate(t *testing.T) {
	c := start(t, "podcert")
	c.importBusybox()
	c.apply(fmt.Sprintf(certifiedPod, "web", ""))
	c.apply(fmt.Sprintf(certifiedPod, "mallory", ""))
	r := c.certificateRequest("web")
	for path, want := range map[string]any{"signerName": "example.com/signer", "serviceAccountName": "default", "maxExpirationSeconds": 7200.0} {
		if got := field(r, "spec", path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if got := field(r, "spec", "unverifiedUserAnnotations", "example.com/team"); got != "a" {
		t.Errorf("annotations: %v", got)
	}
	c.eventually("the pod's owner is told what it waits for", func() (bool, string) {
		out := c.kubectl("get", "events")
		return strings.Contains(out, `MountVolume.SetUp failed for volume "tls" : credential bundle is not issued yet`), out
	})
	c.issue(r)
	c.waitPod("web", ".status.phase", "Running")
	bundle := c.kubectl("exec", "web", "--", "cat", "/tls/all.pem")
	pair, err := tls.X509KeyPair([]byte(bundle), []byte(bundle))
	if err != nil {
		t.Fatalf("%v in\n%s", err, bundle)
	}
	if got := pair.Leaf.Subject.CommonName; got != "web" {
		t.Errorf("the certificate is %s's", got)
	}
	if got := strings.TrimSpace(c.kubectl("exec", "web", "--", "stat", "-L", "-c", "%a %u", "/tls/all.pem")); got != "600 1000" {
		t.Errorf("mode and owner are %s", got)
	}

	c.kill9()
	c.up()
	if got := c.kubectl("exec", "web", "--", "cat", "/tls/all.pem"); got != bundle {
		t.Errorf("after kill -9 the pod has\n%s\nand had\n%s", got, bundle)
	}
	// A container that is made anew after that finds its volume, with no signer at hand.
	c.kubectl("exec", "web", "--", "touch", "/work/stop")
	c.waitPod("web", ".status.containerStatuses[0].restartCount", "1")
	c.waitPod("web", `.status.conditions[?(@.type=="Ready")].status`, "True")
	if got := c.kubectl("exec", "web", "--", "cat", "/tls/all.pem"); got != bundle {
		t.Errorf("after a restart of its container the pod has\n%s\nand had\n%s", got, bundle)
	}

	c.eventually("mallory's owner is told of a no", func() (bool, string) {
		// The second skiff has asked anew: nobody but the first knew the key.
		for _, r := range c.certificateRequests("mallory") {
			c.answer(r, "Denied", map[string]any{})
		}
		out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=mallory")
		return strings.Contains(out, `was denied, reason="Test", message="as it is"`) &&
			strings.Contains(out, `MountVolume.SetUp failed for volume "tls" : PodCertificateRequest was permanently denied: reason="Test" message="as it is"`), out
	})
	c.waitPod("mallory", ".status.phase", "Pending")

	c.kubectl("delete", "pod", "web", "mallory")
	c.eventually("requests go with their pods", func() (bool, string) {
		list, _ := c.get("podcertificaterequests")["items"].([]any)
		return len(list) == 0, fmt.Sprint(list)
	})
}
