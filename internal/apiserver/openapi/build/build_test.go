package build

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"skiff/internal/api"
	"skiff/internal/apiserver/openapi"
)

func described(t *testing.T) *Types {
	t.Helper()
	compressed, err := os.ReadFile(filepath.Join("..", "types.json.zst"))
	if err != nil {
		t.Fatal(err)
	}
	types, err := ReadTypes(compressed)
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func built(t *testing.T) *Documents {
	t.Helper()
	docs, err := Build(described(t), api.All())
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// TestCommittedDocumentsAreCurrent fails when a resource was added or changed and
// the documents were not made again.
func TestCommittedDocumentsAreCurrent(t *testing.T) {
	docs := built(t)
	files, err := openapi.Files(docs.V2, docs.V2Protobuf, docs.V3)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("..", "documents")
	var stale []string
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(unzip(t, got), unzip(t, want)) {
			stale = append(stale, name)
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if files[e.Name()] == nil {
			stale = append(stale, e.Name())
		}
	}
	merge, err := MergeSchema(described(t), api.All())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join("..", "..", "fields", "schema.json.gz")); err != nil || !bytes.Equal(unzip(t, got), unzip(t, merge)) {
		stale = append(stale, "fields/schema.json.gz")
	}
	if len(stale) > 0 {
		slices.Sort(stale)
		t.Errorf("the OpenAPI documents are out of date (%s): run\n\n\tgo generate ./internal/apiserver/openapi\n\nand commit internal/apiserver/openapi/documents and internal/apiserver/fields/schema.json.gz", strings.Join(stale, ", "))
	}
}

func unzip(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return data
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// upstream finds the documents that upstream publishes with its source.
func upstream(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "k8s.io", "kubernetes@v1.37.2", "api", "openapi-spec")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("the source of k8s.io/kubernetes v1.37.2 is not in the module cache (go mod download k8s.io/kubernetes@v1.37.2): %v", err)
	}
	return dir
}

// TestDocumentsAreUpstreams compares every schema and every path with upstream's
// published documents. Those are made with CBOR on and enumerations off; a server
// with default gates has it the other way round.
func TestDocumentsAreUpstreams(t *testing.T) {
	dir := upstream(t)
	docs := built(t)
	for _, doc := range slices.Sorted(maps.Keys(docs.V3)) {
		if ofAnotherServer(doc) {
			continue
		}
		t.Run(doc, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, "v3", strings.ReplaceAll(doc, "/", "__")+"_openapi.json"))
			if err != nil {
				t.Fatal(err)
			}
			var ours, theirs struct {
				Components struct {
					Schemas map[string]any `json:"schemas"`
				} `json:"components"`
				Paths map[string]any `json:"paths"`
			}
			read(t, docs.V3[doc], &ours)
			read(t, data, &theirs)
			compare(t, "schema", ours.Components.Schemas, theirs.Components.Schemas)
			compare(t, "path", ours.Paths, theirs.Paths)
		})
	}
	t.Run("v2", func(t *testing.T) {
		data, err := os.ReadFile(filepath.Join(dir, "swagger.json"))
		if err != nil {
			t.Fatal(err)
		}
		var ours, theirs struct {
			Definitions map[string]any `json:"definitions"`
			Parameters  map[string]any `json:"parameters"`
			Paths       map[string]any `json:"paths"`
		}
		read(t, docs.V2, &ours)
		read(t, data, &theirs)
		compare(t, "definition", ours.Definitions, theirs.Definitions)
		// Which parameters are shared depends on how many paths have them: they are
		// compared in place.
		for p, v := range ours.Paths {
			ours.Paths[p] = inline(v, ours.Parameters)
		}
		for p, v := range theirs.Paths {
			theirs.Paths[p] = inline(v, theirs.Parameters)
		}
		compare(t, "path", ours.Paths, theirs.Paths)
	})
}

// ofAnotherServer tells what upstream serves from an API server of its own, the
// metrics server, of which no documents are published.
func ofAnotherServer(name string) bool {
	const window = "io.k8s.apimachinery.pkg.apis.meta.v1.Duration" // no other object has one
	return strings.Contains(name, "metrics.k8s.io") || strings.HasPrefix(name, "io.k8s.metrics.") || name == window
}

func inline(v any, params map[string]any) any {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok && strings.HasPrefix(ref, "#/parameters/") {
			return params[strings.TrimPrefix(ref, "#/parameters/")]
		}
		for k, x := range v {
			v[k] = inline(x, params)
		}
	case []any:
		for i, x := range v {
			v[i] = inline(x, params)
		}
	}
	return v
}

func read(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

func compare(t *testing.T, what string, ours, theirs map[string]any) {
	t.Helper()
	if len(ours) == 0 {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(ours)) {
		if ofAnotherServer(k) {
			continue
		}
		them, ok := theirs[k]
		if !ok {
			t.Errorf("%s %s is not upstream's", what, k)
			continue
		}
		if a, b := alike(ours[k]), alike(them); !reflect.DeepEqual(a, b) {
			t.Errorf("%s %s differs: %s", what, k, difference("", a, b))
		}
	}
}

// alike takes out of a document what gates decide.
func alike(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if strings.Contains(k, "cbor") {
				continue
			}
			if _, list := x.([]any); k == "enum" && list {
				continue
			}
			if s, ok := x.(string); ok && k == "description" {
				x, _, _ = strings.Cut(s, "\n\nPossible enum values:")
				x = strings.TrimRight(strings.TrimSuffix(x.(string), "Possible enum values:"), "\n")
			}
			out[k] = alike(x)
		}
		return out
	case []any:
		var out []any
		for _, x := range v {
			if s, ok := x.(string); ok && strings.Contains(s, "cbor") {
				continue
			}
			out = append(out, alike(x))
		}
		return out
	}
	return v
}

func difference(path string, a, b any) string {
	am, ok1 := a.(map[string]any)
	bm, ok2 := b.(map[string]any)
	if ok1 && ok2 {
		for k := range am {
			if !reflect.DeepEqual(am[k], bm[k]) {
				return difference(path+"."+k, am[k], bm[k])
			}
		}
		for k := range bm {
			if _, ok := am[k]; !ok {
				return fmt.Sprintf("%s.%s is missing", path, k)
			}
		}
	}
	return fmt.Sprintf("%s:\nours:     %.300v\nupstream: %.300v", path, a, b)
}
