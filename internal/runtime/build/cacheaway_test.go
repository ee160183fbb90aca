package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
	skiffregistry "skiff/internal/runtime/image/registry"
)

// away is a registry on loopback.
type away struct {
	host   string
	client *skiffregistry.Client
	base   []byte // busybox, as an archive: the same image everywhere

	mu    sync.Mutex
	blobs []string // digests that were asked for
	fault func(w http.ResponseWriter, r *http.Request) bool
}

func serveAway(t *testing.T) *away {
	t.Helper()
	a := &away{}
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		fault := a.fault
		if i := strings.Index(r.URL.Path, "/blobs/sha256:"); i >= 0 && r.Method == http.MethodGet {
			a.blobs = append(a.blobs, r.URL.Path[i+len("/blobs/"):])
		}
		a.mu.Unlock()
		if fault == nil || !fault(w, r) {
			reg.ServeHTTP(w, r)
		}
	}))
	transport := &http.Transport{}
	t.Cleanup(srv.Close)
	t.Cleanup(transport.CloseIdleConnections)
	a.host = strings.TrimPrefix(srv.URL, "http://")
	a.client = skiffregistry.New(skiffregistry.Deps{Transport: transport, Backoff: time.Millisecond})
	return a
}

// fail makes f answer; nil for nobody.
func (a *away) fail(f func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
}

// fetched are the blobs that were asked for since the last call.
func (a *away) fetched() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.blobs
	a.blobs = nil
	return out
}

// machine is a store of its own, with busybox in it.
func (a *away) machine(t *testing.T) *env {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: commands run in namespaces on overlays")
	}
	e := &env{dir: t.TempDir(), registry: a.client}
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	if a.base != nil {
		if _, err := e.images.Import(t.Context(), bytes.NewReader(a.base), image.ImportOptions{}); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e.busybox(t)
	var b bytes.Buffer
	if err := e.images.Export(t.Context(), &b, []string{"busybox"}, image.FormatOCI); err != nil {
		t.Fatal(err)
	}
	a.base = b.Bytes()
	return e
}

func cacheFrom(c ...CacheFrom) func(*Request) { return func(r *Request) { r.CacheFrom = c } }

func cacheTo(c ...CacheTo) func(*Request) { return func(r *Request) { r.CacheTo = c } }

func tagged(names ...string) func(*Request) { return func(r *Request) { r.Tags = names } }

// ran are the instructions of the last build that ran.
func (e *env) ran() string {
	cached := map[string]bool{}
	for _, s := range e.log.cached {
		cached[s] = true
	}
	var out []string
	for _, s := range e.log.steps {
		if !cached[s] && !strings.HasPrefix(s, "importing ") && !strings.HasPrefix(s, "exporting ") {
			out = append(out, s)
		}
	}
	return strings.Join(out, "; ")
}

