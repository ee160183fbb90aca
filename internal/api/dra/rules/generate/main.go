// Command generate writes zz_generated.validations.go of the packages in targets:
// the rules that stand, as markers, on the types of k8s.io/api, as functions.
//
// It is a module of its own, since what it needs is needed nowhere else, and is run
// (go run . here) only when the version of k8s.io/api changes.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

func main() {
	log.SetFlags(0)
	for types, dir := range targets {
		if err := run(types, dir); err != nil {
			log.Fatal(err)
		}
	}
}

// targets are the packages of types, and where their rules go.
var targets = map[string]string{
	"k8s.io/api/resource/v1":        filepath.Join(".."),
	"k8s.io/api/scheduling/v1beta1": filepath.Join("..", "..", "..", "scheduling", "rules"),
}

// packages are what the generator asks for: the types, and those of metadata, whose
// rules are there already, in apimachinery.
var packages = map[string]string{
	"meta": `// +k8s:validation-gen=TypesWithField=TypeMeta
// +k8s:validation-gen-input=k8s.io/apimachinery/pkg/apis/meta/v1

package meta

import (
	"context"

	"k8s.io/apimachinery/pkg/api/operation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func ValidateCustom_Condition_LastTransitionTime(context.Context, operation.Operation, *field.Path, *metav1.Time, *metav1.Time) field.ErrorList {
	return nil
}
`,
	"rules": `// +k8s:validation-gen=TypesWithField=TypeMeta
// +k8s:validation-gen-input=TYPES

package rules
`,
}

// known are packages whose types have no rules of their own here.
var known = []string{
	"k8s.io/apimachinery/pkg/api/resource", "k8s.io/apimachinery/pkg/runtime", "k8s.io/apimachinery/pkg/types",
	"k8s.io/apimachinery/pkg/util/intstr", "time", "k8s.io/api/core/v1",
}

const output = "zz_generated.validations.go"

func run(types, to string) error {
	dir, err := os.MkdirTemp(".", "work")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"run", "k8s.io/code-generator/cmd/validation-gen", "--go-header-file", os.DevNull, "--output-file", output}
	for _, k := range known {
		args = append(args, "--readonly-pkg", k)
	}
	for name, doc := range packages {
		p := filepath.Join(dir, name)
		if err := os.Mkdir(p, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(p, "doc.go"), []byte(strings.ReplaceAll(doc, "TYPES", types)), 0o644); err != nil {
			return err
		}
		args = append(args, "./"+filepath.ToSlash(p))
	}
	cmd := exec.Command("go", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("validation-gen: %w", err)
	}
	code, err := os.ReadFile(filepath.Join(dir, "rules", output))
	if err != nil {
		return err
	}
	if code, err = trim(code); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, output), code, 0o644)
}

var (
	// registration is the part that puts the functions into a scheme when the
	// program starts: they are called directly.
	registration = regexp.MustCompile(`(?ms)^func init\(\).*?^(// Validate_|var )`)
	metaImport   = regexp.MustCompile(`meta "[^"]*/meta"`)
	unused       = regexp.MustCompile(`(?m)^\t(fmt "fmt"|runtime "k8s.io/apimachinery/pkg/runtime")\n`)
	metaCall     = regexp.MustCompile(`\bmeta\.Validate_`)
)

func trim(code []byte) ([]byte, error) {
	code = registration.ReplaceAll(code, []byte("$1"))
	code = metaImport.ReplaceAll(code, []byte(`metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"`))
	code = metaCall.ReplaceAll(code, []byte("metavalidation.Validate_"))
	for _, m := range unused.FindAll(code, -1) {
		name := bytes.Fields(m)[0]
		if !regexp.MustCompile(`\b` + string(name) + `\.`).Match(bytes.Replace(code, m, nil, 1)) {
			code = bytes.Replace(code, m, nil, 1)
		}
	}
	return format.Source(code)
}
