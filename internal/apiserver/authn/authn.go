// Package authn tells who sends a request: by client certificate (common name is
// the user, organizations are the groups), by service account token, or by bootstrap
// token.
package authn

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"skiff/internal/api/resource"
)

// Authenticator asks certificates first, then the bearer token. Its zero fields
// are off.
type Authenticator struct {
	// ClientCAs verify client certificates.
	ClientCAs *x509.CertPool
	// Tokens verifies service account tokens.
	Tokens *Tokens
	// Bootstrap knows bootstrap tokens.
	Bootstrap *Bootstrap
	// Now is the clock.
	Now func() time.Time

	certificates verified
}

var errUnauthorized = errors.New("invalid credentials")

// Authenticate implements apiserver.Authenticator.
func (a *Authenticator) Authenticate(r *http.Request) (*resource.User, error) {
	if u, err := a.certificate(r); u != nil || err != nil {
		return u, err
	}
	token, ok := bearer(r)
	if !ok {
		return nil, nil
	}
	u, _, err := a.Token(r.Context(), token, nil)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, errUnauthorized
	}
	r.Header.Del("Authorization")
	return u, nil
}

func (a *Authenticator) certificate(r *http.Request) (*resource.User, error) {
	if a.ClientCAs == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, nil
	}
	cert, now := r.TLS.PeerCertificates[0], a.Now()
	alone := len(r.TLS.PeerCertificates) == 1
	if alone {
		if u := a.certificates.get(cert, now); u != nil {
			return u, nil
		}
	}
	intermediates := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	chains, err := cert.Verify(x509.VerifyOptions{
		Roots: a.ClientCAs, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	if cert.Subject.CommonName == "" {
		return nil, nil
	}
	sum := sha256.Sum256(cert.Raw)
	u := authenticated(&resource.User{
		Name: cert.Subject.CommonName, Groups: slices.Clone(cert.Subject.Organization),
		Extra: map[string][]string{"authentication.kubernetes.io/credential-id": {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	})
	if alone {
		a.certificates.put(cert, u, chains[0])
	}
	return u, nil
}

func authenticated(u *resource.User) *resource.User {
	const all = "system:authenticated"
	if u != nil && !slices.Contains(u.Groups, all) {
		u.Groups = append(u.Groups, all)
	}
	return u
}

func bearer(r *http.Request) (string, bool) {
	scheme, token, ok := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	if ok && strings.EqualFold(scheme, "bearer") && token != "" {
		return strings.TrimSpace(token), true
	}
	// Browsers cannot set headers on a WebSocket: upstream takes the token from
	// a protocol name.
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return "", false
	}
	return protocolToken(r.Header)
}

// Token checks a bearer token. It returns nil where nobody knows it.
func (a *Authenticator) Token(ctx context.Context, token string, audiences []string) (*resource.User, []string, error) {
	if a.Tokens != nil {
		if u, auds, err := a.Tokens.Verify(ctx, token, audiences); u != nil || err != nil {
			return authenticated(u), auds, err
		}
	}
	if a.Bootstrap != nil {
		if u, auds, err := a.Bootstrap.Verify(ctx, token, audiences); u != nil || err != nil {
			return authenticated(u), auds, err
		}
	}
	return nil, nil, nil
}
