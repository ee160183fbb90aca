package apiserver_test

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/fields"
	"skiff/internal/client"
	"skiff/internal/store/mem"
)

// usage knows of every node and pod but those named "unknown".
type usage struct{ at time.Time }

func list(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: apiresource.MustParse(cpu), corev1.ResourceMemory: apiresource.MustParse(memory)}
}

func (u usage) NodeUsage(_ context.Context, nodes []*corev1.Node) ([]resource.Usage, error) {
	out := make([]resource.Usage, len(nodes))
	for i, n := range nodes {
		if n.Name != "unknown" {
			out[i] = resource.Usage{At: u.at, Window: 15 * time.Second, Used: list("250m", "1Gi")}
		}
	}
	return out, nil
}

func (u usage) PodUsage(_ context.Context, pods []*corev1.Pod) ([]resource.PodUsage, error) {
	out := make([]resource.PodUsage, len(pods))
	for i, p := range pods {
		if p.Name != "unknown" {
			out[i] = resource.PodUsage{At: u.at, Window: 10 * time.Second, Containers: []resource.ContainerUsage{
				{Name: "a", Used: list("10m", "10Mi")}, {Name: "b", Used: list("5m", "6Mi")},
			}}
		}
	}
	return out, nil
}

func startMeasured(t *testing.T, u resource.UsageSource) *fixture {
	t.Helper()
	st, all := mem.New(mem.Config{}), api.All()
	f := startWith(t, st, apiserver.Deps{
		Store: st, Resources: all, Authenticator: open{}, Authorizer: open{}, FieldManagers: fields.New(all), Usage: u,
	})
	for _, n := range []string{"one", "two", "unknown"} {
		f.want(201, "POST", "/api/v1/nodes", "application/json", `{"metadata":{"name":"`+n+`","labels":{"name":"`+n+`"}}}`)
		f.want(201, "POST", "/api/v1/namespaces/default/pods", "application/json",
			`{"metadata":{"name":"`+n+`","labels":{"name":"`+n+`"}},"spec":{"containers":[{"name":"a","image":"i"},{"name":"b","image":"i"}]}}`)
	}
	// What is measured is not read consistently; these reads wait until all is known.
	f.want(200, "GET", "/api/v1/nodes", "", "")
	f.want(200, "GET", "/api/v1/pods", "", "")
	return f
}

func names(t *testing.T, list map[string]any) []string {
	t.Helper()
	var out []string
	for _, it := range list["items"].([]any) {
		out = append(out, it.(map[string]any)["metadata"].(map[string]any)["name"].(string))
	}
	return out
}

func TestMetrics(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := startMeasured(t, usage{at})
	for _, version := range []string{"v1", "v1beta1"} {
		root := "/apis/metrics.k8s.io/" + version
		node := f.want(200, "GET", root+"/nodes/one", "", "")
		delete(node["metadata"].(map[string]any), "creationTimestamp")
		want := map[string]any{
			"kind": "NodeMetrics", "apiVersion": "metrics.k8s.io/" + version, "metadata": map[string]any{"name": "one", "labels": map[string]any{"name": "one"}},
			"timestamp": "2026-01-02T03:04:05Z", "window": "15s", "usage": map[string]any{"cpu": "250m", "memory": "1Gi"},
		}
		if !reflect.DeepEqual(node, want) {
			t.Errorf("got  %v\nwant %v", node, want)
		}
		pod := f.want(200, "GET", root+"/namespaces/default/pods/one", "", "")
		if got, _ := json.Marshal(pod["containers"]); string(got) != `[{"name":"a","usage":{"cpu":"10m","memory":"10Mi"}},{"name":"b","usage":{"cpu":"5m","memory":"6Mi"}}]` {
			t.Errorf("containers are %s", got)
		}
		for path, want := range map[string][]string{
			"/nodes":                          {"one", "two"},
			"/nodes?labelSelector=name%3Dtwo": {"two"},
			"/pods":                           {"one", "two"},
			"/namespaces/default/pods?fieldSelector=metadata.name%3Done": {"one"},
			"/namespaces/other/pods":                                     nil,
			"/pods?labelSelector=name%3Dunknown":                         nil,
		} {
			got := f.want(200, "GET", root+path, "", "")
			if !reflect.DeepEqual(names(t, got), want) {
				t.Errorf("%s: got %v, want %v", path, names(t, got), want)
			}
			if meta := got["metadata"]; !reflect.DeepEqual(meta, map[string]any{}) {
				t.Errorf("%s: metadata is %v", path, meta)
			}
		}
		for _, path := range []string{"/nodes/unknown", "/nodes/none", "/namespaces/default/pods/unknown", "/namespaces/other/pods/one"} {
			f.want(404, "GET", root+path, "", "")
		}
		f.want(405, "GET", root+"/nodes?watch=1", "", "")
		f.want(405, "POST", root+"/nodes", "application/json", `{}`)
		f.want(405, "DELETE", root+"/nodes/one", "", "")
	}
	table := f.table("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/one")
	if got, _ := json.Marshal(table.Rows[0].Cells); string(got) != `["one","15m","16Mi","10s"]` {
		t.Errorf("cells are %s", got)
	}
	// In process, as a controller reads it.
	got, err := client.For[*metricsv1.PodMetrics](f.srv.System()).In("default").Get(t.Context(), "two")
	if err != nil || len(got.Containers) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	all, _, err := client.For[*metricsv1.NodeMetrics](f.srv.System()).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(all) != 2 {
		t.Errorf("got %v, %v", all, err)
	}
}

// Without a source nothing is known, which is no error.
func TestMetricsWithoutSource(t *testing.T) {
	f := startMeasured(t, nil)
	if got := names(t, f.want(200, "GET", "/apis/metrics.k8s.io/v1/nodes", "", "")); got != nil {
		t.Errorf("got %v", got)
	}
	f.want(404, "GET", "/apis/metrics.k8s.io/v1/nodes/one", "", "")
}

func (f *fixture) table(path string) *metav1.Table {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	var out metav1.Table
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		f.t.Fatal(err)
	}
	return &out
}
