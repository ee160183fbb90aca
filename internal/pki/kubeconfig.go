package pki

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"

	"sigs.k8s.io/yaml"
)

// Kubeconfig is a kubeconfig of one cluster, one user and one context.
type Kubeconfig struct {
	// Cluster names the cluster, User the user; the context is "user@cluster".
	Cluster, User string
	// Server is the URL of the API server.
	Server string
	// CA verifies the server's certificate (PEM).
	CA []byte
	// ClientCert and ClientKey (PEM), or Token, say who the user is.
	ClientCert, ClientKey []byte
	Token                 string
	// Namespace of the context; may be empty.
	Namespace string
	// Extensions say more of the cluster, by name; others pass over them.
	Extensions map[string]any
}

// The file's form. []byte is base64 in it.
type (
	kubeconfigFile struct {
		APIVersion     string         `json:"apiVersion"`
		Kind           string         `json:"kind"`
		Clusters       []namedCluster `json:"clusters"`
		Users          []namedUser    `json:"users"`
		Contexts       []namedContext `json:"contexts"`
		CurrentContext string         `json:"current-context"`
		Preferences    struct{}       `json:"preferences"`
	}
	namedCluster struct {
		Name    string      `json:"name"`
		Cluster clusterInfo `json:"cluster"`
	}
	clusterInfo struct {
		Server string `json:"server"`
		CA     []byte `json:"certificate-authority-data,omitempty"`

		Extensions []namedExtension `json:"extensions,omitempty"`
	}
	namedExtension struct {
		Name      string `json:"name"`
		Extension any    `json:"extension"`
	}
	namedUser struct {
		Name string   `json:"name"`
		User userInfo `json:"user"`
	}
	userInfo struct {
		ClientCert []byte `json:"client-certificate-data,omitempty"`
		ClientKey  []byte `json:"client-key-data,omitempty"`
		Token      string `json:"token,omitempty"`
	}
	namedContext struct {
		Name    string      `json:"name"`
		Context contextInfo `json:"context"`
	}
	contextInfo struct {
		Cluster   string `json:"cluster"`
		User      string `json:"user"`
		Namespace string `json:"namespace,omitempty"`
	}
)

// Marshal returns the file's content.
func (k Kubeconfig) Marshal() ([]byte, error) {
	if u, err := url.Parse(k.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("kubeconfig: server %q: must be an https URL", k.Server)
	}
	if k.Cluster == "" || k.User == "" {
		return nil, fmt.Errorf("kubeconfig: the names of cluster and user are required")
	}
	if (len(k.ClientCert) == 0) != (len(k.ClientKey) == 0) {
		return nil, fmt.Errorf("kubeconfig: a client certificate needs its key")
	}
	context := k.User + "@" + k.Cluster
	var more []namedExtension
	for _, name := range slices.Sorted(maps.Keys(k.Extensions)) {
		more = append(more, namedExtension{name, k.Extensions[name]})
	}
	return yaml.Marshal(kubeconfigFile{
		APIVersion:     "v1",
		Kind:           "Config",
		Clusters:       []namedCluster{{k.Cluster, clusterInfo{k.Server, k.CA, more}}},
		Users:          []namedUser{{k.User, userInfo{k.ClientCert, k.ClientKey, k.Token}}},
		Contexts:       []namedContext{{context, contextInfo{k.Cluster, k.User, k.Namespace}}},
		CurrentContext: context,
	})
}

// Write makes file hold k, and leaves it alone where it does already.
func (k Kubeconfig) Write(file string) error {
	b, err := k.Marshal()
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, b) {
		return os.Chmod(file, 0o600)
	}
	return writeFile(file, b)
}

// Kubeconfig is the kubeconfig of a client leaf of p's cluster authority.
func (p *PKI) Kubeconfig(leaf, cluster, server string) (Kubeconfig, error) {
	kp := p.Pair(leaf)
	if kp == nil || p.CA(ClusterCA) == nil {
		return Kubeconfig{}, fmt.Errorf("kubeconfig: there is no certificate %q", leaf)
	}
	cert, key, err := kp.PEM()
	if err != nil {
		return Kubeconfig{}, fmt.Errorf("kubeconfig: %w", err)
	}
	return Kubeconfig{
		Cluster: cluster, User: kp.Certificate().Leaf.Subject.CommonName, Server: server,
		CA: p.CA(ClusterCA).CertPEM, ClientCert: cert, ClientKey: key,
	}, nil
}
