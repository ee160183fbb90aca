package app

import (
	"os"
	"path/filepath"
	"testing"

	"skiff/internal/host"
)

// What one instance changed for all goes to another that needs it: to one that put
// something on the host, not to what a start that was refused left.
func TestOtherInstance(t *testing.T) {
	run := t.TempDir()
	instance := func(name string) host.Instance {
		t.Helper()
		i, err := host.New(name, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		i.RunDir = filepath.Join(run, name)
		if err := os.MkdirAll(i.RunDir, 0o700); err != nil {
			t.Fatal(err)
		}
		return i
	}
	a := instance("a")
	if err := os.WriteFile(a.Run("skiff.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b := instance("b")
	for _, i := range []host.Instance{a, b} {
		if heir := otherInstance(i); heir != "" {
			t.Errorf("the heir of %s is %s, which did nothing", i.Name, heir)
		}
	}
	j, err := host.OpenJournal(b.JournalPath())
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Record(host.Entry{Kind: host.KindDir, Name: b.RunDir}); err != nil {
		t.Fatal(err)
	}
	if heir := otherInstance(a); heir != b.RunDir {
		t.Errorf("the heir of a is %q, want %s", heir, b.RunDir)
	}
	if heir := otherInstance(b); heir != "" {
		t.Errorf("the heir of b is %q", heir)
	}
}