// blobs is how many the store has.
func (e *env) blobs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(e.dir, "images/blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// once is a command whose result is another each time.
const once = "cat /proc/sys/kernel/random/uuid"

// What an image carries of its cache is taken by an empty store: nothing runs, and the
// image is the same. After a change, what follows runs, and no layer of it is fetched.
func TestCacheInline(t *testing.T) {
	reg := serveAway(t)
	a, b := reg.machine(t), reg.machine(t)
	ref := reg.host + "/team/app:1"
	const df = "FROM busybox\nWORKDIR /src\nENV V=1\nRUN " + once + " > /one\nRUN true\nCOPY f .\nRUN " + once + " > /two\nCMD [\"x\"]\n"
	files := map[string]string{"f": "f"}
	first := a.mustBuild(t, df, files, tagged(ref), cacheTo(CacheTo{Type: "inline"}))
	if _, err := a.images.Push(t.Context(), ref, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	from := cacheFrom(CacheFrom{Type: "registry", Ref: ref})
	again := b.mustBuild(t, df, files, from, cacheTo(CacheTo{Type: "inline"}))
	if b.ran() != "" || again.ID != first.ID || len(b.log.warned) > 0 {
		t.Errorf("ran %q, image %s after %s, warned %v", b.ran(), again.ID, first.ID, b.log.warned)
	}
	if got := b.read(t, again, "/one") + b.read(t, again, "/two"); got != a.read(t, first, "/one")+a.read(t, first, "/two") {
		t.Errorf("got %s", got)
	}
	if !strings.Contains(strings.Join(b.log.steps, "; "), "importing cache manifest from "+ref) {
		t.Errorf("steps: %v", b.log.steps)
	}
	if !strings.Contains(rawConfig(t, b, again), cacheField) || strings.Contains(rawConfig(t, b, again), "moby.buildkit") {
		t.Errorf("config: %s", rawConfig(t, b, again))
	}
	// From now on the store has it itself, over a restart and without the image.
	if err := b.images.Remove(t.Context(), again.ID); err != nil {
		t.Fatal(err)
	}
	b.close(t)
	b.open(t)
	reg.fetched()
	if img := b.mustBuild(t, df, files); b.ran() != "" || img.Size != first.Size {
		t.Errorf("ran %q, %d bytes after %d", b.ran(), img.Size, first.Size)
	}
	if got := reg.fetched(); len(got) > 0 {
		t.Errorf("fetched %v", got)
	}

	// Another store, another file: what comes before it is taken, and no more.
	c := reg.machine(t)
	changed := c.mustBuild(t, df, map[string]string{"f": "other"}, from)
	if want := "COPY f .; RUN " + once + " > /two"; c.ran() != want {
		t.Errorf("ran %q, want %q", c.ran(), want)
	}
	if got := reg.fetched(); len(got) != 3 { // the config, /src, /one
		t.Errorf("fetched %v", got)
	}
	if c.read(t, changed, "/one") != a.read(t, first, "/one") || c.read(t, changed, "/two") == a.read(t, first, "/two") {
		t.Error("the wrong commands ran")
	}
	if strings.Contains(rawConfig(t, c, changed), cacheField) {
		t.Error("a cache was put into the image though none was asked for")
	}
	// Another environment of a command, and another base, are other keys.
	d := reg.machine(t)
	d.mustBuild(t, strings.Replace(df, "V=1", "V=2", 1), files, from)
	if want := "RUN " + once + " > /one; RUN true; COPY f .; RUN " + once + " > /two"; d.ran() != want {
		t.Errorf("ran %q, want %q", d.ran(), want)
	}
	// --no-cache runs all, and asks nobody.
	reg.fetched()
	d.mustBuild(t, df, files, from, func(r *Request) { r.NoCache = true })
	if got := reg.fetched(); len(d.log.cached) > 0 || len(got) > 0 {
		t.Errorf("cached %v, fetched %v", d.log.cached, got)
	}
}

// Layers that remove, replace and link what is below them, and those that do not depend
// on it, are the same where they come to.
func TestCacheLayers(t *testing.T) {
	reg := serveAway(t)
	a, b := reg.machine(t), reg.machine(t)
	df := "FROM busybox\nRUN rm /etc/group && ln /etc/passwd /etc/hard && rm -r /usr && mkdir /usr && echo x > /usr/x\n" +
		"COPY --link f /linked/f\nADD a.tar /a/\nRUN chown 3:4 /linked/f && mknod /null c 1 3\n"
	files := map[string]string{"f": "f", "a.tar": tarOf("in/f", "f")}
	to := CacheTo{Type: "registry", Ref: reg.host + "/team/cache:1"}
	dirs := []string{"/etc", "/usr", "/linked", "/a"}
	first := a.mustBuild(t, df, files, cacheTo(to))
	again := b.mustBuild(t, df, files, cacheFrom(CacheFrom{Type: "registry", Ref: to.Ref}))
	if b.ran() != "" || again.ID != first.ID {
		t.Errorf("ran %q", b.ran())
	}
	if got, want := b.tree(t, again, dirs...), a.tree(t, first, dirs...); got != want || strings.Contains(got, "/etc/group") || !strings.Contains(got, "/usr/x = x") {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A command on top of them, which mounts them.
	img := b.mustBuild(t, df+"RUN stat -c '%u:%g %h' /linked/f /etc/hard > /stat\n", files)
	if got := b.read(t, img, "/stat"); b.ran() != "RUN stat -c '%u:%g %h' /linked/f /etc/hard > /stat" || got != "3:4 1\n0:0 2\n" {
		t.Errorf("ran %q: %q", b.ran(), got)
	}
}

// docker's classic --cache-from IMAGE: an image of the store itself.
func TestCacheFromStored(t *testing.T) {
	reg := serveAway(t)
	e := reg.machine(t)
	const df = "FROM busybox\nRUN " + once + " > /one\nRUN " + once + " > /two\n"
	first := e.mustBuild(t, df, nil, tagged("app:1"), cacheTo(CacheTo{Type: "inline"}))
	if _, err := e.builder.Prune(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	reg.fail(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }) // nobody is asked
	img := e.mustBuild(t, df, nil, cacheFrom(CacheFrom{Type: "registry", Ref: "app:1"}), args(argInline, "1"))
	if e.ran() != "" || img.ID != first.ID || len(e.log.warned) > 0 {
		t.Errorf("ran %q, warned %v", e.ran(), e.log.warned)
	}
}

const staged = `FROM busybox AS build
RUN ` + once + ` > /built
COPY f /f
RUN cat /f > /out
FROM busybox AS unused
RUN false
FROM busybox
COPY --from=build /out /app
RUN ` + once + ` > /last
`

// mode=max has the results of all stages, mode=min those of the image.
func TestCacheModes(t *testing.T) {
	reg := serveAway(t)
	a := reg.machine(t)
	files := map[string]string{"f": "f"}
	max := CacheTo{Type: "registry", Ref: reg.host + "/team/cache:max", Mode: "max", Compression: "zstd"}
	min := CacheTo{Type: "registry", Ref: reg.host + "/team/cache:min"}
	first := a.mustBuild(t, staged, files, cacheTo(max, min))
	if s := strings.Join(a.log.steps, "; "); !strings.Contains(s, "exporting cache to registry "+max.Ref) {
		t.Errorf("steps: %s", s)
	}
	b := reg.machine(t)
	img := b.mustBuild(t, staged, files, cacheFrom(CacheFrom{Type: "registry", Ref: max.Ref}))
	if b.ran() != "" || img.ID != first.ID {
		t.Errorf("max: ran %q, image %s after %s", b.ran(), img.ID, first.ID)
	}
	c := reg.machine(t)
	c.mustBuild(t, staged, files, cacheFrom(CacheFrom{Type: "registry", Ref: min.Ref}))
	if want := "RUN " + once + " > /built; COPY f /f; RUN cat /f > /out"; c.ran() != want {
		t.Errorf("min: ran %q, want %q", c.ran(), want)
	}
	// A change in one stage alone.
	d := reg.machine(t)
	d.mustBuild(t, staged, map[string]string{"f": "g"}, cacheFrom(CacheFrom{Type: "registry", Ref: max.Ref}))
	if want := "COPY f /f; RUN cat /f > /out; COPY --from=build /out /app; RUN " + once + " > /last"; d.ran() != want {
		t.Errorf("changed: ran %q, want %q", d.ran(), want)
	}
	// What was taken compressed goes on as it is, in a cache that is the same.
	b.mustBuild(t, staged, files, cacheTo(max))
	e := reg.machine(t)
	e.mustBuild(t, staged, files, cacheFrom(CacheFrom{Type: "registry", Ref: max.Ref}))
	if e.ran() != "" {
		t.Errorf("handed on: ran %q", e.ran())
	}
}

// A layout directory: written, read, written again.
func TestCacheLocal(t *testing.T) {
	reg := serveAway(t)
	a, b, c := reg.machine(t), reg.machine(t), reg.machine(t)
	dir := filepath.Join(t.TempDir(), "cache")
	to := cacheTo(CacheTo{Type: "local", Dest: dir, Mode: "max"})
	from := cacheFrom(CacheFrom{Type: "local", Src: dir})
	files := map[string]string{"f": "f"}
	first := a.mustBuild(t, staged, files, to, func(r *Request) { r.Output = &Output{Type: "local", Dest: filepath.Join(t.TempDir(), "out")} })
	if first != nil {
		t.Error("an image was made")
	}
	img := b.mustBuild(t, staged, files, from)
	if b.ran() != "" || b.read(t, img, "/last") == "" {
		t.Errorf("ran %q", b.ran())
	}
	// Another build takes its place, with what that alone needs.
	count := func() int {
		t.Helper()
		all, err := os.ReadDir(filepath.Join(dir, "blobs/sha256"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	n := count()
	b.mustBuild(t, staged, map[string]string{"f": "g"}, from, to)
	if got := count(); got != n {
		t.Errorf("%d blobs after %d", got, n)
	}
	// Tags live beside each other, and a digest finds one too.
	a.mustBuild(t, "FROM busybox\nRUN "+once+" > /x", nil, cacheTo(CacheTo{Type: "local", Dest: dir, Tag: "other"}))
	c.mustBuild(t, "FROM busybox\nRUN "+once+" > /x", nil, cacheFrom(CacheFrom{Type: "local", Src: dir, Tag: "other"}))
	if c.ran() != "" {
		t.Errorf("by tag: ran %q", c.ran())
	}
	var index v1.IndexManifest
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil || len(index.Manifests) != 2 {
		t.Fatalf("%s, %v", data, err)
	}
	for _, m := range index.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] == DefaultTag {
			c.mustBuild(t, staged, map[string]string{"f": "g"}, cacheFrom(CacheFrom{Type: "local", Src: dir, Digest: m.Digest.String()}))
			if c.ran() != "" {
				t.Errorf("by digest: ran %q", c.ran())
			}
		}
	}
	// One that is not there is a warning; one that cannot be written an error, unless that is ignored.
	c.mustBuild(t, "FROM busybox\nRUN true", nil, cacheFrom(CacheFrom{Type: "local", Src: dir, Tag: "none"}, CacheFrom{Type: "local", Src: dir + "/none"}))
	if len(c.log.warned) != 2 {
		t.Errorf("warned %v", c.log.warned)
	}
	bad := CacheTo{Type: "local", Dest: filepath.Join(dir, "index.json")}
	if _, err := c.build(t, "FROM busybox\nRUN true", nil, cacheTo(bad)); err == nil || !strings.Contains(err.Error(), "--cache-to local "+bad.Dest) {
		t.Error(err)
	}
	bad.IgnoreError = true
	if c.mustBuild(t, "FROM busybox\nRUN true", nil, cacheTo(bad)); len(c.log.warned) != 1 {
		t.Errorf("warned %v", c.log.warned)
	}
}

// A cache that is not there, or away, or none, is a warning, and the build goes on.
func TestCacheFromMissing(t *testing.T) {
	reg := serveAway(t)
	e := reg.machine(t)
	plain := reg.host + "/team/plain:1"
	e.mustBuild(t, "FROM busybox\nRUN "+once+" > /x", nil, tagged(plain))
	if _, err := e.images.Push(t.Context(), plain, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for ref, want := range map[string]string{
		reg.host + "/team/none:1":                               "not found",
		strings.TrimPrefix(gone.URL, "http://") + "/team/app:1": "refused",
		plain: errNoCache.Error(),
	} {
		img := e.mustBuild(t, "FROM busybox\nRUN true", nil, cacheFrom(CacheFrom{Type: "registry", Ref: ref}))
		if img == nil || len(e.log.warned) != 1 || !strings.Contains(e.log.warned[0], want) {
			t.Errorf("%s: warned %q, want %s", ref, e.log.warned, want)
		}
		if e.log.failed["importing cache manifest from "+ref] == "" {
			t.Errorf("%s: the step did not fail: %v", ref, e.log.failed)
		}
	}
	// The registry goes away between the keys and the layers.
	app := reg.host + "/team/app:1"
	const df = "FROM busybox\nRUN " + once + " > /x\nRUN " + once + " > /y"
	e.mustBuild(t, df, nil, cacheTo(CacheTo{Type: "registry", Ref: app}))
	b := reg.machine(t)
	var blobs atomic.Int32
	reg.fail(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1) // the first is the config
		}
		if blobs.Load() > 1 {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	b.mustBuild(t, df, nil, cacheFrom(CacheFrom{Type: "registry", Ref: app}))
	if want := "RUN " + once + " > /x; RUN " + once + " > /y"; b.ran() != want || len(b.log.warned) != 1 {
		t.Errorf("ran %q, warned %v", b.ran(), b.log.warned)
	}
	// Cancelled meanwhile, the build ends.
	ctx, cancel := context.WithCancel(t.Context())
	reg.fail(func(_ http.ResponseWriter, r *http.Request) bool { cancel(); <-r.Context().Done(); return true })
	if _, err := b.buildIn(ctx, t.TempDir(), df, cacheFrom(CacheFrom{Type: "registry", Ref: app})); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// hostile is a layout directory with a manifest and config as given, and one layer.
func hostile(t *testing.T, layer []byte, change func(*v1.Manifest, map[string]any)) string {
	t.Helper()
	dir := t.TempDir()
	put := func(b []byte) v1.Descriptor {
		t.Helper()
		h := v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(b))}
		writeFiles(t, dir, map[string]string{"blobs/sha256/" + h.Hex: string(b)})
		return v1.Descriptor{Digest: h, Size: int64(len(b))}
	}
	l := put(layer)
	l.MediaType = types.OCIUncompressedLayer
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{l}}
	config := map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.Digest.String()}}}
	change(&m, config)
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest == (v1.Hash{}) {
		m.Config = put(raw)
	}
	raw, err = json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	desc := put(raw)
	desc.MediaType, desc.Annotations = m.MediaType, map[string]string{"org.opencontainers.image.ref.name": DefaultTag}
	raw, err = json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{desc}})
	if err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{"index.json": string(raw)})
	return dir
}

