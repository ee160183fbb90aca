package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"skiff/internal/runtime/image"
)

// bigImage has one layer that several reads fetch.
func bigImage(t *testing.T, size int64) (img v1.Image, layer v1.Hash) {
	t.Helper()
	img, err := random.Image(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return img, m.Layers[0].Digest
}

// answerOf is what the registry says, whole.
func answerOf(r *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec
}

// head sends an answer's status and headers.
func head(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
}

func flush(w http.ResponseWriter) {
	if err := http.NewResponseController(w).Flush(); err != nil {
		panic(err)
	}
}

// reset ends the connection at once.
func reset(http.ResponseWriter) { panic(http.ErrAbortHandler) }

// isLayer tells whether a request is for the content of that blob.
func isLayer(r *http.Request, layer v1.Hash) bool {
	return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+layer.String())
}

// nothingLeft checks that a store holds no image and nothing half-made.
func nothingLeft(t *testing.T, what string, s *image.Store) {
	t.Helper()
	if l, err := s.List(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("%s: images %v, %v", what, l, err)
	}
	if left, err := os.ReadDir(filepath.Join(s.Dir(), "ingest")); err != nil || len(left) != 0 {
		t.Errorf("%s: under way: %v, %v", what, left, err)
	}
}

// A layer whose connection breaks, or that stalls, goes on where it was; from the
// start where the registry knows no ranges.
func TestResume(t *testing.T) {
	for name, cut := range map[string]struct {
		how    func(w http.ResponseWriter, r *http.Request)
		ranges bool
	}{
		"reset": {func(w http.ResponseWriter, _ *http.Request) { reset(w) }, true},
		"stall": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, true},
		"reset, no ranges": {func(w http.ResponseWriter, _ *http.Request) {
			reset(w)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			img, layer := bigImage(t, 3<<20)
			srv.push(t, "app:1", img)
			s, err := image.Open(t.TempDir(), image.Options{Registry: client(t, Deps{Stall: 300 * time.Millisecond})})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var cuts atomic.Int32
			srv.forget()
			srv.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				if !isLayer(r, layer) {
					return false
				}
				if !cut.ranges {
					r.Header.Del("Range")
				}
				rec := answerOf(r, next)
				if cuts.Add(1) > 3 {
					head(w, rec)
					w.Write(rec.Body.Bytes())
					return true
				}
				head(w, rec)
				w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
				flush(w)
				cut.how(w, r)
				return true
			})
			if _, err := s.Pull(t.Context(), srv.host+"/app:1", nil); err != nil {
				t.Fatal(err)
			}
			if n := srv.requests("GET blobs bytes="); n != 3 {
				t.Errorf("%d range requests, want 3: %v", n, srv.seen)
			}
		})
	}
}

