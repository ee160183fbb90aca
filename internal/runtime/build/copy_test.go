package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"skiff/internal/runtime/snapshot"
)

func TestCopy(t *testing.T) {
	files := map[string]string{
		"a.txt": "a", "b.txt": "b", "dir/x": "x", "dir/sub/y": "y", "dir/skip.log": "log", "keep/me": "me", "keep/not": "not",
		".dockerignore": "# comment\n**/*.log\nkeep\n!keep/me\n",
	}
	tests := map[string]struct {
		dockerfile string
		dirs       string
		want       string
		err        string
	}{
		"file to file":        {"COPY a.txt /new/name", "/new", "/new/\n/new/name = a", ""},
		"file to directory":   {"COPY a.txt /new/", "/new", "/new/\n/new/a.txt = a", ""},
		"file to existing":    {"COPY a.txt /tmp", "/tmp", "/tmp/\n/tmp/a.txt = a", ""},
		"relative":            {"WORKDIR /w\nCOPY a.txt sub/", "/w", "/w/\n/w/sub/\n/w/sub/a.txt = a", ""},
		"relative dot":        {"WORKDIR /w\nCOPY a.txt .", "/w", "/w/\n/w/a.txt = a", ""},
		"directory":           {"COPY dir /d", "/d", "/d/\n/d/sub/\n/d/sub/y = y\n/d/x = x", ""},
		"everything":          {"COPY . /c/", "/c", "/c/\n/c/.dockerignore = " + strings.TrimSpace(files[".dockerignore"]) + "\n/c/a.txt = a\n/c/b.txt = b\n/c/dir/\n/c/dir/sub/\n/c/dir/sub/y = y\n/c/dir/x = x\n/c/keep/\n/c/keep/me = me", ""},
		"wildcard":            {"COPY *.txt /c/", "/c", "/c/\n/c/a.txt = a\n/c/b.txt = b", ""},
		"wildcard in path":    {"COPY d*/s?b/[xy] /c/", "/c", "/c/\n/c/y = y", ""},
		"two":                 {"COPY a.txt dir/x /c/", "/c", "/c/\n/c/a.txt = a\n/c/x = x", ""},
		"json":                {`COPY ["a.txt", "/with space/"]`, "/with space", "/with space/\n/with space/a.txt = a", ""},
		"exclude":             {"COPY --exclude=sub --exclude=*.log dir /c", "/c", "/c/\n/c/x = x", ""},
		"heredoc":             {"ARG V=1\nCOPY <<EOF <<\"RAW\" /c/\nv=$V\nEOF\nv=$V\nRAW", "/c", "/c/\n/c/EOF = v=1\n/c/RAW = v=$V", ""},
		"through a link":      {"COPY a.txt /lib/", "/usr/lib", "/usr/lib/\n/usr/lib/a.txt = a", ""},
		"replaces a link":     {"COPY a.txt /bin/sh", "/bin/sh", "/bin/sh = a", ""},
		"merge":               {"COPY dir /c\nCOPY keep /c", "/c", "/c/\n/c/me = me\n/c/sub/\n/c/sub/y = y\n/c/x = x", ""},
		"out of the context":  {"COPY ../../../../../etc/shadow /c", "", "", `"../../../../../etc/shadow": not found`},
		"missing":             {"COPY nothing /c", "", "", `"nothing": not found, or excluded by .dockerignore`},
		"ignored":             {"COPY keep/not /c", "", "", `"keep/not": not found, or excluded`},
		"parents":             {"COPY --parents dir/sub a.txt dir/x /c", "/c", "/c/\n/c/a.txt = a\n/c/dir/\n/c/dir/sub/\n/c/dir/sub/y = y\n/c/dir/x = x", ""},
		"parents from here":   {"COPY --parents ./dir/./sub/* /c/", "/c", "/c/\n/c/sub/\n/c/sub/y = y", ""},
		"two to a file":       {"COPY a.txt b.txt /c", "", "", "the destination must be a directory and end with a /"},
		"directory over file": {"COPY a.txt /c\nCOPY dir /c", "", "", "/c is not a directory"},
		"below a file":        {"COPY dir /c\nCOPY a.txt /c/x/y", "", "", "/c/x is not a directory"},
		"bad chmod":           {"COPY --chmod=u*x a.txt /c", "", "", "invalid chmod parameter"},
		"unknown user":        {"COPY --chown=nobody9 a.txt /c", "", "", "chown: user \"nobody9\""},
		"unknown stage":       {"COPY --from=nothing /x /y", "", "", "docker.io/library/nothing:latest"},
	}
	e := setup(t)
	e.busybox(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			img, err := e.build(t, "FROM busybox\n"+tc.dockerfile, files)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := e.tree(t, img, tc.dirs); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

func TestCopyMetadata(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"run.sh": "#!", "d/f": "f"})
	when := time.Unix(1600000000, 0)
	if err := errors.Join(
		os.Chmod(filepath.Join(dir, "run.sh"), 0o750), os.Chown(filepath.Join(dir, "run.sh"), 33, 33),
		os.Symlink("/etc/passwd", filepath.Join(dir, "d/link")),
		os.Symlink("run.sh", filepath.Join(dir, "alias")),
		os.Chtimes(filepath.Join(dir, "run.sh"), when, when)); err != nil {
		t.Fatal(err)
	}
	img, err := e.buildIn(t.Context(), dir, `FROM busybox AS a
COPY run.sh /1
COPY --chown=app run.sh /2
COPY --chown=12:app --chmod=4711 run.sh /3
COPY --chown=77 d /new/d
COPY alias /4
FROM scratch
COPY --from=a /1 /2 /3 /4 /kept/
COPY --from=a --chown=5:6 /new/d /d
COPY --from=0 /bin/sh /shell
`)
	if err != nil {
		t.Fatal(err)
	}
	e.inside(t, img, func(root string) {
		for name, want := range map[string]string{
			"/kept/1": "-rwxr-x--- 0:0", "/kept/2": "-rwxr-x--- 1000:1001", "/kept/3": "urwx--x--x 12:1001", "/kept/4": "-rwxr-x--- 0:0",
			"/d/f": "-rw-r--r-- 5:6", "/d/link": "Lrwxrwxrwx 5:6", "/shell": "-rwxr-xr-x 0:0",
		} {
			fi, err := os.Lstat(root + name)
			if err != nil {
				t.Error(err)
				continue
			}
			if got := fi.Mode().String() + owner(fi); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
			if strings.HasPrefix(name, "/kept") && !fi.ModTime().Equal(when) {
				t.Errorf("%s: time %s", name, fi.ModTime())
			}
		}
	})
}

