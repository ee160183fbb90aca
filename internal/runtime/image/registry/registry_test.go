package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.uber.org/goleak"

	"skiff/internal/runtime/image"
)

// server is a registry on loopback.
type server struct {
	host   string
	blobs  atomic.Int32 // blobs fetched
	user   string       // required, with password "secret", where set
	damage atomic.Bool  // layers come changed

	authorized atomic.Int32 // requests with credentials

	// fault may answer in the registry's place.
	fault atomic.Pointer[fault]
	mu    sync.Mutex
	seen  []string // METHOD kind[ Range]
}

type fault func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

// kind is what a request is for.
func kind(r *http.Request) string {
	for _, k := range []string{"blobs/uploads", "blobs", "manifests"} {
		if strings.Contains(r.URL.Path, "/"+k+"/") {
			return k
		}
	}
	return "ping"
}

func (s *server) note(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, strings.TrimSpace(r.Method+" "+kind(r)+" "+r.Header.Get("Range")))
}

// requests counts those that were seen since the last call, by how they begin.
func (s *server) requests(prefix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.seen {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = nil
}

// set makes f answer; nil for nobody.
func (s *server) set(f fault) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}

func serve(t *testing.T) *server {
	t.Helper()
	s := &server{}
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.note(r)
		if f := s.fault.Load(); f != nil && (*f)(w, r, reg) {
			return
		}
		if r.Header.Get("Authorization") != "" {
			s.authorized.Add(1)
		}
		if u, p, _ := r.BasicAuth(); s.user != "" && (u != s.user || p != "secret") {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.blobs.Add(1)
			if s.damage.Load() {
				rec := httptest.NewRecorder()
				reg.ServeHTTP(rec, r)
				body := rec.Body.Bytes()
				body[len(body)/2] ^= 1
				w.Write(body)
				return
			}
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(ts.Close)
	s.host = strings.TrimPrefix(ts.URL, "http://")
	return s
}

func (s *server) push(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	r, err := name.ParseReference(s.host + "/" + ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
}

// client is New whose connections end with the test, and that waits little.
func client(t *testing.T, d Deps) *Client {
	t.Helper()
	if d.Backoff == 0 {
		d.Backoff = time.Millisecond
	}
	c := New(d)
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rt := range c.transports {
			rt.(*http.Transport).CloseIdleConnections()
		}
	})
	return c
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.Open(t.TempDir(), image.Options{Registry: client(t, Deps{})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func randomImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPull(t *testing.T) {
	srv, store, img := serve(t), open(t), randomImage(t)
	srv.push(t, "team/app:1", img)
	ref := srv.host + "/team/app:1"
	got, err := store.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := img.ConfigName()
	digest, _ := img.Digest()
	if got.ID != id.String() || got.Digest != digest || fmt.Sprint(got.RepoTags) != "["+ref+"]" ||
		fmt.Sprint(got.RepoDigests) != fmt.Sprintf("[%s/team/app@%s]", srv.host, digest) || got.Size < 6000 {
		t.Errorf("%+v", got)
	}
	// Again: nothing is fetched. By digest: nobody is asked.
	n := srv.blobs.Load()
	if _, err := store.Pull(t.Context(), ref, nil); err != nil || srv.blobs.Load() != n {
		t.Errorf("second pull fetched %d blobs, %v", srv.blobs.Load()-n, err)
	}
	// The tag moves: it is followed.
	img2 := randomImage(t)
	srv.push(t, "team/app:1", img2)
	id2, _ := img2.ConfigName()
	if got, err := store.Pull(t.Context(), ref, nil); err != nil || got.ID != id2.String() {
		t.Errorf("moved tag: %+v, %v", got, err)
	}
	if got, err := store.Pull(t.Context(), srv.host+"/team/app@"+digest.String(), nil); err != nil || got.ID != id.String() {
		t.Errorf("by digest: %+v, %v", got, err)
	}
}

// Mirrors are asked first, in their order, without the registry's credentials; one
// that does not help is passed over. The image has its own name all the same.
func TestMirrors(t *testing.T) {
	srv, img := serve(t), randomImage(t)
	srv.push(t, "team/app:1", img)
	of := func(domain string, mirrors ...string) *image.Store {
		s, err := image.Open(t.TempDir(), image.Options{Registry: client(t, Deps{Mirrors: map[string][]string{domain: mirrors}})})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	away := httptest.NewServer(nil)
	away.Close()
	auth := &image.Auth{Username: "u", Password: "p"}
	got, err := of("registry.invalid", away.URL, "http://"+srv.host).Pull(t.Context(), "registry.invalid/team/app:1", auth)
	if err != nil || fmt.Sprint(got.RepoTags) != "[registry.invalid/team/app:1]" {
		t.Errorf("%+v, %v", got, err)
	}
	if seen := srv.authorized.Load(); seen != 0 {
		t.Errorf("the mirror was given credentials %d times", seen)
	}
	if _, err := of(srv.host, away.URL).Pull(t.Context(), srv.host+"/team/app:1", nil); err != nil {
		t.Errorf("with a mirror that is away: %v", err)
	}
	for _, bad := range []string{"mirror.example.com", "ftp://mirror", "https://mirror/path", "://"} {
		if CheckMirror(bad) == nil {
			t.Errorf("mirror %q is accepted", bad)
		}
	}
}

func TestPullIndex(t *testing.T) {
	srv, store := serve(t), open(t)
	mine, other := randomImage(t), randomImage(t)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "other"}}},
		mutate.IndexAddendum{Add: mine, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	ref, err := name.ParseReference(srv.host + "/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	got, err := store.Pull(t.Context(), srv.host+"/multi:1", nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := mine.ConfigName()
	digest, _ := index.Digest()
	want := fmt.Sprintf("[%s/multi@%s]", srv.host, digest)
	if got.ID != id.String() || fmt.Sprint(got.RepoDigests) != want {
		t.Errorf("got %s %v, want %s %s", got.ID, got.RepoDigests, id, want)
	}
	if again, err := store.Resolve(t.Context(), srv.host+"/multi@"+digest.String()); err != nil || again.ID != got.ID {
		t.Errorf("by the index's digest: %v, %v", again, err)
	}
}

func TestPullErrors(t *testing.T) {
	srv, store := serve(t), open(t)
	img := randomImage(t)
	srv.push(t, "app:1", img)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	check := func(ref string, auth *image.Auth, kind error, text ...string) {
		t.Helper()
		_, err := store.Pull(t.Context(), ref, auth)
		if !errors.Is(err, kind) {
			t.Errorf("%s: %v, want %v", ref, err, kind)
			return
		}
		for _, want := range text {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", ref, err, want)
			}
		}
	}
	missing := srv.host + "/nothing:1"
	check(missing, nil, image.ErrNotFound,
		fmt.Sprintf("failed to pull and unpack image %q: failed to resolve reference %q: %s: not found", missing, missing, missing))
	check(srv.host+"/app:2", nil, image.ErrNotFound)
	check(closed.Addr().String()+"/app:1", nil, image.ErrUnavailable, "failed to resolve reference", "connection refused")
	check("Bad:Name:", nil, image.ErrInvalidName)
	srv.user = "joe"
	check(srv.host+"/app:1", nil, image.ErrUnauthorized, "pull access denied, repository does not exist or may require authorization")
	check(srv.host+"/app:1", &image.Auth{Username: "joe", Password: "wrong"}, image.ErrUnauthorized)
	if _, err := store.Pull(t.Context(), srv.host+"/app:1", &image.Auth{Username: "joe", Password: "secret"}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	srv.user = ""

	srv.push(t, "bad:1", randomImage(t))
	srv.damage.Store(true)
	check(srv.host+"/bad:1", nil, image.ErrCorrupt)
	if _, err := store.Resolve(t.Context(), srv.host+"/bad:1"); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("a damaged image can be seen: %v", err)
	}
	srv.damage.Store(false)
	if _, err := store.Pull(t.Context(), srv.host+"/bad:1", nil); err != nil {
		t.Errorf("sound again: %v", err)
	}

	plain, err := image.Open(t.TempDir(), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Pull(t.Context(), "x", nil); !errors.Is(err, image.ErrUnavailable) {
		t.Errorf("without a registry: %v", err)
	}
}

// Many pull one image at once: it is fetched once; and one who gives up does not
// take the others along.
func TestConcurrentPull(t *testing.T) {
	srv, store := serve(t), open(t)
	srv.push(t, "app:1", randomImage(t))
	before := srv.blobs.Load()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			}
			if _, err := store.Pull(ctx, srv.host+"/app:1", nil); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := store.Pull(t.Context(), srv.host+"/app:1", nil); err != nil {
		t.Fatal(err)
	}
	if n := srv.blobs.Load() - before; n < 4 || n > 16 {
		t.Errorf("%d blobs were fetched for an image of 4", n)
	}
}
