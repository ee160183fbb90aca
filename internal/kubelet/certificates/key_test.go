package certificates

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"
)

// TestKeys makes a key of each type that a pod may ask for.
func TestKeys(t *testing.T) {
	for _, want := range []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"} {
		key, stub, err := newKey(want)
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(key)
		if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
			t.Fatalf("%s: %s", want, key)
		}
		private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		req, err := x509.ParseCertificateRequest(stub)
		if err != nil {
			t.Fatal(err)
		}
		if err := req.CheckSignature(); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if len(req.Subject.Names)+len(req.Extensions) != 0 {
			t.Errorf("%s: the request says more than the key: %v", want, req.Subject)
		}
		got := ""
		switch k := private.(type) {
		case *rsa.PrivateKey:
			got = fmt.Sprint("RSA", k.N.BitLen())
		case *ecdsa.PrivateKey:
			got = map[elliptic.Curve]string{elliptic.P256(): "ECDSAP256", elliptic.P384(): "ECDSAP384", elliptic.P521(): "ECDSAP521"}[k.Curve]
		case ed25519.PrivateKey:
			got = "ED25519"
		}
		if got != want {
			t.Errorf("asked for %s, got %s", want, got)
		}
		// It is the key of the request: a certificate for that fits it.
		if adopt(key, certify(t, stub, start, start.Add(time.Hour)), view{now: start}) == nil {
			t.Errorf("%s: the request is for another key", want)
		}
	}
	if _, _, err := newKey("DSA"); err == nil || err.Error() != `while generating keypair: unknown key type "DSA"` {
		t.Error(err)
	}
}

// certify is a signer: it certifies the key of a request.
func certify(t *testing.T, stub []byte, from, to time.Time) []byte {
	t.Helper()
	req, err := x509.ParseCertificateRequest(stub)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pod"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, c, c, req.PublicKey, ca)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAdopt(t *testing.T) {
	key, stub, err := newKey("ECDSAP256")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := newKey("ECDSAP256")
	if err != nil {
		t.Fatal(err)
	}
	chain := certify(t, stub, start, start.Add(time.Hour))
	v := view{now: start, jitter: 2 * time.Minute}
	b := adopt(key, chain, v)
	if b == nil || !bytes.Equal(b.key, key) || !bytes.Equal(b.chain, chain) || !b.refreshAt.Equal(start.Add(2*time.Minute)) || !b.notAfter.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v", b)
	}
	// What ends soon, or has ended, is renewed at once.
	for _, now := range []time.Duration{55 * time.Minute, 2 * time.Hour} {
		v.now = start.Add(now)
		if b := adopt(key, chain, v); b == nil || !b.refreshAt.Equal(v.now) {
			t.Errorf("after %v: %+v", now, b)
		}
	}
	for what, pair := range map[string][2][]byte{
		"of another key": {other, chain}, "no certificate": {key, nil}, "no key": {nil, chain}, "torn": {key[:40], chain},
	} {
		if b := adopt(pair[0], pair[1], v); b != nil {
			t.Errorf("%s: %+v", what, b)
		}
	}
}
