// Command types describes the Go types of the Kubernetes API for OpenAPI: it
// writes ../types.json.zst, which the generator of the documents reads.
//
// It is a module of its own, since what it needs is needed nowhere else, and is
// run only when the version of k8s.io/api changes. The Go code it makes on the
// way (generated/) is not kept.
package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/gengo/v2"
	"k8s.io/gengo/v2/generator"
	"k8s.io/kube-openapi/cmd/openapi-gen/args"
	"k8s.io/kube-openapi/pkg/generators"
)

// packages besides those of k8s.io/api that ask for it.
var packages = []string{
	"k8s.io/apimachinery/pkg/api/resource",
	"k8s.io/apimachinery/pkg/apis/meta/v1",
	"k8s.io/apimachinery/pkg/apis/meta/v1beta1",
	"k8s.io/apimachinery/pkg/runtime",
	"k8s.io/apimachinery/pkg/util/intstr",
	"k8s.io/apimachinery/pkg/version",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1",
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1",
	"k8s.io/metrics/pkg/apis/metrics/v1",
	"k8s.io/metrics/pkg/apis/metrics/v1beta1",
}

func main() {
	log.SetFlags(0)
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	pkgs, err := described("k8s.io/api")
	if err != nil {
		return err
	}
	pkgs = append(pkgs, packages...)
	a := args.New()
	a.OutputDir, a.OutputPkg, a.OutputFile = "generated", "skiff/internal/apiserver/openapi/describe/generated", "openapi.go"
	a.ReportFilename = os.DevNull
	if err := os.MkdirAll(a.OutputDir, 0o755); err != nil {
		return err
	}
	targets := func(c *generator.Context) []generator.Target { return generators.GetOpenAPITargets(c, a, nil) }
	if err := gengo.Execute(generators.NameSystems(), generators.DefaultNameSystem(), targets, gengo.StdBuildTag, pkgs); err != nil {
		return fmt.Errorf("describe the types: %w", err)
	}
	cmd := exec.Command("go", "run", "./dump", filepath.Join("..", "types.json.zst"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// described returns the packages of a module whose doc.go asks for a description.
func described(module string) ([]string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", module, err)
	}
	root := strings.TrimSpace(string(dir))
	docs, err := filepath.Glob(filepath.Join(root, "*", "*", "doc.go"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, doc := range docs {
		text, err := os.ReadFile(doc)
		if err != nil {
			return nil, err
		}
		if !strings.Contains(string(text), "+k8s:openapi-gen=true") {
			continue
		}
		rel, err := filepath.Rel(root, filepath.Dir(doc))
		if err != nil {
			return nil, err
		}
		out = append(out, module+"/"+filepath.ToSlash(rel))
	}
	slices.Sort(out)
	return out, nil
}
