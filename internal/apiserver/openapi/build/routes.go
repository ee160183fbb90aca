package build

import (
	"encoding/json"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-openapi/pkg/common"
)

// service is the routes of one group and version, in the form that the builders
// of kube-openapi take.
type service struct {
	root   string
	routes []common.Route
}

func (s *service) RootPath() string                   { return s.root }
func (s *service) PathParameters() []common.Parameter { return nil }
func (s *service) Routes() []common.Route             { return s.routes }

// route is one operation on one path.
type route struct {
	method, path, operation, doc string
	params                       []common.Parameter
	consumes, produces           []string
	metadata                     map[string]any
	reads, writes                any
	responses                    []common.StatusCodeResponse
}

func (r *route) Method() string                                   { return r.method }
func (r *route) Path() string                                     { return r.path }
func (r *route) OperationName() string                            { return r.operation }
func (r *route) Parameters() []common.Parameter                   { return r.params }
func (r *route) Description() string                              { return r.doc }
func (r *route) Consumes() []string                               { return r.consumes }
func (r *route) Produces() []string                               { return r.produces }
func (r *route) Metadata() map[string]any                         { return r.metadata }
func (r *route) RequestPayloadSample() any                        { return r.reads }
func (r *route) ResponsePayloadSample() any                       { return r.writes }
func (r *route) StatusCodeResponses() []common.StatusCodeResponse { return r.responses }

type response struct {
	code    int
	message string
	model   any
}

func (r response) Code() int       { return r.code }
func (r response) Message() string { return r.message }
func (r response) Model() any      { return r.model }

type param struct {
	name, doc, data string
	kind            common.ParameterKind
	required        bool
}

func (p param) Name() string               { return p.name }
func (p param) Description() string        { return p.doc }
func (p param) Required() bool             { return p.required }
func (p param) Kind() common.ParameterKind { return p.kind }
func (p param) DataType() string           { return p.data }
func (p param) AllowMultiple() bool        { return false }

// MarshalJSON tells parameters of one name apart; the builder compares these.
func (p param) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{p.name, p.doc, p.data, p.kind, p.required})
}

// model is a type by its name in OpenAPI; it stands for a Go value of the type.
type model string

func (m model) OpenAPIModelName() string { return string(m) }

// text is the model of an answer that is no object.
const text = model("string")

func modelOf(v any) model {
	if n, ok := v.(interface{ OpenAPIModelName() string }); ok {
		return model(n.OpenAPIModelName())
	}
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return model(t.PkgPath() + "." + t.Name())
}

var (
	objectTypes = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	streamTypes = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}
	patchTypes  = []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)}
	anyType     = []string{"*/*"}
)

var (
	pretty    = param{name: "pretty", data: "string", kind: common.QueryParameterKind, doc: "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget)."}
	namespace = param{name: "namespace", data: "string", kind: common.PathParameterKind, required: true, doc: "object name and auth scope, such as for teams and projects"}
	subpath   = param{name: "path", data: "string", kind: common.PathParameterKind, required: true, doc: "path to the resource"}
)

func nameOf(kind string) param {
	return param{name: "name", data: "string", kind: common.PathParameterKind, required: true, doc: "name of the " + kind}
}

func body(required bool) param {
	return param{name: "body", kind: common.BodyParameterKind, required: required, data: "string"}
}

// options turns the fields of an options object into query parameters.
func options(o any, except ...string) []common.Parameter {
	docs := map[string]string{}
	if d, ok := o.(interface{ SwaggerDoc() map[string]string }); ok {
		docs = d.SwaggerDoc()
	}
	var out []common.Parameter
	t := reflect.TypeOf(o)
fields:
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		for _, e := range except {
			if e == name {
				continue fields
			}
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		var data string
		switch ft.Kind() {
		case reflect.Bool:
			data = "boolean"
		case reflect.Int, reflect.Int32, reflect.Int64:
			data = "integer"
		case reflect.String:
			data = "string"
		case reflect.Slice:
			if data = "string"; ft.Elem().Kind() == reflect.Int32 {
				data = "integer"
			}
		default:
			continue
		}
		out = append(out, param{name: name, doc: docs[name], data: data, kind: common.QueryParameterKind})
	}
	return out
}

func gvkValue(gvk schema.GroupVersionKind) map[string]any {
	return map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}
}