// What a registry may do wrong to a layer: each fails the pull with its kind and
// words, leaves nothing half-made, and the next pull works.
func TestBadLayers(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder)
		kind  error
		text  string
	}{
		"stalls for good": {func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder) {
			head(w, rec)
			w.Write(rec.Body.Bytes()[:min(1000, rec.Body.Len())])
			flush(w)
			<-r.Context().Done()
		}, image.ErrUnavailable, "no data for 100ms"},
		"never answers": {func(_ http.ResponseWriter, r *http.Request, _ *httptest.ResponseRecorder) {
			<-r.Context().Done()
		}, image.ErrUnavailable, "no data for 100ms"},
		"resets for good": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			head(w, rec)
			w.Write(rec.Body.Bytes()[:min(1000, rec.Body.Len())])
			flush(w)
			reset(w)
		}, image.ErrUnavailable, "bytes came, then: unexpected EOF"},
		"is too short": {func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder) {
			b := rec.Body.Bytes()
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Write(b[:len(b)-10])
			flush(w) // no length is said
		}, image.ErrCorrupt, "the registry has no more than"},
		"has another size": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()+7))
			w.Write(rec.Body.Bytes())
			w.Write(make([]byte, 7))
		}, image.ErrCorrupt, "the manifest says"},
		"is too long": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			flush(w)
			w.Write(rec.Body.Bytes())
			for range 64 {
				w.Write(make([]byte, 64<<10))
			}
		}, image.ErrCorrupt, "it is longer than the"},
		"has another content": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			b := rec.Body.Bytes()
			b[len(b)/2] ^= 1
			head(w, rec)
			w.Write(b)
		}, image.ErrCorrupt, "its content has digest sha256:"},
		"goes on elsewhere": {func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder) {
			if r.Header.Get("Range") == "" {
				head(w, rec)
				w.Write(rec.Body.Bytes()[:1000])
				flush(w)
				reset(w)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", rec.Body.Len()-1, rec.Body.Len()))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(rec.Body.Bytes())
		}, image.ErrCorrupt, `the registry sent "bytes 0-`},
		"is not there": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			http.NotFound(w, nil)
		}, image.ErrNotFound, "not found"},
		"is forbidden": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"not for you"}]}`)
		}, image.ErrUnauthorized, "403 Forbidden: denied: not for you"},
		"fails": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.WriteHeader(http.StatusBadGateway)
		}, image.ErrUnavailable, "502 Bad Gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			img, layer := bigImage(t, 200_000)
			srv.push(t, "app:1", img)
			s, err := image.Open(t.TempDir(), image.Options{Registry: client(t, Deps{Stall: 100 * time.Millisecond})})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			srv.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				if !isLayer(r, layer) {
					return false
				}
				tc.fault(w, r, answerOf(r, next))
				return true
			})
			ref := srv.host + "/app:1"
			_, err = s.Pull(t.Context(), ref, nil)
			if !errors.Is(err, tc.kind) || !strings.Contains(fmt.Sprint(err), tc.text) ||
				!strings.HasPrefix(fmt.Sprint(err), fmt.Sprintf("failed to pull and unpack image %q: failed to copy: ", ref)) {
				t.Errorf("%v; want %v with %q", err, tc.kind, tc.text)
			}
			nothingLeft(t, name, s)
			if s.HasBlob(layer) {
				t.Error("the layer is stored")
			}
			srv.set(nil)
			if _, err := s.Pull(t.Context(), ref, nil); err != nil {
				t.Errorf("the next pull: %v", err)
			}
		})
	}
}

// The same of manifests.
func TestBadManifests(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder)
		kind  error
		text  string
	}{
		"says it is long": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			w.Header().Set("Content-Length", strconv.Itoa(1<<40))
			flush(w)
		}, image.ErrCorrupt, "longer than 8388608 bytes"},
		"never ends": {func(w http.ResponseWriter, r *http.Request, rec *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			for r.Context().Err() == nil {
				if _, err := w.Write([]byte(strings.Repeat(" ", 64<<10))); err != nil {
					return
				}
			}
		}, image.ErrCorrupt, "longer than 8388608 bytes"},
		"has another digest": {func(w http.ResponseWriter, _ *http.Request, rec *httptest.ResponseRecorder) {
			head(w, rec)
			w.Write([]byte(strings.Replace(rec.Body.String(), "config", "konfig", 1)))
		}, image.ErrCorrupt, "its content has digest sha256:"},
		"is none": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>welcome to the hotel's network</html>")
		}, image.ErrCorrupt, `media type "text/html" is not that of an image`},
		"is of old": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			fmt.Fprint(w, `{"schemaVersion":1}`)
		}, image.ErrCorrupt, "is not that of an image"},
		"is not there": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			http.NotFound(w, nil)
		}, image.ErrNotFound, ": not found"},
		"needs a login": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.WriteHeader(http.StatusUnauthorized)
		}, image.ErrUnauthorized, "pull access denied, repository does not exist or may require authorization: unexpected status from GET request to http://"},
		"is forbidden": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.WriteHeader(http.StatusForbidden)
		}, image.ErrUnauthorized, "unexpected status from GET request to http://"},
		"fails": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}, image.ErrUnavailable, "/manifests/1: 503 Service Unavailable"},
		"would be there in an hour": {func(w http.ResponseWriter, _ *http.Request, _ *httptest.ResponseRecorder) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`)
		}, image.ErrUnavailable, "429 Too Many Requests: toomanyrequests: You have reached your pull rate limit."},
	} {
		t.Run(name, func(t *testing.T) {
			srv, s := serve(t), open(t)
			srv.push(t, "app:1", randomImage(t))
			srv.set(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
				if kind(r) != "manifests" {
					return false
				}
				tc.fault(w, r, answerOf(r, next))
				return true
			})
			ref := srv.host + "/app:1"
			_, err := s.Pull(t.Context(), ref, nil)
			if !errors.Is(err, tc.kind) || !strings.Contains(fmt.Sprint(err), tc.text) ||
				!strings.HasPrefix(fmt.Sprint(err), fmt.Sprintf("failed to pull and unpack image %q: failed to resolve reference %q: ", ref, ref)) {
				t.Errorf("%v; want %v with %q", err, tc.kind, tc.text)
			}
			nothingLeft(t, name, s)
			srv.set(nil)
			if _, err := s.Pull(t.Context(), ref, nil); err != nil {
				t.Errorf("the next pull: %v", err)
			}
		})
	}
}

// A registry that is busy is asked again, when it says so or after a pause, and
// not for ever.
func TestBusy(t *testing.T) {
	srv, s := serve(t), open(t)
	srv.push(t, "app:1", randomImage(t))
	var left atomic.Int32
	left.Store(3)
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if kind(r) != "manifests" || left.Add(-1) < 0 {
			return false
		}
		switch left.Load() {
		case 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			reset(w)
		}
		return true
	})
	srv.forget()
	began := time.Now()
	if _, err := s.Pull(t.Context(), srv.host+"/app:1", nil); err != nil {
		t.Fatal(err)
	}
	if n := srv.requests("GET manifests"); n != 4 || time.Since(began) < time.Second {
		t.Errorf("%d requests in %v", n, time.Since(began))
	}
	left.Store(1 << 20)
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if kind(r) == "manifests" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	srv.forget()
	if _, err := s.Pull(t.Context(), srv.host+"/app:1", nil); !errors.Is(err, image.ErrUnavailable) || srv.requests("GET manifests") != maxBroken {
		t.Errorf("%d requests, %v", srv.requests("GET manifests"), err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-3": 0, "soon": 0,
		"Wed, 01 Jul 2026 12:00:30 GMT": 30 * time.Second,
		"9999999999":                    (1 << 20) * time.Second, // never
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}
