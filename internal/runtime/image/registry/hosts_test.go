package registry

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// A registry whose certificate nobody signed is refused, unless its authority
// stands in its directory, or it is insecure by configuration or by request.
func TestCertificates(t *testing.T) {
	ts := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.StartTLS()
	t.Cleanup(ts.Close)
	host := strings.TrimPrefix(ts.URL, "https://")
	certs := t.TempDir()
	if err := os.Mkdir(filepath.Join(certs, host), 0o700); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(certs, host, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(d Deps) *image.Store {
		s, err := image.Open(t.TempDir(), image.Options{Registry: client(t, d)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	name := host + "/app:1"
	trusting := with(Deps{Certs: []string{certs}})
	stored(t, trusting, name, "x")
	if _, err := trusting.Push(t.Context(), name, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := with(Deps{}).Pull(t.Context(), name, nil); !errors.Is(err, image.ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without the authority: %v", err)
	}
	for what, s := range map[string]*image.Store{
		"with the authority": with(Deps{Certs: []string{t.TempDir(), certs}}),
		"insecure host":      with(Deps{Insecure: []string{host}}),
		"insecure range":     with(Deps{Insecure: []string{"10.0.0.0/8", "127.0.0.0/8"}}),
	} {
		if _, err := s.Pull(t.Context(), name, nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := with(Deps{}).PullWith(t.Context(), name, image.PullOptions{Access: image.Access{Insecure: true}}); err != nil {
		t.Errorf("insecure request: %v", err)
	}
	for entry, ok := range map[string]bool{
		"registry.example.com": true, "registry.example.com:5000": true, "10.0.0.0/8": true, "fd00::/8": true,
		"": false, "http://x": false, "x/y": false, "10.0.0.0/99": false, "a b": false,
	} {
		if err := CheckInsecure(entry); (err == nil) != ok {
			t.Errorf("insecure registry %q: %v", entry, err)
		}
	}
}

func TestPick(t *testing.T) {
	at := func(s string) v1.Descriptor {
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: s}}
		if s != "" {
			p, err := image.ParsePlatform(s)
			if s == "unknown/unknown" {
				p, err = v1.Platform{OS: "unknown", Architecture: "unknown"}, nil
			}
			if err != nil {
				t.Fatal(err)
			}
			d.Platform = &p
		}
		return d
	}
	for _, tc := range []struct{ index, want, pick string }{
		{"linux/amd64 linux/arm64", "linux/amd64", "linux/amd64"},
		{"linux/amd64 linux/arm64", "linux/arm64", "linux/arm64"},
		{"linux/amd64 linux/arm64", "linux/arm64/v8", "linux/arm64"},
		{"linux/arm64/v8", "linux/arm64", "linux/arm64/v8"},
		{"linux/arm/v6 linux/arm/v7", "linux/arm/v7", "linux/arm/v7"},
		{"linux/arm/v5 linux/arm/v6", "linux/arm/v7", "linux/arm/v6"},
		{"linux/arm/v7", "linux/arm/v6", ""},
		{"linux/amd64/v3 linux/amd64", "linux/amd64", "linux/amd64"},
		{"linux/amd64/v3 linux/amd64/v2", "linux/amd64/v2", "linux/amd64/v2"},
		{"linux/amd64/v3", "linux/amd64", ""},
		{"windows/amd64 linux/amd64", "linux/amd64", "linux/amd64"},
		{"unknown/unknown linux/amd64", "linux/amd64", "linux/amd64"},
		{"unknown/unknown", "linux/amd64", ""},
		{"linux/s390x", "linux/amd64", ""},
	} {
		index := &v1.IndexManifest{}
		for _, s := range strings.Fields(tc.index) {
			index.Manifests = append(index.Manifests, at(s))
		}
		want, err := image.ParsePlatform(tc.want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pick(index, want)
		if tc.pick == "" {
			if !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "no match for platform "+tc.want+" in manifest: not found") {
				t.Errorf("%s for %s: %v, %v", tc.want, tc.index, got.Digest, err)
			}
			continue
		}
		if err != nil || got.Digest.Hex != tc.pick {
			t.Errorf("%s of %s: %s, %v", tc.want, tc.index, got.Digest.Hex, err)
		}
	}
	for in, want := range map[string]string{
		"linux/arm64": "linux/arm64", "arm64": "linux/arm64", "linux/arm/v7": "linux/arm/v7", "aarch64": "linux/arm64", "linux/x86_64": "linux/amd64",
		"a/b/c/d": "", "linux/": "", "/": "", "li nux/amd64": "",
	} {
		p, err := image.ParsePlatform(in)
		if (err == nil) != (want != "") || err == nil && p.String() != want {
			t.Errorf("platform %q: %s, %v", in, p, err)
		}
	}
}

// Credentials are kept as docker keeps them, and found there; a helper is asked
// where one is named.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, ".docker"))
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	file := filepath.Join(dir, ".docker", "config.json")
	find := func(name string) *image.Auth {
		t.Helper()
		n, err := image.ParseName(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Credentials(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := find("registry.example.com/app"); a != nil {
		t.Errorf("credentials from nowhere: %+v", a)
	}
	for _, domain := range []string{"registry.example.com:5000", ""} {
		where, err := Keep(domain, image.Auth{Username: "joe", Password: "secret"})
		if err != nil || where != file {
			t.Fatalf("%q: kept in %s, %v", domain, where, err)
		}
	}
	var kept struct {
		Auths map[string]struct{ Auth string }
	}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &kept)
	}
	want := base64.StdEncoding.EncodeToString([]byte("joe:secret"))
	if err != nil || len(kept.Auths) != 2 || kept.Auths["registry.example.com:5000"].Auth != want || kept.Auths["https://index.docker.io/v1/"].Auth != want {
		t.Errorf("%s, %v", b, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	for _, name := range []string{"registry.example.com:5000/team/app:1", "nginx", "docker.io/me/app"} {
		if a := find(name); a == nil || a.Username != "joe" || a.Password != "secret" {
			t.Errorf("%s: %+v", name, a)
		}
	}
	if a := find("other.example.com/app"); a != nil {
		t.Errorf("another registry: %+v", a)
	}
	for i, want := range []bool{true, false} {
		if had, err := Forget("https://registry.example.com:5000/v2/"); err != nil || had != want {
			t.Errorf("logout %d: %v, %v", i, had, err)
		}
	}
	if a := find("registry.example.com:5000/team/app:1"); a != nil {
		t.Errorf("after logout: %+v", a)
	}

	// A helper.
	bin := t.TempDir()
	script := "#!/bin/sh\nread server\n[ \"$1\" = get ] && echo '{\"ServerURL\":\"'$server'\",\"Username\":\"helped\",\"Secret\":\"by\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := os.WriteFile(file, []byte(`{"credHelpers":{"helped.example.com":"test"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := find("helped.example.com/app"); a == nil || a.Username != "helped" || a.Password != "by" {
		t.Errorf("of a helper: %+v", a)
	}
}

// Verify takes what the registry takes, through both ways that registries ask.
func TestVerify(t *testing.T) {
	srv := serve(t)
	srv.user = "joe"
	c := client(t, Deps{})
	good, bad := image.Access{Auth: &image.Auth{Username: "joe", Password: "secret"}}, image.Access{Auth: &image.Auth{Username: "joe", Password: "wrong"}}
	if err := c.Verify(t.Context(), srv.host, good); err != nil {
		t.Error(err)
	}
	if err := c.Verify(t.Context(), srv.host, bad); !errors.Is(err, image.ErrUnauthorized) || !strings.Contains(err.Error(), "incorrect username or password") {
		t.Error(err)
	}
	var tokens *httptest.Server
	tokens = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			if _, p, _ := r.BasicAuth(); p != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			fmt.Fprint(w, `{"token":"t0"}`)
		case r.Header.Get("Authorization") == "Bearer t0":
			fmt.Fprint(w, "{}")
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, tokens.URL))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(tokens.Close)
	host := strings.TrimPrefix(tokens.URL, "http://")
	if err := c.Verify(t.Context(), host, good); err != nil {
		t.Errorf("with tokens: %v", err)
	}
	if err := c.Verify(t.Context(), host, bad); !errors.Is(err, image.ErrUnauthorized) {
		t.Errorf("with tokens: %v", err)
	}
}

// An image of another platform is refused, by an index that lacks ours and by its
// config; one that does not say is taken.
func TestOtherPlatform(t *testing.T) {
	srv, s := serve(t), open(t)
	for name, tc := range map[string]struct {
		config v1.ConfigFile
		ok     bool
	}{
		"ours": {v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH}, true},
		"mute": {v1.ConfigFile{}, true}, "other": {v1.ConfigFile{OS: "linux", Architecture: "s390x"}, false},
		"windows": {v1.ConfigFile{OS: "windows", Architecture: runtime.GOARCH}, false},
	} {
		img, err := mutate.ConfigFile(empty.Image, &tc.config)
		if err != nil {
			t.Fatal(err)
		}
		srv.push(t, name+":1", img)
		got, err := s.Pull(t.Context(), srv.host+"/"+name+":1", nil)
		if (err == nil) != tc.ok || err != nil && (!errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "no match for platform linux/")) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	p := v1.Platform{OS: "linux", Architecture: "s390x"}
	if _, err := s.PullWith(t.Context(), srv.host+"/other:1", image.PullOptions{Platform: &p}); err != nil {
		t.Errorf("asked for: %v", err)
	}
}
