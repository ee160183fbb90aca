package apiserver_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"skiff/internal/api"
	"skiff/internal/apiserver"
	"skiff/internal/store/mem"
)

// TestReadyWaitsForBootstrap: /readyz says no until the default roles are there:
// a client that may do everything would be refused before.
func TestReadyWaitsForBootstrap(t *testing.T) {
	st := mem.New(mem.Config{})
	boot := make(chan struct{})
	f := startWith(t, st, apiserver.Deps{Store: st, Resources: api.All(), Authenticator: open{}, Authorizer: open{}, Bootstrapped: boot})
	ask := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := ask("/readyz"); code != 500 || !strings.Contains(body, "[-]poststarthook/rbac/bootstrap-roles failed: reason withheld") {
		t.Errorf("before: %d %s", code, body)
	}
	if code, body := ask("/livez"); code != 200 || body != "ok" {
		t.Errorf("live: %d %s", code, body)
	}
	close(boot)
	if code, body := ask("/readyz"); code != 200 || body != "ok" {
		t.Errorf("after: %d %s", code, body)
	}
	if code, _ := ask("/readyz/poststarthook/rbac/bootstrap-roles"); code != 200 {
		t.Errorf("one check: %d", code)
	}
}
