package authn

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Tokens signs and verifies service account tokens (KEP-1205, bound tokens).
type Tokens struct {
	issuer    string
	audiences []string
	signer    jose.Signer
	keys      map[string]crypto.PublicKey // by key ID
	now       func() time.Time
	// lookup reads the objects that a token depends on.
	lookup func() *client.Client
}

// TokensConfig is what NewTokens needs.
type TokensConfig struct {
	// Issuer is the iss claim, Audiences the server's own.
	Issuer    string
	Audiences []string
	Key       crypto.Signer
	// Verify are the keys that verify: Key's own, and older ones.
	Verify []crypto.PublicKey
	Now    func() time.Time
	// Lookup returns a client that reads service accounts, pods, nodes and
	// secrets.
	Lookup func() *client.Client
}

// NewTokens returns the issuer and verifier.
func NewTokens(c TokensConfig) (*Tokens, error) {
	t := &Tokens{issuer: c.Issuer, audiences: c.Audiences, keys: map[string]crypto.PublicKey{}, now: c.Now, lookup: c.Lookup}
	for _, k := range c.Verify {
		id, err := keyID(k)
		if err != nil {
			return nil, err
		}
		t.keys[id] = k
	}
	id, err := keyID(c.Key.Public())
	if err != nil {
		return nil, err
	}
	switch c.Key.Public().(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, fmt.Errorf("service account key: a %T cannot sign tokens", c.Key)
	}
	alg := algorithmOf(c.Key.Public())
	t.signer, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: c.Key, KeyID: id, Algorithm: string(alg), Use: "sig"}}, nil)
	if err != nil {
		return nil, fmt.Errorf("service account key: %w", err)
	}
	return t, nil
}

// keyID is the hash of a public key, as upstream names keys.
func keyID(k crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return "", fmt.Errorf("service account key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

type named struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

type privateClaims struct {
	Kubernetes struct {
		Namespace      string           `json:"namespace,omitempty"`
		Node           *named           `json:"node,omitempty"`
		Pod            *named           `json:"pod,omitempty"`
		Secret         *named           `json:"secret,omitempty"`
		ServiceAccount named            `json:"serviceaccount"`
		WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
	} `json:"kubernetes.io"`
}

// Issue implements resource.TokenIssuer.
func (t *Tokens) Issue(_ context.Context, s resource.TokenSpec) (string, time.Time, error) {
	now := t.now().Truncate(time.Second)
	expires := now.Add(s.Lifetime)
	auds := s.Audiences
	if len(auds) == 0 {
		auds = t.audiences
	}
	pub := jwt.Claims{
		Issuer: t.issuer, Subject: "system:serviceaccount:" + s.Namespace + ":" + s.ServiceAccount, Audience: auds,
		Expiry: jwt.NewNumericDate(expires), NotBefore: jwt.NewNumericDate(now), IssuedAt: jwt.NewNumericDate(now), ID: string(uuid.NewUUID()),
	}
	var private privateClaims
	k := &private.Kubernetes
	k.Namespace = s.Namespace
	k.ServiceAccount = named{s.ServiceAccount, s.UID}
	switch s.BoundKind {
	case "Pod":
		k.Pod = &named{s.BoundName, s.BoundUID}
		if s.NodeName != "" {
			k.Node = &named{s.NodeName, s.NodeUID}
		}
	case "Node":
		k.Node = &named{s.BoundName, s.BoundUID}
	case "Secret":
		k.Secret = &named{s.BoundName, s.BoundUID}
	}
	token, err := jwt.Signed(t.signer).Claims(private).Claims(pub).Serialize()
	if err != nil {
		return "", time.Time{}, err
	}
	return token, expires, nil
}

var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512}

// Verify checks a token for one of the audiences (nil: the server's). It returns
// nil and no error for a token of another issuer.
func (t *Tokens) Verify(ctx context.Context, token string, audiences []string) (*resource.User, []string, error) {
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		return nil, nil, nil
	}
	var pub jwt.Claims
	var private privateClaims
	if err := parsed.UnsafeClaimsWithoutVerification(&pub); err != nil || pub.Issuer != t.issuer {
		return nil, nil, nil
	}
	key := t.key(parsed.Headers)
	if key == nil {
		return nil, nil, errors.New("token is signed by an unknown key")
	}
	if err := parsed.Claims(key, &pub, &private); err != nil {
		return nil, nil, fmt.Errorf("token signature: %w", err)
	}
	now := t.now()
	if err := pub.ValidateWithLeeway(jwt.Expected{Time: now}, 0); err != nil {
		if errors.Is(err, jwt.ErrExpired) {
			return nil, nil, errors.New("service account token has expired")
		}
		return nil, nil, fmt.Errorf("token: %w", err)
	}
	if audiences == nil {
		audiences = t.audiences
	}
	var both []string
	for _, a := range pub.Audience {
		if slices.Contains(audiences, a) {
			both = append(both, a)
		}
	}
	if len(both) == 0 {
		return nil, nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", []string(pub.Audience), audiences)
	}
	u, err := t.user(ctx, &pub, &private)
	if err != nil {
		return nil, nil, err
	}
	return u, both, nil
}

