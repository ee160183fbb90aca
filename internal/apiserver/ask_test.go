package apiserver_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/fields"
	"skiff/internal/store/mem"
)

// onlyPods lets ann read pods, metrics and discovery, and nothing else.
type onlyPods struct{ open }

func (onlyPods) Authorize(_ context.Context, a resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: a.User.Name == "ann" && (a.Resource == "pods" || a.Group == "external.metrics.k8s.io" || strings.HasPrefix(a.Path, "/apis"))}, nil
}

func TestAsk(t *testing.T) {
	st, all := mem.New(mem.Config{}), api.All()
	f := startWith(t, st, apiserver.Deps{Store: st, Resources: all, Authenticator: open{}, Authorizer: onlyPods{}, FieldManagers: fields.New(all)})
	ask := func(user, path string, q url.Values) (int, string) {
		t.Helper()
		code, body, err := f.srv.Ask(t.Context(), resource.User{Name: user}, path, q)
		if err != nil {
			t.Fatal(err)
		}
		return code, string(body)
	}
	if code, body := ask("ann", "/api/v1/namespaces/default/pods", url.Values{"labelSelector": {"a=b"}}); code != 200 || !strings.Contains(body, `"kind":"PodList"`) {
		t.Errorf("%d %s", code, body)
	}
	if code, body := ask("ann", "/api/v1/namespaces/default/pods", url.Values{"labelSelector": {"=="}}); code != 400 {
		t.Errorf("%d %s", code, body)
	}
	if code, body := ask("bob", "/api/v1/namespaces/default/pods", nil); code != 403 || !strings.Contains(body, `"reason":"Forbidden"`) {
		t.Errorf("%d %s", code, body)
	}
	for _, path := range []string{"/apis/custom.metrics.k8s.io", "/apis/external.metrics.k8s.io/v1beta1/namespaces/ns/waiting"} {
		if code, body := ask("ann", path, nil); code != 404 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := f.srv.Ask(ended, resource.User{Name: "ann"}, "/api/v1/pods", nil); err == nil {
		t.Error("an answer after the end")
	}
}
