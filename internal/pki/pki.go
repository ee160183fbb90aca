// Package pki keeps a cluster's certificates and keys in a directory with the
// layout and names of kubeadm's /etc/kubernetes/pki.
//
//	ca.crt ca.key                        the cluster's authority
//	front-proxy-ca.crt front-proxy-ca.key  authority of the aggregation layer
//	etcd/ca.crt etcd/ca.key              authority of etcd, where wanted
//	sa.key sa.pub                        signs and verifies service account tokens
//	<leaf>.crt <leaf>.key                one pair per Leaf of the Spec
//
// Keys made here are ECDSA P-256; RSA and Ed25519 ones that are found are used
// as they are. Every file has mode 0600 and is replaced atomically; one process
// at a time works on a directory.
//
// Ensure makes what is missing and issues anew what has less than a third of its
// life left, no longer fits the Spec, or is signed by another authority. It
// never replaces an authority or the service account key: what depends on those
// would stop to work. What cannot be read is an error that names the file.
//
// An authority without its key (kept elsewhere) is accepted as long as nothing
// has to be signed.
package pki

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// How long certificates hold, and by how much they begin early for clocks that
// differ.
const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	skew     = 5 * time.Minute
	// renewCheck is how often Run looks.
	renewCheck = 6 * time.Hour
	// warnBefore is how long before its end an authority is told of, and warnEvery
	// how often.
	warnBefore = 365 * 24 * time.Hour
	warnEvery  = 24 * time.Hour
)

// The authorities, by the base name of their files.
const (
	ClusterCA    = "ca"
	FrontProxyCA = "front-proxy-ca"
	EtcdCA       = "etcd/ca"
)

var caNames = map[string]string{
	ClusterCA:    "kubernetes",
	FrontProxyCA: "front-proxy-ca",
	EtcdCA:       "etcd-ca",
}

// Leaf describes one certificate and the pair of files that holds it.
type Leaf struct {
	// Name is the base name of its files, "apiserver" say.
	Name string
	// CA is the authority that signs it.
	CA string
	// User and Groups are the subject's common name and organizations, which is
	// what an API server takes for the user's.
	User   string
	Groups []string
	// DNSNames and IPs are the names a server is reached by.
	DNSNames []string
	IPs      []netip.Addr
	// Server and Client say what it may be used for.
	Server, Client bool
}

// Spec is what a directory has to hold.
type Spec struct {
	// CAs that exist besides those that the leaves name.
	CAs []string
	// ServiceAccount asks for sa.key and sa.pub.
	ServiceAccount bool
	Leaves         []Leaf
}

// Deps of a PKI.
type Deps struct {
	// Now is the clock; time.Now where nil.
	Now func() time.Time
	Log *slog.Logger
}

// PKI is a directory that Ensure has brought in order.
type PKI struct {
	dir  string
	spec Spec
	deps Deps
	cas  map[string]*Authority
	sa   crypto.Signer

	mu    sync.Mutex // one renewal at a time
	pairs map[string]*KeyPair
}

var leafNameRE = regexp.MustCompile(`^[a-z0-9][-a-z0-9.]*(/[a-z0-9][-a-z0-9.]*)?$`)

func (s Spec) validate() error {
	seen := map[string]bool{"sa": true}
	for _, ca := range s.CAs {
		if caNames[ca] == "" {
			return fmt.Errorf("certificate authority %q is unknown", ca)
		}
	}
	for ca := range caNames {
		seen[ca] = true
	}
	for _, l := range s.Leaves {
		switch {
		case !leafNameRE.MatchString(l.Name):
			return fmt.Errorf("certificate name %q: must consist of lower case letters, digits, '-' and '.'", l.Name)
		case seen[l.Name]:
			return fmt.Errorf("certificate name %q: is taken", l.Name)
		case caNames[l.CA] == "":
			return fmt.Errorf("certificate %q: authority %q is unknown", l.Name, l.CA)
		case l.User == "":
			return fmt.Errorf("certificate %q: User is required", l.Name)
		case !l.Server && !l.Client:
			return fmt.Errorf("certificate %q: must be for a server, a client or both", l.Name)
		}
		seen[l.Name] = true
	}
	return nil
}