// What a cache says is not believed: the instruction runs, nothing of the cache is
// left, and there is a warning.
func TestCacheHostile(t *testing.T) {
	reg := serveAway(t)
	e := reg.machine(t)
	// The key of the instruction, from a build.
	const df = "FROM busybox\nRUN echo good > /x"
	probe := filepath.Join(t.TempDir(), "probe")
	e.mustBuild(t, df, nil, cacheTo(CacheTo{Type: "local", Dest: probe}))
	src, err := e.images.LookLayout(t.Context(), probe, DefaultTag, "")
	if err != nil {
		t.Fatal(err)
	}
	steps, _, err := parseCache(src.Config, len(src.Layers))
	if err != nil || len(steps) != 1 {
		t.Fatal(steps, err)
	}
	step := func(layer any) map[string]any {
		return map[string]any{"steps": []any{map[string]any{"key": steps[0].Key, "layer": layer, "created": time.Unix(0, 0)}}}
	}
	evil := []byte(tarOf("x", "evil"))
	other := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	var zeros bytes.Buffer
	zeros.Write(make([]byte, 1<<10))
	for name, tc := range map[string]struct {
		layer  []byte
		change func(m *v1.Manifest, c map[string]any)
		want   string
	}{
		"wrong diff ID": {evil, func(_ *v1.Manifest, c map[string]any) {
			c["rootfs"] = map[string]any{"diff_ids": []string{other.String()}}
		}, "does not unpack to"},
		"other content":      {evil, nil, "its content has digest"},
		"missing blob":       {evil, func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Digest = other }, "no such file"},
		"larger than said":   {evil, func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Size = 10 }, "longer than the 10 bytes"},
		"smaller than said":  {evil, func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Size++ }, "the manifest says"},
		"a size below zero":  {evil, func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Size = -5 }, "there is room for"},
		"larger than disks":  {evil, func(m *v1.Manifest, _ map[string]any) { m.Layers[0].Size = 1 << 60 }, "there is room for"},
		"no tar":             {[]byte("no tar at all"), nil, "unpack layer"},
		"leads out":          {[]byte(tarOf("../../../../evil", "evil")), nil, "evil"},
		"compressed as is":   {append([]byte{0x1f, 0x8b}, zeros.Bytes()...), nil, "does not unpack to"},
		"a layer not there":  {evil, func(_ *v1.Manifest, c map[string]any) { c[cacheField] = step(7) }, "there is no layer 7"},
		"a layer below zero": {evil, func(_ *v1.Manifest, c map[string]any) { c[cacheField] = step(-1) }, "there is no layer -1"},
		"no layer's type":    {evil, func(_ *v1.Manifest, c map[string]any) { c[cacheField] = step("x") }, "corrupt"},
		"a bad key": {evil, func(_ *v1.Manifest, c map[string]any) {
			c[cacheField] = map[string]any{"steps": []any{map[string]any{"key": "../../../x"}}}
		}, "must be 64 hexadecimal digits"},
		"too few diff IDs": {evil, func(_ *v1.Manifest, c map[string]any) { c["rootfs"] = map[string]any{} }, "manifest has 1 layers, config 0"},
		"a huge config":    {evil, func(_ *v1.Manifest, c map[string]any) { c["pad"] = strings.Repeat("x", image.MaxJSON) }, "longer than"},
		"no config":        {evil, func(m *v1.Manifest, _ map[string]any) { m.Config.Digest = other }, "config"},
		"a config that leads out": {evil, func(m *v1.Manifest, _ map[string]any) {
			m.Config.Digest = v1.Hash{Algorithm: "sha256", Hex: "../../index.json"}
		}, "manifest: corrupt content"},
		"a bad digest of a layer": {evil, func(m *v1.Manifest, _ map[string]any) {
			m.Layers[0].Digest = v1.Hash{Algorithm: "md5", Hex: strings.Repeat("0", 32)}
		}, "manifest: corrupt content"},
	} {
		t.Run(name, func(t *testing.T) {
			b := reg.machine(t)
			dir := hostile(t, tc.layer, func(m *v1.Manifest, c map[string]any) {
				c[cacheField] = step(0)
				if tc.change != nil {
					tc.change(m, c)
				}
			})
			if name == "other content" {
				writeFiles(t, dir, map[string]string{fmt.Sprintf("blobs/sha256/%x", sha256.Sum256(tc.layer)): tarOf("x", "good")})
			}
			img := b.mustBuild(t, df, nil, cacheFrom(CacheFrom{Type: "local", Src: dir}))
			if got := b.read(t, img, "/x"); got != "good\n" {
				t.Errorf("/x: %q", got)
			}
			if len(b.log.warned) != 1 || !strings.Contains(b.log.warned[0], tc.want) {
				t.Errorf("warned %q, want %s", b.log.warned, tc.want)
			}
			if n := b.blobs(t); n != 6 { // two images: manifest, config, and a layer each
				t.Errorf("%d blobs are left", n)
			}
		})
	}
	// As the other cases, it is taken where nothing is wrong with it: a cache is
	// trusted as a base image is.
	b := reg.machine(t)
	img := b.mustBuild(t, df, nil, cacheFrom(CacheFrom{Type: "local", Src: hostile(t, evil, func(_ *v1.Manifest, c map[string]any) { c[cacheField] = step(0) })}))
	if got := b.read(t, img, "/x"); got != "evil" {
		t.Errorf("/x: %q", got)
	}
}

