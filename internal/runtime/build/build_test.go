package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

func TestMain(m *testing.M) {
	Helper()
	if dir := os.Getenv("SKIFF_TEST_KILLED"); dir != "" {
		killedChild(dir)
	}
	goleak.VerifyTestMain(m)
}

type env struct {
	images  *image.Store
	snaps   *snapshot.Store
	builder *Builder
	dir     string
	log     *recorder
	// registry is what open gives the image store; nil for none.
	registry image.Registry
}

func setup(t testing.TB) *env {
	if os.Geteuid() != 0 {
		t.Skip("needs root: commands run in namespaces on overlays")
	}
	e := &env{dir: t.TempDir()}
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	return e
}

func (e *env) open(t testing.TB) {
	t.Helper()
	var err error
	if e.images, err = image.Open(filepath.Join(e.dir, "images"), image.Options{Registry: e.registry}); err != nil {
		t.Fatal(err)
	}
	if e.snaps, err = snapshot.Open(filepath.Join(e.dir, "snapshots"), e.images); err != nil {
		t.Fatal(err)
	}
	e.builder, err = New(Deps{Images: e.images, Snapshots: e.snaps, Executor: &NamespaceExecutor{}, Dir: filepath.Join(e.dir, "build")})
	if err != nil {
		t.Fatal(err)
	}
}

func (e *env) close(t testing.TB) {
	if err := errors.Join(e.snaps.Close(), e.images.Close()); err != nil {
		t.Error(err)
	}
}

