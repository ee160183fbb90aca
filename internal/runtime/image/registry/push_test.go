package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// stored imports an image with one uncompressed layer.
func stored(t *testing.T, s *image.Store, name, content string) *image.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	imgs, err := s.Import(t.Context(), &b, image.ImportOptions{Names: []string{name}, RootFS: true, Config: v1.Config{Cmd: []string{"/bin/x"}}})
	if err != nil {
		t.Fatal(err)
	}
	return imgs[0]
}

// events keeps the last stage of each blob.
type events struct {
	mu   sync.Mutex
	last map[v1.Hash]image.Event
}

func (e *events) note(ev image.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == nil {
		e.last = map[v1.Hash]image.Event{}
	}
	e.last[ev.Digest] = ev
}

func (e *events) stages() map[image.Stage]int {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[image.Stage]int{}
	for _, ev := range e.last {
		out[ev.Stage]++
	}
	return out
}

// What is pushed can be pulled, as the same image. Its layers are compressed, and
// the store then has it under the digest that the registry knows.
func TestPush(t *testing.T) {
	for _, how := range []string{"", "gzip", "zstd", "none"} {
		t.Run("compression "+how, func(t *testing.T) {
			srv, s := serve(t), open(t)
			name := srv.host + "/team/app:1"
			img := stored(t, s, name, strings.Repeat("words that repeat ", 10_000))
			pushed, err := s.Push(t.Context(), name, image.PushOptions{Compression: how})
			if err != nil {
				t.Fatal(err)
			}
			if pushed.ID != img.ID || (how == "none") != (pushed.Digest == img.Digest) {
				t.Errorf("pushed %s %s; was %s %s", pushed.ID, pushed.Digest, img.ID, img.Digest)
			}
			want := map[string]types.MediaType{"": types.OCILayer, "gzip": types.OCILayer, "zstd": types.OCILayerZStd, "none": types.OCIUncompressedLayer}[how]
			if l := pushed.Layers[0]; l.MediaType != want || how != "none" && l.Size > img.Layers[0].Size/10 {
				t.Errorf("layer %+v, want %s", l, want)
			}
			other := open(t)
			got, err := other.Pull(t.Context(), name, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != img.ID || got.Digest != pushed.Digest || fmt.Sprint(got.RepoDigests) != fmt.Sprint(pushed.RepoDigests) || got.Size != img.Size {
				t.Errorf("pulled %+v, pushed %+v", got, pushed)
			}
			// Again: nothing is sent.
			srv.forget()
			if _, err := s.Push(t.Context(), name, image.PushOptions{Compression: how}); err != nil {
				t.Fatal(err)
			}
			if n := srv.requests("POST blobs/uploads"); n != 0 {
				t.Errorf("the second push sent %d blobs", n)
			}
		})
	}
}

// What another repository of the registry has is asked for there.
func TestPushMounts(t *testing.T) {
	srv, s := serve(t), open(t)
	first, second := srv.host+"/one:1", srv.host+"/two:1"
	stored(t, s, first, "x")
	if _, err := s.Push(t.Context(), first, image.PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), first, second); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodHead && kind(r) == "blobs" {
			w.WriteHeader(http.StatusNotFound) // per repository, as registries do
			return true
		}
		if r.Method == http.MethodPost && r.URL.Query().Get("from") == "one" && r.URL.Query().Get("mount") != "" {
			asked.Add(1)
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	var heard events
	if _, err := s.Push(t.Context(), second, image.PushOptions{Progress: heard.note}); err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 2 || heard.stages()[image.Mounted] != 2 {
		t.Errorf("%d mounts, %v", asked.Load(), heard.stages())
	}
	// A registry that does not mount starts an upload instead.
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodHead && kind(r) == "blobs" {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		if q := r.URL.Query(); q.Get("mount") != "" {
			r.URL.RawQuery = ""
		}
		return false
	})
	srv.forget()
	if _, err := s.Push(t.Context(), second, image.PushOptions{}); err != nil || srv.requests("PUT blobs/uploads") != 2 {
		t.Errorf("%v, %d uploads", err, srv.requests("PUT blobs/uploads"))
	}
}

