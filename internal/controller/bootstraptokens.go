package controller

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/bootstraptoken"
	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	clusterInfo           = "cluster-info"
	clusterInfoKubeconfig = "kubeconfig"
	signaturePrefix       = "jws-kubeconfig-"
)

func isBootstrapToken(s *corev1.Secret) bool {
	return s.Namespace == bootstraptoken.Namespace && s.Type == corev1.SecretTypeBootstrapToken
}

// newTokenCleaner returns the controller that deletes bootstrap tokens when they
// have expired. Its role is one of kube-system.
func newTokenCleaner(d Deps) *control.Controller {
	c := control.New("token-cleaner", d.Deps)
	c.Roleless = true
	secrets := control.Watch(c, func(ch client.Change[*corev1.Secret]) {
		if !ch.Deleted() && isBootstrapToken(ch.New) {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	c.Writes = append(c.Writes, control.Rule("", []string{"secrets"}, "delete"))
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		s, ok := secrets.Get(k.Namespace, k.Name)
		if !ok || !isBootstrapToken(s) {
			return control.Result{}, nil
		}
		ends, _ := bootstraptoken.Expiration(s)
		return deleteAt(ctx, c, k, s, secrets, ends, now())
	}
	return c
}

// newBootstrapSigner returns the controller that signs the cluster's description, the
// ConfigMap kube-public/cluster-info, with every token that is to: who has a token
// and nothing else can tell that the description is of the cluster that gave the
// token. Its roles are those of kube-system and kube-public. There is one key.
func newBootstrapSigner(d Deps) *control.Controller {
	c := control.New("bootstrap-signer", d.Deps)
	c.Roleless = true
	only := control.Key{Namespace: metav1.NamespacePublic, Name: clusterInfo}
	configMaps := control.Watch(c, func(ch client.Change[*corev1.ConfigMap]) {
		if control.KeyOf(ch.Object()) == only {
			c.Queue.Add(only)
		}
	})
	secrets := control.Watch(c, func(ch client.Change[*corev1.Secret]) {
		if isBootstrapToken(ch.Object()) {
			c.Queue.Add(only)
		}
	})
	c.Writes = append(c.Writes, control.Rule("", []string{"configmaps"}, "update"))
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		m, ok := configMaps.Get(k.Namespace, k.Name)
		if !ok {
			return control.Result{}, nil
		}
		data, changed := signClusterInfo(m.Data, secrets.List(bootstraptoken.Namespace, nil), now())
		if !changed {
			return control.Result{}, nil
		}
		next := m.DeepCopy()
		next.Data = data
		got, err := client.For[*corev1.ConfigMap](c.Client).Update(ctx, next)
		if err != nil {
			return control.Result{}, err
		}
		control.Wrote(c.Pending, k, configMaps, got)
		return control.Result{}, nil
	}
	return c
}

// signClusterInfo returns data with the signatures of the tokens that sign, and of
// no others, and whether that differs from data. Without a kubeconfig there is
// nothing to sign.
func signClusterInfo(data map[string]string, secrets []*corev1.Secret, now time.Time) (map[string]string, bool) {
	content, ok := data[clusterInfoKubeconfig]
	if !ok {
		return data, false
	}
	out := maps.Clone(data)
	maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, signaturePrefix) })
	for _, s := range secrets {
		if t, err := bootstraptoken.Read(s, now); err == nil && t.Signing {
			out[signaturePrefix+t.ID] = detachedSignature(content, t.ID, t.Secret)
		}
	}
	return out, !maps.Equal(out, data)
}

// detachedSignature is a JWS of content, without the content (RFC 7515, appendix F).
func detachedSignature(content, id, secret string) string {
	header, _ := json.Marshal(struct { //nolint:errchkjson // two strings
		Alg string `json:"alg"`
		Kid string `json:"kid"`
	}{"HS256", id})
	enc := base64.RawURLEncoding
	protected := enc.EncodeToString(header)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(protected + "." + enc.EncodeToString([]byte(content))))
	return protected + ".." + enc.EncodeToString(mac.Sum(nil))
}
