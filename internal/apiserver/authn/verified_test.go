package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"testing"
	"time"
)

// issue makes a certificate; by itself where parent is nil.
func issue(t *testing.T, c *x509.Certificate, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func TestVerifiedCertificate(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := start
	ca, caKey := issue(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(2 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	client := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "ann", Organization: []string{"g"}},
		NotBefore: start.Add(-time.Hour), NotAfter: start.Add(24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	cert, _ := issue(t, client, ca, caKey)
	forged, _ := issue(t, client, nil, nil)
	a := &Authenticator{ClientCAs: x509.NewCertPool(), Now: func() time.Time { return now }}
	a.ClientCAs.AddCert(ca)
	ask := func(c *x509.Certificate) (string, error) {
		u, err := a.Authenticate(&http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}})
		if u == nil {
			return "", err
		}
		name := u.Name
		for _, g := range u.Groups {
			name += " " + g
		}
		// What a request does to its user is its own.
		u.Groups[0] = "system:masters"
		u.Extra["x"] = nil
		return name, err
	}
	for range 3 {
		if got, err := ask(cert); got != "ann g system:authenticated" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if got, err := ask(forged); err == nil {
			t.Fatalf("a certificate of nobody's is %q", got)
		}
	}
	// The authority's end is the end of what it signed.
	now = start.Add(3 * time.Hour)
	if got, err := ask(cert); err == nil {
		t.Fatalf("after its authority's end the certificate is %q", got)
	}
	now = start.Add(-2 * time.Hour)
	if got, err := ask(cert); err == nil {
		t.Fatalf("before its time the certificate is %q", got)
	}
}