// Uploads are begun anew when the connection breaks or the registry is busy.
func TestPushFaults(t *testing.T) {
	srv, s := serve(t), open(t)
	name := srv.host + "/app:1"
	stored(t, s, name, strings.Repeat("x", 300_000))
	var n atomic.Int32
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method != http.MethodPut {
			return false
		}
		switch n.Add(1) {
		case 1, 4:
			w.WriteHeader(http.StatusBadGateway)
			return true
		case 2:
			r.Body.Read(make([]byte, 10))
			reset(w)
		}
		return false
	})
	if _, err := s.Push(t.Context(), name, image.PushOptions{Compression: "none"}); err != nil {
		t.Fatal(err)
	}
	srv.set(nil)
	if got, err := open(t).Pull(t.Context(), name, nil); err != nil {
		t.Errorf("pull of what was pushed: %v, %v", got, err)
	}

	check := func(err, kind error, text string) {
		t.Helper()
		if !errors.Is(err, kind) || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("%v; want %v with %q", err, kind, text)
		}
	}
	srv.user = "joe"
	_, err := s.Push(t.Context(), name, image.PushOptions{})
	check(err, image.ErrUnauthorized, "push access denied, repository does not exist or may require authorization")
	if _, err := s.Push(t.Context(), name, image.PushOptions{Access: image.Access{Auth: &image.Auth{Username: "joe", Password: "secret"}}}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	srv.user = ""
	srv.set(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method == http.MethodPut && kind(r) == "manifests" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"tags are immutable"}]}`)
			return true
		}
		return false
	})
	_, err = s.Push(t.Context(), name, image.PushOptions{})
	check(err, image.ErrUnauthorized, "403 Forbidden: denied: tags are immutable")
	srv.set(nil)
	_, err = s.Push(t.Context(), srv.host+"/nothing:1", image.PushOptions{})
	check(err, image.ErrNotFound, "nothing:1")
	_, err = s.Push(t.Context(), srv.host+"/app@sha256:"+strings.Repeat("a", 64), image.PushOptions{})
	check(err, image.ErrInvalidName, "cannot push a digest reference")
	_, err = s.Push(t.Context(), name, image.PushOptions{Compression: "lzma"})
	if err == nil || !strings.Contains(err.Error(), "must be gzip, zstd or none") {
		t.Errorf("compression lzma: %v", err)
	}
}

// Progress tells of every layer, from its first byte to its end.
func TestProgress(t *testing.T) {
	srv, s := serve(t), open(t)
	img, layer := bigImage(t, 2<<20)
	srv.push(t, "app:1", img)
	var mu sync.Mutex
	var heard []image.Event
	note := func(e image.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Digest != layer {
			t.Errorf("event of %s", e.Digest)
		}
		heard = append(heard, e)
	}
	ref := srv.host + "/app:1"
	if _, err := s.PullWith(t.Context(), ref, image.PullOptions{Progress: note}); err != nil {
		t.Fatal(err)
	}
	var stages []image.Stage
	var done int64
	for _, e := range heard {
		if e.Stage == image.Downloading {
			if e.Done <= done || e.Done > e.Total {
				t.Errorf("%d after %d of %d", e.Done, done, e.Total)
			}
			done = e.Done
		}
		if len(stages) == 0 || stages[len(stages)-1] != e.Stage {
			stages = append(stages, e.Stage)
		}
	}
	if want := "[Waiting Downloading Verifying Checksum Download complete Pull complete]"; fmt.Sprint(stages) != want || done < 2<<20 {
		t.Errorf("%v, %d bytes; want %s", stages, done, want)
	}
	heard = nil
	if _, err := s.PullWith(t.Context(), ref, image.PullOptions{Progress: note}); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(heard[len(heard)-1].Stage) != "Already exists" {
		t.Errorf("again: %v", heard)
	}
}

// A registry that answers and closes while a layer is on its way makes the client's
// own transport close the connection under the writer.
func TestBrokenConnections(t *testing.T) {
	for _, err := range []error{io.ErrUnexpectedEOF, syscall.EPIPE, &net.OpError{Op: "write", Err: net.ErrClosed}} {
		if !broken(fmt.Errorf("put: %w", err)) {
			t.Errorf("%v is taken for final", err)
		}
	}
	for _, err := range []error{nil, context.Canceled, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, errors.New("denied")} {
		if broken(err) {
			t.Errorf("%v is tried again", err)
		}
	}
}
