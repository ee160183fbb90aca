// Package build makes the OpenAPI documents of the resources that skiff declares.
// It runs at development time only (package generate beside it) and in the test
// that compares the committed documents with what it makes now; nothing of it is
// linked into skiff.
//
// The schemas come from types.json.zst, which describes k8s.io/api (package types
// beside it); the paths from the declarations.
package build

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/schemamutation"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"skiff/internal/api/resource"
	"skiff/internal/apiserver/fields"
)

// Documents are what is served.
type Documents struct {
	// V2 is the whole API as OpenAPI v2: JSON and protobuf.
	V2, V2Protobuf []byte
	// V3 holds one JSON document per path below /openapi/v3.
	V3 map[string][]byte
}

// Hash names a document's contents, in the form that clients see.
func Hash(doc []byte) string { return fmt.Sprintf("%X", sha512.Sum512(doc)) }

// Types are the schemas of the API's Go types, by their name in OpenAPI.
type Types struct{ json []byte }

// ReadTypes decompresses types.json.zst.
func ReadTypes(compressed []byte) (*Types, error) {
	d, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	data, err := d.DecodeAll(compressed, nil)
	if err != nil {
		return nil, fmt.Errorf("types: %w", err)
	}
	return &Types{data}, nil
}

const refV3, refV2 = "#/components/schemas/", "#/definitions/"

// definitions returns the schemas with references below a prefix.
func (t *Types) definitions(ref string) (map[string]common.OpenAPIDefinition, error) {
	var in map[string]struct {
		Schema       spec.Schema  `json:"schema"`
		V2           *spec.Schema `json:"v2"`
		Dependencies []string     `json:"dependencies"`
	}
	if err := json.Unmarshal(bytes.ReplaceAll(t.json, []byte(refV3), []byte(ref)), &in); err != nil {
		return nil, fmt.Errorf("types: %w", err)
	}
	out := make(map[string]common.OpenAPIDefinition, len(in))
	for name, d := range in {
		if d.V2 != nil && ref == refV2 {
			d.Schema.AddExtension(common.ExtensionV2Schema, *d.V2)
		}
		out[name] = common.OpenAPIDefinition{Schema: d.Schema, Dependencies: d.Dependencies}
	}
	return out, nil
}

// namer gives each schema the kinds it stands for.
type namer map[string][]any

func newNamer() (namer, error) {
	s := scheme.Scheme
	kinds := map[string][]schema.GroupVersionKind{}
	for gvk := range s.AllKnownTypes() {
		name, err := s.ToOpenAPIDefinitionName(gvk)
		if err != nil {
			return nil, err
		}
		kinds[name] = append(kinds[name], gvk)
	}
	out := namer{}
	for name, list := range kinds {
		// Groups whose types are elsewhere still share the options of every group.
		if name == string(modelOf(metav1.DeleteOptions{})) || name == string(modelOf(metav1.WatchEvent{})) {
			for _, gv := range elsewhere {
				list = append(list, gv.WithKind(name[strings.LastIndexByte(name, '.')+1:]))
			}
		}
		slices.SortFunc(list, func(a, b schema.GroupVersionKind) int {
			return strings.Compare(a.Group+"\x00"+a.Version+"\x00"+a.Kind, b.Group+"\x00"+b.Version+"\x00"+b.Kind)
		})
		for _, gvk := range slices.Compact(list) {
			out[name] = append(out[name], gvkValue(gvk))
		}
	}
	return out, nil
}

var elsewhere = []schema.GroupVersion{
	{Group: "admission.k8s.io", Version: "v1"}, {Group: "admission.k8s.io", Version: "v1beta1"}, {Group: "imagepolicy.k8s.io", Version: "v1alpha1"},
	{Group: "apiextensions.k8s.io", Version: "v1"}, {Group: "apiextensions.k8s.io", Version: "v1beta1"},
	{Group: "apiregistration.k8s.io", Version: "v1"}, {Group: "apiregistration.k8s.io", Version: "v1beta1"},
}

func (n namer) name(name string) (string, spec.Extensions) {
	if kinds, ok := n[name]; ok {
		return name, spec.Extensions{"x-kubernetes-group-version-kind": kinds}
	}
	return name, nil
}

// within narrows the kinds that every group has (DeleteOptions, WatchEvent) to
// those of one document's group and version, and of core.
func (n namer) within(doc string) namer {
	var gv schema.GroupVersion
	switch parts := strings.Split(doc, "/"); {
	case parts[0] == "api" && len(parts) == 2:
		gv = schema.GroupVersion{Version: parts[1]}
	case parts[0] == "apis" && len(parts) == 3:
		gv = schema.GroupVersion{Group: parts[1], Version: parts[2]}
	default:
		return n
	}
	out := maps.Clone(n)
	for _, name := range []model{modelOf(metav1.DeleteOptions{}), modelOf(metav1.WatchEvent{})} {
		kind := string(name[strings.LastIndexByte(string(name), '.')+1:])
		var list []any
		for _, v := range []schema.GroupVersion{{Version: "v1"}, gv} {
			if len(list) == 0 || v != (schema.GroupVersion{Version: "v1"}) {
				list = append(list, gvkValue(v.WithKind(kind)))
			}
		}
		out[string(name)] = list
	}
	return out
}

