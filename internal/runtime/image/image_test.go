package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	ggcr "github.com/google/go-containerregistry/pkg/name"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SKIFF_TEST_KILLED"); dir != "" {
		killedChild(dir)
	}
	goleak.VerifyTestMain(m)
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func makeTar(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compress(t testing.TB, kind string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch kind {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zstd":
		z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return data
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestParseName(t *testing.T) {
	d := "sha256:" + strings.Repeat("a1", 32)
	for in, want := range map[string]string{
		"nginx":                           "docker.io/library/nginx:latest",
		"nginx:1.2":                       "docker.io/library/nginx:1.2",
		"me/app":                          "docker.io/me/app:latest",
		"index.docker.io/app":             "docker.io/library/app:latest",
		"docker.io/app":                   "docker.io/library/app:latest",
		"localhost/app":                   "localhost/app:latest",
		"localhost:5000/app":              "localhost:5000/app:latest",
		"localhost:5000/app:t":            "localhost:5000/app:t",
		"Registry/app":                    "Registry/app:latest",
		"registry.k8s.io/a/b/c:v1":        "registry.k8s.io/a/b/c:v1",
		"[::1]:5000/app":                  "[::1]:5000/app:latest",
		"app@" + d:                        "docker.io/library/app@" + d,
		"app:tag@" + d:                    "docker.io/library/app@" + d,
		"a__b/c-d.e":                      "docker.io/a__b/c-d.e:latest",
		"app:" + strings.Repeat("x", 128): "docker.io/library/app:" + strings.Repeat("x", 128),
	} {
		n, err := ParseName(in)
		if err != nil || n.String() != want {
			t.Errorf("%s: %s, %v; want %s", in, n, err, want)
		}
	}
	for _, in := range []string{
		"", ":", "App", "app:", "app:.x", "-app", "a//b", "app@sha256:12", "app@", "a b", "a___b", "/app", "app/", "..", "a..b",
		"app:" + strings.Repeat("x", 129), strings.Repeat("a", 300), strings.Repeat("ab", 32), "http://x/y", "x/App",
	} {
		if n, err := ParseName(in); !errors.Is(err, ErrInvalidName) {
			t.Errorf("%q: %v, %v", in, n, err)
		}
	}
	for in, want := range map[string]string{"nginx": "nginx:latest", "me/app:1": "me/app:1", "localhost/x": "localhost/x:latest", "quay.io/library/x": "quay.io/library/x:latest"} {
		if n, _ := ParseName(in); n.Familiar() != want {
			t.Errorf("%s: familiar %s, want %s", in, n.Familiar(), want)
		}
	}
}

// A store is an OCI layout that others can read, and what it exports others can
// load.
func TestExport(t *testing.T) {
	img, sources, _ := archives(t)
	wantID, _ := img.ConfigName()
	s := openStore(t, t.TempDir())
	if _, err := s.Import(t.Context(), sources["docker"](), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), "example.com/app:1", "other"); err != nil {
		t.Fatal(err)
	}
	for _, f := range []Format{FormatDocker, FormatOCI} {
		var a, b bytes.Buffer
		if err := errors.Join(
			s.Export(t.Context(), &a, []string{wantID.String()}, f),
			s.Export(t.Context(), &b, []string{wantID.String()}, f)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%s: two exports differ", f)
		}
		if f == FormatDocker {
			tag, _ := ggcr.NewTag("example.com/app:1")
			loaded, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a.Bytes())), nil }, &tag)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := loaded.ConfigName(); err != nil || id != wantID {
				t.Errorf("docker form loads as %s, %v", id, err)
			}
		}
		s2 := openStore(t, t.TempDir())
		if _, err := s2.Import(t.Context(), &a, ImportOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := s2.Resolve(t.Context(), "other")
		if err != nil || got.ID != wantID.String() || len(got.RepoTags) != 2 {
			t.Errorf("%s: imported again: %+v, %v", f, got, err)
		}
	}
	lp, err := layout.FromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := lp.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 2 {
		t.Errorf("layout: %+v, %v", m, err)
	}
	if err := s.Export(t.Context(), io.Discard, []string{"nothing"}, FormatOCI); !errors.Is(err, ErrNotFound) {
		t.Errorf("export of nothing: %v", err)
	}
	if err := s.Export(t.Context(), io.Discard, []string{"other"}, "zip"); err == nil {
		t.Error("format zip")
	}
}

