package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"skiff/internal/runtime/image"
)

// tarOf is an archive of one file, whose user is 9.
func tarOf(name, body string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(body)), Uid: 9}); err != nil {
		panic(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func keys[V any](m map[string]V) string { return list(slices.Sorted(maps.Keys(m))) }

// rawConfig is the stored config of an image.
func rawConfig(t *testing.T, e *env, img *image.Image) string {
	t.Helper()
	id, err := v1.NewHash(img.ID)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := e.images.ReadBlob(id)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// ADD of a URL: names, times, modes, digests, archives, and no second download of
// what did not change.
func TestAddURL(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	var gets, full atomic.Int32
	body := atomic.Value{}
	body.Store("content")
	when := time.Unix(1600000000, 0)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gets.Add(1)
		switch r.URL.Path {
		case "/dir/file", "/":
			b := body.Load().(string)
			w.Header().Set("ETag", fmt.Sprintf("%q", b))
			if r.Header.Get("If-None-Match") != fmt.Sprintf("%q", b) {
				full.Add(1)
			}
			http.ServeContent(w, r, "", when, strings.NewReader(b))
		case "/a.tar":
			io.WriteString(w, tarOf("in/f", "f"))
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	defer http.DefaultClient.CloseIdleConnections()
	df := "FROM busybox\nADD " + srv.URL + "/dir/file /d/\nADD --chmod=755 --chown=3:4 " + srv.URL + "/dir/file /named\n"
	img := e.mustBuild(t, df, nil)
	files(map[string]string{"/d/file": "-rw------- 0:0 content", "/named": "-rwxr-xr-x 3:4 content"})(t, e, img)
	e.inside(t, img, func(root string) {
		if fi, err := os.Stat(root + "/d/file"); err != nil || !fi.ModTime().Equal(when) {
			t.Errorf("%v %v", fi, err)
		}
	})
	n := full.Load()
	again := e.mustBuild(t, df, nil)
	if full.Load() != n || len(e.log.cached) != 2 || again.ID != img.ID {
		t.Errorf("%d downloads after %d, cached %v", full.Load(), n, e.log.cached)
	}
	body.Store("other")
	if got := e.read(t, e.mustBuild(t, df, nil), "/named"); got != "other" {
		t.Errorf("after a change: %q", got)
	}
	sum := sha256.Sum256([]byte("other"))
	df = "FROM busybox\nARG C\nADD --checksum=$C " + srv.URL + "/dir/file /f"
	e.mustBuild(t, df, nil, args("C", "sha256:"+hex.EncodeToString(sum[:])))
	before := gets.Load()
	e.mustBuild(t, df, nil, args("C", "sha256:"+hex.EncodeToString(sum[:])))
	if gets.Load() != before || len(e.log.cached) != 1 {
		t.Errorf("a file with a known digest was asked for")
	}
	if _, err := e.build(t, df, nil, args("C", "sha256:"+strings.Repeat("0", 64))); err == nil || !strings.Contains(err.Error(), "digest mismatch") {
		t.Errorf("wrong digest: %v", err)
	}
	if _, err := e.build(t, df, nil, args("C", "md5:00")); err == nil || !strings.Contains(err.Error(), "must be sha256") {
		t.Errorf("bad digest: %v", err)
	}
	img = e.mustBuild(t, "FROM busybox\nADD "+srv.URL+"/a.tar /1/\nADD --unpack "+srv.URL+"/a.tar /2/\nADD "+srv.URL+" /3/", nil)
	files(map[string]string{"/1/in": "", "/2/in/f": "-rw------- 9:0 f", "/3/__unnamed__": "-rw------- 0:0 other"})(t, e, img)
	if _, err := e.build(t, "FROM busybox\nADD "+srv.URL+"/gone /x", nil); err == nil || !strings.Contains(err.Error(), "404 Not Found") {
		t.Errorf("missing: %v", err)
	}
}

// ADD of a repository, by branch, tag, commit and directory.
func TestAddGit(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	path, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("needs git: ", err)
	}
	root := t.TempDir()
	repo := filepath.Join(root, "r.git")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", repo, "-c", "user.name=x", "-c", "user.email=x@x"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	writeFiles(t, repo, map[string]string{"f": "one", "d/g": "g"})
	run("init", "--quiet", "-b", "main")
	run("add", ".")
	run("commit", "--quiet", "-m", "one")
	first := run("rev-parse", "HEAD")
	run("tag", "-a", "-m", "v1", "v1")
	writeFiles(t, repo, map[string]string{"f": "two"})
	run("commit", "--quiet", "-a", "-m", "two")
	srv := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(path)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	defer srv.Close()
	url := srv.URL + "/r.git"
	df := "FROM busybox\nADD " + url + " /head\nADD " + url + "#v1 /tag\nADD " + url + "#" + first + ":d /commit/\nADD --keep-git-dir " + url + "?branch=main /kept\n" +
		"ADD --checksum=" + first + " " + url + "#v1 /checked\n"
	img := e.mustBuild(t, df, nil)
	files(map[string]string{
		"/head/f": "-rw-r--r-- 0:0 two", "/head/.git": "", "/tag/f": "-rw-r--r-- 0:0 one", "/commit/g": "-rw-r--r-- 0:0 g", "/commit/f": "",
		"/kept/.git": "drwxr-xr-x 0:0", "/checked/f": "-rw-r--r-- 0:0 one",
	})(t, e, img)
	e.mustBuild(t, df, nil)
	if len(e.log.cached) != 5 {
		t.Errorf("cached: %v", e.log.cached)
	}
	writeFiles(t, repo, map[string]string{"f": "three"})
	run("commit", "--quiet", "-a", "-m", "three")
	if got := e.read(t, e.mustBuild(t, df, nil), "/head/f"); got != "three" {
		t.Errorf("after a commit: %q", got)
	}
	for source, want := range map[string]string{url + "#none": "does not contain ref none", url + "#v1:nothing": "directory \"nothing\"", url + "?x=y": `unexpected query "x"`} {
		if _, err := e.build(t, "FROM busybox\nADD "+source+" /x", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", source, err)
		}
	}
	if _, err := e.build(t, "FROM busybox\nADD --checksum="+first+" "+url+" /x", nil); err == nil || !strings.Contains(err.Error(), "expected checksum to match "+first) {
		t.Error(err)
	}
}

// RUN --mount=type=ssh reaches the agent's socket, as the user that the mount
// says, and only while the command runs.
func TestRunSSH(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	agent := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", agent)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				line := make([]byte, 5)
				if _, err := io.ReadFull(c, line); err == nil {
					c.Write(append(bytes.ToUpper(line), '\n'))
				}
			})
		}
	})
	defer wg.Wait()
	defer l.Close()
	req := func(r *Request) { r.SSH = map[string]string{"default": agent, "key": agent} }
	img := e.mustBuild(t, `FROM busybox
RUN --mount=type=ssh echo "$SSH_AUTH_SOCK" > /out && test -S $SSH_AUTH_SOCK
RUN --mount=type=ssh,id=key,target=/tmp/agent,uid=1000,gid=7,mode=0620 stat -c %a:%u:%g /tmp/agent >> /out
USER app
RUN --mount=type=ssh,uid=1000,required test -w $SSH_AUTH_SOCK
`, nil, req)
	if got := e.read(t, img, "/out"); got != "/run/buildkit/ssh_agent.0\n620:1000:7\n" {
		t.Errorf("got %q", got)
	}
	// What is said on the socket reaches the agent, and its answer comes back.
	socket := filepath.Join(t.TempDir(), "forwarded")
	stop, err := forward(t.Context(), socket, agent)
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	for _, word := range []string{"hello", "world"} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, word)
		answer := make([]byte, 6)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != strings.ToUpper(word)+"\n" {
			t.Errorf("%s: %q %v", word, answer, err)
		}
		open = append(open, c)
	}
	idle, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	stop()
	for _, c := range append(open, idle) {
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes after the end", n)
		}
	}
	files(map[string]string{"/run": "", "/tmp/agent": ""})(t, e, img)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = e.build(t, "FROM busybox\nRUN --mount=type=ssh true", nil, func(r *Request) { r.SSH = map[string]string{"default": key} })
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("a key in place of a socket: %v", err)
	}
}

