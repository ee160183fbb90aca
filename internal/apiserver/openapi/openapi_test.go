package openapi_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/openapi"
	"skiff/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func handler(t *testing.T) *openapi.Handler {
	t.Helper()
	h, err := openapi.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func ask(h http.Handler, target string, header map[string]string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestV3(t *testing.T) {
	h := handler(t)
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(body(t, ask(h, "/openapi/v3", nil)), &index); err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{"api", "api/v1", "apis", "apis/apps", "apis/apps/v1", "version"} {
		if !strings.HasPrefix(index.Paths[doc].URL, "/openapi/v3/"+doc+"?hash=") {
			t.Errorf("index has %q for %s", index.Paths[doc].URL, doc)
		}
	}
	at := index.Paths["apis/apps/v1"].URL
	plain := ask(h, at, nil)
	if got := plain.Header.Get("Cache-Control"); got != "public, immutable" {
		t.Errorf("Cache-Control of an address with its hash: %q", got)
	}
	if got, want := plain.Header.Get("Expires"), "Sat, 02 Jan 2027 03:04:05 GMT"; got != want {
		t.Errorf("Expires: %q, want %q", got, want)
	}
	text := body(t, plain)
	if !json.Valid(text) || !strings.Contains(string(text), "io.k8s.api.apps.v1.DeploymentSpec") {
		t.Errorf("document is %.80q", text)
	}
	packed := ask(h, at, map[string]string{"Accept-Encoding": "gzip"})
	if packed.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("header %v", packed.Header)
	}
	z, err := gzip.NewReader(packed.Body)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || string(b) != string(text) {
		t.Errorf("the compressed document differs (%v)", err)
	}
	old := ask(h, "/openapi/v3/apis/apps/v1?hash=OLD", nil)
	if old.StatusCode != http.StatusMovedPermanently || old.Header.Get("Location") != at {
		t.Errorf("an old hash: %d to %q, want 301 to %q", old.StatusCode, old.Header.Get("Location"), at)
	}
	if c := ask(h, "/openapi/v3/apis/none/v1", nil).StatusCode; c != http.StatusNotFound {
		t.Errorf("unknown document: %d", c)
	}
	if c := ask(h, at, map[string]string{"If-None-Match": plain.Header.Get("Etag")}).StatusCode; c != http.StatusNotModified {
		t.Errorf("the same Etag: %d", c)
	}
	if c := ask(h, at, map[string]string{"Accept": "text/html"}).StatusCode; c != http.StatusNotAcceptable {
		t.Errorf("Accept text/html: %d", c)
	}
}

func TestV2(t *testing.T) {
	h := handler(t)
	if b := body(t, ask(h, "/openapi/v2", nil)); !json.Valid(b) {
		t.Errorf("JSON: %.80q", b)
	}
	for _, accept := range []string{"application/com.github.proto-openapi.spec.v2@v1.0+protobuf", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf;q=0.9, application/json"} {
		r := ask(h, "/openapi/v2", map[string]string{"Accept": accept})
		if r.Header.Get("Content-Type") != "application/com.github.proto-openapi.spec.v2.v1.0+protobuf" {
			t.Errorf("%s is answered with %q", accept, r.Header.Get("Content-Type"))
		}
		var doc openapi_v2.Document
		if err := proto.Unmarshal(body(t, r), &doc); err != nil {
			t.Errorf("%s: %v", accept, err)
		} else if len(doc.GetPaths().GetPath()) == 0 {
			t.Errorf("%s: no paths", accept)
		}
	}
}

// everybody may do everything.
type everybody struct{}

func (everybody) Authenticate(*http.Request) (*resource.User, error) {
	return &resource.User{Name: "admin", Groups: []string{"system:masters"}}, nil
}
func (everybody) Token(context.Context, string, []string) (*resource.User, []string, error) {
	return nil, nil, nil
}
func (everybody) Authorize(context.Context, resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: true}, nil
}
func (everybody) Rules(context.Context, resource.User, string) (resource.RuleList, error) {
	return resource.RuleList{}, nil
}

// TestKubectl runs the kubectl of this machine against an API server: it reads the
// documents in apply (validation) and explain.
func TestKubectl(t *testing.T) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("no kubectl in PATH: ", err)
	}
	st := mem.New(mem.Config{})
	srv, err := apiserver.New(apiserver.Deps{
		Store: st, Resources: api.All(), Log: slog.New(slog.DiscardHandler), Authenticator: everybody{}, Authorizer: everybody{}, OpenAPI: handler(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	web := httptest.NewServer(srv.Handler())
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-srv.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("server is not ready")
	}
	home := t.TempDir()
	kubectl := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "kubectl", append([]string{"--server", web.URL, "--cache-dir", filepath.Join(home, "cache")}, args...)...)
		cmd.Env = append(cmd.Environ(), "HOME="+home, "KUBECONFIG="+filepath.Join(home, "none"))
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: i}]}
`
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        []string
		fails       bool
	}{
		{"apply", deployment, []string{"apply", "-f", "-"}, []string{"deployment.apps/web created"}, false},
		{"apply changes", strings.Replace(deployment, "image: i", "image: j", 1), []string{"apply", "-f", "-"}, []string{"deployment.apps/web configured"}, false},
		{"apply of an unknown field", strings.Replace(deployment, "image: i", "imag: i", 1), []string{"apply", "-f", "-"}, []string{`unknown field "spec.template.spec.containers[0].imag"`}, true},
		{"explain", "", []string{"explain", "pod.spec.containers"}, []string{"KIND:       Pod", "FIELD: containers <[]Container>", "imagePullPolicy", "enum: Always, IfNotPresent, Never"}, false},
		{"explain recursively", "", []string{"explain", "deployment", "--recursive"}, []string{"GROUP:      apps", "maxUnavailable", "ephemeralContainers"}, false},
		{"explain of v2", "", []string{"explain", "service.spec", "--output", "plaintext-openapiv2"}, []string{"externalTrafficPolicy"}, false},
		{"create with validation", deployment, []string{"create", "--validate=strict", "--dry-run=server", "-f", "-"}, []string{"already exists"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := kubectl(c.stdin, c.args...)
			if (err != nil) != c.fails {
				t.Fatalf("kubectl %s: %v\n%s", strings.Join(c.args, " "), err, out)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("kubectl %s does not say %q:\n%s", strings.Join(c.args, " "), w, out)
				}
			}
		})
	}
}