func (t *Tokens) key(headers []jose.Header) crypto.PublicKey {
	for _, h := range headers {
		if k, ok := t.keys[h.KeyID]; ok {
			return k
		}
	}
	return nil
}

// user checks that what the token depends on still is as it was.
func (t *Tokens) user(ctx context.Context, pub *jwt.Claims, private *privateClaims) (*resource.User, error) {
	k := &private.Kubernetes
	ns := k.Namespace
	if want := "system:serviceaccount:" + ns + ":" + k.ServiceAccount.Name; pub.Subject != want {
		return nil, errors.New("token subject does not match its claims")
	}
	c := t.lookup()
	sa, err := read(client.For[*corev1.ServiceAccount](c).In(ns).Get(ctx, k.ServiceAccount.Name))
	if err != nil {
		return nil, err
	}
	if sa == nil || sa.DeletionTimestamp != nil && t.now().Sub(sa.DeletionTimestamp.Time) > time.Minute {
		return nil, errors.New("service account has been deleted")
	}
	if string(sa.UID) != k.ServiceAccount.UID {
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", sa.UID, k.ServiceAccount.UID)
	}
	u := &resource.User{
		Name: pub.Subject, UID: string(sa.UID), Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + ns},
		Extra: map[string][]string{},
	}
	if pub.ID != "" {
		u.Extra["authentication.kubernetes.io/credential-id"] = []string{"JTI=" + pub.ID}
	}
	if k.Secret != nil {
		s, err := read(client.For[*corev1.Secret](c).In(ns).Get(ctx, k.Secret.Name))
		if err != nil {
			return nil, err
		}
		if s == nil || string(s.UID) != k.Secret.UID {
			return nil, errors.New("service account token has been invalidated")
		}
	}
	if k.Pod != nil {
		p, err := read(client.For[*corev1.Pod](c).In(ns).Get(ctx, k.Pod.Name))
		if err != nil {
			return nil, err
		}
		if p == nil || string(p.UID) != k.Pod.UID || p.DeletionTimestamp != nil && t.now().Sub(p.DeletionTimestamp.Time) > time.Minute {
			return nil, errors.New("service account token has been invalidated")
		}
		u.Extra["authentication.kubernetes.io/pod-name"] = []string{p.Name}
		u.Extra["authentication.kubernetes.io/pod-uid"] = []string{string(p.UID)}
	}
	if k.Node != nil {
		u.Extra["authentication.kubernetes.io/node-name"] = []string{k.Node.Name}
		if k.Node.UID != "" {
			u.Extra["authentication.kubernetes.io/node-uid"] = []string{k.Node.UID}
		}
		if k.Pod == nil {
			n, err := read(client.For[*corev1.Node](c).Get(ctx, k.Node.Name))
			if err != nil {
				return nil, err
			}
			if n == nil || string(n.UID) != k.Node.UID {
				return nil, errors.New("service account token has been invalidated")
			}
		}
	}
	return u, nil
}

// read turns "not found" into nil.
func read[T metav1.Object](o T, err error) (T, error) {
	var zero T
	if apierrors.IsNotFound(err) {
		return zero, nil
	}
	return o, err
}

const protocolPrefix = "base64url.bearer.authorization.k8s.io."

// protocolToken finds a token among a WebSocket's protocols, and takes it out, so
// that it is not chosen as the protocol.
func protocolToken(h http.Header) (string, bool) {
	var rest []string
	token := ""
	for _, line := range h.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			p = strings.TrimSpace(p)
			if enc, ok := strings.CutPrefix(p, protocolPrefix); ok && token == "" {
				b, err := base64.RawURLEncoding.DecodeString(enc)
				if err != nil || !utf8.Valid(b) {
					return "", false
				}
				token = string(b)
				continue
			}
			rest = append(rest, p)
		}
	}
	if token == "" || len(rest) == 0 {
		return "", false
	}
	h.Set("Sec-WebSocket-Protocol", strings.Join(rest, ","))
	return token, true
}
