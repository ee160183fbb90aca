package apiserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func (f *fixture) get(path, accept string) (*http.Response, []byte) {
	f.t.Helper()
	return f.send(http.MethodGet, path, "", func(h http.Header) { h.Set("Accept", accept) })
}

// A list tells its length before it, in both encodings, and holds every item once.
func TestListTellsItsLength(t *testing.T) {
	f := start(t)
	for _, n := range []int{0, 1, 30} {
		for i := range n {
			f.do("POST", maps, "application/json", fmt.Sprintf(`{"metadata":{"name":"c%d","labels":{"l":"%d"}},"data":{"k":"<ü>"}}`, i, i%2))
		}
		for _, path := range []string{maps, maps + "?labelSelector=l%3D1"} {
			want := n
			if path != maps {
				want = n / 2
			}
			resp, b := f.get(path, "application/json")
			if got := resp.Header.Get("Content-Length"); got != strconv.Itoa(len(b)) {
				t.Errorf("JSON of %d: length %q of %d bytes", n, got, len(b))
			}
			var l corev1.ConfigMapList
			if err := json.Unmarshal(b, &l); err != nil {
				t.Fatal(err)
			}
			if len(l.Items) != want || l.Kind != "ConfigMapList" || l.ResourceVersion == "" {
				t.Errorf("JSON: %d items of %d: %.200s", len(l.Items), want, b)
			}
			resp, b = f.get(path, "application/vnd.kubernetes.protobuf")
			if got := resp.Header.Get("Content-Length"); got != strconv.Itoa(len(b)) {
				t.Errorf("protobuf of %d: length %q of %d bytes", n, got, len(b))
			}
			var u runtime.Unknown
			if err := u.Unmarshal(b[4:]); err != nil {
				t.Fatal(err)
			}
			var p corev1.ConfigMapList
			if err := p.Unmarshal(u.Raw); err != nil {
				t.Fatal(err)
			}
			if len(p.Items) != want || u.Kind != "ConfigMapList" || p.ResourceVersion != l.ResourceVersion {
				t.Errorf("protobuf: %d items of %d", len(p.Items), want)
			}
			for i := range p.Items {
				if p.Items[i].Name != l.Items[i].Name || p.Items[i].Data["k"] != "<ü>" {
					t.Errorf("item %d: %v", i, p.Items[i])
				}
			}
		}
	}
}

type event struct {
	Type   string
	Object struct {
		Kind     string
		Metadata struct{ Name, ResourceVersion string }
		Data     map[string]string
	}
}

// watch opens a watch and returns what reads its next event.
func (f *fixture) watch(ctx context.Context, query string) func() event {
	f.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+maps+"?watch=1&"+query, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { resp.Body.Close() })
	in := json.NewDecoder(bufio.NewReader(resp.Body))
	return func() event {
		f.t.Helper()
		var e event
		if err := in.Decode(&e); err != nil {
			f.t.Fatal(err)
		}
		return e
	}
}

// Watchers of one change share its bytes where they see it alike, and only there.
func TestWatchersShareFrames(t *testing.T) {
	f := start(t)
	js := "application/json"
	rv := at(f.want(200, "GET", maps, "", ""), "metadata", "resourceVersion").(string)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all := []func() event{f.watch(ctx, "resourceVersion="+rv), f.watch(ctx, "resourceVersion="+rv)}
	green := f.watch(ctx, "labelSelector=c%3Dgreen&resourceVersion="+rv)
	f.want(201, "POST", maps, js, `{"metadata":{"name":"a","labels":{"c":"red"}},"data":{"n":"0"}}`)
	f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{"metadata":{"labels":{"c":"green"}},"data":{"n":"1"}}`)
	f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", `{"metadata":{"labels":{"c":"red"}},"data":{"n":"2"}}`)
	// A burst, gathered.
	for i := 3; i < 40; i++ {
		f.want(200, "PATCH", maps+"/a", "application/merge-patch+json", fmt.Sprintf(`{"data":{"n":"%d"}}`, i))
	}
	f.want(200, "DELETE", maps+"/a", "", "")
	check := func(e event, typ, n string) {
		t.Helper()
		if e.Type != typ || e.Object.Kind != "ConfigMap" || e.Object.Metadata.Name != "a" || e.Object.Data["n"] != n {
			t.Errorf("got %+v, want %s with %s", e, typ, n)
		}
	}
	check(green(), "ADDED", "1")
	check(green(), "DELETED", "1")
	for _, next := range all {
		check(next(), "ADDED", "0")
		for i := 1; i < 40; i++ {
			check(next(), "MODIFIED", strconv.Itoa(i))
		}
		check(next(), "DELETED", "39")
	}
}

func TestListOfANode(t *testing.T) {
	f := start(t)
	for i := range 6 {
		f.want(201, "POST", "/api/v1/namespaces/default/pods", "application/json", fmt.Sprintf(
			`{"metadata":{"name":"p%d"},"spec":{"nodeName":"n%d","containers":[{"name":"c","image":"i"}]}}`, i, i%3))
	}
	out := f.want(200, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", "", "")
	items := at(out, "items").([]any)
	if len(items) != 2 || at(items[0].(map[string]any), "metadata", "name") != "p1" || at(items[1].(map[string]any), "metadata", "name") != "p4" {
		t.Errorf("%v", items)
	}
}

// Profiles are for those who may get their path.
func TestProfiles(t *testing.T) {
	f := start(t)
	resp, b := f.get("/debug/pprof/goroutine?debug=1", "*/*")
	if resp.StatusCode != http.StatusOK || len(b) == 0 {
		t.Errorf("%d: %.100s", resp.StatusCode, b)
	}
}
