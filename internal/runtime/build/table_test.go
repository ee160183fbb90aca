package build

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/command"
)

// Every row of docs/dockerfile.md names a test that is there, every case of
// TestLanguage stands in a row, and every instruction has one.
func TestTable(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/dockerfile.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testNames(t, ".", "../../cli", "../../../test/e2e")
	quoted := regexp.MustCompile("`([^`]+)`")
	named := map[string]bool{}
	rows := 0
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 5 || strings.HasPrefix(line, "|---") {
			if strings.Contains(line, "(`expand-not`)") {
				named["expand-not"] = true
			}
			continue
		}
		last := cells[len(cells)-2]
		if strings.TrimSpace(last) == "test" {
			continue
		}
		rows++
		found := quoted.FindAllStringSubmatch(last, -1)
		if len(found) == 0 {
			t.Errorf("no test: %s", line)
		}
		for _, m := range found {
			name := m[1]
			named[name] = true
			if _, ok := language[name]; !ok && !tests[name] {
				t.Errorf("there is no test %s: %s", name, line)
			}
		}
	}
	if rows < 100 {
		t.Errorf("only %d rows were found", rows)
	}
	for name := range language {
		if !named[name] {
			t.Errorf("the case %s stands in no row", name)
		}
	}
	for name := range command.Commands {
		if !strings.Contains(string(doc), strings.ToUpper(name)) {
			t.Errorf("the instruction %s is not in the document", name)
		}
	}
}

// testNames are the test functions in directories.
func testNames(t *testing.T, dirs ...string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, dir := range dirs {
		names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
					out[fn.Name.Name] = true
				}
			}
		}
	}
	return out
}