func owner(fi fs.FileInfo) string {
	st := fi.Sys().(*syscall.Stat_t)
	return fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
}

func TestAddArchive(t *testing.T) {
	e := setup(t)
	archive := func(name string) string {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: 1, Uid: 9}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "f"); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	if _, err := io.WriteString(z, archive("in/f")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	img := e.mustBuild(t, `FROM scratch
ADD a.tar /1
ADD a.tgz /2/
COPY a.tar /3
ADD no.gz /4
ADD --unpack=false a.tar /5
`, map[string]string{"a.tar": archive("in/f"), "a.tgz": gz.String(), "no.gz": "\x1f\x8brubbish"})
	if got := e.tree(t, img, "/1", "/2"); got != "/1/\n/1/in/\n/1/in/f = f\n/2/\n/2/in/\n/2/in/f = f" {
		t.Errorf("got\n%s", got)
	}
	for name, want := range map[string]string{"/3": archive("in/f"), "/4": "\x1f\x8brubbish", "/5": archive("in/f")} {
		if got := e.read(t, img, name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	e.inside(t, img, func(root string) {
		fi, err := os.Lstat(root + "/1/in/f")
		if err != nil || fi.Mode().String()+owner(fi) != "-rw------- 9:0" {
			t.Errorf("%v, %v", fi, err)
		}
	})
	for name, want := range map[string]error{"../../../tmp/skiff-evil": snapshot.ErrUnsafe} {
		if _, err := e.build(t, "FROM scratch\nADD evil.tar /", map[string]string{"evil.tar": archive(name)}); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
