package pki

import (
	"context"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Certificate is one of a directory, as people ask for it.
type Certificate struct {
	// Name is the base name of its files, "apiserver" say.
	Name string `json:"name"`
	// Serial is its serial number (RFC 5280, 4.1.2.2) in hexadecimal: what tells it
	// from one issued in the same second.
	Serial string `json:"serialNumber"`
	// Owner is who it says its holder is, Groups to which the holder belongs.
	Owner  string   `json:"owner"`
	Groups []string `json:"groups,omitempty"`
	// Uses are what it may be used for: "authority", "server", "client".
	Uses []string `json:"uses"`
	// Names are the DNS names and addresses of a server.
	Names []string `json:"names,omitempty"`
	// CA is the name of the authority that signed it: its own for one that signed
	// itself, the issuer's common name where it is not in the directory.
	CA        string    `json:"ca"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// Renews is when it is issued anew by itself; zero for authorities, which never
	// are.
	Renews time.Time `json:"renews,omitzero"`
	File   string    `json:"file"`
}

// List reads all certificates of a directory, authorities first, by their names. It
// needs no PKI that was brought in order: one that is damaged can be looked at.
func List(dir string) ([]Certificate, error) {
	type found struct {
		name string
		cert *x509.Certificate
	}
	var all []found
	authority := map[string]*x509.Certificate{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".crt") {
			return err
		}
		_, cert, err := readCert(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(strings.TrimSuffix(rel, ".crt"))
		all = append(all, found{name, cert})
		if cert.IsCA {
			authority[name] = cert
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	out := make([]Certificate, 0, len(all))
	for _, f := range all {
		c := Describe(f.name, f.cert)
		c.File = filepath.Join(dir, filepath.FromSlash(f.name)+".crt")
		for name, ca := range authority {
			if f.cert.CheckSignatureFrom(ca) == nil {
				c.CA = name
			}
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Certificate) int {
		if x, y := slices.Contains(a.Uses, "authority"), slices.Contains(b.Uses, "authority"); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

// Describe is a certificate of that name in no directory.
func Describe(name string, cert *x509.Certificate) Certificate {
	c := Certificate{
		Name: name, Serial: cert.SerialNumber.Text(16), Owner: cert.Subject.CommonName, Groups: cert.Subject.Organization, Names: slices.Clone(cert.DNSNames),
		CA: cert.Issuer.CommonName, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
	}
	for _, ip := range cert.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	if cert.IsCA {
		c.Uses = append(c.Uses, "authority")
		return c
	}
	for _, u := range cert.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			c.Uses = append(c.Uses, "server")
		case x509.ExtKeyUsageClientAuth:
			c.Uses = append(c.Uses, "client")
		}
	}
	c.Renews = renewAt(cert)
	return c
}

// renewAt is when a third of its life is left.
func renewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}

// Reissue issues certificates anew, whatever they have left: those named, every one
// of the spec where none is. Key pairs that were handed out take up what is new.
// An unknown name is fs.ErrNotExist, and nothing is issued then.
func (p *PKI) Reissue(ctx context.Context, names ...string) ([]string, error) {
	leaves := p.spec.Leaves
	if len(names) > 0 {
		leaves = nil
		for _, name := range names {
			at := slices.IndexFunc(p.spec.Leaves, func(l Leaf) bool { return l.Name == name })
			if at < 0 {
				if p.cas[name] != nil {
					return nil, fmt.Errorf("certificate %q is an authority: what it signed would not verify any more under another one: %w", name, os.ErrInvalid)
				}
				return nil, fmt.Errorf("there is no certificate %q: %w", name, fs.ErrNotExist)
			}
			leaves = append(leaves, p.spec.Leaves[at])
		}
	}
	return p.locked(ctx, func() ([]string, error) {
		var issued []string
		for _, l := range leaves {
			if err := issueLeaf(p.path(l.Name), l, p.cas[l.CA], p.deps.Now()); err != nil {
				return issued, err
			}
			issued = append(issued, l.Name)
		}
		return issued, nil
	})
}
