// Command dump writes what the generated code describes as compressed JSON.
package main

import (
	"encoding/json"
	"log"
	"os"

	"github.com/klauspost/compress/zstd"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"skiff/internal/apiserver/openapi/describe/generated"
)

// definition is one type: its schema as OpenAPI v3 has it, the one that v2 has
// where it differs, and the names of the types that it refers to.
type definition struct {
	Schema       spec.Schema  `json:"schema"`
	V2           *spec.Schema `json:"v2,omitempty"`
	Dependencies []string     `json:"dependencies,omitempty"`
}

func main() {
	log.SetFlags(0)
	out := map[string]definition{}
	for name, d := range generated.GetOpenAPIDefinitions(func(name string) spec.Ref {
		return spec.MustCreateRef("#/components/schemas/" + common.EscapeJsonPointer(name))
	}) {
		def := definition{Schema: d.Schema, Dependencies: d.Dependencies}
		if v2, ok := d.Schema.Extensions[common.ExtensionV2Schema].(spec.Schema); ok {
			def.V2 = &v2
			delete(def.Schema.Extensions, common.ExtensionV2Schema)
		}
		out[name] = def
	}
	data, err := json.Marshal(out)
	if err != nil {
		log.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(os.Args[1], enc.EncodeAll(data, nil), 0o644); err != nil {
		log.Fatal(err)
	}
}
