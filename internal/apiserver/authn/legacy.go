package authn

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Labels of the Secrets that hold tokens (KEP-2799): the day of the last use, and the
// day since which the token is refused.
const (
	LastUsedLabel     = "kubernetes.io/legacy-token-last-used"
	InvalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
)

// legacyIssuer is the iss claim of tokens that are kept in Secrets, and never expire.
const legacyIssuer = "kubernetes/serviceaccount"

type legacyClaims struct {
	Account    string `json:"kubernetes.io/serviceaccount/service-account.name"`
	AccountUID string `json:"kubernetes.io/serviceaccount/service-account.uid"`
	Secret     string `json:"kubernetes.io/serviceaccount/secret.name"`
	Namespace  string `json:"kubernetes.io/serviceaccount/namespace"`
}

// IssueLegacy signs the token of a service account that a Secret is to hold.
func (t *Tokens) IssueLegacy(account *corev1.ServiceAccount, secret string) (string, error) {
	return jwt.Signed(t.signer).
		Claims(legacyClaims{Account: account.Name, AccountUID: string(account.UID), Secret: secret, Namespace: account.Namespace}).
		Claims(jwt.Claims{Issuer: legacyIssuer, Subject: "system:serviceaccount:" + account.Namespace + ":" + account.Name}).
		Serialize()
}

var errLegacyGone = errors.New("Token has been invalidated") //nolint:staticcheck // upstream's words

func (t *Tokens) verifyLegacy(ctx context.Context, token string, parsed *jwt.JSONWebToken, audiences []string) (*resource.User, []string, error) {
	var pub jwt.Claims
	var own legacyClaims
	if err := t.claims(parsed, &pub, &own); err != nil {
		return nil, nil, err
	}
	both, err := t.audiencesOf(&pub, audiences)
	if err != nil {
		return nil, nil, err
	}
	u, err := t.legacyUser(ctx, token, &pub, &own)
	if err != nil {
		return nil, nil, err
	}
	return u, both, nil
}

// legacyUser checks that the Secret still holds the token, and that the account is
// the one that it was made for. It notes the use, once a day.
func (t *Tokens) legacyUser(ctx context.Context, token string, pub *jwt.Claims, own *legacyClaims) (*resource.User, error) {
	for _, claim := range []struct{ name, value string }{
		{"sub", pub.Subject}, {"namespace", own.Namespace}, {"secretName", own.Secret},
		{"serviceAccountName", own.Account}, {"serviceAccountUID", own.AccountUID},
	} {
		if claim.value == "" {
			return nil, fmt.Errorf("%s claim is missing", claim.name)
		}
	}
	if pub.Subject != "system:serviceaccount:"+own.Namespace+":"+own.Account {
		return nil, errors.New("sub claim is invalid")
	}
	c := t.lookup()
	s, err := client.For[*corev1.Secret](c).In(own.Namespace).Get(ctx, own.Secret)
	if err != nil || s.DeletionTimestamp != nil {
		return nil, errLegacyGone
	}
	if subtle.ConstantTimeCompare(s.Data[corev1.ServiceAccountTokenKey], []byte(token)) == 0 {
		return nil, errors.New("Token does not match server's copy") //nolint:staticcheck // upstream's words
	}
	sa, err := client.For[*corev1.ServiceAccount](c).In(own.Namespace).Get(ctx, own.Account)
	if err != nil {
		return nil, err
	}
	if sa.DeletionTimestamp != nil {
		return nil, fmt.Errorf("ServiceAccount %s/%s has been deleted", own.Namespace, own.Account) //nolint:staticcheck // upstream's words
	}
	if string(sa.UID) != own.AccountUID {
		return nil, fmt.Errorf("ServiceAccount UID (%s) does not match claim (%s)", sa.UID, own.AccountUID) //nolint:staticcheck // upstream's words
	}
	t.noteUse(ctx, c, s)
	if s.Labels[InvalidSinceLabel] != "" {
		return nil, fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			s.Namespace, s.Name, sa.Namespace, sa.Name, InvalidSinceLabel)
	}
	u := &resource.User{Name: pub.Subject, UID: own.AccountUID, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + own.Namespace}}
	if slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == s.Name }) {
		u.Warning = "Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated secret-based tokens."
	}
	return u, nil
}

// noteUse labels a Secret with the day, unless it has it, or the next: the clocks of
// servers differ.
func (t *Tokens) noteUse(ctx context.Context, c *client.Client, s *corev1.Secret) {
	now := t.now().UTC()
	today := now.Format("2006-01-02")
	if used := s.Labels[LastUsedLabel]; used == today || used == now.AddDate(0, 0, 1).Format("2006-01-02") {
		return
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.UID, "labels": map[string]string{LastUsedLabel: today}}})
	if err == nil {
		_, err = client.For[*corev1.Secret](c).In(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, "")
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		t.log.Warn("the use of a token was not noted", "secret", s.Namespace+"/"+s.Name, "err", err)
	}
}
