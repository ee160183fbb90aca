package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/fields"
	"skiff/internal/client"
	"skiff/internal/store"
	"skiff/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open lets everybody in as an administrator.
type open struct{}

func (open) Authenticate(*http.Request) (*resource.User, error) {
	return &resource.User{Name: "admin", Groups: []string{"system:masters"}}, nil
}

func (open) Token(context.Context, string, []string) (*resource.User, []string, error) {
	return nil, nil, nil
}

func (open) Authorize(context.Context, resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: true}, nil
}

func (open) Rules(context.Context, resource.User, string) (resource.RuleList, error) {
	return resource.RuleList{}, nil
}

type fixture struct {
	t   *testing.T
	srv *apiserver.Server
	url string
}

func start(t *testing.T) *fixture {
	t.Helper()
	return startOn(t, mem.New(mem.Config{}))
}

// startOn serves what st holds, and closes it at the end.
func startOn(t *testing.T, st store.Store) *fixture {
	t.Helper()
	all := api.All()
	return startWith(t, st, apiserver.Deps{
		Store: st, Resources: all, Authenticator: open{}, Authorizer: open{}, FieldManagers: fields.New(all),
	})
}

// startWith serves with deps over st.
func startWith(t *testing.T, st store.Store, deps apiserver.Deps) *fixture {
	t.Helper()
	deps.Log, deps.VerifyCache = slog.New(slog.NewTextHandler(io.Discard, nil)), true
	if testing.Verbose() {
		deps.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	srv, err := apiserver.New(deps)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, srv: srv, url: serve(t, srv, st)}
}

// serve runs srv over st until the test ends, and returns its URL once it is ready.
func serve(t *testing.T, srv *apiserver.Server, st store.Store) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	h := httptest.NewServer(srv.Handler())
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
		http.DefaultClient.CloseIdleConnections()
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
	return h.URL
}

func (f *fixture) do(method, path, contentType, body string) (int, map[string]any) {
	f.t.Helper()
	resp, b := f.send(method, path, body, func(h http.Header) {
		if contentType != "" {
			h.Set("Content-Type", contentType)
		}
	})
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		f.t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return resp.StatusCode, out
}

// send sends a request and returns its answer with the body read.
func (f *fixture) send(method, path, body string, header func(http.Header)) (*http.Response, []byte) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	header(req.Header)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp, b
}

func (f *fixture) want(code int, method, path, contentType, body string) map[string]any {
	f.t.Helper()
	got, out := f.do(method, path, contentType, body)
	if got != code {
		f.t.Fatalf("%s %s: code %d, want %d: %v", method, path, got, code, out)
	}
	return out
}

const maps = "/api/v1/namespaces/default/configmaps"

func at(m map[string]any, path ...string) any {
	var v any = m
	for _, p := range path {
		mm, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = mm[p]
	}
	return v
}

