package programs_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skiff/internal/runtime/programs"
)

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	put := func(path string, age time.Duration) string {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(path), 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keep := programs.Set{Pod: put("b1/skiff-pod", time.Hour), Start: put("b2/skiff-start", time.Hour)}
	used := put("a1/skiff-pod", 3*time.Hour)
	put("a2/skiff-start", 0)
	put("a3/skiff-pod", 0)
	put("k1/kubectl", 2*time.Hour)
	put("k2/kubectl", time.Hour)
	put("k3/kubectl", 3*time.Hour)
	for range 2 { // again it changes nothing
		if err := programs.Prune(dir, keep, func(p string) bool { return p == used }); err != nil {
			t.Fatal(err)
		}
		var left []string
		all, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			left = append(left, strings.TrimPrefix(f, dir+"/"))
		}
		if want := []string{"a1/skiff-pod", "b1/skiff-pod", "b2/skiff-start", "k2/kubectl"}; !slices.Equal(left, want) || len(all) != len(want) {
			t.Errorf("left: %q in %d directories, want %q", left, len(all), want)
		}
	}
}
