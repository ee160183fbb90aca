package bootstraptoken

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestParse(t *testing.T) {
	for token, want := range map[string]bool{
		"abcdef.0123456789abcdef": true, "abcde.0123456789abcdef": false, "abcdef.0123456789abcde": false, "ABCDEF.0123456789abcdef": false,
		"abcdef.0123456789abcdef\n": false, "abcdef0123456789abcdef": false, "": false,
	} {
		id, secret, ok := Parse(token)
		if ok != want || ok && (id != "abcdef" || secret != "0123456789abcdef") {
			t.Errorf("%q: %q %q %v", token, id, secret, ok)
		}
	}
}

func TestRead(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		change func(*corev1.Secret)
		groups []string // nil where it is no token
	}{
		{"plain", func(*corev1.Secret) {}, []string{"system:bootstrappers"}},
		{"type", func(s *corev1.Secret) { s.Type = "Opaque" }, nil},
		{"name", func(s *corev1.Secret) { s.Name = "bootstrap-token-other1" }, nil},
		{"prefix", func(s *corev1.Secret) { s.Name = "token-abcdef" }, nil},
		{"secret", func(s *corev1.Secret) { delete(s.Data, "token-secret") }, nil},
		{"lives", func(s *corev1.Secret) { s.Data["expiration"] = []byte("2030-01-01T00:00:01Z") }, []string{"system:bootstrappers"}},
		{"ends", func(s *corev1.Secret) { s.Data["expiration"] = []byte("2030-01-01T00:00:00Z") }, nil},
		{"no time", func(s *corev1.Secret) { s.Data["expiration"] = []byte("tomorrow") }, nil},
		{"groups", func(s *corev1.Secret) {
			s.Data["auth-extra-groups"] = []byte("system:bootstrappers:z,system:bootstrappers:a,system:bootstrappers:z")
		}, []string{"system:bootstrappers", "system:bootstrappers:a", "system:bootstrappers:z"}},
		{"masters", func(s *corev1.Secret) { s.Data["auth-extra-groups"] = []byte("system:masters") }, []string{"system:bootstrappers"}},
	} {
		s := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
			Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-signing": []byte("true"), "usage-bootstrap-authentication": []byte("true")},
		}
		c.change(s)
		got, err := Read(s, now)
		if (err == nil) != (c.groups != nil) || !slices.Equal(got.Groups, c.groups) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if err == nil && (!got.Signing || got.Authentication == (c.name == "masters") || got.ID != "abcdef" || got.Secret != "0123456789abcdef") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
