package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestLegacyToken(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	var api *clienttest.API
	tokens, err := NewTokens(TokensConfig{
		Issuer: "https://i", Audiences: []string{"https://i"}, Key: key, Verify: []crypto.PublicKey{key.Public()},
		Now: func() time.Time { return now }, Lookup: func() *client.Client { return api.Client() },
	})
	if err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sa", UID: "uid"}}
	token, err := tokens.IssueLegacy(account, "s")
	if err != nil {
		t.Fatal(err)
	}
	const used = "kubernetes.io/legacy-token-last-used"
	for _, c := range []struct {
		name      string
		change    func(*corev1.ServiceAccount, *corev1.Secret)
		audiences []string
		err, note string // note is the label of use afterwards
		warned    bool
	}{
		{name: "good", note: "2030-01-02"},
		{name: "listed", change: func(a *corev1.ServiceAccount, _ *corev1.Secret) { a.Secrets = []corev1.ObjectReference{{Name: "s"}} }, note: "2030-01-02", warned: true},
		{name: "used today", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.Labels = map[string]string{used: "2030-01-02"} }, note: "2030-01-02"},
		{name: "used tomorrow", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.Labels = map[string]string{used: "2030-01-03"} }, note: "2030-01-03"},
		{name: "used before", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.Labels = map[string]string{used: "2029-12-31"} }, note: "2030-01-02"},
		{name: "of another secret", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.Name = "other" }, err: "Token has been invalidated"},
		{name: "of a deleted secret", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: now} }, err: "Token has been invalidated"},
		{name: "replaced", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) { s.Data["token"] = []byte("x") }, err: "Token does not match server's copy"},
		{name: "of another account", change: func(a *corev1.ServiceAccount, _ *corev1.Secret) { a.UID = "new" }, err: "ServiceAccount UID (new) does not match claim (uid)"},
		{name: "of a deleted account", change: func(a *corev1.ServiceAccount, _ *corev1.Secret) { a.DeletionTimestamp = &metav1.Time{Time: now} }, err: "ServiceAccount ns/sa has been deleted"},
		{name: "refused", change: func(_ *corev1.ServiceAccount, s *corev1.Secret) {
			s.Labels = map[string]string{"kubernetes.io/legacy-token-invalid-since": "2029-01-01"}
		}, note: "2030-01-02", err: "the token in secret ns/s for service account ns/sa has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the 'kubernetes.io/legacy-token-invalid-since' label from the secret to temporarily allow use of this token"},
		{name: "for others", audiences: []string{"https://o"}, err: `token audiences ["https://i"] is invalid for the target audiences ["https://o"]`},
	} {
		sa, s := account.DeepCopy(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s", UID: "u"}, Type: corev1.SecretTypeServiceAccountToken, Data: map[string][]byte{"token": []byte(token)}}
		if c.change != nil {
			c.change(sa, s)
		}
		api = clienttest.New(sa, s)
		u, auds, err := tokens.Verify(t.Context(), token, c.audiences)
		if c.err != "" {
			if err == nil || err.Error() != c.err {
				t.Errorf("%s: %v, want %s", c.name, err, c.err)
			}
		} else if err != nil || u.Name != "system:serviceaccount:ns:sa" || u.UID != "uid" || !slices.Equal(u.Groups, []string{"system:serviceaccounts", "system:serviceaccounts:ns"}) ||
			!slices.Equal(auds, []string{"https://i"}) || (u.Warning != "") != c.warned {
			t.Errorf("%s: %+v %v %v", c.name, u, auds, err)
		}
		got, err := client.For[*corev1.Secret](api.Client()).In("ns").Get(t.Context(), s.Name)
		if err != nil || got.Labels[used] != c.note {
			t.Errorf("%s: labels %v, %v", c.name, got.Labels, err)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forger, err := NewTokens(TokensConfig{Issuer: "https://i", Key: other, Verify: []crypto.PublicKey{other.Public()}, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := forger.IssueLegacy(account, "s")
	if err != nil {
		t.Fatal(err)
	}
	if u, _, err := tokens.Verify(t.Context(), forged, nil); u != nil || err == nil {
		t.Errorf("of a stranger's key: %+v, %v", u, err)
	}
	nameless, err := tokens.IssueLegacy(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}}, "s")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tokens.Verify(t.Context(), nameless, nil); fmt.Sprint(err) != "serviceAccountName claim is missing" {
		t.Errorf("of nobody: %v", err)
	}
}

func TestBootstrapToken(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	var api *clienttest.API
	b := &Bootstrap{Audiences: []string{"https://i", "https://j"}, Now: func() time.Time { return now }, Lookup: func() *client.Client { return api.Client() }}
	for _, c := range []struct {
		name, token string
		change      func(*corev1.Secret)
		audiences   []string
		want, auds  string // want is of groups, empty where it is not known
	}{
		{name: "good", token: "abcdef.0123456789abcdef", want: "system:bootstrappers system:bootstrappers:x", auds: "https://i https://j"},
		{name: "for one", token: "abcdef.0123456789abcdef", audiences: []string{"https://j", "https://o"}, want: "system:bootstrappers system:bootstrappers:x", auds: "https://j"},
		{name: "for others", token: "abcdef.0123456789abcdef", audiences: []string{"https://o"}},
		{name: "wrong", token: "abcdef.0123456789abcdeg"},
		{name: "unknown", token: "abcdeg.0123456789abcdef"},
		{name: "no token", token: "x"},
		{name: "deleted", token: "abcdef.0123456789abcdef", change: func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: now} }},
		{name: "of another type", token: "abcdef.0123456789abcdef", change: func(s *corev1.Secret) { s.Type = "Opaque" }},
		{name: "expired", token: "abcdef.0123456789abcdef", change: func(s *corev1.Secret) { s.Data["expiration"] = []byte("2030-01-02T03:04:05Z") }},
		{name: "to sign alone", token: "abcdef.0123456789abcdef", change: func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-authentication") }},
		{name: "of a strange group", token: "abcdef.0123456789abcdef", change: func(s *corev1.Secret) { s.Data["auth-extra-groups"] = []byte("system:masters") }},
	} {
		s := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
			Data: map[string][]byte{
				"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
				"auth-extra-groups": []byte("system:bootstrappers:x"),
			},
		}
		if c.change != nil {
			c.change(s)
		}
		api = clienttest.New(s)
		u, auds, err := b.Verify(t.Context(), c.token, c.audiences)
		if err != nil || (u != nil) != (c.want != "") {
			t.Errorf("%s: %+v %v", c.name, u, err)
			continue
		}
		if u != nil && (u.Name != "system:bootstrap:abcdef" || strings.Join(u.Groups, " ") != c.want || strings.Join(auds, " ") != c.auds) {
			t.Errorf("%s: %+v for %v", c.name, u, auds)
		}
	}
}
