package app

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOlderRelease(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"v0.4.0", "v0.5.0", true}, {"v0.5.0", "v0.4.0", false}, {"v0.9.0", "v0.10.0", true}, {"v0.5.0", "v0.5.0", false},
		{"v0.5.0-rc.1", "v0.5.0", true}, {"dev", "v0.5.0", false}, {"v0.5.0", "dev", false}, {"", "v0.5.0", true}, {"v0.5.0", "", false},
	} {
		if got := olderRelease(tt.a, tt.b); got != tt.want {
			t.Errorf("%q before %q: %v", tt.a, tt.b, got)
		}
	}
}

// Every program tells itself from others, and from what is no program.
func TestBuildOf(t *testing.T) {
	self := buildOf("/proc/self/exe")
	if len(self) != 12 || buildOf(os.Args[0]) != self {
		t.Errorf("this program is %q, by its path %q", self, buildOf(os.Args[0]))
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{text, "/bin/sh", text + "-none"} {
		if got := buildOf(path); got != "" {
			t.Errorf("%s is build %q", path, got)
		}
	}
	note := func(size uint32, name, id string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, 4)
		b = binary.LittleEndian.AppendUint32(b, size)
		b = binary.LittleEndian.AppendUint32(b, 4)
		return append(append(b, name...), id...)
	}
	for want, b := range map[string][]byte{
		"content":      note(14, "Go\x00\x00", "action/content"),
		"0123456789ab": note(20, "Go\x00\x00", "a/b/0123456789abcdef"),
		"":             note(1<<31, "Go\x00\x00", "action/content"),
	} {
		if got := contentOf(b, binary.LittleEndian.Uint32); got != want {
			t.Errorf("%q: %q, want %q", b, got, want)
		}
	}
	for _, b := range [][]byte{nil, note(14, "GNU\x00", "action/content"), note(14, "Go\x00\x00", "")} {
		if got := contentOf(b, binary.LittleEndian.Uint32); got != "" {
			t.Errorf("%q: %q", b, got)
		}
	}
	if !strings.Contains(Local{}.Version(), self) {
		t.Errorf("version %q", Local{}.Version())
	}
}

// A program that does not run here is found before anything depends on it.
func TestExecutes(t *testing.T) {
	dir := t.TempDir()
	program := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]bool{
		program("usage", "#!/bin/sh\nexit 2\n"): true, program("fine", "#!/bin/sh\n"): true,
		program("damaged", "\x7fELF\x02\x01\x01"): false, dir + "/missing": false, program("crash", "#!/bin/sh\nkill -SEGV $$\n"): false,
	} {
		if err := executes(t.Context(), path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
