package kubelet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEnvFileValue(t *testing.T) {
	for _, c := range []struct{ text, key, want, err string }{
		{"A='1'\nB='2'\n", "B", "2", ""},
		{"A='1'\n", "B", "", ""},
		{"", "A", "", ""},
		{"\n \t\n# A='0'\n\tA='1' # one\n", "A", "1", ""},
		{"A='1'", "A", "1", ""},
		{"A='1'\r\nB='2'\r\n", "B", "2", ""},
		{"A='$B \\n \"x\" #y'\n", "A", `$B \n "x" #y`, ""},
		{"A='one\ntwo\n'\nB='3'\n", "A", "one\ntwo\n", ""},
		{"A='one\ntwo'\nB='3'\n", "B", "3", ""},
		{"A=''\n", "A", "", ""},
		{"A= 'x'\n", "A", "", ""},
		{"A= 'x'\nB='y'\n", "B", "y", ""},
		{"A='1'\nA='2'\n", "A", "1", ""},
		{"A='1'\nnonsense\n", "A", "1", ""}, // not looked at
		{"nonsense\nA='1'\n", "A", "", "line 1: missing '='"},
		{"='1'\n", "A", "", "line 1: empty variable name"},
		{"\nA ='1'\n", "A", "", "line 2: whitespace before '=' is not allowed"},
		{"A=1\n", "A", "", "line 1: value must be enclosed in single quotes"},
		{"A=\"1\"\n", "A", "", "line 1: value must be enclosed in single quotes"},
		{"A='1'x\n", "A", "", "line 1: unexpected content after closing quote"},
		{"B='\nA='1'\n", "A", "", "line 2: unexpected content after closing quote"},
		{"B='1'\nA='\n\n", "A", "", "line 2: unclosed single quote"},
	} {
		got, err := envFileValue(c.text, c.key)
		if said := errText(err); got != c.want || said != c.err {
			t.Errorf("%q of %q is %q, %q; want %q, %q", c.key, c.text, got, said, c.want, c.err)
		}
	}
}

func FuzzEnvFileValue(f *testing.F) {
	f.Add("A='1'\n# x\nB='2\n3' # y", "B")
	f.Fuzz(func(t *testing.T, text, key string) {
		if v, err := envFileValue(text, key); v != "" && (err != nil || !strings.Contains(strings.ReplaceAll(text, "\r", ""), strings.ReplaceAll(v, "\r", ""))) {
			t.Errorf("%q, %v is not in %q", v, err, text)
		}
	})
}

// TestReadEnvFile: a container may have put anything into the volume.
func TestReadEnvFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	for _, err := range []error{
		os.MkdirAll(dir+"/sub", 0o755),
		os.WriteFile(dir+"/../outside", []byte("A='out'"), 0o600),
		os.WriteFile(dir+"/sub/file", []byte("A='in'"), 0o600),
		os.WriteFile(dir+"/large", make([]byte, maxEnvFile+1), 0o600),
		os.Symlink("sub/file", dir+"/link"),
		os.Symlink("../outside", dir+"/out"),
		os.Symlink(dir+"/../outside", dir+"/absolute"),
		unix.Mkfifo(dir+"/fifo", 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"sub/file": "A='in'", "link": "A='in'",
		"out": "", "absolute": "", "fifo": "", "large": "", "sub": "", "none": "", "../outside": "",
	} {
		got, err := readEnvFile(dir, path)
		if want == "" && err == nil || want != "" && got != want {
			t.Errorf("%s: %.20q, %v; want %q", path, got, err, want)
		}
	}
}
