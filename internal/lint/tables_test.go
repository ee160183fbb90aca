package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tables are documents that say of each point which tests show it, in the last
// column: TestX of test/e2e, TestX/part where it has named parts, or the names that
// follow `internal/room`. Each has so many rows at least.
var tables = map[string]int{"docs/pods.md": 20, "docs/kubectl.md": 20, "docs/node.md": 9}

var (
	testName = regexp.MustCompile("`(internal/[a-z/]+)`|\\b(Test\\w+)(?:/(\\w+))?")
	funcName = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)

// testsIn are the sources of a directory's tests, by the tests in each.
func testsIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range funcName.FindAllStringSubmatch(string(b), -1) {
			tests[m[1]] = string(b)
		}
	}
	return tests
}

func TestTables(t *testing.T) {
	dirs := map[string]map[string]string{}
	for doc, least := range tables {
		b, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		for line := range strings.Lines(string(b)) {
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
			if !strings.HasPrefix(line, "| ") || cells[len(cells)-1] == "test" || len(cells) < 3 {
				continue
			}
			rows++
			dir, named := "test/e2e", 0
			for _, m := range testName.FindAllStringSubmatch(cells[len(cells)-1], -1) {
				if m[1] != "" {
					dir = m[1]
					continue
				}
				named++
				if dirs[dir] == nil {
					dirs[dir] = testsIn(t, dir)
				}
				source, ok := dirs[dir][m[2]]
				if !ok || m[3] != "" && !strings.Contains(source, `"`+m[3]+`"`) {
					t.Errorf("%s: %s has no test %s", doc, dir, strings.Trim(m[2]+"/"+m[3], "/"))
				}
			}
			if named == 0 {
				t.Errorf("%s: no test shows %s", doc, cells[0])
			}
		}
		if rows < least {
			t.Errorf("%s has %d rows: is it a table still?", doc, rows)
		}
	}
}
