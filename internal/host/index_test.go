package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestIndexFindsByNameAlone(t *testing.T) {
	x := Index{Dir: filepath.Join(t.TempDir(), "skiff")}
	elsewhere := t.TempDir()
	if _, known, err := x.Find("a"); known || err != nil {
		t.Fatalf("known %v, %v, on a machine without any", known, err)
	}
	a, err := New("a", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second start notes nothing new
		if err := x.Add(a); err != nil {
			t.Fatal(err)
		}
	}
	if dir, known, err := x.Find("a"); dir != elsewhere || !known || err != nil {
		t.Errorf("found %q %v %v, want %q", dir, known, err, elsewhere)
	}
	// One name has one directory.
	other, err := New("a", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Add(other); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another directory of the same name: %v", err)
	}
	if err := x.Remove(other); err != nil {
		t.Fatal(err)
	}
	if _, known, _ := x.Find("a"); !known {
		t.Error("removing another one's entry took this one's")
	}
	// One in its default place, an empty directory, and one that is gone.
	for _, d := range []string{"b", "empty"} {
		if err := os.Mkdir(filepath.Join(x.Dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(x.Dir, "b", "config.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all := x.All()
	if len(all) != 2 || all["a"] != elsewhere || all["b"] != filepath.Join(x.Dir, "b") {
		t.Errorf("all are %v", all)
	}
	b, err := New("b", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Add(b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name whose default directory is in use: %v", err)
	}
	empty, err := New("empty", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Add(empty); err != nil {
		t.Errorf("an empty directory is in the way: %v", err)
	}
	if err := x.Remove(a); err != nil {
		t.Fatal(err)
	}
	if _, known, err := x.Find("a"); known || err != nil {
		t.Errorf("known %v, %v, after it was removed", known, err)
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Errorf("the data went with the entry: %v", err)
	}
}