// operation names an operation, unique in the whole API, and its tag.
func operation(r common.Route) (string, []string, error) {
	op := r.OperationName()
	verb := ""
	for _, v := range []string{"deletecollection", "connect", "replace", "create", "delete", "watch", "patch", "list", "read", "get"} {
		if strings.HasPrefix(op, v) {
			verb = v
			break
		}
	}
	if verb == "" {
		return "", nil, fmt.Errorf("operation %q does not start with a verb", op)
	}
	rest := op[len(verb):]
	if verb == "deletecollection" {
		verb, rest = "delete", "Collection"+rest
	}
	parts := strings.Split(strings.Trim(r.Path(), "/"), "/")
	if parts[0] == "api" {
		parts = append([]string{"apis", "core"}, parts[1:]...)
	}
	var place, tag string
	switch {
	case parts[0] == "apis" && len(parts) > 1:
		group := strings.TrimSuffix(parts[1], ".k8s.io")
		place, tag = camel(group, true), camel(group, false)
		if len(parts) > 2 {
			place += camel(parts[2], true)
			tag += "_" + camel(parts[2], false)
		}
	default:
		tag = camel(parts[0], false)
	}
	return verb + place + rest, []string{tag}, nil
}

func camel(s string, first bool) string {
	var b strings.Builder
	for word := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '.' || r == '-' }) {
		if first || b.Len() > 0 {
			word = capital(word)
		}
		b.WriteString(word)
	}
	return b.String()
}

const bearer = "BearerToken"

// Build makes the documents.
func Build(t *Types, all []*resource.Resource) (*Documents, error) {
	svcs, err := services(all)
	if err != nil {
		return nil, err
	}
	n, err := newNamer()
	if err != nil {
		return nil, err
	}
	info := &spec.Info{InfoProps: spec.InfoProps{Title: "Kubernetes", Version: "unversioned"}}
	out := &Documents{V3: map[string][]byte{}}
	for doc, svc := range svcs {
		defs, err := t.definitions(refV3)
		if err != nil {
			return nil, err
		}
		cfg := &common.OpenAPIV3Config{
			Info: info, Definitions: defs, GetDefinitionName: n.within(doc).name, GetOperationIDAndTagsFromRoute: operation,
			DefaultResponse: &spec3.Response{ResponseProps: spec3.ResponseProps{Description: "Default Response."}},
			CommonResponses: map[int]*spec3.Response{401: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}}},
			SecuritySchemes: spec3.SecuritySchemes{bearer: {SecuritySchemeProps: spec3.SecuritySchemeProps{
				Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
			}}},
		}
		s, err := builder3.BuildOpenAPISpecFromRoutes([]common.RouteContainer{svc}, cfg)
		if err != nil {
			return nil, fmt.Errorf("v3 %s: %w", doc, err)
		}
		if out.V3[doc], err = json.Marshal(s); err != nil {
			return nil, err
		}
	}
	defs, err := t.definitions(refV2)
	if err != nil {
		return nil, err
	}
	var containers []common.RouteContainer
	for _, doc := range slices.Sorted(maps.Keys(svcs)) {
		containers = append(containers, svcs[doc])
	}
	s, err := builder.BuildOpenAPISpecFromRoutes(containers, &common.Config{
		ProtocolList: []string{"https"}, Info: info,
		GetDefinitions: func(common.ReferenceCallback) map[string]common.OpenAPIDefinition { return defs }, GetDefinitionName: n.name, GetOperationIDAndTagsFromRoute: operation,
		DefaultResponse: &spec.Response{ResponseProps: spec.ResponseProps{Description: "Default Response."}},
		CommonResponses: map[int]spec.Response{401: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}}},
		SecurityDefinitions: &spec.SecurityDefinitions{bearer: {SecuritySchemeProps: spec.SecuritySchemeProps{
			Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
		}}},
		DefaultSecurity: []map[string][]string{{bearer: {}}},
	})
	if err != nil {
		return nil, fmt.Errorf("v2: %w", err)
	}
	// Clients of v2 take a default for one that the server fills in: there are none.
	bare := schemamutation.Walker{RefCallback: schemamutation.RefCallbackNoop, SchemaCallback: func(s *spec.Schema) *spec.Schema {
		if s.Default == nil {
			return s
		}
		c := *s
		c.Default = nil
		return &c
	}}
	if out.V2, err = json.Marshal(bare.WalkRoot(s)); err != nil {
		return nil, err
	}
	parsed, err := openapi_v2.ParseDocument(out.V2)
	if err != nil {
		return nil, fmt.Errorf("v2 as protobuf: %w", err)
	}
	if out.V2Protobuf, err = (proto.MarshalOptions{Deterministic: true}).Marshal(parsed); err != nil {
		return nil, fmt.Errorf("v2 as protobuf: %w", err)
	}
	return out, nil
}

// MergeSchema makes the schema that server-side apply merges by, of all objects
// that are sent, as package fields reads it: reviews have managed fields in their
// answers, too.
func MergeSchema(t *Types, all []*resource.Resource) ([]byte, error) {
	defs, err := t.definitions(refV3)
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, r := range all {
		roots = append(roots, string(modelOf(r.New())))
		for _, s := range r.Subresources {
			if s.NewView != nil {
				roots = append(roots, string(modelOf(s.NewView())))
			}
			if s.Echoed {
				roots = append(roots, string(modelOf(s.NewBody())))
			}
		}
	}
	models, err := builder3.BuildOpenAPIDefinitionsForResources(&common.OpenAPIV3Config{
		Definitions: defs, GetDefinitionName: func(name string) (string, spec.Extensions) { return name, nil },
	}, roots...)
	if err != nil {
		return nil, err
	}
	s, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		return nil, err
	}
	return fields.MarshalSchema(s, roots)
}