func TestCacheRequest(t *testing.T) {
	e := setup(t)
	local := &Output{Type: "local", Dest: t.TempDir()}
	for want, change := range map[string]func(*Request){
		`--cache-from: type "gha"`:                cacheFrom(CacheFrom{Type: "gha"}),
		`--cache-from: ref "Bad"`:                 cacheFrom(CacheFrom{Type: "registry", Ref: "Bad"}),
		`--cache-from: src "x": must be absolute`: cacheFrom(CacheFrom{Type: "local", Src: "x"}),
		`--cache-to: type "s3"`:                   cacheTo(CacheTo{Type: "s3"}),
		`--cache-to: ref "Bad"`:                   cacheTo(CacheTo{Type: "registry", Ref: "Bad"}),
		"under a tag, not a digest":               cacheTo(CacheTo{Type: "registry", Ref: "x@sha256:" + strings.Repeat("0", 64)}),
		`--cache-to: dest "x"`:                    cacheTo(CacheTo{Type: "local", Dest: "x"}),
		`--cache-to: mode "most"`:                 cacheTo(CacheTo{Type: "registry", Ref: "x", Mode: "most"}),
		`type=inline has mode=min alone`:          cacheTo(CacheTo{Type: "inline", Mode: "max"}),
		`--cache-to: compression "xz"`:            cacheTo(CacheTo{Type: "registry", Ref: "x", Compression: "xz"}),
		"needs an image to be in":                 func(r *Request) { r.CacheTo, r.Output = []CacheTo{{Type: "inline"}}, local },
	} {
		want = strings.Replace(want, "must be absolute", "must be an absolute path", 1)
		if _, err := e.build(t, "FROM scratch", nil, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Whatever a config says, no layer is named that the manifest does not have.
func FuzzParseCache(f *testing.F) {
	hash := "sha256:" + strings.Repeat("ab", 32)
	key := strings.Repeat("0", 64)
	for _, seed := range []string{
		`{"rootfs":{"diff_ids":["` + hash + `"]},"dev.skiff.build.cache.v1":{"steps":[{"key":"` + key + `","layer":0,"created":"2026-01-01T00:00:00Z"}]}}`,
		`{"rootfs":{"diff_ids":[null]},"dev.skiff.build.cache.v1":{"steps":[{"key":"` + key + `"}]}}`,
		`{"dev.skiff.build.cache.v1":null}`, `[]`, ``,
	} {
		f.Add([]byte(seed), 1)
	}
	f.Fuzz(func(t *testing.T, config []byte, layers int) {
		steps, diffIDs, err := parseCache(config, layers)
		if err != nil {
			return
		}
		if len(diffIDs) != layers {
			t.Errorf("%d diff IDs for %d layers", len(diffIDs), layers)
		}
		for _, s := range steps {
			if len(s.Key) != 64 || s.Layer != nil && (*s.Layer < 0 || *s.Layer >= layers) {
				t.Errorf("%+v", s)
			}
		}
	})
}
