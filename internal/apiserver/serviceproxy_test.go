package apiserver_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"skiff/internal/api"
	"skiff/internal/codec"
	"skiff/internal/store"
	"skiff/internal/store/mem"
)

// put writes an object into a store past every rule.
func put(t *testing.T, st store.Store, kind, key, body string) {
	t.Helper()
	for _, r := range api.All() {
		if r.Kind != kind || r.Twin != nil {
			continue
		}
		o := r.New()
		if err := json.Unmarshal([]byte(body), o); err != nil {
			t.Fatal(err)
		}
		b, err := codec.Stored(r.GVK(), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Create(t.Context(), r.Prefix+key, b, store.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no kind %s", kind)
}

func TestServiceProxy(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/page" {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<a href="/next">next</a>`) //nolint:errcheck // the test sees what arrives
			return
		}
		fmt.Fprintf(w, "here %s", r.URL.Path) //nolint:errcheck // the test sees what arrives
	}))
	defer backend.Close()
	_, port, err := net.SplitHostPort(backend.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	st := mem.New(mem.Config{})
	// Rules keep loopback addresses out of endpoints: the test has no other.
	put(t, st, "Pod", "default/p", `{"metadata":{"name":"p","namespace":"default"},"status":{"podIPs":[{"ip":"127.0.0.1"}]}}`)
	for name, target := range map[string]string{
		"pod": `{"kind":"Pod","namespace":"default","name":"p"}`, "nopod": `{"kind":"Pod","namespace":"default","name":"q"}`,
		"elsewhere": `{"kind":"Pod","namespace":"kube-system","name":"p"}`, "bare": `null`,
	} {
		put(t, st, "Service", "default/"+name, `{"metadata":{"name":"`+name+`","namespace":"default"},"spec":{"ports":[{"name":"http","port":80},{"name":"b","port":81}]}}`)
		put(t, st, "EndpointSlice", "default/"+name, `{"metadata":{"name":"`+name+`","namespace":"default","labels":{"kubernetes.io/service-name":"`+name+`"}},
			"addressType":"IPv4","ports":[{"name":"http","port":`+port+`}],"endpoints":[{"addresses":["127.0.0.1"],"targetRef":`+target+`}]}`)
	}
	f := startOn(t, st)
	const services = "/api/v1/namespaces/default/services/"
	for _, by := range []string{"pod:http", "pod:80", "http:pod:80"} {
		// A page's links lead through the proxy too.
		for path, want := range map[string]string{"a/b": "here /a/b", "page": `<a href="` + services + by + `/proxy/next">next</a>`} {
			resp, err := http.Get(f.url + services + by + "/proxy/" + path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			if string(b) != want {
				t.Errorf("%s/%s: %d %s", by, path, resp.StatusCode, b)
			}
		}
	}
	rq, err := http.NewRequestWithContext(t.Context(), http.MethodOptions, f.url+services+"pod:http/proxy/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(rq); err != nil || resp.StatusCode != http.StatusOK || resp.Body.Close() != nil {
		t.Errorf("OPTIONS through the proxy: %v %v", resp, err)
	}
	for path, want := range map[string]string{
		"pod:82/proxy/":         `no service port 82 found for service "pod"`,
		"pod:b/proxy/":          `no endpoints available for service "pod"`,
		"nopod:http/proxy/":     `no endpoints available for service "nopod"`,
		"elsewhere:http/proxy/": `no endpoints available for service "elsewhere"`,
		"bare:http/proxy/":      `no endpoints available for service "bare"`,
	} {
		if msg := f.want(503, "GET", services+path, "", "")["message"]; msg != want {
			t.Errorf("%s: %v, want %s", path, msg, want)
		}
	}
}
