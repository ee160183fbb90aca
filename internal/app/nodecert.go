package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"skiff/internal/client"
)

// nodeCertificate is that of a node's kubeconfig. A file that was replaced is taken
// up at the next connection, at most every ten seconds; one that cannot be used leaves
// the certificate before in use.
type nodeCertificate struct {
	file string
	now  func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	leaf    *x509.Certificate
	seen    fs.FileInfo // the file at the last look
	checked time.Time
}

// changed tells whether the file is another one than at the last call. The caller
// holds mu.
func (c *nodeCertificate) changed() bool {
	st, err := os.Stat(c.file)
	if err != nil {
		return false
	}
	was := c.seen
	c.seen = st
	return was == nil || !os.SameFile(was, st) || st.Size() != was.Size() || !st.ModTime().Equal(was.ModTime())
}

func (c *nodeCertificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.checked) >= 10*time.Second {
		c.checked = now
		if c.changed() {
			if err := c.load(); err != nil {
				c.log.Warn("the node's new certificate cannot be used; the old one stays in use", "kubeconfig", c.file, "err", err)
			}
		}
	}
	return c.pair
}

// load reads the file. The caller holds mu.
func (c *nodeCertificate) load() error {
	cfg, err := client.LoadKubeconfig(c.file)
	if err != nil {
		return err
	}
	if cfg.Certificate == nil {
		return errors.New("it has no certificate")
	}
	pair, err := cfg.Certificate(nil)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return err
	}
	if leaf.Subject.CommonName != c.leaf.Subject.CommonName {
		return fmt.Errorf("it is of %q, this node is %q", leaf.Subject.CommonName, c.leaf.Subject.CommonName)
	}
	c.pair, c.leaf = pair, leaf
	c.log.Info("the node's certificate was renewed", "ends", leaf.NotAfter.Format(time.DateOnly))
	return nil
}

// ends is when the certificate in use ends.
func (c *nodeCertificate) ends() time.Time {
	c.get()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaf.NotAfter
}

// warnBefore is how long before its end a node's certificate is told of: nobody
// renews it but people.
const warnBefore = 30 * 24 * time.Hour

// tend tells of the end of the certificate until ctx ends.
func (c *nodeCertificate) tend(ctx context.Context) error {
	t := time.NewTicker(24 * time.Hour)
	defer t.Stop()
	for {
		if ends := c.ends(); ends.Sub(c.now()) < warnBefore {
			c.log.Warn("the node's certificate ends: put what skiff kubeconfig --node prints on the server in the kubeconfig's place", "kubeconfig", c.file, "ends", ends.Format(time.DateOnly))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