// Ensure brings dir to what spec says and returns it, loaded.
func Ensure(ctx context.Context, dir string, spec Spec, deps Deps) (*PKI, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	p := &PKI{dir: dir, spec: spec, deps: deps, cas: map[string]*Authority{}, pairs: map[string]*KeyPair{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("PKI directory: %w", err)
	}
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := p.ensureRoots(); err != nil {
		return nil, err
	}
	if _, err := p.renew(); err != nil {
		return nil, err
	}
	for _, l := range spec.Leaves {
		kp, err := LoadKeyPair(p.path(l.Name+".crt"), p.path(l.Name+".key"), deps)
		if err != nil {
			return nil, err
		}
		p.pairs[l.Name] = kp
	}
	return p, nil
}

// ensureRoots makes or loads the authorities and the service account key, side
// by side.
func (p *PKI) ensureRoots() error {
	names := map[string]bool{}
	for _, ca := range p.spec.CAs {
		names[ca] = true
	}
	for _, l := range p.spec.Leaves {
		names[l.CA] = true
	}
	var g errgroup.Group
	var mu sync.Mutex
	for name := range names {
		g.Go(func() error {
			a, err := ensureCA(p.path(name), caNames[name], p.deps.Now())
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			p.cas[name] = a
			return nil
		})
	}
	if p.spec.ServiceAccount {
		g.Go(func() (err error) {
			p.sa, err = ensureServiceAccountKey(p.path("sa.key"), p.path("sa.pub"))
			return err
		})
	}
	return g.Wait()
}

// renew issues what has to be issued and returns the names of those.
func (p *PKI) renew() ([]string, error) {
	var g errgroup.Group
	var mu sync.Mutex
	var issued []string
	for _, l := range p.spec.Leaves {
		g.Go(func() error {
			made, err := ensureLeaf(p.path(l.Name), l, p.cas[l.CA], p.deps.Now())
			if made {
				mu.Lock()
				defer mu.Unlock()
				issued = append(issued, l.Name)
			}
			return err
		})
	}
	return issued, g.Wait()
}

// Renew issues anew what has less than a third of its life left. Key pairs that
// were handed out take up what is new.
func (p *PKI) Renew(ctx context.Context) ([]string, error) { return p.locked(ctx, p.renew) }

// locked runs issue, alone on the directory, and has the pairs of what it issued
// taken up.
func (p *PKI) locked(ctx context.Context, issue func() ([]string, error)) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unlock, err := lockDir(ctx, p.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	issued, err := issue()
	slices.Sort(issued)
	for _, name := range issued {
		err = errors.Join(err, p.pairs[name].Reload())
	}
	return issued, err
}

// Run renews until ctx ends, and tells renewed, which may be nil, what was. What
// fails is logged and tried again, by both: renewed gets the names until it returns
// no error.
func (p *PKI) Run(ctx context.Context, renewed func(names []string) error) error {
	t := time.NewTicker(renewCheck)
	defer t.Stop()
	var untold []string
	var warned time.Time
	for {
		now := p.deps.Now()
		if now.Sub(warned) >= warnEvery {
			warned = now
			p.warn(now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		issued, err := p.Renew(ctx)
		if err != nil && ctx.Err() == nil {
			p.deps.Log.Error("certificates could not be renewed", "err", err)
		}
		if len(issued) > 0 {
			p.deps.Log.Info("certificates renewed", "names", strings.Join(issued, " "))
		}
		if untold = append(untold, issued...); len(untold) == 0 || renewed == nil {
			continue
		}
		if err := renewed(untold); err != nil {
			p.deps.Log.Error("renewed certificates could not be handed on", "err", err)
			continue
		}
		untold = nil
	}
}

// warn tells of authorities whose end is near: nobody renews them.
func (p *PKI) warn(now time.Time) {
	for name, ca := range p.cas {
		if left := ca.Cert.NotAfter.Sub(now); left < warnBefore {
			p.deps.Log.Warn("a certificate authority ends; what it signed ends with it: see skiff certs --help", "authority", name, "ends", ca.Cert.NotAfter.Format(time.DateOnly))
		}
	}
}

func (p *PKI) path(base string) string { return filepath.Join(p.dir, filepath.FromSlash(base)) }

// CA returns an authority of the spec; nil where there is none of that name.
func (p *PKI) CA(name string) *Authority { return p.cas[name] }

// ServiceAccountKey signs service account tokens: ES256 for ECDSA keys. Nil where
// the spec asked for none.
func (p *PKI) ServiceAccountKey() crypto.Signer { return p.sa }

// ServiceAccountPublicKeys returns the keys that verify tokens: the public half
// of ServiceAccountKey first, and whatever else sa.pub holds, so that keys can be
// exchanged.
func (p *PKI) ServiceAccountPublicKeys() ([]crypto.PublicKey, error) {
	return readPublicKeys(p.path("sa.pub"))
}

// Pair returns the key pair of a leaf; nil where the spec has none of that name.
func (p *PKI) Pair(name string) *KeyPair { return p.pairs[name] }

// Pool returns a pool of the authorities named.
func (p *PKI) Pool(names ...string) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, n := range names {
		if a := p.cas[n]; a != nil {
			pool.AppendCertsFromPEM(a.CertPEM)
		}
	}
	return pool
}

// lockDir takes dir for this caller; a second one waits until ctx ends.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("PKI directory: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("PKI directory %q cannot be locked: %w", dir, err)
		}
		t := time.NewTimer(5 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			f.Close()
			return nil, fmt.Errorf("PKI directory %q is in use by another process: %w", dir, ctx.Err())
		}
	}
}
