package volume_test

import (
	"os"
	"path/filepath"
	"testing"

	"skiff/internal/volume/volumetest"
)

func TestLocalDirectories(t *testing.T) {
	set := newSet(t, &volumetest.Sources{})
	for range 2 {
		path, err := set.MakeLocal("pvc-1")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o777 {
			t.Fatalf("directory is %v, %v", st, err)
		}
		if err := os.WriteFile(filepath.Join(path, "x"), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"", "..", "a/b", "../pvc-1"} {
		if _, err := set.MakeLocal(bad); err == nil {
			t.Errorf("made a directory for %q", bad)
		}
		if err := set.RemoveLocal(bad); err == nil {
			t.Errorf("removed a directory for %q", bad)
		}
	}
	path, err := set.MakeLocal("pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := set.RemoveLocal("pvc-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the directory is there: %v", err)
	}
}
