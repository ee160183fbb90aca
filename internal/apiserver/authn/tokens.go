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
	"log/slog"
	"maps"
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
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
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
	log    *slog.Logger
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
	// secrets, and notes in secrets the use of the tokens that they hold.
	Lookup func() *client.Client
	Log    *slog.Logger
}

// NewTokens returns the issuer and verifier.
func NewTokens(c TokensConfig) (*Tokens, error) {
	t := &Tokens{issuer: c.Issuer, audiences: c.Audiences, keys: map[string]crypto.PublicKey{}, now: c.Now, lookup: c.Lookup, log: c.Log}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
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
	UID  string `json:"uid,omitempty"`
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
	if s.WarnAfter > 0 {
		k.WarnAfter = jwt.NewNumericDate(now.Add(s.WarnAfter))
	}
	// One audience is a list too, as upstream writes it.
	claims := struct {
		jwt.Claims
		Audience []string `json:"aud"`
	}{pub, auds}
	token, err := jwt.Signed(t.signer).Claims(private).Claims(claims).Serialize()
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
	if err := parsed.UnsafeClaimsWithoutVerification(&pub); err != nil {
		return nil, nil, nil
	}
	if pub.Issuer == legacyIssuer {
		return t.verifyLegacy(ctx, token, parsed, audiences)
	}
	if pub.Issuer != t.issuer {
		return nil, nil, nil
	}
	if err := t.claims(parsed, &pub, &private); err != nil {
		return nil, nil, err
	}
	both, err := t.audiencesOf(&pub, audiences)
	if err != nil {
		return nil, nil, err
	}
	if err := pub.Validate(jwt.Expected{Time: t.now()}); err != nil {
		return nil, nil, outOfTime(err)
	}
	u, err := t.user(ctx, &pub, &private)
	if err != nil {
		return nil, nil, err
	}
	return u, both, nil
}

// audiencesOf returns those that a token is for, and who asks is one of.
func (t *Tokens) audiencesOf(pub *jwt.Claims, asked []string) ([]string, error) {
	own := []string(pub.Audience)
	if len(own) == 0 {
		own = t.audiences
	}
	if asked == nil {
		asked = t.audiences
	}
	var both []string
	for _, a := range own {
		if slices.Contains(asked, a) {
			both = append(both, a)
		}
	}
	if len(both) == 0 {
		return nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", own, asked)
	}
	return both, nil
}

// claims verifies the signature, by the key that the token names or by any where it
// names none, and reads the claims.
func (t *Tokens) claims(token *jwt.JSONWebToken, into ...any) error {
	id := ""
	for _, h := range token.Headers {
		if h.KeyID != "" {
			id = h.KeyID
			break
		}
	}
	found, failed := false, []error(nil)
	for _, k := range slices.Sorted(maps.Keys(t.keys)) {
		if id != "" && k != id {
			continue
		}
		found = true
		err := token.Claims(t.keys[k], into...)
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	if !found {
		return errors.New("invalid signature, no keys found")
	}
	return utilerrors.NewAggregate(failed)
}

func outOfTime(err error) error {
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return errors.New("service account token has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return errors.New("service account token is not valid yet")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return errors.New("service account token is issued in the future")
	}
	return errors.New("service account token claims could not be validated due to unexpected validation error")
}

// user checks that what the token depends on still is as it was. What was deleted
// holds for the leeway that clocks are given (jwt.DefaultLeeway).
func (t *Tokens) user(ctx context.Context, pub *jwt.Claims, private *privateClaims) (*resource.User, error) {
	k := &private.Kubernetes
	ns := k.Namespace
	if want := "system:serviceaccount:" + ns + ":" + k.ServiceAccount.Name; pub.Subject != want {
		return nil, errors.New("token subject does not match its claims")
	}
	c := t.lookup()
	sa, err := client.For[*corev1.ServiceAccount](c).In(ns).Get(ctx, k.ServiceAccount.Name)
	if err != nil {
		return nil, err
	}
	if string(sa.UID) != k.ServiceAccount.UID {
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", sa.UID, k.ServiceAccount.UID)
	}
	if t.gone(sa) {
		return nil, fmt.Errorf("service account %s/%s has been deleted", ns, sa.Name)
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
		if s != nil && string(s.UID) != k.Secret.UID {
			return nil, fmt.Errorf("secret UID (%s) does not match service account secret ref claim (%s)", s.UID, k.Secret.UID)
		}
		if s == nil || t.gone(s) {
			return nil, errInvalidated
		}
	}
	if k.Pod != nil {
		p, err := read(client.For[*corev1.Pod](c).In(ns).Get(ctx, k.Pod.Name))
		if err != nil {
			return nil, err
		}
		if p != nil && string(p.UID) != k.Pod.UID {
			return nil, fmt.Errorf("pod UID (%s) does not match service account pod ref claim (%s)", p.UID, k.Pod.UID)
		}
		if p == nil || t.gone(p) {
			return nil, errInvalidated
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
			if n != nil && string(n.UID) != k.Node.UID {
				return nil, fmt.Errorf("node UID (%s) does not match service account node ref claim (%s)", n.UID, k.Node.UID)
			}
			if n == nil || t.gone(n) {
				return nil, errInvalidated
			}
		}
	}
	return u, nil
}

var errInvalidated = errors.New("service account token has been invalidated")

// gone tells that an object was deleted, and that everybody's clock knows.
func (t *Tokens) gone(o metav1.Object) bool {
	at := o.GetDeletionTimestamp()
	return at != nil && at.Time.Before(t.now().Add(-jwt.DefaultLeeway))
}

// read turns "not found" into nil.
func read[T metav1.Object](o T, err error) (T, error) {
	var zero T
	if apierrors.IsNotFound(err) {
		return zero, nil
	}
	return o, err
}

// Audiences implements resource.TokenIssuer.
func (t *Tokens) Audiences() []string { return slices.Clone(t.audiences) }

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
