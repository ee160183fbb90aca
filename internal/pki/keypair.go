package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// reloadCheck is how often, at most, a KeyPair looks at its files.
const reloadCheck = 10 * time.Second

// KeyPair is a certificate and its key in two files, taken up anew when they
// change, by whomever: at a handshake, at most every 10 seconds. A pair that
// cannot be loaded leaves the one before in use.
type KeyPair struct {
	certFile, keyFile string
	now               func() time.Time
	log               *slog.Logger

	mu      sync.Mutex
	cert    *tls.Certificate
	state   fileState
	checked time.Time
}

// fileState tells one content of the files from another.
type fileState struct {
	certMod, keyMod   time.Time
	certSize, keySize int64
}

// LoadKeyPair loads the pair.
func LoadKeyPair(certFile, keyFile string, deps Deps) (*KeyPair, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	k := &KeyPair{certFile: certFile, keyFile: keyFile, now: deps.Now, log: deps.Log}
	if err := k.Reload(); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *KeyPair) stat() (fileState, error) {
	c, err := os.Stat(k.certFile)
	if err != nil {
		return fileState{}, err
	}
	key, err := os.Stat(k.keyFile)
	if err != nil {
		return fileState{}, err
	}
	return fileState{c.ModTime(), key.ModTime(), c.Size(), key.Size()}, nil
}

// Reload loads the files now.
func (k *KeyPair) Reload() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.load()
}

func (k *KeyPair) load() error {
	k.checked = k.now()
	st, err := k.stat()
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		return fmt.Errorf("key pair %s, %s: %w", k.certFile, k.keyFile, err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return damaged(k.certFile, "certificate", err)
		}
	}
	k.cert, k.state = &cert, st
	return nil
}

// Certificate returns the pair in use.
func (k *KeyPair) Certificate() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now().Sub(k.checked) >= reloadCheck {
		k.checked = k.now()
		if st, err := k.stat(); err != nil || st != k.state {
			if err := k.load(); err != nil {
				k.log.Warn("certificate could not be loaded anew; the old one stays in use", "err", err)
			}
		}
	}
	return k.cert
}

// GetCertificate is for a server's tls.Config.
func (k *KeyPair) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return k.Certificate(), nil
}

// GetClientCertificate is for a client's tls.Config.
func (k *KeyPair) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return k.Certificate(), nil
}

// PEM returns the files' content.
func (k *KeyPair) PEM() (certPEM, keyPEM []byte, err error) {
	if certPEM, err = os.ReadFile(k.certFile); err != nil {
		return nil, nil, err
	}
	keyPEM, err = os.ReadFile(k.keyFile)
	return certPEM, keyPEM, err
}

// Files returns the paths of certificate and key.
func (k *KeyPair) Files() (certFile, keyFile string) { return k.certFile, k.keyFile }

// ServerTLS is a server's configuration with this pair. Client certificates are
// asked for and not verified in the handshake: the server's authentication does
// so, and answers a wrong one with Unauthorized, as kube-apiserver does.
func (k *KeyPair) ServerTLS(clientCAs *x509.CertPool) *tls.Config {
	return &tls.Config{
		GetCertificate: k.GetCertificate,
		ClientCAs:      clientCAs,
		ClientAuth:     tls.RequestClientCert,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// ClientTLS is a client's configuration with this pair, for servers with a
// certificate of one of cas.
func (k *KeyPair) ClientTLS(cas *x509.CertPool, serverName string) *tls.Config {
	return &tls.Config{
		GetClientCertificate: k.GetClientCertificate,
		RootCAs:              cas,
		ServerName:           serverName,
		MinVersion:           tls.VersionTLS12,
	}
}
