package programs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"

	"skiff/internal/runtime/programs"
)

func packed(t *testing.T, content string) *fstest.MapFile {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return &fstest.MapFile{Data: e.EncodeAll([]byte(content), nil)}
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	src := fstest.MapFS{"skiff-pod.zst": packed(t, "pod 1"), "skiff-start.zst": packed(t, "start 1")}
	one, err := programs.Unpack(src, dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{one.Pod: "pod 1", one.Start: "start 1"} {
		b, err := os.ReadFile(path)
		st, serr := os.Stat(path)
		if string(b) != want || err != nil || serr != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %q, %v, %v", path, b, err, st)
		}
	}
	before, _ := os.Stat(one.Pod)
	again, err := programs.Unpack(src, dir)
	after, _ := os.Stat(one.Pod)
	if again != one || err != nil || !os.SameFile(before, after) {
		t.Errorf("again = %+v, %v", again, err)
	}
	// A new version stands beside the old one, which goes on being used.
	src["skiff-pod.zst"] = packed(t, "pod 2")
	two, err := programs.Unpack(src, dir)
	if err != nil || two.Pod == one.Pod || two.Start != one.Start {
		t.Errorf("new version = %+v, %v", two, err)
	}
	if b, _ := os.ReadFile(one.Pod); string(b) != "pod 1" {
		t.Errorf("the old one is %q", b)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", ".unpack-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestUnpackBad(t *testing.T) {
	if _, err := programs.Unpack(fstest.MapFS{}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "build it with make") {
		t.Errorf("missing: %v", err)
	}
	dir := t.TempDir()
	_, err := programs.Unpack(fstest.MapFS{"skiff-pod.zst": {Data: []byte("no zstd")}}, dir)
	if err == nil {
		t.Error("damaged: no error")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
