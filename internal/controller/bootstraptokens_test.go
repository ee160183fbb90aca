package controller

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/control"
)

func bootstrapSecret(id string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{"token-id": []byte(id), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-signing": []byte("true")},
	}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func TestDetachedSignature(t *testing.T) {
	// The example of upstream's own test.
	const want = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
	if got := detachedSignature("Hello from the other side. I must have called a thousand times.", "joshua", "my voice is my passcode"); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

func TestSignClusterInfo(t *testing.T) {
	now := time.Now()
	sig := detachedSignature("C", "abcdef", "0123456789abcdef")
	for _, c := range []struct {
		name    string
		data    map[string]string
		secrets []*corev1.Secret
		want    map[string]string // nil: no change
	}{
		{"nothing to sign", map[string]string{"x": "y"}, []*corev1.Secret{bootstrapSecret("abcdef", nil)}, nil},
		{"new", map[string]string{"kubeconfig": "C", "x": "y"}, []*corev1.Secret{bootstrapSecret("abcdef", nil)}, map[string]string{"kubeconfig": "C", "x": "y", "jws-kubeconfig-abcdef": sig}},
		{"there", map[string]string{"kubeconfig": "C", "jws-kubeconfig-abcdef": sig}, []*corev1.Secret{bootstrapSecret("abcdef", nil)}, nil},
		{"of another content", map[string]string{"kubeconfig": "D", "jws-kubeconfig-abcdef": sig}, nil, map[string]string{"kubeconfig": "D"}},
		{"no use", map[string]string{"kubeconfig": "C"}, []*corev1.Secret{bootstrapSecret("abcdef", map[string]string{"usage-bootstrap-signing": "false"})}, nil},
		{"expired", map[string]string{"kubeconfig": "C", "jws-kubeconfig-abcdef": sig}, []*corev1.Secret{bootstrapSecret("abcdef", map[string]string{"expiration": "2000-01-01T00:00:00Z"})}, map[string]string{"kubeconfig": "C"}},
	} {
		got, changed := signClusterInfo(c.data, c.secrets, now)
		if changed != (c.want != nil) || changed && !maps.Equal(got, c.want) {
			t.Errorf("%s: %v %v, want %v", c.name, got, changed, c.want)
		}
	}
}

func TestBootstrapTokensLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-public", Name: "cluster-info"}, Data: map[string]string{"kubeconfig": "C"}}
		opaque := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-opaque"}, Data: map[string][]byte{"expiration": []byte("2000-01-01T00:00:00Z")}}
		w := newWorld(t, func(d Deps) []*control.Controller {
			return []*control.Controller{newBootstrapSigner(d), newTokenCleaner(d)}
		}, info, opaque, bootstrapSecret("forevr", nil), bootstrapSecret("unread", map[string]string{"expiration": "soon"}),
			bootstrapSecret("ending", map[string]string{"expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}))
		defer w.stop()
		signatures := func(want ...string) func() bool {
			return func() bool {
				data := get[*corev1.ConfigMap](w, "kube-public", "cluster-info").Data
				for _, id := range want {
					if data["jws-kubeconfig-"+id] != detachedSignature(data["kubeconfig"], id, "0123456789abcdef") {
						return false
					}
				}
				return len(data) == 1+len(want)
			}
		}
		w.until("two signatures", signatures("ending", "forevr"))
		w.until("the unreadable one deleted", func() bool { return len(list[*corev1.Secret](w, "kube-system")) == 3 })
		edit(w, "kube-public", "cluster-info", "", func(m *corev1.ConfigMap) { m.Data["kubeconfig"] = "D" })
		w.until("signed anew", signatures("ending", "forevr"))
		time.Sleep(time.Hour)
		w.until("one deleted", func() bool { return len(list[*corev1.Secret](w, "kube-system")) == 2 })
		w.until("one signature", signatures("forevr"))
	})
}