// Cache mounts last, are shared as they say, and go with Prune unless in use.
func TestCacheMounts(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	add := func(opts string) string {
		t.Helper()
		img := e.mustBuild(t, "FROM busybox\nRUN --mount=type=cache,target=/c"+opts+" echo x >> /c/n; wc -l < /c/n > /out", nil, func(r *Request) { r.NoCache = true })
		return strings.TrimSpace(e.read(t, img, "/out"))
	}
	for _, step := range []struct{ opts, want string }{
		{"", "1"}, {"", "2"}, {",id=a", "1"}, {",id=a", "2"}, {",id=a,sharing=locked", "3"}, {",id=a,sharing=private", "4"}, {",uid=5", "1"}, {",id=/c", "3"},
	} {
		if got := add(step.opts); got != step.want {
			t.Errorf("%s: %s, want %s", step.opts, got, step.want)
		}
	}
	ns := e.mustBuild(t, "FROM busybox\nRUN --mount=type=cache,target=/c echo x >> /c/n; wc -l < /c/n > /out", nil, func(r *Request) {
		r.NoCache, r.Args = true, map[string]string{"BUILDKIT_CACHE_MOUNT_NS": "mine"}
	})
	if got := strings.TrimSpace(e.read(t, ns, "/out")); got != "1" {
		t.Errorf("another namespace: %s", got)
	}

	// Two at once: locked waits, private gets another directory.
	c := e.builder.caches
	take := func(sharing string) (string, func()) {
		t.Helper()
		dir, release, err := c.take(t.Context(), cacheSpec{name: "x", sharing: shareMode(sharing)})
		if err != nil {
			t.Fatal(err)
		}
		return dir, release
	}
	first, release := take("private")
	second, release2 := take("private")
	if first == second {
		t.Error("private caches are one")
	}
	release2()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.take(ended, cacheSpec{name: "x", sharing: shareMode("locked")}); !errors.Is(err, context.Canceled) {
		t.Errorf("a locked cache was given away: %v", err)
	}
	got := make(chan string)
	go func() {
		dir, release, err := c.take(context.Background(), cacheSpec{name: "x", sharing: shareMode("locked")})
		if err == nil {
			release()
		}
		got <- dir
	}()
	if gone, err := e.builder.Prune(t.Context(), 0); err != nil || gone.Caches == 0 || gone.Bytes == 0 {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	if _, err := os.Stat(first); err != nil {
		t.Errorf("a cache in use was removed: %v", err)
	}
	release()
	if dir := <-got; dir != first {
		t.Errorf("locked: %s", dir)
	}
	if _, err := e.builder.Prune(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(c.dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got := add(""); got != "1" {
		t.Errorf("after prune: %s", got)
	}
	if gone, err := e.builder.Prune(t.Context(), time.Hour); err != nil || gone.Caches != 0 {
		t.Errorf("what was just used went: %+v, %v", gone, err)
	}
}

func shareMode(s string) instructions.ShareMode { return instructions.ShareMode(s) }
