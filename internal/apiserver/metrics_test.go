package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// scrape returns the series that /metrics shows, without their values, but for
// buckets, sums and times.
func (f *fixture) scrape() []string {
	f.t.Helper()
	resp, b := f.send("GET", "/metrics", "", func(http.Header) {})
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || !strings.HasPrefix(ct, "text/plain; version=0.0.4") {
		f.t.Fatalf("/metrics: %d, %s", resp.StatusCode, ct)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// series are the lines that begin with one of the names.
func series(lines []string, names ...string) string {
	var out []string
	for _, l := range lines {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(l, n) }) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n") + "\n"
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("metrics are\n%s\nwant\n%s", got, want)
	}
}

func TestRequestMetrics(t *testing.T) {
	f := start(t)
	js := "application/json"
	f.want(201, "POST", maps, js, `{"metadata":{"name":"a"},"data":{"k":"v"}}`)
	f.want(201, "POST", maps+"?dryRun=All", js, `{"metadata":{"name":"b"}}`)
	f.want(409, "POST", maps, js, `{"metadata":{"name":"a"}}`)
	f.want(200, "GET", maps+"/a", "", "")
	f.want(404, "GET", maps+"/b", "", "")
	f.want(200, "GET", maps, "", "")
	f.want(200, "GET", "/api/v1/configmaps", "", "")
	f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{"data":{"k":"w"}}`)
	f.want(200, "PATCH", maps+"/a?fieldManager=m&force=true", "application/apply-patch+yaml", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"y"}}`)
	f.want(200, "DELETE", maps, "", "")
	ns := client.For[*corev1.Namespace](client.New(f.srv.Local(resource.User{Name: "part"}), "part"))
	if _, err := ns.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "one"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Get(t.Context(), "none"); err == nil {
		t.Fatal("namespace none is there")
	}
	lines := f.scrape()
	same(t, series(lines, "apiserver_request_total"), strings.TrimLeft(`
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="namespace",subresource="",verb="DELETE",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="namespace",subresource="",verb="LIST",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="APPLY",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 1
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="PATCH",version="v1"} 1
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="namespaces",scope="resource",subresource="",verb="POST",version="v1"} 1
apiserver_request_total{code="201",component="apiserver",dry_run="All",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1
apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 1
apiserver_request_total{code="404",component="apiserver",dry_run="",group="",resource="namespaces",scope="resource",subresource="",verb="GET",version="v1"} 1
apiserver_request_total{code="409",component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1
`, "\n"))
	same(t, series(lines, "apiserver_request_duration_seconds_count"), strings.TrimLeft(`
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="namespace",subresource="",verb="DELETE",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="namespace",subresource="",verb="LIST",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="APPLY",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 2
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="PATCH",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 2
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="namespaces",scope="resource",subresource="",verb="GET",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="",group="",resource="namespaces",scope="resource",subresource="",verb="POST",version="v1"} 1
apiserver_request_duration_seconds_count{component="apiserver",dry_run="All",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 1
`, "\n"))
	same(t, series(lines, "apiserver_response_sizes_count", "apiserver_current_inflight", `apiserver_storage_objects{resource="configmaps"`,
		`apiserver_storage_objects{resource="namespaces"`, `apiserver_resource_objects{group="apps",resource="deployments"`), strings.TrimLeft(`
apiserver_current_inflight_requests{request_kind="mutating"} 1
apiserver_current_inflight_requests{request_kind="readOnly"} 1
apiserver_resource_objects{group="apps",resource="deployments"} 0
apiserver_response_sizes_count{component="apiserver",group="",resource="configmaps",scope="cluster",subresource="",verb="LIST",version="v1"} 1
apiserver_response_sizes_count{component="apiserver",group="",resource="configmaps",scope="namespace",subresource="",verb="LIST",version="v1"} 1
apiserver_response_sizes_count{component="apiserver",group="",resource="configmaps",scope="resource",subresource="",verb="GET",version="v1"} 2
apiserver_storage_objects{resource="configmaps"} 0
apiserver_storage_objects{resource="namespaces"} 1
`, "\n"))
	same(t, series(lines, `etcd_request_errors_total{group="",operation="create",resource="configmaps"`,
		`etcd_request_duration_seconds_count{group="",operation="create"`, `etcd_requests_total{group="",operation="delete"`), strings.TrimLeft(`
etcd_request_duration_seconds_count{group="",operation="create",resource="configmaps"} 2
etcd_request_duration_seconds_count{group="",operation="create",resource="namespaces"} 1
etcd_request_errors_total{group="",operation="create",resource="configmaps"} 1
etcd_requests_total{group="",operation="delete",resource="configmaps"} 1
`, "\n"))
}

// What a client makes up is no label.
func TestRequestMetricsAreBounded(t *testing.T) {
	f := start(t)
	f.want(404, "GET", maps+"/a", "", "")
	before := len(f.scrape())
	for i := range 20 {
		for _, r := range []struct{ method, path string }{
			{"GET", maps + "/" + fmt.Sprint("name-", i)},
			{"GET", fmt.Sprintf("/api/v1/namespaces/ns-%d/configmaps/a", i)},
			{"GET", fmt.Sprintf("/api/v1/namespaces/default/made-up-%d/a", i)},
			{"GET", fmt.Sprintf("/apis/group-%d/v1/things", i)},
			{"GET", fmt.Sprintf("%s/a/door-%d", maps, i)},
			{"GET", fmt.Sprintf("/path-%d", i)},
			{fmt.Sprintf("VERB%d", i), maps + "/a"},
		} {
			f.send(r.method, r.path, "", func(http.Header) {})
		}
	}
	if after := f.scrape(); len(after) != before {
		t.Errorf("%d lines, %d before", len(after), before)
	}
	for i := range 20 {
		f.send("POST", fmt.Sprintf("%s?dryRun=x%d", maps, i), `{"metadata":{"name":"a"}}`, func(h http.Header) { h.Set("Content-Type", "application/json") })
	}
	same(t, series(f.scrape(), `apiserver_request_total{code="422"`),
		`apiserver_request_total{code="422",component="apiserver",dry_run="invalid",group="",resource="configmaps",scope="resource",subresource="",verb="POST",version="v1"} 20`+"\n")
}

func TestRequestMetricsOfWatches(t *testing.T) {
	f := start(t)
	const open = `apiserver_longrunning_requests{component="apiserver",group="",resource="configmaps",scope="namespace",subresource="",verb="WATCH",version="v1"} `
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", f.url+maps+"?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w, err := f.srv.Local(resource.User{Name: "part"}).Watch(ctx, client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("configmaps"), Namespace: "default"}, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lines := f.scrape()
	same(t, series(lines, "apiserver_longrunning_requests"), open+"2\n")
	if s := series(lines, "apiserver_request_total"); s != "\n" {
		t.Errorf("a watch is counted before its end: %s", s)
	}
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"a"}}`)
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	same(t, series(f.scrape(), "apiserver_watch_events_total"), `apiserver_watch_events_total{group="",resource="configmaps",version="v1"} 1`+"\n")
	cancel()
	for range w.Events() { //nolint:revive // until it is over
	}
}
