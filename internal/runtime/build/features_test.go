package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skiff/internal/runtime/image"
)

func TestChmod(t *testing.T) {
	for _, tc := range []struct {
		spec string
		from uint32
		dir  bool
		want uint32
	}{
		{"644", 0o777, false, 0o644}, {"04755", 0, false, 0o4755}, {"u+x", 0o644, false, 0o744}, {"+x", 0o644, false, 0o755},
		{"a-w", 0o666, false, 0o444}, {"go=", 0o777, false, 0o700}, {"u=rwX,go=rX", 0o600, false, 0o644}, {"u=rwX,go=rX", 0o700, false, 0o755},
		{"go+rX", 0o600, true, 0o655}, {"u+s,g+s,+t", 0o755, false, 0o7755}, {"g=u", 0o640, false, 0o660}, {"o=g-w", 0o660, false, 0o664},
		{"u-s", 0o4755, false, 0o755}, {"ug+rw-x", 0o711, false, 0o661}, {"o+t", 0o755, false, 0o755}, {"=r", 0o7777, false, 0o444},
	} {
		c, err := parseChmod(tc.spec)
		if err != nil {
			t.Errorf("%s: %v", tc.spec, err)
			continue
		}
		if got := c.apply(tc.from, tc.dir); got != tc.want {
			t.Errorf("%s of %o: %o, want %o", tc.spec, tc.from, got, tc.want)
		}
	}
	for _, bad := range []string{"x", "u", "u+q", "9", "u+x,", "17777", "u*x"} {
		if _, err := parseChmod(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// What an image asks for can be anything.
func TestBadTriggers(t *testing.T) {
	for _, expr := range []string{"", "# check=skip=all\nRUN x", "RUN a\nRUN b", "FROM x", "NOTHING", "COPY <<EOF /x"} {
		if cmd, err := parseTrigger(expr); err == nil && expr[0] != '#' {
			t.Errorf("%q: %v", expr, cmd)
		}
	}
}

func TestFromDigest(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	img, err := e.images.Resolve(t.Context(), "busybox")
	if err != nil {
		t.Fatal(err)
	}
	e.mustBuild(t, "FROM busybox@"+img.Digest.String()+"\nRUN true\nFROM busybox:latest@"+img.Digest.String()+"\nRUN true", nil)
}

// The checks of BuildKit, each found, and each silenced.
func TestChecks(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	for rule, df := range map[string]string{
		"StageNameCasing":                 "FROM busybox AS Upper",
		"FromAsCasing":                    "FROM busybox as x",
		"NoEmptyContinuation":             "FROM busybox\nRUN a \\\n\n b",
		"ConsistentInstructionCasing":     "FROM busybox\nRUN a\nrun b",
		"DuplicateStageName":              "FROM busybox AS x\nFROM busybox AS x",
		"ReservedStageName":               "FROM busybox AS context",
		"JSONArgsRecommended":             "FROM busybox\nCMD a",
		"MaintainerDeprecated":            "FROM busybox\nMAINTAINER x",
		"UndefinedArgInFrom":              "FROM busybox$X",
		"WorkdirRelativePath":             "FROM busybox\nWORKDIR a",
		"UndefinedVar":                    "FROM busybox\nENV VERSION=1\nLABEL a=$VERSON",
		"MultipleInstructionsDisallowed":  "FROM busybox\nCMD [\"a\"]\nCMD [\"b\"]",
		"LegacyKeyValueFormat":            "FROM busybox\nENV a b",
		"InvalidBaseImagePlatform":        "FROM --platform=$X busybox",
		"RedundantTargetPlatform":         "FROM --platform=$TARGETPLATFORM busybox",
		"SecretsUsedInArgOrEnv":           "FROM busybox\nARG API_TOKEN",
		"InvalidDefaultArgInFrom":         "ARG X\nFROM $X",
		"FromPlatformFlagConstDisallowed": "FROM --platform=" + machinePlatform().String() + " busybox",
		"CopyIgnoredFile":                 "FROM busybox\nCOPY secret /",
		"ExposeProtoCasing":               "FROM busybox\nEXPOSE 80/TCP",
		"ExposeInvalidFormat":             "FROM busybox\nEXPOSE 127.0.0.1:80:80",
		"InvalidDefinitionDescription":    "# check=experimental=all\n\n# other thing\nARG X=1\nFROM busybox",
	} {
		t.Run(rule, func(t *testing.T) {
			check := func(df string) []string {
				t.Helper()
				dir := t.TempDir()
				writeFiles(t, dir, map[string]string{".dockerignore": "secret\n", "secret": "s"})
				log := &recorder{}
				req := Request{Context: dir, Content: []byte(df), Progress: log}
				switch rule {
				case "InvalidBaseImagePlatform":
					req.Content, req.Args = []byte("ARG X\n"+df), map[string]string{"X": "linux/s390x"}
				case "InvalidDefaultArgInFrom":
					req.Args = map[string]string{"X": "busybox"}
				}
				if err := e.builder.Check(t.Context(), req); err != nil {
					t.Fatal(err)
				}
				return log.warned
			}
			got := check(df)
			if len(got) != 1 || !strings.HasPrefix(got[0], rule+": ") {
				t.Errorf("got %q", got)
			}
			if rule != "InvalidDefinitionDescription" && rule != "InvalidBaseImagePlatform" {
				if got := check("# check=skip=" + rule + "\n" + df); len(got) > 0 {
					t.Errorf("skipped: %q", got)
				}
			}
		})
	}
	log := &recorder{}
	if err := e.builder.Check(t.Context(), Request{Content: []byte("# check=error=true\nFROM busybox\nCMD a"), Progress: log}); err == nil || !strings.Contains(err.Error(), "JSONArgsRecommended") {
		t.Error(err)
	}
	// A build shows the same, of the stages that it builds.
	e.mustBuild(t, "FROM busybox AS a\nCMD a\nFROM busybox\nCMD b\nWORKDIR c", nil)
	if len(e.log.warned) != 2 {
		t.Errorf("warned: %q", e.log.warned)
	}
	e.mustBuild(t, "FROM busybox\n# check=skip=JSONArgsRecommended\nCMD b", nil)
	if len(e.log.warned) != 0 {
		t.Errorf("warned: %q", e.log.warned)
	}
}

// --build-context gives names to directories and images, before stages and images.
func TestBuildContext(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	other := t.TempDir()
	writeFiles(t, other, map[string]string{"f": "other", "no": "n", ".dockerignore": "no\n"})
	req := func(r *Request) {
		r.Contexts = map[string]string{"other": other, "stage": "docker-image://busybox", "base": "docker-image://scratch"}
	}
	img := e.mustBuild(t, `FROM nothing AS stage
RUN false
FROM stage
COPY --from=other f /1
RUN --mount=from=other,target=/m cp /m/f /2 && test ! -e /m/no
FROM other AS whole
FROM base
COPY --from=whole . /whole/
COPY --from=1 /1 /2 /
`, nil, req)
	files(map[string]string{"/1": "-rw-r--r-- 0:0 other", "/2": "-rw-r--r-- 0:0 other", "/whole/f": "-rw-r--r-- 0:0 other", "/whole/no": "", "/bin": ""})(t, e, img)
	writeFiles(t, other, map[string]string{"f": "changed"})
	if got := e.read(t, e.mustBuild(t, "FROM scratch\nCOPY --from=other f /f", nil, req), "/f"); got != "changed" {
		t.Errorf("got %q", got)
	}
}

// Links lead nowhere out of the context: not as a source, not on the way to one,
// not below a mount, not inside a copied directory.
func TestContextLinks(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	outside, dir := t.TempDir(), t.TempDir()
	writeFiles(t, outside, map[string]string{"secret": "s"})
	writeFiles(t, dir, map[string]string{"d/f": "f"})
	for name, to := range map[string]string{"file": filepath.Join(outside, "secret"), "dir": outside, "up": "../../../../../../etc", "d/link": "/etc/shadow"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, df := range []string{"COPY file /x", "COPY dir/secret /x", "COPY dir /x", "COPY up/passwd /x", "ADD up /x", "RUN --mount=source=dir,target=/m cat /m/secret", "RUN --mount=source=up,target=/m cat /m/passwd"} {
		if img, err := e.buildIn(t.Context(), dir, "FROM busybox\n"+df); err == nil {
			t.Errorf("%s: %s", df, e.tree(t, img, "/x"))
		} else if !strings.Contains(err.Error(), "not found") {
			t.Errorf("%s: %v", df, err)
		}
	}
	img, err := e.buildIn(t.Context(), dir, "FROM busybox\nCOPY d /x/\nRUN --mount=target=/m readlink /m/d/link > /out; cat /m/file 2>/dev/null || echo no >> /out")
	if err != nil {
		t.Fatal(err)
	}
	if got := e.tree(t, img, "/x"); got != "/x/\n/x/f = f\n/x/link -> /etc/shadow" {
		t.Error(got)
	}
	if got := e.read(t, img, "/out"); got != "/etc/shadow\nno\n" {
		t.Errorf("got %q", got)
	}
}

// A linked layer is found again whatever is below it.
func TestLink(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	df := func(below string) string {
		return "FROM busybox\nRUN echo " + below + " > /below\nCOPY --link f /d/f\nCOPY f /e"
	}
	e.mustBuild(t, df("1"), map[string]string{"f": "f"})
	img := e.mustBuild(t, df("2"), map[string]string{"f": "f"})
	if got := list(e.log.cached); got != "COPY --link f /d/f" {
		t.Errorf("cached: %s", got)
	}
	files(map[string]string{"/below": "-rw-r--r-- 0:0 2", "/d/f": "-rw-r--r-- 0:0 f"})(t, e, img)
	// It goes through no link of the layers below: what it makes replaces them.
	img = e.mustBuild(t, "FROM busybox\nCOPY --link f /lib/f", map[string]string{"f": "f"})
	files(map[string]string{"/lib": "drwxr-xr-x 0:0", "/usr/lib/f": ""})(t, e, img)
}

func TestAnnotations(t *testing.T) {
	e := setup(t)
	img := e.mustBuild(t, "FROM scratch\nCOPY f /", map[string]string{"f": "f"}, func(r *Request) { r.Annotations = map[string]string{"a.b/c": "d"} })
	raw, err := e.images.ReadBlob(img.Digest)
	if err != nil || !strings.Contains(string(raw), `"annotations":{"a.b/c":"d"}`) {
		t.Errorf("%s %v", raw, err)
	}
}

func TestNoCache(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	df := "FROM busybox AS one\nRUN echo 1 > /1\nFROM busybox AS two\nRUN echo 2 > /2\nCOPY --from=one /1 /"
	e.mustBuild(t, df, nil)
	e.mustBuild(t, df, nil, func(r *Request) { r.NoCacheFilter = []string{"ONE"} })
	if got := list(e.log.cached); got != "RUN echo 2 > /2|COPY --from=one /1 /" {
		t.Errorf("cached: %s", got)
	}
	e.mustBuild(t, df, nil, func(r *Request) { r.NoCache = true })
	if len(e.log.cached) != 0 {
		t.Errorf("cached: %v", e.log.cached)
	}
}

// The result as a directory, an archive of files, an archive of the image.
func TestOutput(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	df := "FROM scratch\nCOPY --chmod=750 --chown=5:6 f /d/f\nFROM scratch\nCOPY --from=0 / /"
	dir := t.TempDir()
	output := func(kind, dest string) (*image.Image, error) {
		return e.build(t, df, map[string]string{"f": "f"}, func(r *Request) { r.Output = &Output{Type: kind, Dest: dest} })
	}
	local := filepath.Join(dir, "new/local")
	writeFiles(t, local, map[string]string{"kept": "k", "d/f": "old"})
	before, _ := e.images.List(t.Context())
	if img, err := output("local", local); err != nil || img != nil {
		t.Fatalf("%v %v", img, err)
	}
	fi, err := os.Stat(filepath.Join(local, "d/f"))
	if err != nil || fi.Mode().String()+owner(fi) != "-rwxr-x--- 5:6" {
		t.Errorf("%v %v", fi, err)
	}
	if b, _ := os.ReadFile(filepath.Join(local, "d/f")); string(b) != "f" {
		t.Errorf("content: %q", b)
	}
	if _, err := os.Stat(filepath.Join(local, "kept")); err != nil {
		t.Error(err)
	}
	if _, err := output("tar", filepath.Join(dir, "files.tar")); err != nil {
		t.Fatal(err)
	}
	if after, _ := e.images.List(t.Context()); len(after) != len(before) {
		t.Errorf("%d images, %d before", len(after), len(before))
	}
	if got := tarNames(t, filepath.Join(dir, "files.tar")); got != "d/|d/f" {
		t.Errorf("files.tar: %s", got)
	}
	for _, kind := range []string{"oci", "docker"} {
		if img, err := output(kind, filepath.Join(dir, kind)); err != nil || img == nil {
			t.Errorf("%s: %v", kind, err)
		}
		if got := tarNames(t, filepath.Join(dir, kind)); !strings.Contains(got, "oci-layout") {
			t.Errorf("%s: %s", kind, got)
		}
	}
	if left, _ := filepath.Glob(dir + "/.skiff-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := output("tar", filepath.Join(dir, "none/x")); err == nil || !strings.Contains(err.Error(), "output "+dir) {
		t.Error(err)
	}
}

func tarNames(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return list(names)
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

func TestProgressModes(t *testing.T) {
	var b bytes.Buffer
	for mode, want := range map[string]string{"plain": "#1 [1/2] x\n#1 CACHED\n\n", "auto": "#1 [1/2] x\n#1 CACHED\n\n", "": "#1 [1/2] x\n#1 CACHED\n\n", "quiet": ""} {
		b.Reset()
		p, err := NewProgress(&b, mode)
		if err != nil {
			t.Fatal(err)
		}
		p.Start(1, 2, "x")
		p.Done(1, true, nil)
		if err := p.Close(); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v", mode, b.String(), err)
		}
	}
	b.Reset()
	p, err := NewProgress(&b, "rawjson")
	if err != nil {
		t.Fatal(err)
	}
	p.Start(1, 2, "x")
	p.Output(1, []byte("o"))
	p.Done(1, false, errors.New("bad"))
	p.Warn("f", 3, "w")
	var events []string
	for d := json.NewDecoder(&b); ; {
		var e rawEvent
		if err := d.Decode(&e); err != nil {
			break
		}
		events = append(events, e.Event+e.Name+string(e.Data)+e.Error+e.Text)
	}
	if got := list(events); got != "startx|outputo|donebad|warnw" || p.Close() != nil {
		t.Errorf("events: %s", got)
	}
	for _, mode := range []string{"tty", "fancy"} {
		if _, err := NewProgress(&b, mode); err == nil {
			t.Errorf("%s is taken", mode)
		}
	}
}

// After a one-line change, what was expensive and does not depend on it does not
// run again. docs/dockerfile.md and the bench say what such a rebuild takes.
func TestRebuild(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = `FROM busybox
RUN --mount=type=cache,target=/var/cache/apt i=0; while [ $i -lt 200 ]; do i=$((i+1)); mkdir -p /usr/share/$i && head -c 10000 /dev/zero > /usr/share/$i/doc; done
WORKDIR /app
COPY main.sh .
RUN chmod +x main.sh && ./main.sh > version
`
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"main.sh": "#!/bin/sh\necho 1\n"})
	if _, err := e.buildIn(t.Context(), dir, df); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{"main.sh": "#!/bin/sh\necho 2\n"})
	begin := time.Now()
	img, err := e.buildIn(t.Context(), dir, df)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("rebuilt in %s", time.Since(begin).Round(time.Millisecond))
	if len(e.log.cached) != 2 || !strings.HasPrefix(e.log.cached[0], "RUN --mount") || e.log.cached[1] != "WORKDIR /app" {
		t.Errorf("cached: %v", e.log.cached)
	}
	if got := e.read(t, img, "/app/version"); got != "2\n" {
		t.Errorf("got %q", got)
	}
}
