package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// withUnpacked is a store that unpacks what it pulls, on a disk of that size.
func withUnpacked(t *testing.T, size string) (*image.Store, *snapshot.Store, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small disk, and layers have owners")
	}
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NODEV, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := image.Open(filepath.Join(d, "images"), image.Options{Registry: client(t, Deps{})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	sn, err := snapshot.Open(filepath.Join(d, "snapshots"), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sn.Close() })
	return s, sn, d
}

// imageOf has the layers given, each a list of entries of a tar.
func imageOf(t *testing.T, layers ...[]byte) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		body := strings.Repeat("\x00", int(h.Size))
		if err := w.WriteHeader(&h); err != nil {
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

func regular(name string, size int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Size: size}
}

// onDisk counts what a store and its layers hold.
func onDisk(t *testing.T, d string) string {
	t.Helper()
	var out []string
	for _, sub := range []string{"images/ingest", "images/blobs/sha256", "snapshots/tmp", "snapshots/layers"} {
		l, err := os.ReadDir(filepath.Join(d, sub))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(len(l)))
	}
	return strings.Join(out, " ")
}

// Images that do not fit, that unpack to far more than they are, or whose layers
// try to get out: the pull fails and says why, nothing of them stays, and the next
// pull works.
func TestHostileImages(t *testing.T) {
	big, _ := bigImage(t, 20<<20)
	for name, tc := range map[string]struct {
		img  v1.Image
		kind error
		text string
	}{
		"larger than the disk": {big, unix.ENOSPC, "no space left on device"},
		"a bomb":               {imageOf(t, tarOf(t, regular("zeros", 200<<20))), image.ErrNoRoom, "it unpacks to more than the"},
		"a bomb of layers": {imageOf(t,
			tarOf(t, regular("a", 4<<20)), tarOf(t, regular("b", 4<<20)), tarOf(t, regular("c", 4<<20)), tarOf(t, regular("d", 4<<20))),
			unix.ENOSPC, "no space left on device"},
		"path traversal":      {imageOf(t, tarOf(t, regular("fine", 1)), tarOf(t, regular("../../../../evil", 1))), snapshot.ErrUnsafe, "leaves the layer"},
		"hard link out":       {imageOf(t, tarOf(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../../etc/passwd"})), snapshot.ErrUnsafe, "leaves the layer"},
		"damaged tar":         {imageOf(t, append(tarOf(t, regular("a", 1))[:512], []byte(strings.Repeat("no tar", 500))...)), nil, "failed to extract layer"},
		"hard link to nobody": {imageOf(t, tarOf(t, tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "etc/passwd"})), unix.ENOENT, "hard link"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			s, _, d := withUnpacked(t, "12m")
			srv.push(t, "bad:1", tc.img)
			_, err := s.Pull(t.Context(), srv.host+"/bad:1", nil)
			if err == nil || tc.kind != nil && !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v; want %v with %q", err, tc.kind, tc.text)
			}
			if left := onDisk(t, d); left != "0 0 0 0" {
				t.Errorf("left: %s", left)
			}
			srv.push(t, "good:1", imageOf(t, tarOf(t, regular("file", 1000))))
			if _, err := s.Pull(t.Context(), srv.host+"/good:1", nil); err != nil {
				t.Fatalf("the next pull: %v", err)
			}
			if there := onDisk(t, d); there != "0 3 0 2" {
				t.Errorf("of a good image: %s", there)
			}
		})
	}
}

// Links that lead out of the root lead into it instead: what is written through
// them stays in the layer.
func TestLinksOut(t *testing.T) {
	srv := serve(t)
	s, sn, d := withUnpacked(t, "12m")
	target := t.TempDir()
	srv.push(t, "links:1", imageOf(t, tarOf(t,
		tar.Header{Name: "out", Typeflag: tar.TypeSymlink, Linkname: target}, regular("out/through", 1),
		tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../.." + target}, regular("up/along", 1))))
	img, err := s.Pull(t.Context(), srv.host+"/links:1", nil)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(target); err != nil || len(left) != 0 {
		t.Errorf("written outside: %v, %v", left, err)
	}
	if img == nil {
		if left := onDisk(t, d); left != "0 0 0 0" {
			t.Errorf("left: %s", left)
		}
		return
	}
	if _, err := sn.Prepare(t.Context(), "c", img); err != nil {
		t.Error(err)
	}
}
