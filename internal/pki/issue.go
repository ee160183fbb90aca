package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Authority is a certificate authority.
type Authority struct {
	Cert    *x509.Certificate
	CertPEM []byte
	key     crypto.Signer // nil where it is kept elsewhere
	file    string        // base path, for messages
}

// Issue signs a certificate of pub for l, valid from a little before now for a
// year, or as long as the authority lives. It returns it in PEM form.
func (a *Authority) Issue(l Leaf, pub crypto.PublicKey, now time.Time) ([]byte, error) {
	return a.IssueFor(l, pub, now, leafLife)
}

// IssueFor is Issue with a life of its own.
func (a *Authority) IssueFor(l Leaf, pub crypto.PublicKey, now time.Time, life time.Duration) ([]byte, error) {
	if a.key == nil {
		return nil, fmt.Errorf("certificate %q cannot be signed: %s.key does not exist", l.Name, a.file)
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: l.User, Organization: l.Groups},
		DNSNames:              l.DNSNames,
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if t.NotAfter.After(a.Cert.NotAfter) {
		t.NotAfter = a.Cert.NotAfter
	}
	if t.NotBefore.Before(a.Cert.NotBefore) {
		t.NotBefore = a.Cert.NotBefore
	}
	for _, ip := range l.IPs {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	if l.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	return sign(t, a.Cert, pub, a.key)
}

// Sign makes a certificate of what template says, for pub, and returns it in PEM
// form. The serial number is chosen here; all else is the caller's policy.
func (a *Authority) Sign(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	if a.key == nil {
		return nil, fmt.Errorf("a certificate of %q cannot be signed: %s.key does not exist", template.Subject.CommonName, a.file)
	}
	return sign(template, a.Cert, pub, a.key)
}

// CanSign tells whether the authority's key is here.
func (a *Authority) CanSign() bool { return a.key != nil }

// NotAfter is when the authority ends, and everything that it signed.
func (a *Authority) NotAfter() time.Time { return a.Cert.NotAfter }

// NewPair makes a key and a certificate for l that are in no file.
func (a *Authority) NewPair(l Leaf, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = a.Issue(l, key.Public(), now)
	return certPEM, keyPEM, err
}

func sign(t, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial.Add(serial, big.NewInt(1)) // zero is no serial number
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %q: %w", t.Subject.CommonName, err)
	}
	return encodePEM("CERTIFICATE", der), nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, encodePEM("EC PRIVATE KEY", der), nil
}

// LoadAuthority loads an authority of a directory that Ensure made, with its key.
func LoadAuthority(dir, name string) (*Authority, error) {
	base := filepath.Join(dir, filepath.FromSlash(name))
	certPEM, cert, err := readCert(base + ".crt")
	if err != nil {
		return nil, err
	}
	key, err := readKey(base + ".key")
	if err != nil {
		return nil, err
	}
	if !samePublic(cert.PublicKey, key.Public()) {
		return nil, fmt.Errorf("%s.key is not the key of %s.crt", base, base)
	}
	return &Authority{Cert: cert, CertPEM: certPEM, key: key, file: base}, nil
}

// ensureCA loads the authority at base, or makes it. A key without a certificate
// is what an interrupted creation leaves: it gets its certificate.
func ensureCA(base, commonName string, now time.Time) (*Authority, error) {
	certFile, keyFile := base+".crt", base+".key"
	key, err := readKey(keyFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	certPEM, cert, err := readCert(certFile)
	switch {
	case err == nil:
		if !cert.IsCA {
			return nil, fmt.Errorf("%s is not a certificate authority's", certFile)
		}
		if now.After(cert.NotAfter) {
			return nil, fmt.Errorf("%s has expired on %s: give the cluster a new authority", certFile, cert.NotAfter.Format(time.DateOnly))
		}
		if key != nil && !samePublic(cert.PublicKey, key.Public()) {
			return nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
		}
		return &Authority{Cert: cert, CertPEM: certPEM, key: key, file: base}, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	if key == nil {
		made, keyPEM, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := writeFile(keyFile, keyPEM); err != nil {
			return nil, err
		}
		key = made
	}
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		DNSNames:              []string{commonName},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if certPEM, err = sign(t, t, key.Public(), key); err != nil {
		return nil, err
	}
	if err := writeFile(certFile, certPEM); err != nil {
		return nil, err
	}
	_, cert, err = readCert(certFile)
	if err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, CertPEM: certPEM, key: key, file: base}, nil
}

// ensureLeaf issues the leaf at base where it has to be; made tells so. The key is
// written before the certificate: where only it got written, the pair does not
// match and is made anew.
func ensureLeaf(base string, l Leaf, ca *Authority, now time.Time) (made bool, err error) {
	certFile, keyFile := base+".crt", base+".key"
	key, err := readKey(keyFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	_, cert, err := readCert(certFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if key != nil && cert != nil && samePublic(cert.PublicKey, key.Public()) && fits(cert, l, ca, now) {
		return false, nil
	}
	return true, issueLeaf(base, l, ca, now)
}

// issueLeaf puts a new key and its certificate at base.
func issueLeaf(base string, l Leaf, ca *Authority, now time.Time) error {
	certPEM, keyPEM, err := ca.NewPair(l, now)
	if err != nil {
		return err
	}
	if err := writeFile(base+".key", keyPEM); err != nil {
		return err
	}
	return writeFile(base+".crt", certPEM)
}

// fits tells whether cert is what l asks for, is signed by ca, and has at least a
// third of its life left. More names than asked for do no harm.
func fits(cert *x509.Certificate, l Leaf, ca *Authority, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	// One that ends with its authority cannot be had longer.
	if left := cert.NotAfter.Sub(now); left < life/3 && cert.NotAfter.Before(ca.Cert.NotAfter) || left <= 0 {
		return false
	}
	if now.Before(cert.NotBefore) || cert.CheckSignatureFrom(ca.Cert) != nil {
		return false
	}
	groups := slices.Clone(l.Groups)
	slices.Sort(groups)
	has := slices.Clone(cert.Subject.Organization)
	slices.Sort(has)
	if cert.Subject.CommonName != l.User || !slices.Equal(groups, has) {
		return false
	}
	for _, name := range l.DNSNames {
		if !slices.Contains(cert.DNSNames, name) {
			return false
		}
	}
	for _, ip := range l.IPs {
		want := net.IP(ip.Unmap().AsSlice())
		if !slices.ContainsFunc(cert.IPAddresses, want.Equal) {
			return false
		}
	}
	return (!l.Server || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)) &&
		(!l.Client || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth))
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