// busybox imports an image whose programs are the machine's static busybox.
func (e *env) busybox(t testing.TB) {
	t.Helper()
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox, statically linked (Debian package busybox-static): ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, body []byte) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(1700000000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "usr/", "usr/lib/", "root/"} {
		put(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	put(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	put(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, binary)
	for _, a := range strings.Fields("sh cat echo ls id env mkdir rm ln chmod chown touch sleep test cp mv hostname mount mknod stat wc head grep sed tr readlink ps ip true false printf sort find md5sum nc") {
		put(tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	put(tar.Header{Name: "lib", Typeflag: tar.TypeSymlink, Linkname: "usr/lib", Mode: 0o777}, nil)
	put(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"))
	put(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\napp:x:1001:\nextra:x:50:app\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.images.Import(t.Context(), &b, image.ImportOptions{Names: []string{"busybox"}, Config: v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}}); err != nil {
		t.Fatal(err)
	}
}

// recorder is a Progress that remembers.
type recorder struct {
	mu     sync.Mutex
	steps  []string
	cached []string
	warned []string
	failed map[string]string // steps that did not end well, with why
	out    bytes.Buffer
	names  map[int]string
}

func (r *recorder) Start(n, total int, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names == nil {
		r.names, r.failed = map[int]string{}, map[string]string{}
	}
	r.names[n] = name
}
func (r *recorder) Output(_ int, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.Write(b)
}
func (r *recorder) Done(n int, cached bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := r.names[n]
	if strings.HasPrefix(name, "FROM") {
		return
	}
	r.steps = append(r.steps, name)
	if cached {
		r.cached = append(r.cached, name)
	}
	if err != nil {
		r.failed[name] = err.Error()
	}
}
func (r *recorder) Warn(_ string, _ int, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warned = append(r.warned, text)
}

func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, body := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (e *env) build(t testing.TB, dockerfile string, files map[string]string, change ...func(*Request)) (*image.Image, error) {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, files)
	return e.buildIn(t.Context(), dir, dockerfile, change...)
}

func (e *env) buildIn(ctx context.Context, dir, dockerfile string, change ...func(*Request)) (*image.Image, error) {
	e.log = &recorder{}
	req := Request{Context: dir, Content: []byte(dockerfile), Progress: e.log}
	for _, c := range change {
		c(&req)
	}
	return e.builder.Build(ctx, req)
}

func (e *env) mustBuild(t testing.TB, dockerfile string, files map[string]string, change ...func(*Request)) *image.Image {
	t.Helper()
	img, err := e.build(t, dockerfile, files, change...)
	if err != nil {
		t.Fatalf("%v\n%s", err, e.log.out.String())
	}
	return img
}

// inside calls fn with the path of a mounted image.
func (e *env) inside(t testing.TB, img *image.Image, fn func(root string)) {
	t.Helper()
	r, done, err := e.snaps.View(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	f, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fn(fdPath(f))
}

// tree lists the files below the given directories of an image.
func (e *env) tree(t testing.TB, img *image.Image, dirs ...string) string {
	t.Helper()
	var lines []string
	e.inside(t, img, func(root string) {
		for _, d := range dirs {
			err := filepath.WalkDir(filepath.Join(root, d), func(p string, de fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				fi, err := os.Lstat(p)
				if err != nil {
					return err
				}
				rel := strings.TrimPrefix(p, root)
				switch {
				case fi.Mode()&fs.ModeSymlink != 0:
					to, _ := os.Readlink(p)
					lines = append(lines, rel+" -> "+to)
				case fi.IsDir():
					lines = append(lines, rel+"/")
				default:
					b, _ := os.ReadFile(p)
					lines = append(lines, rel+" = "+strings.TrimSpace(string(b)))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func (e *env) read(t testing.TB, img *image.Image, name string) string {
	t.Helper()
	var out string
	e.inside(t, img, func(root string) {
		b, err := os.ReadFile(root + name)
		if err != nil {
			t.Fatal(err)
		}
		out = string(b)
	})
	return out
}

func TestConfig(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	img := e.mustBuild(t, `# syntax=docker/dockerfile:1
ARG TAG=latest
ARG WHERE=/srv
FROM busybox:$TAG AS first
ARG WHERE
ARG VERSION=1 OTHER="a b"
ENV APP=/app/$VERSION NAME="x y" \
    GREETING=hello\ there
ENV VERSION=fromenv
LABEL a=b "c d"="$NAME" version=$VERSION
WORKDIR $APP
WORKDIR sub/../dir
USER app:extra
EXPOSE 80 443/tcp 53/udp 8000-8002
VOLUME /data ["/ignored"]
VOLUME ["/v1", "/v2"]
STOPSIGNAL SIGQUIT
MAINTAINER me
SHELL ["/bin/sh", "-ec"]
CMD echo $HOME
ENTRYPOINT ["/bin/app", "-x"]
HEALTHCHECK --interval=5s --retries=3 CMD true
ONBUILD ENV TRIGGERED=yes
ONBUILD COPY f /onbuild
`, nil, func(r *Request) {
		r.Tags = []string{"cfg", "example.com/cfg:2"}
		r.Labels = map[string]string{"extra": "1"}
		r.Args = map[string]string{"UNUSED": "1", "HTTP_PROXY": "p"}
	})
	c := img.Config.Config
	want := v1.Config{
		Env:        []string{"PATH=/bin", "APP=/app/1", "NAME=x y", "GREETING=hello there", "VERSION=fromenv"},
		Labels:     map[string]string{"a": "b", "c d": "x y", "version": "fromenv", "extra": "1"},
		WorkingDir: "/app/1/dir", User: "app:extra",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}},
		Volumes:      c.Volumes, StopSignal: "SIGQUIT",
		Shell: []string{"/bin/sh", "-ec"}, Cmd: []string{"/bin/sh", "-ec", "echo $HOME"}, Entrypoint: []string{"/bin/app", "-x"},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: 5 * time.Second, Retries: 3},
		OnBuild:     []string{"ENV TRIGGERED=yes", "COPY f /onbuild"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if _, ok := c.Volumes["/v2"]; !ok || img.Config.Author != "me" {
		t.Errorf("volumes %v, author %s", c.Volumes, img.Config.Author)
	}
	if len(img.RepoTags) != 2 {
		t.Errorf("tags: %v", img.RepoTags)
	}
	if n := len(img.Config.History); n != 18 {
		t.Errorf("%d history entries", n)
	}
	if w := strings.Join(e.log.warned, "\n"); !strings.Contains(w, "UNUSED") || strings.Contains(w, "HTTP_PROXY") {
		t.Errorf("warnings: %s", w)
	}
	layers := 0
	for _, h := range img.Config.History {
		if !h.EmptyLayer {
			layers++
		}
	}
	if layers != len(img.DiffIDs) {
		t.Errorf("history has %d layers, image %d", layers, len(img.DiffIDs))
	}

	// The next build on top runs the triggers, and loses them.
	img2 := e.mustBuild(t, "FROM cfg\nENTRYPOINT [\"other\"]\n", map[string]string{"f": "trigger"})
	if got := e.read(t, img2, "/onbuild"); got != "trigger" {
		t.Errorf("/onbuild: %q", got)
	}
	c = img2.Config.Config
	if v, _ := lookupEnv(c.Env, "TRIGGERED"); v != "yes" || len(c.OnBuild) != 0 || len(c.Cmd) != 0 {
		t.Errorf("after triggers: %+v", c)
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]struct {
		dockerfile string
		line       int
		want       string
	}{
		"unknown instruction": {"FROM scratch\nCPOY a b\n", 2, "unknown instruction: CPOY"},
		"empty":               {"", 0, "file with no instructions"},
		"no stage":            {"RUN x", 1, "no build stage in current context"},
		"copy without dest":   {"FROM scratch\n\nCOPY a\n", 3, "COPY requires at least two arguments"},
		"exit code":           {"FROM busybox\nRUN echo out; \\\n  exit 3\n", 2, `process "/bin/sh -c echo out;   exit 3" did not complete successfully: exit code: 3`},
		"no program":          {"FROM busybox\nRUN [\"nothing\"]", 2, `exec: "nothing": executable file not found in $PATH`},
		"no shell":            {"FROM scratch\nRUN x", 2, `exec: "/bin/sh": stat /bin/sh: no such file or directory`},
		"no base":             {"FROM nothing:1", 1, "docker.io/library/nothing:1"},
		"bad base":            {"FROM Nothing", 1, "invalid reference format"},
		"blank base":          {"ARG X\nFROM $X", 2, "base name ($X) should not be blank"},
		"platform":            {"FROM --platform=linux/none busybox", 1, "no access to registries"},
		"bad signal":          {"FROM scratch\nSTOPSIGNAL x", 2, "invalid signal: x"},
		"bad port":            {"FROM scratch\nEXPOSE 99999", 2, "invalid containerPort: 99999"},
		"bad protocol":        {"FROM scratch\nEXPOSE 1/x", 2, "invalid containerPort: 1/x"},
		"unknown user":        {"FROM busybox\nUSER none\nRUN true", 3, `user "none"`},
		"required variable":   {"FROM busybox\nENV A=${B:?needed}", 2, "B: needed"},
	}
	e := setup(t)
	e.busybox(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := e.build(t, tc.dockerfile, nil)
			var be *Error
			if !errors.As(err, &be) || be.Line != tc.line || !strings.Contains(be.Error(), tc.want) {
				t.Fatalf("got %v, want line %d: %s", err, tc.line, tc.want)
			}
			if tc.line > 0 && (!strings.Contains(be.Excerpt, fmt.Sprintf("Dockerfile:%d\n", tc.line)) || !strings.Contains(be.Excerpt, fmt.Sprintf("%4d | >>> ", tc.line))) {
				t.Errorf("excerpt:\n%s", be.Excerpt)
			}
		})
	}
	var exit *ExitError
	if _, err := e.build(t, tests["exit code"].dockerfile, nil); !errors.As(err, &exit) || exit.Code != 3 || e.log.out.String() != "out\n" {
		t.Errorf("%v, output %q", err, e.log.out.String())
	}
	if _, err := e.build(t, "FROM scratch", nil, func(r *Request) { r.Target = "x" }); err == nil || !strings.Contains(err.Error(), `target stage "x" could not be found`) {
		t.Error(err)
	}
	if _, err := e.build(t, "FROM scratch", nil, func(r *Request) { r.Tags = []string{"Bad"} }); !errors.Is(err, image.ErrInvalidName) {
		t.Error(err)
	}
	if _, err := e.build(t, "", nil, func(r *Request) { r.Content = nil }); err == nil || !strings.Contains(err.Error(), "failed to read dockerfile") {
		t.Error(err)
	}
	// Failed builds leave neither keys nor files under way.
	for _, d := range []string{"snapshots/keys", "snapshots/tmp", "images/ingest"} {
		if left, _ := os.ReadDir(filepath.Join(e.dir, d)); len(left) > 0 {
			t.Errorf("%s: %v", d, left)
		}
	}
}

func TestStages(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = `ARG BASE=busybox
FROM $BASE AS base
RUN echo base > /base
FROM base AS one
RUN echo one > /one
FROM base AS two
RUN echo two > /two
FROM base AS unused
RUN false
FROM scratch AS final
COPY --from=one /one /
COPY --from=2 /two /
COPY --from=busybox /etc/group /group
FROM one AS another
RUN echo more > /more
`
	img := e.mustBuild(t, df, nil, func(r *Request) { r.Target = "FINAL" })
	if got := e.tree(t, img, "/one", "/two"); got != "/one = one\n/two = two" {
		t.Error(got)
	}
	if s := strings.Join(e.log.steps, "; "); strings.Contains(s, "false") || strings.Contains(s, "more") {
		t.Errorf("steps: %s", s)
	}
	img = e.mustBuild(t, df, nil)
	if got := e.tree(t, img, "/base", "/one", "/more"); got != "/base = base\n/more = more\n/one = one" {
		t.Error(got)
	}
	if len(e.log.cached) != 2 {
		t.Errorf("cached: %v", e.log.cached)
	}
}

// The cache goes by content: what did not change is not done again, over a
// restart and after the image is gone; what did change is.
func TestCache(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = `FROM busybox AS build
WORKDIR /src
COPY go.mod .
RUN echo deps > /deps
COPY . .
RUN cat main > /out
FROM busybox
COPY --from=build /out /app
ENV X=1
RUN echo $X > /x
CMD ["/app"]
`
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"go.mod": "mod", "main": "main 1", ".dockerignore": "ignored"})
	build := func() (*image.Image, string) {
		t.Helper()
		img, err := e.buildIn(t.Context(), dir, df, func(r *Request) { r.Tags = []string{"app"} })
		if err != nil {
			t.Fatal(err)
		}
		cached := map[string]bool{}
		for _, s := range e.log.cached {
			cached[s] = true
		}
		var out []string
		for _, s := range e.log.steps {
			if !cached[s] {
				out = append(out, s)
			}
		}
		return img, strings.Join(out, "; ")
	}
	const all = "WORKDIR /src; COPY go.mod .; RUN echo deps > /deps; COPY . .; RUN cat main > /out; COPY --from=build /out /app; RUN echo $X > /x"
	first, ran := build()
	if ran != all {
		t.Errorf("first: %s", ran)
	}
	expect := func(what, want string, sameID bool) {
		t.Helper()
		img, ran := build()
		if ran != want {
			t.Errorf("%s ran: %s", what, ran)
		}
		if sameID != (img.ID == first.ID) {
			t.Errorf("%s: same image: %v", what, !sameID)
		}
	}
	expect("no change", "", true)
	now := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "main"), now, now); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{"ignored": "x"})
	expect("times and ignored files", "", true)
	e.close(t)
	e.open(t)
	expect("restart", "", true)
	if err := e.images.Remove(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	expect("removed image", "", true)
	writeFiles(t, dir, map[string]string{"main": "main 2"})
	expect("changed file", "COPY . .; RUN cat main > /out; COPY --from=build /out /app; RUN echo $X > /x", false)
	writeFiles(t, dir, map[string]string{"main": "main 1"})
	expect("changed back", "", true)
	// A stage that runs anew but yields the same does not spread.
	writeFiles(t, dir, map[string]string{"README": "r"})
	expect("new file without effect", "COPY . .; RUN cat main > /out", true)
	if err := os.Remove(filepath.Join(dir, "README")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "main"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect("changed mode", "COPY . .; RUN cat main > /out", true)
	if gone, err := e.builder.forget(time.Hour, 3); err != nil || gone.Steps == 0 {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	if gone, err := e.builder.Prune(t.Context(), 0); err != nil || gone.Steps != 3 || gone.Bytes == 0 {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	expect("pruned", all, false)
}

func TestCacheByArgs(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = "FROM busybox\nRUN echo 1 > /1\nARG V\nRUN echo v=$V > /2"
	with := func(v, proxy string) string {
		t.Helper()
		img := e.mustBuild(t, df, nil, func(r *Request) { r.Args = map[string]string{"V": v, "HTTPS_PROXY": proxy} })
		return e.read(t, img, "/2") + fmt.Sprint(len(e.log.cached))
	}
	for _, tc := range [][3]string{{"a", "", "v=a\n0"}, {"b", "", "v=b\n1"}, {"a", "p", "v=a\n2"}} {
		if got := with(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%v: %q", tc, got)
		}
	}
}

func TestConcurrentBuilds(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"f": "f"})
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() {
			img, err := e.builder.Build(t.Context(), Request{Context: dir, Tags: []string{fmt.Sprint("img", i%2)},
				Content: []byte("FROM busybox\nCOPY f /f\nRUN cat /f /f > /g\nRUN true")})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = img.ID
			if err := e.images.Collect(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, id := range ids {
		img, err := e.images.Resolve(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got := e.read(t, img, "/g"); got != "ff" {
			t.Errorf("build %d: %q", i, got)
		}
	}
}

func TestPlainProgress(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := newPlain(&b, func() time.Time { now = now.Add(100 * time.Millisecond); return now })
	p.Start(1, 2, "RUN a \\\n  b")
	p.Output(1, []byte("one\ntw"))
	p.Output(1, []byte("o\n\x1b[31mthree"))
	p.Done(1, false, nil)
	p.Start(2, 2, "COPY")
	p.Done(2, true, nil)
	p.Start(3, 3, "X")
	p.Done(3, false, errors.New("bad"))
	p.Warn("Dockerfile", 3, "w")
	want := "#1 [1/2] RUN a \\ b\n#1 0.100 one\n#1 0.200 two\n#1 0.300 [31mthree\n#1 DONE 0.4s\n\n#2 [2/2] COPY\n#2 CACHED\n\n#3 [3/3] X\n#3 ERROR: bad\n\nWARN: Dockerfile:3: w\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestLiveProgress(t *testing.T) {
	var b bytes.Buffer
	l := newLive(&b, 40)
	l.Start(1, 1, strings.Repeat("long ", 30))
	l.Output(1, []byte("out\n"))
	l.Done(1, false, errors.New("bad"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.FieldsFunc(b.String(), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if n := len([]rune(strings.TrimPrefix(line, "\x1b[K"))); n > 40 {
			t.Errorf("line of %d: %q", n, line)
		}
	}
	if !strings.HasSuffix(b.String(), "out\n") || !strings.Contains(b.String(), "✗") {
		t.Errorf("got %q", b.String())
	}
}
