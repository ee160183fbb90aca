package kubelet

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Which credentials an image is pulled with, and in which order, is upstream's
// rule: by keys in reverse order, hosts as globs, paths by their beginning.
func TestKeyring(t *testing.T) {
	for _, tc := range []struct{ keys, image, want string }{
		{"registry.example.com", "registry.example.com/app:1", "registry.example.com"},
		{"registry.example.com", "registry.example.com:5000/app:1", ""},
		{"registry.example.com:5000", "registry.example.com:5000/app", "registry.example.com:5000"},
		{"https://registry.example.com/v1/", "registry.example.com/a/b/c@sha256:" + strings.Repeat("a", 64), "https://registry.example.com/v1/"},
		{"http://registry.example.com/v2/", "registry.example.com/a", "http://registry.example.com/v2/"},
		{"example.com example.com/team example.com/team/app", "example.com/team/app:1", "example.com/team/app example.com/team example.com"},
		{"example.com/team", "example.com/other/app", ""},
		{"example.com/team", "example.com/teammate/app", "example.com/team"},
		{"*.example.com", "a.example.com/app", "*.example.com"},
		{"*.example.com", "a.b.example.com/app", ""},
		{"*.*.example.com", "a.b.example.com/app", "*.*.example.com"},
		{"prefix*.example.com", "prefix-1.example.com/app", "prefix*.example.com"},
		{"https://index.docker.io/v1/", "nginx", "https://index.docker.io/v1/"},
		{"https://index.docker.io/v1/", "me/app:1", "https://index.docker.io/v1/"},
		{"https://index.docker.io/v1/", "docker.io/me/app:1", "https://index.docker.io/v1/"},
		{"https://index.docker.io/v1/ docker.io", "nginx", "docker.io"},
		{"docker.io/me", "me/app", "docker.io/me"},
		{"https://index.docker.io/v1/", "quay.io/me/app", ""},
		{"localhost:5000", "localhost:5000/app", "localhost:5000"},
		{"[::1]:5000", "[::1]:5000/app", "[::1]:5000"},
	} {
		auths := map[string]dockerAuth{}
		for _, k := range strings.Fields(tc.keys) {
			auths[k] = dockerAuth{Username: k, Password: "p"}
		}
		k := keyring{}
		k.add(auths, nil)
		var got []string
		for _, a := range k.lookup(repositoryOf(tc.image)) {
			got = append(got, a.Username)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s for %s: %v, want %s", tc.image, tc.keys, got, tc.want)
		}
	}
}

func TestKeyringSources(t *testing.T) {
	auth := base64.StdEncoding.EncodeToString([]byte("joe:se:cret"))
	unpadded := strings.TrimRight(base64.StdEncoding.EncodeToString([]byte("ann:p")), "=")
	secrets := []*corev1.Secret{
		{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{
			corev1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{"a.example.com":{"auth":%q},"b.example.com":{"auth":%q}}}`, auth, unpadded)}},
		{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{
			corev1.DockerConfigKey: []byte(`{"c.example.com":{"username":"old","password":"p"}}`)}},
		{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{`)}},
		{Type: corev1.SecretTypeOpaque, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"d.example.com":{"username":"no"}}}`)}},
	}
	k := secretKeyring(secrets)
	for host, want := range map[string]string{"a": "joe:se:cret", "b": "ann:p", "c": "old:p", "d": ""} {
		got := ""
		for _, a := range k.lookup(host + ".example.com/app") {
			got += a.Username + ":" + a.Password
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, []byte(`{"auths":{"a.example.com":{"username":"node","password":"p"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := nodeKeyring([]string{filepath.Join(dir, "none"), file}).lookup("a.example.com/app"); len(got) != 1 || got[0].Username != "node" {
		t.Errorf("of the node: %v", got)
	}
}

// No more images are pulled at once than may be; who gives up waiting takes no
// place.
func TestPullTurns(t *testing.T) {
	k := &Kubelet{pulling: make(chan struct{}, 1)}
	free, err := k.pullTurn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.pullTurn(gone); err == nil {
		t.Error("a second turn while there is one place")
	}
	free()
	if free, err = k.pullTurn(t.Context()); err != nil {
		t.Fatal(err)
	}
	free()
	free, err = (&Kubelet{}).pullTurn(gone)
	if err != nil {
		t.Errorf("without a bound: %v", err)
	}
	free()
}
