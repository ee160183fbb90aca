package pullrecord

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The files are objects of kubelet.config.k8s.io/v1beta1, of these kinds.
const (
	apiVersion = "kubelet.config.k8s.io/v1beta1"
	kindIntent = "ImagePullIntent"
	kindRecord = "ImagePulledRecord"
)

// intent says that a pull of an image was begun.
type intent struct {
	metav1.TypeMeta `json:",inline"`
	Image           string `json:"image"`
}

// record says with which credentials an image was pulled.
type record struct {
	metav1.TypeMeta `json:",inline"`
	LastUpdatedTime metav1.Time `json:"lastUpdatedTime"`
	// ImageRef is the runtime's name of the image.
	ImageRef string `json:"imageRef"`
	// CredentialMapping is by the image's name as pods write it, without tag and
	// digest: of an image that has several, each has its own credentials.
	CredentialMapping map[string]Credentials `json:"credentialMapping,omitempty"`
}

// Credentials are what opened a registry. Where there is nothing in them, nobody knows.
type Credentials struct {
	KubernetesSecrets []Secret `json:"kubernetesSecrets,omitempty"`
	// NodePodsAccessible: none were needed, or the node's own.
	NodePodsAccessible bool `json:"nodePodsAccessible,omitempty"`
}

// Secret is a pull secret, and a hash of what it has for the image's registry.
type Secret struct {
	UID            string `json:"uid"`
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	CredentialHash string `json:"credentialHash"`
}

func (s Secret) is(o Secret) bool {
	return s.UID == o.UID && s.Namespace == o.Namespace && s.Name == o.Name
}

// Hash is that of a secret's credentials for a registry: two secrets that say the same
// have the same.
func Hash(a *runtimeapi.AuthConfig) string {
	b, err := json.Marshal(struct {
		Username      string `json:"username,omitempty"`
		Password      string `json:"password,omitempty"`
		Auth          string `json:"auth,omitempty"`
		ServerAddress string `json:"serveraddress,omitempty"`
		IdentityToken string `json:"identitytoken,omitempty"`
		RegistryToken string `json:"registrytoken,omitempty"`
	}{a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken})
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// merge adds credentials to those that a record has for a name; changed tells whether
// it has others then. r is not modified.
func (r record) merge(name string, more Credentials) (_ record, changed bool) {
	have, known := r.CredentialMapping[name]
	switch {
	case !more.NodePodsAccessible && len(more.KubernetesSecrets) == 0, have.NodePodsAccessible:
		return r, false
	case !known:
		have = more
	case more.NodePodsAccessible:
		have = Credentials{NodePodsAccessible: true}
	default:
		secrets := slices.Clone(have.KubernetesSecrets)
		for _, s := range more.KubernetesSecrets {
			i := slices.IndexFunc(secrets, s.is)
			switch {
			case i < 0:
				secrets = append(secrets, s)
			case secrets[i] == s:
				continue
			default:
				secrets[i] = s
			}
			changed = true
		}
		if !changed {
			return r, false
		}
		slices.SortFunc(secrets, func(a, b Secret) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
		})
		have.KubernetesSecrets = secrets
	}
	mapping := map[string]Credentials{name: have}
	for n, c := range r.CredentialMapping {
		if n != name {
			mapping[n] = c
		}
	}
	r.CredentialMapping = mapping
	return r, true
}

// admits tells whether one of secrets opens what was pulled with c, and which of them
// c is to learn: one that says the same as a known one, or a known one whose content
// is another now.
func (c Credentials) admits(secrets []Secret) (ok bool, learn *Secret) {
	if c.NodePodsAccessible {
		return true, nil
	}
	full := len(c.KubernetesSecrets) >= mostSecrets
	for _, s := range secrets {
		for _, known := range c.KubernetesSecrets {
			same, equal := s.is(known), known.CredentialHash != "" && s.CredentialHash == known.CredentialHash
			switch {
			case equal && (same || full):
				return true, nil
			case equal, same && !full:
				return true, &s
			}
		}
	}
	return false, nil
}

// mostSecrets is how many secrets an image's record has before it learns no more
// without a pull.
const mostSecrets = 100
