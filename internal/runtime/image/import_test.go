package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	ggcr "github.com/google/go-containerregistry/pkg/name"
)

func TestImportRootFS(t *testing.T) {
	data := makeTar(t, map[string]string{"bin/sh": "shell", "etc/passwd": "root"})
	for _, kind := range []string{"", "gzip", "zstd"} {
		t.Run("compression "+kind, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			imgs, err := s.Import(t.Context(), bytes.NewReader(compress(t, kind, data)), ImportOptions{
				Names: []string{"base:1", "example.com/base"}, Config: v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}, User: "7"},
			})
			if err != nil || len(imgs) != 1 {
				t.Fatal(imgs, err)
			}
			for _, ref := range []string{
				"base:1", "docker.io/library/base:1", "example.com/base:latest", imgs[0].ID,
				strings.TrimPrefix(imgs[0].ID, "sha256:"), strings.TrimPrefix(imgs[0].ID, "sha256:")[:10],
				imgs[0].Digest.String(), "base@" + imgs[0].Digest.String(), "example.com/base@" + imgs[0].Digest.String(),
			} {
				img, err := s.Resolve(t.Context(), ref)
				if err != nil {
					t.Fatal(err)
				}
				if img.ID != imgs[0].ID || img.Size != int64(len(data)) || img.Config.Config.Cmd[0] != "/bin/sh" || img.Config.Config.User != "7" {
					t.Errorf("%s: %+v", ref, img)
				}
			}
			r, err := s.OpenLayer(imgs[0], 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("layer differs: %v", err)
			}
			for ref, want := range map[string]error{"base": ErrNotFound, "base:2": ErrNotFound, "Bad!": ErrInvalidName, "sha256:" + strings.Repeat("0", 64): ErrNotFound, strings.Repeat("0", 64): ErrNotFound, "": ErrInvalidName} {
				if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, want) {
					t.Errorf("%q: %v, want %v", ref, err, want)
				}
			}
		})
	}
}

// archives of a random image, as other programs write them.
func archives(t *testing.T) (v1.Image, map[string]func() io.Reader, string) {
	t.Helper()
	img, err := random.Image(3000, 3)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Config(img, v1.Config{Cmd: []string{"run"}})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := ggcr.NewTag("example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	var docker bytes.Buffer
	if err := tarball.Write(tag, img, &docker); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	lp, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := lp.AppendImage(img, layout.WithAnnotations(map[string]string{annRef: "1", annName: "example.com/app:1"})); err != nil {
		t.Fatal(err)
	}
	var oci bytes.Buffer
	w := tar.NewWriter(&oci)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return img, map[string]func() io.Reader{
		"docker":      func() io.Reader { return bytes.NewReader(docker.Bytes()) },
		"docker gzip": func() io.Reader { return bytes.NewReader(compress(t, "gzip", docker.Bytes())) },
		"oci":         func() io.Reader { return bytes.NewReader(oci.Bytes()) },
		"oci zstd":    func() io.Reader { return bytes.NewReader(compress(t, "zstd", oci.Bytes())) },
		"docker file": func() io.Reader { return tempFile(t, docker.Bytes()) },
		"oci file":    func() io.Reader { return tempFile(t, oci.Bytes()) },
	}, dir
}

func tempFile(t *testing.T, data []byte) *os.File {
	t.Helper()
	p := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestImportArchives(t *testing.T) {
	img, sources, dir := archives(t)
	wantID, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, s *Store, imgs []*Image, err error) {
		t.Helper()
		if err != nil || len(imgs) != 1 {
			t.Fatal(imgs, err)
		}
		got, err := s.Resolve(t.Context(), "example.com/app:1")
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != wantID.String() || len(got.DiffIDs) != 3 || got.Size < 9000 || got.Config.Config.Cmd[0] != "run" {
			t.Errorf("%+v", got)
		}
		for i := range got.DiffIDs {
			if _, err := s.verifyLayer(t.Context(), got.Layers[i].Digest, got.DiffIDs[i], s.room()); err != nil {
				t.Error(err)
			}
		}
		if left, _ := os.ReadDir(filepath.Join(s.dir, "ingest")); len(left) > 0 {
			t.Errorf("left in ingest: %v", left)
		}
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			imgs, err := s.Import(t.Context(), source(), ImportOptions{})
			check(t, s, imgs, err)
		})
	}
	t.Run("layout", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		imgs, err := s.ImportLayout(t.Context(), dir, ImportOptions{})
		check(t, s, imgs, err)
		if d, _ := img.Digest(); imgs[0].Digest != d {
			t.Errorf("manifest %s, want %s", imgs[0].Digest, d)
		}
	})
	t.Run("other name", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		imgs, err := s.Import(t.Context(), sources["oci"](), ImportOptions{Names: []string{"mine"}})
		if err != nil || fmt.Sprint(imgs[0].RepoTags) != "[docker.io/library/mine:latest]" {
			t.Error(imgs[0].RepoTags, err)
		}
	})
	t.Run("as root file system", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		imgs, err := s.Import(t.Context(), sources["oci"](), ImportOptions{Names: []string{"mine"}, RootFS: true})
		if err != nil || len(imgs[0].DiffIDs) != 1 {
			t.Error(imgs, err)
		}
	})
}

