package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tlsServer answers over TLS, and its endpoint.
func tlsServer(t *testing.T, h http.HandlerFunc) *endpoint {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return &endpoint{
		host: strings.TrimPrefix(srv.URL, "https://"), token: "secret",
		tls: srv.Client().Transport.(*http.Transport).TLSClientConfig,
	}
}

func TestCall(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	e := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if got := r.Header.Get("Authorization"); got != "Bearer secret" {
			t.Errorf("authorization %q", got)
		}
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("X-Type", r.Header.Get("Content-Type"))
			_, _ = io.WriteString(w, r.Method+" "+r.Header.Get("Content-Type")+" "+string(b))
		case "/chunks":
			for range 4 {
				_, _ = io.WriteString(w, long[:len(long)/4])
				w.(http.Flusher).Flush()
			}
		case "/close":
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, "bye")
		default:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"kind":"Status","message":"not for you"}`)
		}
	})
	for name, c := range map[string]caller{"HTTP/1.1": e.wire(), "HTTP/2": e.multiplexed()} {
		t.Run(name, func(t *testing.T) {
			defer c.close()
			for _, s := range []struct {
				r    request
				code int
				want string
			}{
				{request{"POST", "/echo", asJSON, asJSON, []byte("{}")}, 200, "POST application/json {}"},
				{request{"GET", "/chunks", "", asJSON, nil}, 200, long},
				{request{"GET", "/echo", "", asJSON, nil}, 200, "GET  "},
				{request{"GET", "/close", "", asJSON, nil}, 200, "bye"},
				// The connection was closed: a new one takes its place.
				{request{"DELETE", "/echo", "", asJSON, nil}, 200, "DELETE  "},
				{request{"GET", "/no", "", asJSON, nil}, 403, `{"kind":"Status","message":"not for you"}`},
			} {
				code, body, err := c.call(t.Context(), s.r)
				if err != nil || code != s.code || string(body) != s.want {
					t.Errorf("%s %s = %d, %.60q (%d bytes), %v", s.r.Method, s.r.Path, code, body, len(body), err)
				}
			}
			_, err := must(t.Context(), c, request{"GET", "/no", "", asJSON, nil})
			if err == nil || !strings.Contains(err.Error(), "code 403: not for you") {
				t.Errorf("error %v does not say what the server said", err)
			}
		})
	}
}

// A connection that rested for long is not used again: the server may be ending it.
func TestCallAfterRest(t *testing.T) {
	e := tlsServer(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })
	w := e.wire()
	defer w.close()
	from := func() string {
		t.Helper()
		_, body, err := w.call(t.Context(), request{Method: http.MethodGet, Path: "/", Accept: asJSON})
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	first := from()
	if again := from(); again != first {
		t.Errorf("a connection in use is not kept: %s, then %s", first, again)
	}
	w.used = w.used.Add(-mostIdle - time.Second)
	if later := from(); later == first {
		t.Errorf("a connection that rested is used again")
	}
}

func TestCallEndsWithContext(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	e := tlsServer(t, func(http.ResponseWriter, *http.Request) { close(asked); <-over })
	defer close(over)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	w := e.wire()
	defer w.close()
	if _, _, err := w.call(ctx, request{Method: "GET", Path: "/", Accept: asJSON}); err == nil || ctx.Err() == nil {
		t.Errorf("call = %v after its context ended", err)
	}
}

// frame as a server writes it on a protobuf watch.
func frame(t *testing.T, m interface{ Marshal() ([]byte, error) }) []byte {
	t.Helper()
	b, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func TestStreamAndFrames(t *testing.T) {
	at := time.Unix(0, 1790000000123456789)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name: "cm", Annotations: map[string]string{sentKey: "1790000000123456789"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "bench", FieldsV1: metav1.NewFieldsV1(`{"f:bench/sent":{}}`)}},
	}}
	e := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "1" {
			w.WriteHeader(http.StatusGone)
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, `{"message":"too old"}`)
			return
		}
		_, _ = w.Write(frame(t, cm))
		w.(http.Flusher).Flush()
		_, _ = w.Write(frame(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "other"}}))
	})
	w := e.wire()
	defer w.close()
	body, err := w.stream(t.Context(), request{Method: "GET", Path: "/?watch=1", Accept: asProtobuf})
	if err != nil {
		t.Fatal(err)
	}
	f := frames{in: bufio.NewReader(body)}
	b, err := f.next()
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := sentAt(b); !ok || got != at.UnixNano() {
		t.Errorf("sent at %d, %v, want %d", got, ok, at.UnixNano())
	}
	if b, err = f.next(); err != nil {
		t.Fatal(err)
	}
	if _, ok := sentAt(b); ok {
		t.Error("an event without a time of origin has one")
	}
	if _, err = f.next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	bad := e.wire()
	defer bad.close()
	if _, err := bad.stream(t.Context(), request{Method: "GET", Path: "/", Accept: asProtobuf}); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("a refused watch: %v", err)
	}
	huge := frames{in: bufio.NewReader(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff}))}
	if _, err := huge.next(); err == nil {
		t.Error("a frame of 4 GiB is accepted")
	}
}

func TestSentAtInJSON(t *testing.T) {
	b := sentConfigMap("x", time.Unix(0, 1790000000123456789))
	if got, ok := sentAt(b); !ok || got != 1790000000123456789 {
		t.Errorf("sent at %d, %v", got, ok)
	}
	for _, bad := range []string{"", sentKey, sentKey + `":"12`, sentKey + `":"12345678901234567xx"`} {
		if _, ok := sentAt([]byte(bad)); ok {
			t.Errorf("%q has a time of origin", bad)
		}
	}
}

func TestLoadIsBounded(t *testing.T) {
	e := tlsServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusConflict)
		}
		_, _ = io.WriteString(w, "{}")
	})
	s := &side{Name: "test", e: e}
	given := make(chan int, 100)
	o, err := load{Clients: 4, Count: 40, For: time.Minute, Request: func(i int) request {
		given <- i
		r := request{Method: "GET", Path: "/", Accept: asJSON}
		if i == 7 {
			r.Path = "/bad"
		}
		return r
	}}.run(t.Context(), s)
	if err != nil || o.Done != 39 || o.Errors != 1 || o.First == nil || len(o.Latency) != 39 {
		t.Errorf("outcome %+v, %v", o, err)
	}
	close(given)
	seen := map[int]bool{}
	for i := range given {
		if seen[i] || i >= 40 {
			t.Errorf("request %d was given out twice, or is too many", i)
		}
		seen[i] = true
	}
	if _, err := o.figures(s, "x"); err == nil {
		t.Error("a load with errors has a figure")
	}
	o, err = load{Clients: 2, Count: 1 << 30, For: 50 * time.Millisecond, Request: func(int) request {
		return request{Method: "GET", Path: "/", Accept: asJSON}
	}}.run(t.Context(), s)
	if err != nil || o.Done == 0 {
		t.Errorf("outcome %+v, %v", o, err)
	}
	if _, err := (load{Clients: 1, Count: 3, For: time.Minute, Request: func(int) request {
		return request{Method: "GET", Path: "/bad", Accept: asJSON}
	}}).run(t.Context(), s); err == nil {
		t.Error("a load in which nothing succeeded is no error")
	}
}
