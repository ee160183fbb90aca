// Package lint keeps the rules of the repository as tests.
package lint

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const root = "../.."

// levels are the rooms by level: a room may import rooms of lower levels, and
// those of its own level only where allowed says so.
var levels = []map[string]bool{
	set("codec", "store", "pki", "cri", "host", "metrics"),
	set("cache", "api", "client", "control"),
	set("apiserver", "scheduler", "controller", "kubelet", "runtime", "volume", "network", "dns", "cluster", "admin", "usage"),
	set("explain", "run"),
	set("cli"),
	set("app"),
	set("testcluster"),
}

// allowed are imports within a level.
var allowed = map[string]map[string]bool{
	"cri":     set("store"),
	"api":     set("client"),
	"cache":   set("client", "store"),
	"control": set("client"),
}

// never are imports that a room must not have although its level would allow it.
var never = map[string]map[string]bool{
	"runtime": set("kubelet", "client", "api", "cache", "control"),
	"volume":  set("kubelet", "client", "api", "cache", "control"),
	"client":  set("api", "cache"),
}

// onlyIn are outside packages, by prefix, and the rooms that may know them.
var onlyIn = map[string]map[string]bool{
	"go.etcd.io/":                       set("store"),
	"github.com/vishvananda/netlink":    set("network"),
	"github.com/google/nftables":        set("network"),
	"github.com/opencontainers/runc":    set("cmd/skiff-start"),
	"k8s.io/client-go/informers":        {},
	"k8s.io/client-go/kubernetes":       {},
	"k8s.io/client-go/tools/cache":      {},
	"k8s.io/apiserver/pkg/registry":     {},
	"k8s.io/apiserver/pkg/server":       {},
	"k8s.io/apiserver/pkg/storage/cach": {},
	"k8s.io/kubernetes":                 {},
}

// developmentTime are packages of generators: nothing of them is linked into
// skiff.
var developmentTime = set("internal/apiserver/openapi/build", "internal/apiserver/openapi/generate")

func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// room of an import path or a directory: the first element below internal, or
// cmd/NAME.
func room(path string) string {
	path = strings.TrimPrefix(filepath.ToSlash(path), "skiff/")
	parts := strings.Split(path, "/")
	switch {
	case len(parts) >= 2 && parts[0] == "internal":
		return parts[1]
	case len(parts) >= 2 && parts[0] == "cmd":
		return "cmd/" + parts[1]
	}
	return ""
}

func level(room string) int {
	for i, l := range levels {
		if l[room] {
			return i
		}
	}
	return -1
}

type source struct {
	path string // from the root
	file *ast.File
	fset *token.FileSet
	size int // lines
}

// sources parses every Go file that is not generated.
func sources(t *testing.T, tests bool) []source {
	t.Helper()
	var out []source
	for _, top := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.Contains(p, "zz_generated") {
				return err
			}
			if !tests && strings.HasSuffix(p, "_test.go") {
				return nil
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, p, b, parser.ParseComments)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			out = append(out, source{rel, f, fset, strings.Count(string(b), "\n")})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestImports: who may import whom (docs/architecture: the house).
func TestImports(t *testing.T) {
	for _, s := range sources(t, false) {
		from := room(filepath.Dir(s.path))
		for _, imp := range s.file.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			for prefix, rooms := range onlyIn {
				if strings.HasPrefix(path, prefix) && !rooms[from] && from != "lint" && !developmentTime[filepath.Dir(s.path)] {
					t.Errorf("%s imports %s, which only %v may", s.path, path, keys(rooms))
				}
			}
			if !strings.HasPrefix(path, "skiff/") || from == "lint" || strings.HasPrefix(from, "cmd/") {
				continue
			}
			to := room(path)
			if to == from {
				continue
			}
			lf, lt := level(from), level(to)
			switch {
			case lf < 0:
				t.Errorf("%s: room %q stands on no level; put it in levels", s.path, from)
			case lt < 0:
				t.Errorf("%s imports %s, a room that stands on no level", s.path, path)
			case lt > lf:
				t.Errorf("%s imports %s, a room of a higher level", s.path, path)
			case lt == lf && !allowed[from][to]:
				t.Errorf("%s imports %s, a room of its own level: they meet through client, cri, the API, or an interface of the consumer", s.path, path)
			case never[from][to]:
				t.Errorf("%s imports %s: %s must not know %s", s.path, path, from, to)
			}
		}
	}
}

func keys(m map[string]bool) []string {
	out := []string{}
	for k := range m {
		out = append(out, k)
	}
	return out
}

// TestFiles: no file over 800 lines, no init, no blank registration, no package
// without a doc, no names that say nothing.
func TestFiles(t *testing.T) {
	docs := map[string]bool{}
	dirs := map[string]string{}
	for _, s := range sources(t, false) {
		dir := filepath.Dir(s.path)
		if dirs[dir] == "" {
			dirs[dir] = s.path
		}
		if s.file.Doc != nil {
			docs[dir] = true
		}
		if s.size > 800 {
			t.Errorf("%s has %d lines: split it along a seam", s.path, s.size)
		}
		for _, bad := range []string{"util", "utils", "common", "helpers", "types", "manager"} {
			if filepath.Base(dir) == bad {
				t.Errorf("%s: %q says nothing about what is in it", dir, bad)
			}
		}
		for _, d := range s.file.Decls {
			// libcontainer's own start of a container must run before everything.
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && dir != "cmd/skiff-start" {
				t.Errorf("%s has an init function: what runs is said in app", s.fset.Position(f.Pos()))
			}
		}
	}
	for dir, first := range dirs {
		if !docs[dir] {
			t.Errorf("package %s has no doc comment (first file: %s)", dir, first)
		}
	}
}

// TestModules: what go.mod must never require, and that every direct dependency
// has its line in docs/dependencies.md.
func TestModules(t *testing.T) {
	reasons, err := os.ReadFile(filepath.Join(root, "docs/dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		if strings.HasPrefix(line, "k8s.io/kubernetes ") {
			t.Error("go.mod requires k8s.io/kubernetes")
		}
		parts := strings.Fields(line)
		if len(parts) < 2 || !strings.HasPrefix(parts[1], "v") || strings.HasSuffix(line, "// indirect") {
			continue
		}
		if !strings.Contains(string(reasons), "| "+parts[0]+" |") {
			t.Errorf("docs/dependencies.md gives no reason for %s", parts[0])
		}
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestWords: the project speaks of itself alone; nothing in it is a path of a
// developer's machine.
func TestWords(t *testing.T) {
	for _, s := range sources(t, true) {
		if strings.HasPrefix(s.path, "internal/lint/") {
			continue
		}
		for _, group := range s.file.Comments {
			for _, bad := range []string{"/work/", "/root/go"} {
				if strings.Contains(group.Text(), bad) {
					t.Errorf("%s: a comment has %q", s.fset.Position(group.Pos()), bad)
				}
			}
		}
	}
}