// Archives of old: a directory per layer, and links to a layer that is there
// twice.
func TestImportOldDocker(t *testing.T) {
	layer := makeTar(t, map[string]string{"f": "f"})
	diffID := fmt.Sprintf("sha256:%x", sha256.Sum256(layer))
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Cmd":["x"]},"rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, diffID, diffID)
	name := fmt.Sprintf("%x.json", sha256.Sum256([]byte(config)))
	archive := func(config string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		put := func(h tar.Header, body string) {
			h.Size, h.Mode = int64(len(body)), 0o644
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, body); err != nil {
				t.Fatal(err)
			}
		}
		put(tar.Header{Name: "aaa/layer.tar", Typeflag: tar.TypeReg}, string(layer))
		put(tar.Header{Name: "bbb/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../aaa/layer.tar"}, "")
		put(tar.Header{Name: name, Typeflag: tar.TypeReg}, config)
		put(tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg}, fmt.Sprintf(
			`[{"Config":%q,"RepoTags":["old:1","old:2"],"Layers":["aaa/layer.tar","bbb/layer.tar"]}]`, name))
		put(tar.Header{Name: "repositories", Typeflag: tar.TypeReg}, "{}")
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	s := openStore(t, t.TempDir())
	imgs, err := s.Import(t.Context(), bytes.NewReader(archive(config)), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if imgs[0].ID != "sha256:"+strings.TrimSuffix(name, ".json") || len(imgs[0].RepoTags) != 2 || len(imgs[0].DiffIDs) != 2 {
		t.Errorf("%+v", imgs[0])
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(archive(config+" ")), ImportOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("config of another digest: %v", err)
	}
	other := strings.Replace(config, diffID[:20], diffID[:19]+"0", 1)
	if other == config {
		other = strings.Replace(config, diffID[:20], diffID[:19]+"1", 1)
	}
	name = fmt.Sprintf("%x.json", sha256.Sum256([]byte(other)))
	if _, err := s.Import(t.Context(), bytes.NewReader(archive(other)), ImportOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("layer of another digest: %v", err)
	}
}

