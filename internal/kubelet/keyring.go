package kubelet

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/pullrecord"
)

// keyring are registry credentials by what they are for: a host, or a host with
// the beginning of a path; parts of the host may be globs.
type keyring map[string][]credential

// credential opens a registry.
type credential struct {
	*runtimeapi.AuthConfig
	// secret is where it comes from; nil for the node's own.
	secret *pullrecord.Secret
}

// dockerAuth is an entry of docker's config file.
type dockerAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"`
}

type dockerConfig struct {
	Auths map[string]dockerAuth `json:"auths"`
}

// secretKeyring has what pull secrets say. One that cannot be read says nothing.
func secretKeyring(secrets []*corev1.Secret) keyring {
	k := keyring{}
	for _, s := range secrets {
		var c dockerConfig
		var err error
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			err = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &c)
		case corev1.SecretTypeDockercfg:
			err = json.Unmarshal(s.Data[corev1.DockerConfigKey], &c.Auths)
		}
		if err == nil {
			k.add(c.Auths, s)
		}
	}
	return k
}

// nodeKeyring has what the first file says that can be read.
func nodeKeyring(files []string) keyring {
	k := keyring{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		var c dockerConfig
		if err == nil && json.Unmarshal(b, &c) == nil {
			k.add(c.Auths, nil)
			break
		}
	}
	return k
}

// add takes what a secret, or where it is nil the node's own configuration, says.
func (k keyring) add(auths map[string]dockerAuth, from *corev1.Secret) {
	for key, a := range auths {
		if a.Auth != "" {
			user, password, ok := decodeAuth(a.Auth)
			if !ok {
				continue
			}
			a.Username, a.Password = user, password
		}
		if !strings.HasPrefix(key, "https://") && !strings.HasPrefix(key, "http://") {
			key = "https://" + key
		}
		u, err := url.Parse(key)
		if err != nil {
			continue
		}
		p := u.Path
		if strings.HasPrefix(p, "/v1/") || strings.HasPrefix(p, "/v2/") {
			p = p[3:]
		}
		key = u.Host
		if p != "/" {
			key += p
		}
		c := credential{AuthConfig: &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password}}
		if from != nil {
			c.secret = &pullrecord.Secret{UID: string(from.UID), Namespace: from.Namespace, Name: from.Name, CredentialHash: pullrecord.Hash(c.AuthConfig)}
		}
		k[key] = append(k[key], c)
	}
}

// decodeAuth reads base64(user:password), padded or not.
func decodeAuth(s string) (user, password string, ok bool) {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(s), "="))
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// hub is the key under which docker keeps what is for its own registry.
const hub = "index.docker.io"

// lookup returns what is for a repository (repositoryOf), the most specific first.
func (k keyring) lookup(repo string) []credential {
	keys := make([]string, 0, len(k))
	for key := range k {
		keys = append(keys, key)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(keys)))
	var out []credential
	for _, key := range keys {
		if keyMatches(key, repo) {
			out = append(out, k[key]...)
		}
	}
	if host, _, _ := strings.Cut(repo, "/"); len(out) == 0 && host == "docker.io" {
		out = slices.Clone(k[hub])
	}
	return out
}

// keyMatches compares hosts part by part, each a glob, and paths by their
// beginning.
func keyMatches(key, repo string) bool {
	keyHost, keyPath, _ := strings.Cut(key, "/")
	host, p, _ := strings.Cut(repo, "/")
	keyParts, keyPort := hostParts(keyHost)
	parts, port := hostParts(host)
	if keyPort != port || len(keyParts) != len(parts) || !strings.HasPrefix("/"+p, pathOf(keyPath)) {
		return false
	}
	for i := range parts {
		if ok, err := path.Match(keyParts[i], parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func pathOf(rest string) string {
	if rest == "" {
		return ""
	}
	return "/" + rest
}

func hostParts(host string) (parts []string, port string) {
	if h, p, err := net.SplitHostPort(host); err == nil {
		host, port = h, p
	}
	return strings.Split(host, "."), port
}

// repositoryOf is an image's repository with its registry: docker.io/library/nginx
// of nginx:1.
func repositoryOf(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	host, rest, ok := strings.Cut(image, "/")
	switch {
	case ok && host == hub:
		host = "docker.io"
	case !ok || !strings.ContainsAny(host, ".:") && host != "localhost":
		host, rest = "docker.io", image
	}
	if host == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	return host + "/" + rest
}