func importNamed(t testing.TB, s *Store, content string, names ...string) *Image {
	t.Helper()
	imgs, err := s.Import(t.Context(), bytes.NewReader(makeTar(t, map[string]string{"f": content})), ImportOptions{Names: names})
	if err != nil {
		t.Fatal(err)
	}
	return imgs[0]
}

func refsOf(t testing.TB, s *Store) string {
	t.Helper()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, img := range list {
		out = append(out, fmt.Sprint(img.RepoTags))
	}
	return strings.Join(out, " ")
}

func blobs(t testing.TB, s *Store) int {
	t.Helper()
	b, err := os.ReadDir(filepath.Join(s.dir, "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// TestGivenHere: which names no pull brought, now and after a restart.
func TestGivenHere(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	img := importNamed(t, s, "a", "web:1")
	// The same image, as a pull brings it.
	lease := s.Lease()
	defer lease.Release()
	if _, err := s.publish(lease, s.entryOf(img), []string{"reg.example/web:1"}, publication{remote: true}); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), "reg.example/web:1", "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.publish(lease, s.entryOf(img), []string{"reg.example/web:2"}, publication{remote: true, pulled: "sha256:" + strings.Repeat("1", 64)}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Give("reg.example/web:2"), s.Give("reg.example/none")); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"now", "after a restart"} {
		for name, want := range map[string]bool{
			"web:1": true, "docker.io/library/web:1": true, "other:latest": true, "other": true, "reg.example/web:1": false, "reg.example/web:2": true, "web:2": false, img.ID: false,
		} {
			got, err := s.Resolve(t.Context(), img.ID)
			if err != nil || got.GivenHere(name) != want {
				t.Errorf("%s, %s: %v, %v", when, name, !want, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir)
	}
}

func TestTagRemovePrune(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := openStore(t, dir)
	a := importNamed(t, s, "a", "web:1", "web:2")
	b := importNamed(t, s, "b", "web:3")
	if err := s.Tag(ctx, "web:3", "web:2"); err != nil { // moves
		t.Fatal(err)
	}
	if err := s.Tag(ctx, a.ID, "web:4"); err != nil {
		t.Fatal(err)
	}
	want := "[docker.io/library/web:1 docker.io/library/web:4] [docker.io/library/web:3 docker.io/library/web:2]"
	if got := refsOf(t, s); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.Close()
	s = openStore(t, dir)
	if got := refsOf(t, s); got != want {
		t.Errorf("opened again: %s, want %s", got, want)
	}
	// A name that moves away leaves its image without one; Prune takes it.
	if err := errors.Join(s.Remove(ctx, "web:1"), s.Tag(ctx, b.ID, "web:4")); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Resolve(ctx, a.ID); err != nil || len(img.RepoTags) != 0 || len(img.RepoDigests) != 0 {
		t.Errorf("nameless image: %+v, %v", img, err)
	}
	if pruned, err := s.Prune(ctx, (*Image).Dangling); err != nil || len(pruned) != 1 || pruned[0].ID != a.ID {
		t.Errorf("pruned %v, %v", pruned, err)
	}
	if n := blobs(t, s); n != 3 {
		t.Errorf("%d blobs", n)
	}
	if err := s.Remove(ctx, strings.TrimPrefix(b.ID, "sha256:")[:12]); err != nil {
		t.Fatal(err)
	}
	if got, n := refsOf(t, s), blobs(t, s); got != "" || n != 0 {
		t.Errorf("after removal by ID: %s, %d blobs", got, n)
	}
	if err := s.Remove(ctx, "web:3"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removal of nothing: %v", err)
	}
	if err := s.Tag(ctx, "nothing", "x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	c := importNamed(t, s, "c", "one")
	if err := s.Tag(ctx, "one", "x@"+c.Digest.String()); !errors.Is(err, ErrInvalidName) {
		t.Error(err)
	}
	if err := s.Remove(ctx, "one@"+c.Digest.String()); err != nil {
		t.Error(err)
	}
	if got := refsOf(t, s); got != "" {
		t.Errorf("after removal by digest: %s", got)
	}
}

func TestLeasesAndRefs(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(1000, 0)
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	lease := s.Lease()
	h, _, err := s.WriteBlob(ctx, lease, strings.NewReader("blob"), v1.Hash{})
	if err != nil {
		t.Fatal(err)
	}
	has := func(want bool) {
		t.Helper()
		if err := s.Collect(ctx); err != nil {
			t.Fatal(err)
		}
		if s.HasBlob(h) != want {
			t.Errorf("blob there: %v, want %v", !want, want)
		}
	}
	has(true)
	now = now.Add(LeaseTime - time.Second)
	lease.Hold() // prolongs
	now = now.Add(LeaseTime - time.Second)
	has(true)
	dir, err := s.RefDir("test")
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(Ref{Keep: []v1.Hash{h}})
	if err := os.WriteFile(filepath.Join(dir, "x.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	lease.Release()
	lease.Release()
	has(true)
	if need, err := s.Needed(ctx); err != nil || !need[h] {
		t.Errorf("needed: %v, %v", need, err)
	}
	if err := os.Remove(filepath.Join(dir, "x.json")); err != nil {
		t.Fatal(err)
	}
	lease.Hold(h)
	has(true)
	now = now.Add(LeaseTime + time.Second)
	has(false)

	if _, _, err := s.WriteBlob(ctx, s.Lease(), strings.NewReader("x"), h); !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong digest: %v", err)
	}
}

func TestSecondOwnerAndDamage(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	importNamed(t, s, "a", "a")
	img := importNamed(t, s, "b", "b")
	_, err := Open(dir, Options{LockWait: time.Millisecond})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("second Open: %v", err)
	}
	s.Close()
	if err := os.Remove(s.blobPath(img.Layers[0].Digest)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	if got := refsOf(t, s); got != "[docker.io/library/a:latest]" {
		t.Errorf("with a layer lost: %s", got)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged index: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "index.json"), Options{}); err == nil {
		t.Error("opened a file")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := openStore(t, t.TempDir())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 5 {
				name := fmt.Sprintf("img%d", (i+k)%4)
				data := makeTar(t, map[string]string{"f": name})
				imgs, err := s.Import(t.Context(), bytes.NewReader(data), ImportOptions{Names: []string{name}})
				if err != nil {
					t.Error(err)
					return
				}
				if err := s.Export(t.Context(), io.Discard, []string{imgs[0].ID}, FormatOCI); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
				if _, err := s.List(t.Context()); err != nil {
					t.Error(err)
				}
				if _, _, _, err := s.Usage(t.Context()); err != nil {
					t.Error(err)
				}
				if k%2 == 0 {
					if err := s.Remove(t.Context(), name); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		for _, l := range img.Layers {
			if !s.HasBlob(l.Digest) {
				t.Errorf("%v lacks a layer", img.RepoTags)
			}
		}
	}
}

// killedChild imports and removes until it is killed.
func killedChild(dir string) {
	s, err := Open(dir, Options{LockWait: 10 * time.Second})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		body := bytes.Repeat([]byte{byte(i)}, 1<<20)
		w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: int64(len(body))})
		w.Write(body)
		w.Close()
		if _, err := s.Import(context.Background(), &b, ImportOptions{Names: []string{fmt.Sprint("img", i%3)}}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if i%2 == 1 {
			s.Remove(context.Background(), fmt.Sprint("img", (i+1)%3))
			s.Prune(context.Background(), (*Image).Dangling)
		}
	}
}

// kill -9 at any moment: every image that is seen is whole, and what was under
// way is gone.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	openStore(t, dir).Close()
	for round := range 15 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SKIFF_TEST_KILLED="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 200)
		if n, _ := out.Read(line); string(line[:n]) != "ready\n" {
			t.Fatalf("child: %s", line[:n])
		}
		time.Sleep(time.Duration(2+round*3) * time.Millisecond) // not waiting for anything: the moment to kill
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		var log bytes.Buffer
		s, err := Open(dir, Options{LockWait: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "ingest")); len(left) > 0 {
			t.Errorf("left in ingest: %v", left)
		}
		if log.Len() > 0 {
			t.Error(log.String())
		}
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range list {
			for i := range img.Layers {
				f, err := s.OpenBlob(img.Layers[i].Digest)
				if err != nil {
					t.Fatal(err)
				}
				w, err := s.NewBlob(s.Lease())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(w, f); err != nil {
					t.Fatal(err)
				}
				if w.Digest() != img.Layers[i].Digest {
					t.Errorf("round %d: %v has a damaged layer", round, img.RepoTags)
				}
				w.Close()
				f.Close()
			}
		}
		s.Close()
	}
}
