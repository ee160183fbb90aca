package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

func TestMain(m *testing.M) {
	if os.Getenv("SKIFF_TEST_KILLED") != "" {
		killedChild()
	}
	goleak.VerifyTestMain(m)
}

// mtime of everything that test tars make.
var mtime = time.Unix(1700000000, 0)

type entry struct {
	name string
	kind byte // tar type; regular where 0
	body string
	link string
	mode int64
	uid  int
	pax  map[string]string
	dev  [2]int64
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Typeflag: e.kind, Size: int64(len(e.body)), Linkname: e.link, Mode: e.mode,
			Uid: e.uid, Gid: e.uid, ModTime: mtime, PAXRecords: e.pax, Devmajor: e.dev[0], Devminor: e.dev[1],
		}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if e.kind == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) entry        { return entry{name: name + "/", kind: tar.TypeDir} }
func file(name, body string) entry { return entry{name: name, body: body} }
func symlink(name, to string) entry {
	return entry{name: name, kind: tar.TypeSymlink, link: to, mode: 0o777}
}
func hardlink(name, to string) entry { return entry{name: name, kind: tar.TypeLink, link: to} }

type env struct {
	dir    string
	images *image.Store
	snaps  *Store
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: whiteouts are device nodes and overlays are mounts")
	}
}

func setup(t testing.TB) *env {
	needRoot(t)
	e := &env{dir: t.TempDir()}
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	return e
}

func (e *env) open(t testing.TB) {
	t.Helper()
	var err error
	if e.images, err = image.Open(filepath.Join(e.dir, "images"), image.Options{}); err != nil {
		t.Fatal(err)
	}
	if e.snaps, err = Open(filepath.Join(e.dir, "snapshots"), e.images); err != nil {
		t.Fatal(err)
	}
}

func (e *env) close(t testing.TB) {
	if err := errors.Join(e.snaps.Close(), e.images.Close()); err != nil {
		t.Error(err)
	}
}

// image stores an image of the given layer tars.
func (e *env) image(t testing.TB, name string, layers ...[]byte) *image.Image {
	t.Helper()
	ctx := t.Context()
	lease := e.images.Lease()
	defer lease.Release()
	config := &v1.ConfigFile{Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"}}
	var descs []v1.Descriptor
	for _, l := range layers {
		h, n, err := e.images.WriteBlob(ctx, lease, bytes.NewReader(l), v1.Hash{})
		if err != nil {
			t.Fatal(err)
		}
		descs = append(descs, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: n})
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, h)
	}
	img, err := e.images.Put(ctx, lease, []string{name}, config, descs, 0)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// tree lists what a rootfs shows: one line a file.
