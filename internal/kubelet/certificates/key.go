package certificates

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// newKey makes a private key, in PEM (PKCS#8), and a PKCS#10 request that says
// nothing but whose key it is, and is signed with it (KEP-4317: the proof of
// possession).
func newKey(keyType string) (key, stub []byte, err error) {
	private, err := generate(keyType)
	if err != nil {
		return nil, nil, fmt.Errorf("while generating keypair: %w", err)
	}
	if stub, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private); err != nil {
		return nil, nil, fmt.Errorf("while generating stub PKCS#10 request: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("while PEM-encoding private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), stub, nil
}

func generate(keyType string) (crypto.Signer, error) {
	switch keyType {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("unknown key type %q", keyType)
}

// adopt takes over what a volume holds from a kubelet before this one; nil where
// that is no key with a certificate for it. When its signer wants it renewed is not
// known anymore: soon, but not all of a node at once.
func adopt(key, chain []byte, v view) *bundle {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil || pair.Leaf == nil {
		return nil
	}
	b := &bundle{key: key, chain: chain, refreshAt: v.now.Add(v.jitter), notAfter: pair.Leaf.NotAfter}
	if latest := b.notAfter.Add(-overdueAfter); latest.Before(b.refreshAt) {
		b.refreshAt = later(latest, v.now)
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
