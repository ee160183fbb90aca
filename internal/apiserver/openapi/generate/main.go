// Command generate writes the OpenAPI documents that skiff serves, and the schema
// that server-side apply merges by, after resources were added or changed:
//
//	go generate ./internal/apiserver/openapi
//
// With -types it describes the types of k8s.io/api anew before, which is needed
// when the version of that module changes.
package main

import (
	"flag"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"skiff/internal/api"
	"skiff/internal/apiserver/openapi"
	"skiff/internal/apiserver/openapi/build"
)

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", ".", "`directory` of package openapi")
	types := flag.Bool("types", false, "describe the types anew")
	flag.Parse()
	if err := run(*dir, *types); err != nil {
		log.Fatal(err)
	}
}

func run(dir string, types bool) error {
	if types {
		cmd := exec.Command("go", "run", ".")
		cmd.Dir = filepath.Join(dir, "describe")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	compressed, err := os.ReadFile(filepath.Join(dir, "types.json.zst"))
	if err != nil {
		return err
	}
	t, err := build.ReadTypes(compressed)
	if err != nil {
		return err
	}
	docs, err := build.Build(t, api.All())
	if err != nil {
		return err
	}
	merge, err := build.MergeSchema(t, api.All())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "..", "fields", "schema.json.gz"), merge, 0o644); err != nil {
		return err
	}
	out := filepath.Join(dir, "documents")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	files, err := openapi.Files(docs.V2, docs.V2Protobuf, docs.V3)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(out, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
