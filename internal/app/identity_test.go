package app

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/pki"
	"skiff/internal/store/mem"
)

// identityCluster is a control plane without a node, with its controllers, over HTTPS.
type identityCluster struct {
	t   *testing.T
	s   *server
	url string
	c   *client.Client
}

func startIdentity(t *testing.T) *identityCluster {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	set := &Settings{
		APIServiceIP: netip.MustParseAddr("10.96.0.1"), DNSIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, PodRanges: []netip.Prefix{netip.MustParsePrefix("10.245.0.0/16")}, NodePortFirst: 30000, NodePortLast: 32767,
	}
	set.APIPort, set.ClusterDomain, set.NodeName = 6443, "cluster.local", "n"
	spec, err := pki.ServerSpec(pki.Server{NodeName: "n", ClusterDomain: "cluster.local", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.Ensure(t.Context(), t.TempDir(), spec, pki.Deps{Now: time.Now, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	st := mem.New(mem.Config{})
	g := newGroup(log)
	s := &server{set: set, log: log, g: g, store: st, pki: certs}
	t.Cleanup(func() {
		g.stop()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.newAPI(); err != nil {
		t.Fatal(err)
	}
	<-s.api.Ready()
	if err := s.alloc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.start("service allocations", s.alloc.Run)
	if err := s.startControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.serve(l)
	return &identityCluster{t, s, "https://" + l.Addr().String(), s.api.System()}
}

// as asks with a certificate or a token, and returns code and body.
func (i *identityCluster) as(cert *tls.Certificate, token, method, path, body string) (int, string, http.Header) {
	i.t.Helper()
	cfg := &tls.Config{RootCAs: i.s.pki.Pool(pki.ClusterCA), MinVersion: tls.VersionTLS12}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(i.t.Context(), method, i.url+path, strings.NewReader(body))
	if err != nil {
		i.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		i.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// await waits until an object is as wanted; it watches.
func await[T client.Object](i *identityCluster, ns, name string, f func(o T, there bool) bool) T {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), 30*time.Second)
	defer cancel()
	kind := client.For[T](i.c).In(ns)
	w, err := kind.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: "0"})
	if err != nil {
		i.t.Fatal(err)
	}
	for {
		o, err := kind.Get(ctx, name)
		if f(o, err == nil) {
			return o
		}
		if _, ok := <-w.Events(); !ok {
			i.t.Fatalf("%T %s/%s is not as wanted: %+v", o, ns, name, o)
		}
	}
}

func newRequest(t *testing.T, subject pkix.Name) (request []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key
}

func pair(t *testing.T, cert []byte, key *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	b, _ := pem.Decode(cert)
	if b == nil {
		t.Fatalf("no certificate: %q", cert)
	}
	return &tls.Certificate{Certificate: [][]byte{b.Bytes}, PrivateKey: key}
}

func signed(r *certificatesv1.CertificateSigningRequest, there bool) bool {
	return there && len(r.Status.Certificate) > 0
}

func TestApprovedCertificateLogsIn(t *testing.T) {
	i := startIdentity(t)
	request, key := newRequest(t, pkix.Name{CommonName: "jane", Organization: []string{"devs"}})
	csr, err := client.For[*certificatesv1.CertificateSigningRequest](i.c).Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "jane"},
		Spec:       certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: certificatesv1.KubeAPIServerClientSignerName, Usages: []certificatesv1.KeyUsage{"client auth"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: "Approved", Status: "True", Reason: "Test"}}
	if _, err := client.For[*certificatesv1.CertificateSigningRequest](i.c).UpdateSub(t.Context(), csr, "approval"); err != nil {
		t.Fatal(err)
	}
	csr = await(i, "", "jane", signed)
	code, body, _ := i.as(pair(t, csr.Status.Certificate, key), "", "GET", "/api/v1/pods", "")
	if code != 403 || !strings.Contains(body, `User \"jane\" cannot list resource \"pods\"`) {
		t.Errorf("jane asks for pods: %d %s", code, body)
	}
}

func TestNodeJoinsWithABootstrapToken(t *testing.T) {
	i := startIdentity(t)
	const id, secret = "abcdef", "0123456789abcdef"
	s, err := client.For[*corev1.Secret](i.c).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id": id, "token-secret": secret, "usage-bootstrap-signing": "true", "usage-bootstrap-authentication": "true",
			"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	await(i, "kube-public", "cluster-info", func(m *corev1.ConfigMap, there bool) bool {
		return there && strings.HasPrefix(m.Data["jws-kubeconfig-"+id], "eyJhbGciOiJIUzI1NiIs")
	})
	if code, body, _ := i.as(nil, "", "GET", "/api/v1/namespaces/kube-public/configmaps/cluster-info", ""); code != 200 || !strings.Contains(body, "https://192.0.2.1:6443") {
		t.Errorf("anybody asks for cluster-info: %d %s", code, body)
	}
	request, key := newRequest(t, pkix.Name{CommonName: "system:node:joins", Organization: []string{"system:nodes"}})
	asked, err := json.Marshal(&certificatesv1.CertificateSigningRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"}, ObjectMeta: metav1.ObjectMeta{Name: "joins"},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Usages: []certificatesv1.KeyUsage{"client auth", "digital signature"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	if code, body, _ := i.as(nil, id+".0123456789abcdeX", "POST", requests, string(asked)); code != 401 {
		t.Errorf("a wrong token: %d %s", code, body)
	}
	if code, body, _ := i.as(nil, id+"."+secret, "POST", requests, string(asked)); code != 201 || !strings.Contains(body, `"username":"system:bootstrap:abcdef"`) ||
		!strings.Contains(body, `"groups":["system:bootstrappers","system:bootstrappers:kubeadm:default-node-token","system:authenticated"]`) {
		t.Fatalf("the token: %d %s", code, body)
	}
	csr := await(i, "", "joins", signed)
	if c := csr.Status.Conditions[0]; c.Message != "Auto approving kubelet client certificate after SubjectAccessReview." {
		t.Errorf("condition %+v", c)
	}
	cert := pair(t, csr.Status.Certificate, key)
	node := `{"apiVersion":"v1","kind":"Node","metadata":{"name":"joins"}}`
	if code, body, _ := i.as(cert, "", "POST", "/api/v1/nodes", node); code != 201 {
		t.Errorf("the node registers: %d %s", code, body)
	}
	// The next certificate it gets on its own word.
	request, _ = newRequest(t, pkix.Name{CommonName: "system:node:joins", Organization: []string{"system:nodes"}})
	asked, err = json.Marshal(&certificatesv1.CertificateSigningRequest{
		TypeMeta: metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"}, ObjectMeta: metav1.ObjectMeta{Name: "renews"},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName, Usages: []certificatesv1.KeyUsage{"client auth", "digital signature"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if code, body, _ := i.as(cert, "", "POST", requests, string(asked)); code != 201 {
		t.Fatalf("renewal: %d %s", code, body)
	}
	if c := await(i, "", "renews", signed).Status.Conditions[0]; c.Message != "Auto approving self kubelet client certificate after SubjectAccessReview." {
		t.Errorf("condition %+v", c)
	}
	s.Data["expiration"] = []byte("2020-01-01T00:00:00Z")
	if _, err := client.For[*corev1.Secret](i.c).Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := i.as(nil, id+"."+secret, "GET", requests, ""); code != 401 {
		t.Errorf("the token after its end: %d", code)
	}
	await(i, "kube-system", s.Name, func(_ *corev1.Secret, there bool) bool { return !there })
	await(i, "kube-public", "cluster-info", func(m *corev1.ConfigMap, there bool) bool { return there && m.Data["jws-kubeconfig-"+id] == "" })
}

func TestTokenInASecret(t *testing.T) {
	i := startIdentity(t)
	sa, err := client.For[*corev1.ServiceAccount](i.c).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}})
	if err != nil {
		t.Fatal(err)
	}
	create := func(name, account string) *corev1.Secret {
		s, err := client.For[*corev1.Secret](i.c).Create(t.Context(), &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{"kubernetes.io/service-account.name": account}},
			Type:       corev1.SecretTypeServiceAccountToken,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	create("orphan", "nobody")
	await(i, "default", "orphan", func(_ *corev1.Secret, there bool) bool { return !there })
	create("robot-token", "robot")
	filled := func(s *corev1.Secret, there bool) bool { return there && len(s.Data["token"]) > 0 }
	s := await(i, "default", "robot-token", filled)
	if string(s.Data["namespace"]) != "default" || string(s.Data["ca.crt"]) != string(i.s.pki.CA(pki.ClusterCA).CertPEM) || s.Annotations["kubernetes.io/service-account.uid"] != string(sa.UID) {
		t.Errorf("secret %+v", s)
	}
	token := string(s.Data["token"])
	ask := func() (int, string, http.Header) { return i.as(nil, token, "GET", "/api/v1/pods", "") }
	code, body, h := ask()
	if code != 403 || !strings.Contains(body, `User \"system:serviceaccount:default:robot\" cannot list`) || h.Get("Warning") != "" {
		t.Errorf("the token: %d %s %v", code, body, h)
	}
	await(i, "default", "robot-token", func(s *corev1.Secret, there bool) bool {
		return s.Labels["kubernetes.io/legacy-token-last-used"] == time.Now().UTC().Format("2006-01-02")
	})
	change := func(f func(*corev1.Secret)) {
		t.Helper()
		s, err := client.For[*corev1.Secret](i.c).In("default").Get(t.Context(), "robot-token")
		if err != nil {
			t.Fatal(err)
		}
		s = s.DeepCopy()
		f(s)
		if _, err := client.For[*corev1.Secret](i.c).Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	change(func(s *corev1.Secret) { s.Labels["kubernetes.io/legacy-token-invalid-since"] = "2020-01-01" })
	if code, _, _ := ask(); code != 401 {
		t.Errorf("a refused token: %d", code)
	}
	change(func(s *corev1.Secret) { delete(s.Labels, "kubernetes.io/legacy-token-invalid-since") })
	sa.Secrets = []corev1.ObjectReference{{Name: "robot-token"}}
	if sa, err = client.For[*corev1.ServiceAccount](i.c).Update(t.Context(), sa); err != nil {
		t.Fatal(err)
	}
	if code, _, h := ask(); code != 403 || !strings.Contains(h.Get("Warning"), "instead of auto-generated secret-based tokens.") {
		t.Errorf("a token made unasked: %d %v", code, h)
	}
	change(func(s *corev1.Secret) { s.Data["token"] = nil })
	if code, _, _ := ask(); code != 401 {
		t.Errorf("a token that its secret no longer holds: %d", code)
	}
	s = await(i, "default", "robot-token", filled)
	if string(s.Data["token"]) == token {
		// The key signs by chance: no two signatures are the same.
		t.Error("the same token again")
	}
	token = string(s.Data["token"])
	if err := client.For[*corev1.ServiceAccount](i.c).In("default").Delete(t.Context(), "robot", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := ask(); code != 401 {
		t.Errorf("the token of an account that is gone: %d", code)
	}
	await(i, "default", "robot-token", func(_ *corev1.Secret, there bool) bool { return !there })
}