func TestVerbs(t *testing.T) {
	f := start(t)
	js := "application/json"
	made := f.want(201, "POST", maps, js, `{"metadata":{"name":"a","labels":{"x":"1"}},"data":{"k":"v"}}`)
	if made["kind"] != "ConfigMap" || at(made, "metadata", "uid") == nil || at(made, "metadata", "namespace") != "default" {
		t.Fatalf("created %v", made)
	}
	if msg := f.want(409, "POST", maps, js, `{"metadata":{"name":"a"}}`)["message"]; msg != `configmaps "a" already exists` {
		t.Error(msg)
	}
	if msg := f.want(404, "GET", maps+"/nope", "", "")["message"]; msg != `configmaps "nope" not found` {
		t.Error(msg)
	}
	bad := f.want(422, "POST", maps, js, `{"metadata":{"name":"A_"}}`)
	if !strings.HasPrefix(bad["message"].(string), `ConfigMap "A_" is invalid: metadata.name: Invalid value: "A_": a lowercase RFC 1123 subdomain`) {
		t.Error(bad["message"])
	}
	if msg := f.want(400, "POST", maps, js, `{"metadata":{"name":"b"},"data":{"k":1}}`)["message"]; msg != `ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string` {
		t.Error(msg)
	}
	if msg := f.want(400, "POST", maps+"?fieldValidation=Strict", js, `{"metadata":{"name":"b"},"dota":{}}`)["message"]; msg != `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dota"` {
		t.Error(msg)
	}
	got := f.want(200, "GET", maps+"/a", "", "")
	rv := at(got, "metadata", "resourceVersion").(string)
	f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{"data":{"k2":"v2"}}`)
	f.want(200, "PATCH", maps+"/a", "application/strategic-merge-patch+json", `{"data":{"k3":"v3"}}`)
	after := f.want(200, "PATCH", maps+"/a", "application/json-patch+json", `[{"op":"remove","path":"/data/k"}]`)
	if d := at(after, "data").(map[string]any); len(d) != 2 || d["k2"] != "v2" || d["k3"] != "v3" {
		t.Errorf("data is %v", d)
	}
	if msg := f.want(409, "PUT", maps+"/a", js, `{"metadata":{"name":"a","resourceVersion":"`+rv+`"}}`)["message"]; msg != `Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again` {
		t.Error(msg)
	}
	same := f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{}`)
	if at(same, "metadata", "resourceVersion") != at(after, "metadata", "resourceVersion") {
		t.Error("a patch that changes nothing wrote something")
	}
	gone := f.want(200, "DELETE", maps+"/a", "", "")
	if gone["status"] != "Success" || at(gone, "details", "kind") != "configmaps" {
		t.Error(gone)
	}
	f.want(404, "DELETE", maps+"/a", "", "")
}