func tree(t testing.TB, r Rootfs) string {
	t.Helper()
	f, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := fmt.Sprintf("/proc/self/fd/%d/", f.Fd())
	var lines []string
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := os.ReadDir(root + dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			var st unix.Stat_t
			if err := unix.Lstat(root+p, &st); err != nil {
				t.Fatal(err)
			}
			line := fmt.Sprintf("%s %o %d", p, st.Mode&0o7777, st.Uid)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				b, err := os.ReadFile(root + p)
				if err != nil {
					t.Fatal(err)
				}
				line += " =" + string(b)
			case unix.S_IFLNK:
				to, _ := os.Readlink(root + p)
				line += " ->" + to
			case unix.S_IFDIR:
				line = "d " + line
			default:
				line += fmt.Sprintf(" special %o", st.Mode&unix.S_IFMT)
			}
			lines = append(lines, line)
			if e.IsDir() {
				walk(p)
			}
		}
	}
	walk("")
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func view(t testing.TB, e *env, img *image.Image) string {
	t.Helper()
	r, done, err := e.snaps.View(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	return tree(t, r)
}

// What layers on top of each other show must be what the image format says,
// whether or not a layer's tar is complete in itself.
func TestLayers(t *testing.T) {
	base := []entry{dir("etc"), file("etc/a", "a"), file("etc/b", "b"), dir("etc/d"), file("etc/d/x", "x"),
		{name: "tmp/", kind: tar.TypeDir, mode: 0o1777}, dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")}
	const baseTree = `d tmp 1777 0
d usr 755 0
d usr/lib 755 0
lib 777 0 ->usr/lib
abs 777 0 ->/usr/lib
d etc 755 0
`
	tests := map[string]struct {
		layers [][]entry
		want   string
		alone  bool // whether the last layer can be shared whatever is below
	}{
		"one": {[][]entry{base}, baseTree + "etc/a 644 0 =a\netc/b 644 0 =b\nd etc/d 755 0\netc/d/x 644 0 =x", true},
		"whiteout": {[][]entry{base, {dir("etc"), file("etc/.wh.a", ""), file("etc/.wh.d", "")}},
			baseTree + "etc/b 644 0 =b", true},
		"opaque": {[][]entry{base, {dir("etc"), file("etc/.wh..wh..opq", ""), file("etc/n", "n")}},
			baseTree + "etc/n 644 0 =n", true},
		"everything below hidden": {[][]entry{base, {file(".wh..wh..opq", ""), file("n", "n")}, {file("m", "m")}},
			"n 644 0 =n\nm 644 0 =m", true},
		"opaque after its files": {[][]entry{base, {dir("etc"), file("etc/n", "n"), file("etc/.wh..wh..opq", "")}},
			baseTree + "etc/n 644 0 =n", true},
		"whiteout and new directory": {[][]entry{base, {dir("etc"), file("etc/.wh.d", ""), dir("etc/d"), file("etc/d/y", "y"), file("etc/.wh.a", ""), file("etc/.wh.b", "")}},
			baseTree + "d etc/d 755 0\netc/d/y 644 0 =y", true},
		"new directory and whiteout": {[][]entry{base, {dir("etc"), dir("etc/d"), file("etc/d/y", "y"), file("etc/.wh.d", ""), file("etc/.wh.a", ""), file("etc/.wh.b", "")}},
			baseTree + "d etc/d 755 0\netc/d/y 644 0 =y", true},
		"file under a whiteout": {[][]entry{base, {dir("etc"), file("etc/.wh.a", ""), file("etc/.wh.b", ""), file("etc/.wh.d", ""), file("etc/d/z", "z")}},
			baseTree + "d etc/d 755 0\netc/d/z 644 0 =z", false},
		"directory becomes a file": {[][]entry{base, {dir("etc"), file("etc/d", "now"), file("etc/.wh.a", ""), file("etc/.wh.b", "")}},
			baseTree + "etc/d 644 0 =now", true},
		"parent missing keeps the mode": {[][]entry{base, {file("tmp/f", "f")}},
			baseTree + "etc/a 644 0 =a\netc/b 644 0 =b\nd etc/d 755 0\netc/d/x 644 0 =x\ntmp/f 644 0 =f", false},
		"through a link below": {[][]entry{base, {file("lib/so", "so"), file("abs/so2", "so2")}},
			baseTree + "etc/a 644 0 =a\netc/b 644 0 =b\nd etc/d 755 0\netc/d/x 644 0 =x\nusr/lib/so 644 0 =so\nusr/lib/so2 644 0 =so2", false},
		"hard link to a file below": {[][]entry{base, {dir("etc"), hardlink("etc/h", "etc/a")}},
			baseTree + "etc/a 644 0 =a\netc/b 644 0 =b\nd etc/d 755 0\netc/d/x 644 0 =x\netc/h 644 0 =a", false},
		"replaced within one layer": {[][]entry{{dir("x"), file("x/1", "1"), file("x", "file"), symlink("y", "x"), file("y", "y"), dir("z"), symlink("z", "/")}},
			"x 644 0 =file\ny 644 0 =y\nz 777 0 ->/", true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e := setup(t)
			var layers [][]byte
			for _, l := range tc.layers {
				layers = append(layers, makeTar(t, l...))
			}
			img := e.image(t, "x", layers...)
			got := view(t, e, img)
			want := strings.Split(tc.want, "\n")
			sort.Strings(want)
			if got != strings.Join(want, "\n") {
				t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
			}
			last := img.DiffIDs[len(img.DiffIDs)-1].String()
			l := e.snaps.layers[last]
			if tc.alone != (l != nil) {
				t.Errorf("layer stored under its diff ID: %v, want %v", l != nil, tc.alone)
			}
		})
	}
}

// A layer without its parent directories, first on its own and then on top of
// another, must not be shared: there the directories' owner and mode are those
// below.
func TestDependentLayerIsNotShared(t *testing.T) {
	e := setup(t)
	top := makeTar(t, file("tmp/f", "f"))
	base := makeTar(t, entry{name: "tmp/", kind: tar.TypeDir, mode: 0o1777})
	for i := range 2 { // both orders
		images := []*image.Image{e.image(t, "alone", top), e.image(t, "above", base, top)}
		wants := []string{"d tmp 755 0\ntmp/f 644 0 =f", "d tmp 1777 0\ntmp/f 644 0 =f"}
		for k := range images {
			k = (k + i) % 2
			if got := view(t, e, images[k]); got != wants[k] {
				t.Errorf("got\n%s\nwant\n%s", got, wants[k])
			}
		}
		for _, n := range []string{"alone", "above"} {
			if err := e.images.Remove(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(e.snaps.layers); n != 0 {
			t.Fatalf("%d layers left after their images went", n)
		}
	}
}

// Whatever a tar says, nothing outside its directory is read or written.
func TestHostileTars(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	tests := map[string]struct {
		entries []entry
		refused bool
		want    string // tree, where not refused
	}{
		"dot dot":                  {[]entry{file(up+secret, "evil")}, true, ""},
		"dot dot inside":           {[]entry{dir("a"), file("a/../../../x", "evil")}, true, ""},
		"absolute is confined":     {[]entry{file("/x", "1")}, false, "x 644 0 =1"},
		"absolute link in path":    {[]entry{symlink("l", outside), file("l/secret", "evil")}, false, ""},
		"relative link in path":    {[]entry{symlink("l", up+outside), file("l/secret", "evil")}, false, ""},
		"write through a link":     {[]entry{symlink("l", secret), file("l", "evil")}, false, "l 644 0 =evil"},
		"mode through a link":      {[]entry{symlink("l", outside), {name: "l/", kind: tar.TypeDir, mode: 0o777, uid: 7}}, false, "d l 777 7"},
		"hard link out":            {[]entry{hardlink("h", up+secret)}, true, ""},
		"hard link absolute":       {[]entry{hardlink("h", secret)}, true, ""},
		"hard link through a link": {[]entry{symlink("l", outside), hardlink("h", "l/secret")}, true, ""},
		"whiteout out":             {[]entry{dir("a"), file("a/.wh...", "")}, true, ""},
		"whiteout through a link":  {[]entry{symlink("l", outside), file("l/.wh.secret", "")}, false, ""},
		"opaque through a link":    {[]entry{symlink("l", outside), file("l/.wh..wh..opq", "")}, false, ""},
		"root is a file":           {[]entry{file(".", "x")}, true, ""},
		"root is a link":           {[]entry{symlink(".", outside), file("secret", "evil")}, true, ""},
		"link loop":                {[]entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "x")}, true, ""},
		"overlay attributes": {[]entry{{name: "d/", kind: tar.TypeDir, pax: map[string]string{
			"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.ok": "1",
		}}}, false, "d d 755 0"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			e := setup(t)
			img := e.image(t, "evil", makeTar(t, tc.entries...))
			r, done, err := e.snaps.View(t.Context(), img)
			if tc.refused {
				if err == nil {
					done()
					t.Fatal("unpacked")
				}
				left, _ := os.ReadDir(e.snaps.path("tmp"))
				layers, _ := os.ReadDir(e.snaps.path("layers"))
				if len(left)+len(layers) > 0 {
					t.Errorf("left behind: %v %v", left, layers)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				defer done()
				if got := tree(t, r); tc.want != "" && got != tc.want {
					t.Errorf("got\n%s\nwant\n%s", got, tc.want)
				}
				for _, x := range []string{"redirect", "opaque"} {
					if _, err := unix.Lgetxattr(filepath.Join(r.Lower[0], "d"), "trusted.overlay."+x, nil); err == nil {
						t.Errorf("trusted.overlay.%s was set", x)
					}
				}
			}
			got, err := os.ReadFile(secret)
			if err != nil || string(got) != "untouched" {
				t.Errorf("outside file: %q, %v", got, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(outside, &st); err != nil || st.Uid != 0 || opaque(outside) {
				t.Errorf("outside directory changed: %+v %v", st, err)
			}
			if names, _ := os.ReadDir(outside); len(names) != 1 {
				t.Errorf("outside directory has %v", names)
			}
		})
	}
}

// Attributes, owners, times, links, device nodes and pipes come through a layer
// and back out of one.
func TestMetadataRoundTrip(t *testing.T) {
	e := setup(t)
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	in := makeTar(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o700, uid: 3},
		dir("bin"),
		entry{name: "bin/ping", body: "elf", mode: 0o4755, uid: 9, pax: map[string]string{"SCHILY.xattr.security.capability": caps}},
		hardlink("bin/ping6", "bin/ping"),
		symlink("bin/sh", "ping"),
		entry{name: "dev", kind: tar.TypeDir, mode: 0o755},
		entry{name: "dev/null", kind: tar.TypeChar, mode: 0o666, dev: [2]int64{1, 3}},
		entry{name: "dev/pipe", kind: tar.TypeFifo, mode: 0o600},
		entry{name: "dev/sda", kind: tar.TypeBlock, mode: 0o660, dev: [2]int64{8, 0}},
	)
	r, done, err := e.snaps.View(t.Context(), e.image(t, "x", in))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	top := r.Lower[0]
	var a, b unix.Stat_t
	if err := errors.Join(unix.Lstat(top+"/bin/ping", &a), unix.Lstat(top+"/bin/ping6", &b)); err != nil {
		t.Fatal(err)
	}
	if a.Ino != b.Ino || a.Uid != 9 || a.Mode&0o7777 != 0o4755 || a.Mtim.Sec != mtime.Unix() {
		t.Errorf("bin/ping: %+v, ping6 %+v", a, b)
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(top+"/bin/ping", "security.capability", buf); err != nil || string(buf[:n]) != caps {
		t.Errorf("capability: %q, %v", buf[:max(n, 0)], err)
	}
	if err := unix.Lstat(top+"/bin", &a); err != nil || a.Mtim.Sec != mtime.Unix() {
		t.Errorf("directory's time: %+v, %v", a.Mtim, err)
	}
	if err := unix.Lstat(top, &a); err != nil || a.Mode&0o7777 != 0o700 || a.Uid != 3 {
		t.Errorf("root: %+v, %v", a, err)
	}

	// Out again, and in again: the same tree; and the tar does not vary.
	var out, again bytes.Buffer
	if err := errors.Join(WriteLayer(t.Context(), &out, top), WriteLayer(t.Context(), &again, top)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("two tars of one tree differ")
	}
	img2 := e.image(t, "y", out.Bytes())
	r2, done2, err := e.snaps.View(t.Context(), img2)
	if err != nil {
		t.Fatal(err)
	}
	defer done2()
	out.Reset()
	if err := WriteLayer(t.Context(), &out, r2.Lower[0]); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("tar, unpack, tar: differs")
	}
}

// What a container changes comes out as a layer with whiteouts, and committed
// without copying it shows the same as unpacked from its tar.
func TestDiffAndCommit(t *testing.T) {
	e := setup(t)
	base := makeTar(t, dir("etc"), file("etc/a", "a"), file("etc/b", "b"), dir("etc/d"), file("etc/d/x", "x"), dir("old"), file("old/f", "f"))
	img := e.image(t, "base", base)
	r, err := e.snaps.Prepare(t.Context(), "c1", img)
	if err != nil {
		t.Fatal(err)
	}
	f, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/self/fd/%d/", f.Fd())
	err = errors.Join(
		os.Remove(root+"etc/a"),
		os.WriteFile(root+"etc/b", []byte("changed"), 0o644),
		os.RemoveAll(root+"old"), os.Mkdir(root+"old", 0o755), os.WriteFile(root+"old/new", []byte("new"), 0o600),
		os.RemoveAll(root+"etc/d"),
	)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	want := tree(t, r)
	if !strings.Contains(want, "etc/b 644 0 =changed") || strings.Contains(want, "old/f") {
		t.Fatalf("overlay shows\n%s", want)
	}
	var diff bytes.Buffer
	if err := WriteLayer(t.Context(), &diff, r.Upper); err != nil {
		t.Fatal(err)
	}
	img2 := e.image(t, "changed", base, diff.Bytes())
	if got := view(t, e, img2); got != want {
		t.Errorf("unpacked diff shows\n%s\nwant\n%s", got, want)
	}
	if err := e.images.Remove(t.Context(), "changed"); err != nil {
		t.Fatal(err)
	}
	img2 = e.image(t, "changed", base, diff.Bytes())
	if err := e.snaps.Commit(t.Context(), "c1", img2.DiffIDs[1]); err != nil {
		t.Fatal(err)
	}
	if got := view(t, e, img2); got != want {
		t.Errorf("committed diff shows\n%s\nwant\n%s", got, want)
	}
	if keys, _ := e.snaps.Keys(t.Context()); len(keys) != 0 {
		t.Errorf("keys after commit: %v", keys)
	}
}

func TestPrepareRemove(t *testing.T) {
	e := setup(t)
	ctx := t.Context()
	img := e.image(t, "base", makeTar(t, dir("etc"), file("etc/a", "a")))
	r1, err := e.snaps.Prepare(ctx, "c1", img)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r1.Upper, "f"), make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, i, err := e.snaps.Usage(ctx, "c1"); err != nil || b < 100<<10 || b > 200<<10 || i != 2 {
		t.Errorf("usage: %d bytes, %d inodes, %v", b, i, err)
	}
	again, err := e.snaps.Prepare(ctx, "c1", img)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(r1) {
		t.Errorf("second Prepare: %v, %v", again, err)
	}
	// The image goes: the container keeps its layers, also over a restart.
	if err := e.images.Remove(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	e.close(t)
	e.open(t)
	if keys, err := e.snaps.Keys(ctx); err != nil || fmt.Sprint(keys) != "[c1]" {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if err := e.images.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	again, err = e.snaps.Prepare(ctx, "c1", img)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(r1) {
		t.Errorf("Prepare after restart: %v, %v", again, err)
	}
	if !strings.Contains(tree(t, again), "etc/a 644 0 =a") {
		t.Error("layer lost under a container")
	}
	for range 2 {
		if err := e.snaps.Remove(ctx, "c1"); err != nil {
			t.Error(err)
		}
	}
	if err := e.images.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(e.snaps.path("layers")); len(left) != 0 {
		t.Errorf("layers left: %v", left)
	}
	if _, err := e.snaps.Prepare(ctx, "c2", img); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Prepare of a removed image: %v", err)
	}
	for _, key := range []string{"", "a/b", "..", ".x", strings.Repeat("k", 129)} {
		if _, err := e.snaps.Prepare(ctx, key, img); !errors.Is(err, ErrInvalidKey) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if _, _, err := e.snaps.Usage(ctx, "c1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("usage of nothing: %v", err)
	}
}

// countingImages counts how often layers are read.
type countingImages struct {
	*image.Store
	mu    sync.Mutex
	reads map[int]int
}

func (c *countingImages) OpenLayer(img *image.Image, i int) (io.ReadCloser, error) {
	c.mu.Lock()
	c.reads[i]++
	c.mu.Unlock()
	return c.Store.OpenLayer(img, i)
}

func TestConcurrentPrepareUnpacksOnce(t *testing.T) {
	e := setup(t)
	counting := &countingImages{Store: e.images, reads: map[int]int{}}
	e.snaps.images = counting
	img := e.image(t, "base", makeTar(t, dir("a"), file("a/1", strings.Repeat("x", 1<<20))), makeTar(t, dir("a"), file("a/2", "2")))
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for i := range 20 {
		for range 2 { // the same key twice
			wg.Go(func() {
				_, err := e.snaps.Prepare(t.Context(), fmt.Sprintf("c%d", i), img)
				errs <- err
			})
		}
		wg.Go(func() {
			if i%5 == 0 {
				errs <- e.images.Collect(t.Context())
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if counting.reads[0] != 1 || counting.reads[1] != 1 {
		t.Errorf("layers were read %v times", counting.reads)
	}
	if keys, _ := e.snaps.Keys(t.Context()); len(keys) != 20 {
		t.Errorf("%d keys", len(keys))
	}
}

// An unpack that is cancelled leaves nothing, and the next one does the work.
func TestCancelledUnpack(t *testing.T) {
	e := setup(t)
	img := e.image(t, "base", makeTar(t, file("a", "a"), file("b", "b")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.snaps.Prepare(ctx, "c", img); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	if left, _ := os.ReadDir(e.snaps.path("tmp")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := e.snaps.Prepare(t.Context(), "c", img); err != nil {
		t.Error(err)
	}
}

func TestSecondOwner(t *testing.T) {
	e := setup(t)
	if _, err := Open(e.snaps.dir, e.images); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v", err)
	}
}

// A layer written before a reboot and never synced may have lost its contents.
func TestUnsyncedLayerAfterReboot(t *testing.T) {
	e := setup(t)
	img := e.image(t, "base", makeTar(t, file("a", "good")))
	r, err := e.snaps.Prepare(t.Context(), "c", img)
	if err != nil {
		t.Fatal(err)
	}
	// As after a power cut: the file is there but empty, and the boot another.
	if err := os.WriteFile(filepath.Join(r.Lower[0], "a"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, l := range e.snaps.layers {
		l.Boot = "another boot"
		if err := e.snaps.writeRecord(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.snaps.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if e.snaps, err = Open(e.snaps.dir, e.images); err != nil {
		t.Fatal(err)
	}
	if r, err = e.snaps.Prepare(t.Context(), "c", img); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, r); got != "a 644 0 =good" {
		t.Errorf("after the crash: %s", got)
	}
	// Synced, it outlives the same.
	if err := e.snaps.Sync(); err != nil {
		t.Fatal(err)
	}
	before := e.snaps.layers[img.DiffIDs[0].String()]
	if err := e.snaps.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if e.snaps, err = Open(e.snaps.dir, e.images); err != nil {
		t.Fatal(err)
	}
	if got := e.snaps.layers[before.ID]; got == nil || !got.Synced {
		t.Errorf("synced layer: %+v", got)
	}
}

// As many layers as images can have, by either way of mounting.
func TestManyLayers(t *testing.T) {
	e := setup(t)
	var layers [][]byte
	var want []string
	for i := range 120 {
		layers = append(layers, makeTar(t, file(fmt.Sprintf("f%03d", i), "")))
		want = append(want, fmt.Sprintf("f%03d 644 0 =", i))
	}
	r, err := e.snaps.Prepare(t.Context(), "c", e.image(t, "many", layers...))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Options()) <= maxOptions {
		t.Fatal("the options fit: this tests nothing")
	}
	if got := tree(t, r); got != strings.Join(want, "\n") {
		t.Errorf("got %s", got)
	}
	f, err := r.openOld()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.ReadDir(-1)
	if err != nil || len(names) != 120 {
		t.Errorf("old way: %d files, %v", len(names), err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/f119", f.Fd())); err != nil {
		t.Errorf("old way: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), e.dir) {
		t.Errorf("a mount is seen in the host's namespace: %v", err)
	}
}

func TestImportDir(t *testing.T) {
	e := setup(t)
	d := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(d, "f"), []byte("f"), 0o640), os.Chmod(d, 0o755)); err != nil {
		t.Fatal(err)
	}
	img, err := ImportDir(t.Context(), e.images, d, image.ImportOptions{Names: []string{"dir"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := view(t, e, img); got != "f 640 0 =f" {
		t.Errorf("got %s", got)
	}
	for _, bad := range []string{filepath.Join(d, "f"), filepath.Join(d, "nothing")} {
		if _, err := ImportDir(t.Context(), e.images, bad, image.ImportOptions{}); err == nil {
			t.Errorf("%s was imported", bad)
		}
	}
	if err := os.WriteFile(filepath.Join(d, ".wh.x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ImportDir(t.Context(), e.images, d, image.ImportOptions{}); err == nil {
		t.Error("a whiteout's name was imported")
	}
}

// A writable rootfs can be mounted time and again, either way: what was written
// is there, and unmounting does not wait for the disk.
func TestMountAgain(t *testing.T) {
	e := setup(t)
	r, err := e.snaps.Prepare(t.Context(), "c", e.image(t, "base", makeTar(t, file("a", "a"))))
	if err != nil {
		t.Fatal(err)
	}
	want := "a 644 0 =a"
	for i, open := range []func() (*os.File, error){r.Open, r.openOld, r.Open, r.openOld} {
		f, err := open()
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("f%d", i)
		if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), name), nil, 0o600); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(r.Work, "work/incompat/volatile")); err != nil {
			t.Errorf("mount %d is not volatile: %v", i, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		want += "\n" + name + " 600 0 ="
		if got := tree(t, r); got != want {
			t.Errorf("after mount %d:\n%s\nwant\n%s", i, got, want)
		}
	}
}

// A path longer than the kernel takes for one layer (255 bytes) is mounted the
// old way; also one with the characters that separate mount options.
func TestAwkwardPath(t *testing.T) {
	needRoot(t)
	e := &env{dir: filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 100)+`a:b,c\\d`)}
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	img := e.image(t, "base", makeTar(t, file("a", "a")), makeTar(t, file("b", "b")))
	r, err := e.snaps.Prepare(t.Context(), "c", img)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []string{tree(t, r), view(t, e, img)} {
		if got != "a 644 0 =a\nb 644 0 =b" {
			t.Errorf("got %s", got)
		}
	}
}
