package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	clientcmd "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// LoadKubeconfig reads the current context of a kubeconfig: certificates and keys
// as data or as files, tokens. Other credentials (exec, auth providers) are
// refused by name.
func LoadKubeconfig(file string) (HTTPSConfig, error) {
	var out HTTPSConfig
	b, err := os.ReadFile(file)
	if err != nil {
		return out, fmt.Errorf("kubeconfig: %w", err)
	}
	var c clientcmd.Config
	if err := yaml.Unmarshal(b, &c); err != nil {
		return out, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	bad := func(format string, args ...any) (HTTPSConfig, error) {
		return out, fmt.Errorf("kubeconfig %s: %s", file, fmt.Sprintf(format, args...))
	}
	dir := filepath.Dir(file)
	var ctx *clientcmd.Context
	for i := range c.Contexts {
		if c.Contexts[i].Name == c.CurrentContext {
			ctx = &c.Contexts[i].Context
		}
	}
	if ctx == nil {
		return bad("current-context %q is not one of its contexts", c.CurrentContext)
	}
	found := false
	for i := range c.Clusters {
		if c.Clusters[i].Name != ctx.Cluster {
			continue
		}
		found = true
		cl := c.Clusters[i].Cluster
		out.Server = cl.Server
		ca, err := data(dir, cl.CertificateAuthorityData, cl.CertificateAuthority)
		if err != nil {
			return bad("certificate-authority: %v", err)
		}
		if len(ca) > 0 {
			out.CA = x509.NewCertPool()
			if !out.CA.AppendCertsFromPEM(ca) {
				return bad("certificate-authority: no certificate in PEM form")
			}
		}
	}
	if !found {
		return bad("cluster %q of the current context is missing", ctx.Cluster)
	}
	for i := range c.AuthInfos {
		if c.AuthInfos[i].Name != ctx.AuthInfo {
			continue
		}
		if err := out.credentials(dir, &c.AuthInfos[i].AuthInfo); err != nil {
			return bad("user %q: %v", ctx.AuthInfo, err)
		}
	}
	return out, nil
}

func (c *HTTPSConfig) credentials(dir string, u *clientcmd.AuthInfo) error {
	if u.Exec != nil || u.AuthProvider != nil {
		return errors.New("exec and auth-provider credentials are not supported; use a certificate or a token")
	}
	c.Token = u.Token
	if u.TokenFile != "" {
		b, err := os.ReadFile(absolute(dir, u.TokenFile))
		if err != nil {
			return err
		}
		c.Token = strings.TrimSpace(string(b))
	}
	cert, err := data(dir, u.ClientCertificateData, u.ClientCertificate)
	if err != nil {
		return fmt.Errorf("client-certificate: %w", err)
	}
	key, err := data(dir, u.ClientKeyData, u.ClientKey)
	if err != nil {
		return fmt.Errorf("client-key: %w", err)
	}
	if len(cert) == 0 && len(key) == 0 {
		return nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("client certificate and key: %w", err)
	}
	c.Certificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	return nil
}

func absolute(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}

func data(dir string, inline []byte, file string) ([]byte, error) {
	if len(inline) > 0 || file == "" {
		return inline, nil
	}
	return os.ReadFile(absolute(dir, file))
}