func TestListPages(t *testing.T) {
	f := start(t)
	for i := range 7 {
		f.want(201, "POST", maps, "application/json", fmt.Sprintf(`{"metadata":{"name":"m%d","labels":{"odd":"%v"}}}`, i, i%2 == 1))
	}
	l := f.want(200, "GET", maps+"?limit=3", "", "")
	cont := at(l, "metadata", "continue").(string)
	if n := len(l["items"].([]any)); n != 3 || at(l, "metadata", "remainingItemCount") != float64(4) {
		t.Fatalf("%d items, %v", n, l["metadata"])
	}
	// What happens between pages does not show in them.
	f.want(200, "DELETE", maps+"/m5", "", "")
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"m9"}}`)
	l = f.want(200, "GET", maps+"?limit=30&continue="+cont, "", "")
	if n := len(l["items"].([]any)); n != 4 {
		t.Fatalf("%d items on the last page, want 4", n)
	}
	if n := len(f.want(200, "GET", maps+"?labelSelector=odd=true", "", "")["items"].([]any)); n != 2 {
		t.Fatalf("%d odd items, want 2", n)
	}
	if n := len(f.want(200, "GET", maps+"?fieldSelector=metadata.name=m1", "", "")["items"].([]any)); n != 1 {
		t.Fatalf("%d items named m1, want 1", n)
	}
	if msg := f.want(400, "GET", maps+"?fieldSelector=spec.x=1", "", "")["message"]; msg != `"spec.x" is not a known field selector: only "metadata.name", "metadata.namespace"` {
		t.Error(msg)
	}
}

func TestWatch(t *testing.T) {
	f := start(t)
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"old","labels":{"on":"1"}}}`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", f.url+maps+"?watch=1&labelSelector=on=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	next := func(typ, name string) map[string]any {
		t.Helper()
		var e struct {
			Type   string         `json:"type"`
			Object map[string]any `json:"object"`
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if got, _ := at(e.Object, "metadata", "name").(string); e.Type != typ || got != name {
			t.Fatalf("event %s %q, want %s %q: %v", e.Type, got, typ, name, e.Object)
		}
		return e.Object
	}
	next("ADDED", "old")
	if o := next("BOOKMARK", ""); at(o, "metadata", "annotations", metav1.InitialEventsAnnotationKey) != "true" {
		t.Error(o)
	}
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"other"}}`)
	f.want(200, "PATCH", maps+"/other", "application/merge-patch+json", `{"metadata":{"labels":{"on":"1"}}}`)
	next("ADDED", "other")
	f.want(200, "PATCH", maps+"/old", "application/merge-patch+json", `{"data":{"a":"b"}}`)
	next("MODIFIED", "old")
	left := f.want(200, "PATCH", maps+"/old", "application/merge-patch+json", `{"metadata":{"labels":null}}`)
	if o := next("DELETED", "old"); at(o, "metadata", "resourceVersion") != at(left, "metadata", "resourceVersion") {
		t.Errorf("deletion has resourceVersion %v", at(o, "metadata", "resourceVersion"))
	}
	f.want(200, "DELETE", maps+"/other", "", "")
	next("DELETED", "other")
}

func TestFinalizers(t *testing.T) {
	f := start(t)
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"a","finalizers":["example.com/x"]}}`)
	held := f.want(200, "DELETE", maps+"/a", "", "")
	if at(held, "metadata", "deletionTimestamp") == nil {
		t.Fatal(held)
	}
	f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{"metadata":{"finalizers":null}}`)
	f.want(404, "GET", maps+"/a", "", "")
}

func TestLocalSharesObjects(t *testing.T) {
	f := start(t)
	c := client.New(f.srv.Local(resource.User{Name: "me"}), "me")
	ctx := t.Context()
	cms := client.For[*corev1.ConfigMap](c).In("default")
	mine := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "v"}}
	made, err := cms.Create(ctx, mine)
	if err != nil {
		t.Fatal(err)
	}
	mine.Data["k"] = "changed by its owner"
	one, err := cms.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	two, err := cms.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if one != two {
		t.Error("two reads gave two objects")
	}
	if made.Data["k"] != "v" || one.Data["k"] != "v" {
		t.Error("the cache holds a caller's map")
	}
}

func TestProtobufAndYAML(t *testing.T) {
	f := start(t)
	f.want(201, "POST", maps, "application/yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yam\ndata:\n  a: b\n")
	req, err := http.NewRequestWithContext(t.Context(), "GET", f.url+maps+"/yam", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b, []byte("k8s\x00")) {
		t.Fatalf("%q", b)
	}
	req.Method, req.Body = "PUT", io.NopCloser(bytes.NewReader(b))
	req.Header.Set("Content-Type", "application/vnd.kubernetes.protobuf")
	again, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	if again.StatusCode != 200 {
		t.Fatal(again.Status)
	}
}

// TestListEncodings: a streamed list is what a client decodes, in every encoding
// and compressed.
func TestListEncodings(t *testing.T) {
	f := start(t)
	big := strings.Repeat("x", 4000)
	const n = 60
	for i := range n {
		f.want(201, "POST", maps, "application/json", fmt.Sprintf(`{"metadata":{"name":"m%02d"},"data":{"k":%q}}`, i, big))
	}
	get := func(accept, encoding string) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", f.url+maps, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", accept)
		if encoding == "" {
			req.Header.Set("Accept-Encoding", "identity")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if encoding != "" && !resp.Uncompressed {
			t.Error("the list was not compressed")
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	check := func(l *corev1.ConfigMapList) {
		t.Helper()
		if len(l.Items) != n || l.Items[n-1].Name != "m59" || l.Items[0].Data["k"] != big || l.ResourceVersion == "" {
			t.Errorf("list has %d items at %q", len(l.Items), l.ResourceVersion)
		}
	}
	for _, encoding := range []string{"", "gzip"} {
		var js corev1.ConfigMapList
		if err := json.Unmarshal(get("application/json", encoding), &js); err != nil {
			t.Fatal(err)
		}
		check(&js)
		b := get("application/vnd.kubernetes.protobuf", encoding)
		var u runtime.Unknown
		if err := u.Unmarshal(b[4:]); err != nil {
			t.Fatal(err)
		}
		var pb corev1.ConfigMapList
		if err := pb.Unmarshal(u.Raw); err != nil {
			t.Fatal(err)
		}
		if u.Kind != "ConfigMapList" {
			t.Errorf("kind is %q", u.Kind)
		}
		check(&pb)
	}
}
