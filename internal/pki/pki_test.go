package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	clientapi "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func serverSpec(t *testing.T) Spec {
	t.Helper()
	s, err := ServerSpec(Server{
		NodeName:   "node-1",
		ServiceIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")},
		IPs:        []netip.Addr{netip.MustParseAddr("192.0.2.7")},
		ExtraSANs:  []string{"api.example.org", "198.51.100.9"},
		Etcd:       true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ensure(t *testing.T, dir string, s Spec, c *clock) *PKI {
	t.Helper()
	p, err := Ensure(t.Context(), dir, s, Deps{Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == ".lock" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		rel, _ := filepath.Rel(dir, path)
		m[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func changed(a, b map[string][]byte) []string {
	var names []string
	for n := range b {
		if !bytes.Equal(a[n], b[n]) {
			names = append(names, n)
		}
	}
	for n := range a {
		if _, ok := b[n]; !ok {
			names = append(names, "-"+n)
		}
	}
	slices.Sort(names)
	return names
}

// TestEnsure checks every certificate as a verifier would.
func TestEnsure(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "pki"), &clock{time.Now()}
	p := ensure(t, dir, serverSpec(t), c)
	var want []string
	for _, n := range []string{
		"ca", "front-proxy-ca", "etcd/ca", "apiserver", "apiserver-kubelet-client", "front-proxy-client", "admin",
		"super-admin", "controller-manager", "scheduler", "etcd/server", "etcd/peer", "etcd/healthcheck-client", "apiserver-etcd-client",
	} {
		want = append(want, n+".crt", n+".key")
	}
	want = append(want, "sa.key", "sa.pub")
	slices.Sort(want)
	if got := changed(nil, files(t, dir)); !slices.Equal(got, want) {
		t.Fatalf("files are\n%q, want\n%q", got, want)
	}
	subjects := map[string]string{
		"apiserver":                "CN=kube-apiserver",
		"apiserver-kubelet-client": "CN=kube-apiserver-kubelet-client,O=kubeadm:cluster-admins",
		"front-proxy-client":       "CN=front-proxy-client",
		"admin":                    "CN=kubernetes-admin,O=kubeadm:cluster-admins",
		"super-admin":              "CN=kubernetes-super-admin,O=system:masters",
		"controller-manager":       "CN=system:kube-controller-manager",
		"scheduler":                "CN=system:kube-scheduler",
	}
	for _, l := range serverSpec(t).Leaves {
		cert := p.Pair(l.Name).Certificate().Leaf
		if s := subjects[l.Name]; s != "" && cert.Subject.String() != s {
			t.Errorf("%s: subject %s, want %s", l.Name, cert.Subject, s)
		}
		usages := []x509.ExtKeyUsage{}
		if l.Server {
			usages = append(usages, x509.ExtKeyUsageServerAuth)
		}
		if l.Client {
			usages = append(usages, x509.ExtKeyUsageClientAuth)
		}
		if !slices.Equal(cert.ExtKeyUsage, usages) || cert.KeyUsage != x509.KeyUsageDigitalSignature || cert.IsCA {
			t.Errorf("%s: usage %v %v, CA %t", l.Name, cert.KeyUsage, cert.ExtKeyUsage, cert.IsCA)
		}
		for _, ca := range []string{ClusterCA, FrontProxyCA, EtcdCA} {
			_, err := cert.Verify(x509.VerifyOptions{Roots: p.Pool(ca), CurrentTime: c.t, KeyUsages: usages})
			if (err == nil) != (ca == l.CA) {
				t.Errorf("%s: verified by %s: %v", l.Name, ca, err)
			}
		}
		if !cert.NotBefore.Before(c.t.Add(-skew+time.Second)) || cert.NotAfter.Sub(c.t).Round(time.Hour) != leafLife {
			t.Errorf("%s: valid from %s to %s", l.Name, cert.NotBefore, cert.NotAfter)
		}
	}
	for _, name := range []string{ClusterCA, FrontProxyCA, EtcdCA} {
		ca := p.CA(name).Cert
		if !ca.IsCA || ca.KeyUsage&x509.KeyUsageCertSign == 0 || ca.NotAfter.Sub(c.t).Round(time.Hour) != caLife {
			t.Errorf("%s: CA %t usage %v until %s", name, ca.IsCA, ca.KeyUsage, ca.NotAfter)
		}
		if key, ok := ca.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
			t.Errorf("%s: key is %T", name, ca.PublicKey)
		}
	}
	api := p.Pair("apiserver").Certificate().Leaf
	for _, host := range []string{
		"localhost", "127.0.0.1", "[::1]", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "node-1", "10.96.0.1", "[fd00::1]", "192.0.2.7", "api.example.org", "198.51.100.9",
	} {
		if err := api.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	for _, host := range []string{"example.org", "10.96.0.2"} {
		if err := api.VerifyHostname(host); err == nil {
			t.Errorf("certificate is good for %s", host)
		}
	}
	keys, err := p.ServiceAccountPublicKeys()
	if err != nil || len(keys) != 1 || !samePublic(keys[0], p.ServiceAccountKey().Public()) {
		t.Errorf("service account keys: %v, %v", keys, err)
	}
}

func TestEnsureAgainChangesNothing(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	ensure(t, dir, serverSpec(t), c)
	before := files(t, dir)
	c.t = c.t.Add(200 * 24 * time.Hour)
	ensure(t, dir, serverSpec(t), c)
	if got := changed(before, files(t, dir)); got != nil {
		t.Fatalf("changed: %q", got)
	}
}

func TestEnsureRenews(t *testing.T) {
	short := func(name string) []string { return []string{name + ".crt", name + ".key"} }
	tests := []struct {
		name   string
		change func(t *testing.T, dir string, s *Spec, c *clock)
		want   []string
	}{
		{"less than a third left", func(_ *testing.T, _ string, s *Spec, c *clock) {
			c.t = c.t.Add(leafLife*2/3 + time.Hour)
		}, []string{"admin.crt", "admin.key", "apiserver.crt", "apiserver.key"}},
		{"expired", func(_ *testing.T, _ string, s *Spec, c *clock) {
			c.t = c.t.Add(leafLife * 2)
		}, []string{"admin.crt", "admin.key", "apiserver.crt", "apiserver.key"}},
		{"a new address", func(_ *testing.T, _ string, s *Spec, _ *clock) {
			s.Leaves[0].IPs = append(s.Leaves[0].IPs, netip.MustParseAddr("203.0.113.1"))
		}, short("apiserver")},
		{"an address less", func(_ *testing.T, _ string, s *Spec, _ *clock) {
			s.Leaves[0].IPs = s.Leaves[0].IPs[1:]
		}, nil},
		{"a new name", func(_ *testing.T, _ string, s *Spec, _ *clock) {
			s.Leaves[0].DNSNames = append(s.Leaves[0].DNSNames, "new.example.org")
		}, short("apiserver")},
		{"another group", func(_ *testing.T, _ string, s *Spec, _ *clock) {
			s.Leaves[1].Groups = []string{MastersGroup}
		}, short("admin")},
		{"another use", func(_ *testing.T, _ string, s *Spec, _ *clock) {
			s.Leaves[1].Server = true
		}, short("admin")},
		{"a missing certificate", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			removeFile(t, dir, "admin.crt")
		}, short("admin")},
		{"a missing key", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			removeFile(t, dir, "admin.key")
		}, short("admin")},
		{"a pair cut short between its files", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			_, keyPEM, err := newKey()
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, dir, "admin.key", keyPEM)
		}, short("admin")},
		{"another authority", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			removeFile(t, dir, "ca.crt")
			removeFile(t, dir, "ca.key")
		}, []string{"admin.crt", "admin.key", "apiserver.crt", "apiserver.key", "ca.crt", "ca.key"}},
		{"an authority cut short between its files", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			removeFile(t, dir, "ca.crt")
		}, []string{"ca.crt"}},
		{"a lost public key", func(t *testing.T, dir string, _ *Spec, _ *clock) {
			removeFile(t, dir, "sa.pub")
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{time.Now()}
			spec := serverSpec(t)
			spec.Leaves = []Leaf{spec.Leaves[0], spec.Leaves[3]}
			ensure(t, dir, spec, c)
			before := files(t, dir)
			tt.change(t, dir, &spec, c)
			p := ensure(t, dir, spec, c)
			if got := changed(before, files(t, dir)); !slices.Equal(got, tt.want) {
				t.Fatalf("changed: %q, want %q", got, tt.want)
			}
			for _, l := range spec.Leaves {
				cert := p.Pair(l.Name).Certificate().Leaf
				if _, err := cert.Verify(x509.VerifyOptions{Roots: p.Pool(l.CA), CurrentTime: c.t, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func removeFile(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, dir, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEnsureRefuses(t *testing.T) {
	garbage := encodePEM("CERTIFICATE", []byte("no certificate"))
	badKey := encodePEM("EC PRIVATE KEY", []byte("no key"))
	_, other, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, file string
		content    []byte // nil removes the file
		want       string
	}{
		{"empty authority", "ca.crt", []byte{}, "ca.crt holds no certificate"},
		{"damaged authority", "ca.crt", garbage, "ca.crt holds no certificate"},
		{"damaged authority's key", "ca.key", badKey, "ca.key holds no private key"},
		{"key of another authority", "ca.key", other, "ca.key is not the key of"},
		{"damaged certificate", "apiserver.crt", []byte("text"), "apiserver.crt holds no certificate"},
		{"damaged key", "apiserver.key", badKey, "apiserver.key holds no private key"},
		{"damaged service account key", "sa.key", []byte("text"), "sa.key holds no private key"},
		{"other service account key", "sa.key", other, "sa.pub does not hold the public half of"},
		{"lost service account key", "sa.key", nil, "sa.key does not exist"},
		{"damaged public key", "sa.pub", []byte("text"), "sa.pub holds no public key"},
		{"leaf as authority", "ca.crt", []byte("leaf"), "is not a certificate authority's"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{time.Now()}
			ensure(t, dir, serverSpec(t), c)
			switch {
			case tt.content == nil:
				removeFile(t, dir, tt.file)
			case string(tt.content) == "leaf":
				b, err := os.ReadFile(filepath.Join(dir, "admin.crt"))
				if err != nil {
					t.Fatal(err)
				}
				overwrite(t, dir, tt.file, b)
			default:
				overwrite(t, dir, tt.file, tt.content)
			}
			before := files(t, dir)
			_, err := Ensure(t.Context(), dir, serverSpec(t), Deps{Now: c.now})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want one with %q", err, tt.want)
			}
			if got := changed(before, files(t, dir)); got != nil {
				t.Fatalf("changed: %q", got)
			}
		})
	}
	t.Run("expired authority", func(t *testing.T) {
		dir, c := t.TempDir(), &clock{time.Now()}
		ensure(t, dir, serverSpec(t), c)
		c.t = c.t.Add(caLife + time.Hour)
		_, err := Ensure(t.Context(), dir, serverSpec(t), Deps{Now: c.now})
		if err == nil || !strings.Contains(err.Error(), "has expired") {
			t.Fatalf("got error %v", err)
		}
	})
}

func TestSpecRefused(t *testing.T) {
	good := Leaf{Name: "a", CA: ClusterCA, User: "u", Client: true}
	for want, change := range map[string]func(*Leaf){
		"certificate name":     func(l *Leaf) { l.Name = "../a" },
		"is taken":             func(l *Leaf) { l.Name = "sa" },
		"authority \"x\"":      func(l *Leaf) { l.CA = "x" },
		"User is required":     func(l *Leaf) { l.User = "" },
		"must be for a server": func(l *Leaf) { l.Client = false },
	} {
		l := good
		change(&l)
		if _, err := Ensure(t.Context(), t.TempDir(), Spec{Leaves: []Leaf{l}}, Deps{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want one with %q", err, want)
		}
	}
	for _, san := range []string{"", "a b", "-a", "a..b", "UPPER", "a/b", "*"} {
		if _, err := ServerSpec(Server{ExtraSANs: []string{san}}); err == nil {
			t.Errorf("name %q is taken", san)
		}
	}
	if _, err := NodeLeaves("Node", nil); err == nil {
		t.Error("node name with capitals is taken")
	}
}

// TestForeignKeys: a PKI with RSA keys, and one whose authority's key is elsewhere.
func TestForeignKeys(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := encodePEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, dir, "ca.key", pkcs1)
	overwrite(t, dir, "sa.key", encodePEM("PRIVATE KEY", der))
	p := ensure(t, dir, serverSpec(t), c)
	if _, ok := p.ServiceAccountKey().(*rsa.PrivateKey); !ok {
		t.Fatalf("service account key is %T", p.ServiceAccountKey())
	}
	if _, ok := p.CA(ClusterCA).Cert.PublicKey.(*rsa.PublicKey); !ok {
		t.Fatalf("authority's key is %T", p.CA(ClusterCA).Cert.PublicKey)
	}
	removeFile(t, dir, "ca.key")
	ensure(t, dir, serverSpec(t), c)
	c.t = c.t.Add(leafLife)
	_, err = Ensure(t.Context(), dir, serverSpec(t), Deps{Now: c.now})
	if err == nil || !strings.Contains(err.Error(), "ca.key does not exist") {
		t.Fatalf("got error %v", err)
	}
}

func TestEnsureTwiceAtOnce(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	errs := make(chan error, 4)
	for range 4 {
		go func() {
			_, err := Ensure(t.Context(), dir, serverSpec(t), Deps{Now: c.now})
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	before := files(t, dir)
	ensure(t, dir, serverSpec(t), c)
	if got := changed(before, files(t, dir)); got != nil {
		t.Fatalf("changed: %q", got)
	}
}

// handshake does one TLS handshake and returns the server's certificate and the
// client's, as the other end sees it.
func handshake(t *testing.T, server, client *tls.Config) (*x509.Certificate, *x509.Certificate) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	srv, cl := tls.Server(a, server), tls.Client(b, client)
	errs := make(chan error, 1)
	go func() { errs <- srv.HandshakeContext(t.Context()) }()
	if err := cl.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	return cl.ConnectionState().PeerCertificates[0], srv.ConnectionState().PeerCertificates[0]
}

// TestRenewWhileServing: a server and a client with running configurations use
// renewed certificates.
func TestRenewWhileServing(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	p := ensure(t, dir, serverSpec(t), c)
	server := p.Pair("apiserver").ServerTLS(p.Pool(ClusterCA))
	client := p.Pair("admin").ClientTLS(p.Pool(ClusterCA), "kubernetes.default.svc")
	server.Time, client.Time = c.now, c.now
	s1, c1 := handshake(t, server, client)
	if c1.Subject.CommonName != AdminUser {
		t.Fatalf("client is %s", c1.Subject)
	}
	if issued, err := p.Renew(t.Context()); err != nil || issued != nil {
		t.Fatalf("renewed too early: %q, %v", issued, err)
	}
	c.t = c.t.Add(leafLife * 3 / 4)
	issued, err := p.Renew(t.Context())
	if err != nil || len(issued) != len(serverSpec(t).Leaves) {
		t.Fatalf("renewed: %q, %v", issued, err)
	}
	s2, c2 := handshake(t, server, client)
	if s1.Equal(s2) || c1.Equal(c2) || s2.NotAfter.Sub(c.t).Round(time.Hour) != leafLife {
		t.Fatalf("certificates in use are the old ones, until %s", s2.NotAfter)
	}
	// Another process renews: taken up after a while, and a half-written pair not.
	c.t = c.t.Add(leafLife * 3 / 4)
	overwrite(t, dir, "apiserver.key", []byte("half"))
	if s3, _ := handshake(t, server, client); !s3.Equal(s2) {
		t.Fatal("the certificate changed without a good pair")
	}
	removeFile(t, dir, "apiserver.key")
	ensure(t, dir, serverSpec(t), c)
	c.t = c.t.Add(reloadCheck)
	if s3, _ := handshake(t, server, client); s3.Equal(s2) {
		t.Fatal("the pair of the other process is not taken up")
	}
}

func TestRunRenews(t *testing.T) {
	dir := t.TempDir()
	spec := serverSpec(t)
	spec.Leaves = spec.Leaves[:1]
	synctest.Test(t, func(t *testing.T) {
		p, err := Ensure(t.Context(), dir, spec, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		first := p.Pair("apiserver").Certificate().Leaf
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		var told []string
		tries := 0
		go func() {
			done <- p.Run(ctx, func(names []string) error {
				if tries++; tries == 1 {
					return errors.New("not now")
				}
				told = append(told, names...)
				return nil
			})
		}()
		time.Sleep(leafLife/3*2 + 2*renewCheck)
		synctest.Wait()
		if !slices.Equal(told, []string{"apiserver"}) || tries != 2 {
			t.Errorf("told of %q in %d tries", told, tries)
		}
		second := p.Pair("apiserver").Certificate().Leaf
		if first.Equal(second) {
			t.Error("certificate is not renewed")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNodeLeaves(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	leaves, err := NodeLeaves("worker-1", []netip.Addr{netip.MustParseAddr("192.0.2.8")})
	if err != nil {
		t.Fatal(err)
	}
	p := ensure(t, dir, Spec{Leaves: leaves}, c)
	serving, client := p.Pair("kubelet").Certificate().Leaf, p.Pair("kubelet-client").Certificate().Leaf
	for _, cert := range []*x509.Certificate{serving, client} {
		if got := cert.Subject.String(); got != "CN=system:node:worker-1,O=system:nodes" {
			t.Errorf("subject %s", got)
		}
	}
	for _, host := range []string{"worker-1", "192.0.2.8"} {
		if err := serving.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}

// TestKubeconfig reads the file with the types that every client has.
func TestKubeconfig(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	p := ensure(t, dir, serverSpec(t), c)
	k, err := p.Kubeconfig("admin", "skiff", "https://127.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := k.Write(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cfg clientapi.Config
	if err := yaml.UnmarshalStrict(b, &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Kind != "Config" || cfg.APIVersion != "v1" || cfg.CurrentContext != "kubernetes-admin@skiff" ||
		len(cfg.Clusters) != 1 || len(cfg.AuthInfos) != 1 || len(cfg.Contexts) != 1 {
		t.Fatalf("got %s", b)
	}
	cluster, user, context := cfg.Clusters[0], cfg.AuthInfos[0], cfg.Contexts[0]
	if context.Name != cfg.CurrentContext || context.Context.Cluster != cluster.Name || context.Context.AuthInfo != user.Name {
		t.Errorf("context is %+v", context)
	}
	if cluster.Cluster.Server != "https://127.0.0.1:6443" || !bytes.Equal(cluster.Cluster.CertificateAuthorityData, p.CA(ClusterCA).CertPEM) {
		t.Errorf("cluster is %+v", cluster)
	}
	if _, err := tls.X509KeyPair(user.AuthInfo.ClientCertificateData, user.AuthInfo.ClientKeyData); err != nil {
		t.Error(err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := k.Write(file); err != nil {
		t.Fatal(err)
	}
	if st2, err := os.Stat(file); err != nil || !st2.ModTime().Equal(st.ModTime()) {
		t.Errorf("an equal file was written again: %v", err)
	}
	for _, bad := range []Kubeconfig{
		{Cluster: "c", User: "u", Server: "http://h"}, {User: "u", Server: "https://h"}, {Cluster: "c", User: "u", Server: "https://h", ClientCert: []byte("c")},
	} {
		if _, err := bad.Marshal(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func BenchmarkEnsureNew(b *testing.B) {
	spec, err := ServerSpec(Server{NodeName: "n"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Ensure(b.Context(), b.TempDir(), spec, Deps{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEnsureAgain(b *testing.B) {
	spec, err := ServerSpec(Server{NodeName: "n"})
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for b.Loop() {
		if _, err := Ensure(b.Context(), dir, spec, Deps{}); err != nil {
			b.Fatal(err)
		}
	}
}