// rewrite changes the files of a tar.
func rewrite(t *testing.T, r io.Reader, change func(name string, data []byte) []byte) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w, tr := tar.NewWriter(&b), tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			data = change(h.Name, data)
			h.Size = int64(len(data))
		}
		if err := errors.Join(w.WriteHeader(h), func() error { _, err := w.Write(data); return err }()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// What is damaged or lies about itself is refused, and nothing of it stays.
func TestImportRefuses(t *testing.T) {
	_, sources, _ := archives(t)
	flip := func(match func(name string, data []byte) bool) func(string, []byte) []byte {
		return func(name string, data []byte) []byte {
			if match(name, data) {
				data = append([]byte{}, data...)
				data[len(data)/2] ^= 1
			}
			return data
		}
	}
	isLayer := func(name string, data []byte) bool {
		return Compression(data) == "gzip" || strings.HasSuffix(name, ".tar.gz")
	}
	truncated, _ := io.ReadAll(sources["oci"]())
	tests := map[string]struct {
		r    io.Reader
		want error
	}{
		"empty":              {strings.NewReader(""), ErrFormat},
		"text":               {strings.NewReader(strings.Repeat("no tar at all ", 100)), ErrFormat},
		"short text":         {strings.NewReader("x"), ErrFormat},
		"xz":                 {strings.NewReader("\xfd7zXZ\x00........"), ErrFormat},
		"truncated":          {bytes.NewReader(truncated[:len(truncated)-4000]), ErrCorrupt},
		"truncated file":     {tempFile(t, truncated[:len(truncated)-4000]), ErrCorrupt},
		"truncated gzip":     {bytes.NewReader(compress(t, "gzip", truncated)[:4000]), io.ErrUnexpectedEOF},
		"docker layer":       {rewrite(t, sources["docker"](), flip(isLayer)), nil},
		"oci layer":          {rewrite(t, sources["oci"](), flip(isLayer)), ErrCorrupt},
		"oci manifest":       {rewrite(t, sources["oci"](), flip(func(n string, d []byte) bool { return bytes.Contains(d, []byte(`"layers"`)) })), ErrCorrupt},
		"oci config":         {rewrite(t, sources["oci"](), flip(func(n string, d []byte) bool { return bytes.Contains(d, []byte(`"rootfs"`)) })), ErrCorrupt},
		"docker manifest":    {rewrite(t, sources["docker"](), func(n string, d []byte) []byte { return bytes.ReplaceAll(d, []byte(`"Config"`), []byte(`"Confix"`)) }), ErrCorrupt},
		"docker no images":   {bytes.NewReader(makeTar(t, map[string]string{"manifest.json": "[]"})), ErrFormat},
		"docker bad json":    {bytes.NewReader(makeTar(t, map[string]string{"manifest.json": "{"})), ErrCorrupt},
		"oci no images":      {bytes.NewReader(makeTar(t, map[string]string{"oci-layout": "{}", "index.json": "{}"})), ErrFormat},
		"oci missing blob":   {bytes.NewReader(makeTar(t, map[string]string{"oci-layout": "{}", "index.json": `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3,"digest":"sha256:` + strings.Repeat("a", 64) + `"}]}`})), ErrCorrupt},
		"oci hostile digest": {bytes.NewReader(makeTar(t, map[string]string{"oci-layout": "{}", "index.json": `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":3,"digest":"sha256:../../x"}]}`})), ErrCorrupt},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			imgs, err := s.Import(t.Context(), tc.r, ImportOptions{})
			if err == nil || (tc.want != nil && !errors.Is(err, tc.want)) {
				t.Fatalf("got %v, %v; want %v", imgs, err, tc.want)
			}
			if list, _ := s.List(t.Context()); len(list) != 0 {
				t.Errorf("images: %v", list)
			}
			if left, _ := os.ReadDir(filepath.Join(s.dir, "ingest")); len(left) > 0 {
				t.Errorf("left in ingest: %v", left)
			}
			if err := s.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left, _ := os.ReadDir(filepath.Join(s.dir, "blobs/sha256")); len(left) > 0 {
				t.Errorf("blobs left: %v", left)
			}
		})
	}
	t.Run("bad name", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		if _, err := s.Import(t.Context(), sources["oci"](), ImportOptions{Names: []string{"BAD"}}); !errors.Is(err, ErrInvalidName) {
			t.Error(err)
		}
	})
}

// The same root file system again is the same image; with another config it is
// another.
func TestImportAgain(t *testing.T) {
	s := openStore(t, t.TempDir())
	data := makeTar(t, map[string]string{"f": "f"})
	ids := map[string]string{}
	for _, tc := range []struct{ name, cmd string }{{"a", "x"}, {"a", "x"}, {"b", "x"}, {"c", "y"}} {
		imgs, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{Names: []string{tc.name}, Config: v1.Config{Cmd: []string{tc.cmd}}})
		if err != nil {
			t.Fatal(err)
		}
		if was := ids[tc.cmd]; was != "" && was != imgs[0].ID {
			t.Errorf("%s: %s, before %s", tc.name, imgs[0].ID, was)
		}
		ids[tc.cmd] = imgs[0].ID
	}
	if got := refsOf(t, s); got != "[docker.io/library/a:latest docker.io/library/b:latest] [docker.io/library/c:latest]" || ids["x"] == ids["y"] {
		t.Errorf("got %s, %v", got, ids)
	}
}
