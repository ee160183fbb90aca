package app

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"testing"

	"skiff/internal/client"
	"skiff/internal/pki"
)

// A certificate that is renewed is the one in the kubeconfig that is made of it, of
// a skiff that runs and of one that does not.
func TestRenewRewritesKubeconfigs(t *testing.T) {
	c := Config{Name: "certs-test", DataDir: t.TempDir(), NodeName: "n", NodeIP: "192.0.2.1", PodCIDR: "10.1.0.0/16", ServiceCIDR: "10.2.0.0/16", APIPort: 6999, KubeletPort: 10999}
	set, err := c.Complete()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	p := NewProcess(set, log, nil)
	p.server = &server{set: set, log: log}
	if err := p.server.openPKI(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.writeKubeconfigs(); err != nil {
		t.Fatal(err)
	}
	inConfig := func() *tls.Certificate {
		t.Helper()
		k, err := client.LoadKubeconfig(set.KubeconfigPath())
		if err != nil {
			t.Fatal(err)
		}
		pair, err := k.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	first := inConfig()
	if _, err := p.RenewCertificates(t.Context(), nil); err == nil {
		t.Error("renewed before the start was over")
	}
	p.ready.Store(true)
	issued, err := p.RenewCertificates(t.Context(), []string{"admin"})
	if err != nil || !slices.Equal(issued, []string{"admin"}) {
		t.Fatalf("issued %q, %v", issued, err)
	}
	second := inConfig()
	if bytes.Equal(first.Certificate[0], second.Certificate[0]) {
		t.Error("the kubeconfig has the old certificate")
	}
	if use := p.server.pki.Pair("admin").Certificate(); !bytes.Equal(use.Certificate[0], second.Certificate[0]) {
		t.Error("the certificate in use is another one than in the kubeconfig")
	}
	if _, err := p.RenewCertificates(t.Context(), []string{"nobody"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown: %v", err)
	}
	all, err := Local{}.Certificates(set.Instance)
	if err != nil || !slices.ContainsFunc(all, func(c pki.Certificate) bool { return c.Name == "kubelet" && c.CA == pki.ClusterCA }) {
		t.Errorf("list: %v, %v", all, err)
	}
	if err := os.RemoveAll(set.Instance.Data("pki")); err != nil {
		t.Fatal(err)
	}
	if _, err := (Local{}).Certificates(set.Instance); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("list of none: %v", err)
	}
}
