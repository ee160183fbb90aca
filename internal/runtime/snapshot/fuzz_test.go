package snapshot

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzUnpack makes tars of hostile names and links and looks whether anything
// outside the layer's directory changed.
func FuzzUnpack(f *testing.F) {
	needRoot(f)
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{2, 0, 40, 0, 8, 2, 1, 9, 3, 3, 30, 2, 4, 1, 1})
	words := []string{"a", "b", "l", "..", ".", "/", ".wh.a", ".wh..wh..opq", ".wh...", "secret", "", "a/b", "l/secret", "../../outside/secret", "OUT", "OUT/secret"}
	kinds := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeFifo}
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		outside := filepath.Join(top, "outside")
		layerDir, lower := filepath.Join(top, "work/layer"), filepath.Join(top, "lower")
		for _, d := range []string{outside, layerDir, filepath.Join(lower, "a"), filepath.Join(lower, "b")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, body := range map[string]string{filepath.Join(outside, "secret"): "secret", filepath.Join(lower, "a/f"): "f"} {
			if err := os.WriteFile(name, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(outside, filepath.Join(lower, "l")); err != nil {
			t.Fatal(err)
		}
		before := listing(t, top, layerDir)
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		word := func(i byte) string {
			return strings.ReplaceAll(words[int(i)%len(words)], "OUT", outside)
		}
		for len(data) >= 4 {
			h := &tar.Header{
				Typeflag: kinds[int(data[0])%len(kinds)], Name: word(data[1]) + "/" + word(data[2]), Linkname: word(data[3]),
				Mode: 0o777, Uid: 7, Gid: 7, Devmajor: int64(data[0] & 1), Devminor: int64(data[0] & 1),
			}
			if data[2]&0x40 != 0 {
				h.Name = word(data[1])
			}
			body := "evil"
			if h.Typeflag != tar.TypeReg {
				body = ""
			}
			h.Size = int64(len(body))
			if w.WriteHeader(h) == nil {
				w.Write([]byte(body))
			}
			data = data[4:]
		}
		w.Close()
		for _, lowers := range [][]string{nil, {lower}} {
			_, _, err := unpack(t.Context(), bytes.NewReader(b.Bytes()), layerDir, lowers)
			if err == nil && len(lowers) == 0 {
				var out bytes.Buffer
				if err := WriteLayer(t.Context(), &out, layerDir); err != nil && !strings.Contains(err.Error(), "cannot be in an image") {
					t.Errorf("cannot be written again: %v", err)
				}
			}
			if err := Extract(t.Context(), bytes.NewReader(b.Bytes()), layerDir); err != nil {
				t.Log(err)
			}
			if after := listing(t, top, layerDir); after != before {
				t.Errorf("changed outside:\n%s\nbefore:\n%s", after, before)
			}
		}
	})
}

// listing describes all files below top, except those below skip.
func listing(t *testing.T, top, skip string) string {
	var b strings.Builder
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == skip {
			return fs.SkipDir
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		body := ""
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			body = string(data)
		}
		b.WriteString(p + " " + fi.Mode().String() + " " + fi.ModTime().String() + " " + body + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
