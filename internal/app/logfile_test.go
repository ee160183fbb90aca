package app

import (
	"os"
	"path/filepath"
	"testing"

	"skiff/internal/host"
)

func TestPutAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), host.LogFile)
	out, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	other, err := os.CreateTemp(t.TempDir(), "other")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	fds := []int{int(out.Fd()), int(other.Fd())}
	say := func(s string) {
		t.Helper()
		if _, err := out.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	is := func(path, want string) {
		t.Helper()
		if b, err := os.ReadFile(path); string(b) != want {
			t.Errorf("%s: %q, %v; want %q", path, b, err, want)
		}
	}
	aside := func() {
		t.Helper()
		if err := putAside(path, 8, fds...); err != nil {
			t.Fatal(err)
		}
	}
	say("short\n")
	aside()
	is(path, "short\n")
	say("longer\n")
	aside()
	say("new\n")
	is(path, "new\n")
	is(path+host.OldLog, "short\nlonger\n")
	say("new again\n")
	aside()
	is(path+host.OldLog, "new\nnew again\n")
	// One that is none of the descriptors is another's.
	fds = fds[1:]
	if _, err := other.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	say("of another process\n")
	aside()
	is(path, "of another process\n")
	is(other.Name(), "kept")
}
