package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"skiff/internal/admin"
	"skiff/internal/runtime/image"
)

// A build that asks for credentials has its client's answer, once, or the end of the
// client.
func TestAsks(t *testing.T) {
	a := &asks{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /build/answers/{id}", a.answer)
	post := func(id, body string) int {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/build/answers/"+id, bytes.NewBufferString(body)))
		return w.Code
	}
	// asking returns the ID of a question, and what comes of it.
	asking := func(ctx context.Context) (id string, result func() (*image.Auth, error)) {
		r, w := io.Pipe()
		var auth *image.Auth
		done := make(chan error, 1)
		go func() {
			var err error
			auth, err = a.ask(ctx, &buildStream{enc: json.NewEncoder(w)}, "registry.example.com/app")
			done <- err
		}()
		line, err := bufio.NewReader(r).ReadBytes('\n')
		var e admin.BuildEvent
		if err = errors.Join(err, json.Unmarshal(line, &e)); err != nil || e.Ask == nil || e.Ask.Ref != "registry.example.com/app" {
			t.Fatalf("%s: %v", line, err)
		}
		return e.Ask.ID, func() (*image.Auth, error) { err := <-done; return auth, err }
	}

	id, result := asking(t.Context())
	if code := post("other", `{}`); code != http.StatusNotFound {
		t.Errorf("an answer to no question: %d", code)
	}
	if code := post(id, `{"auth":`); code != http.StatusBadRequest {
		t.Errorf("half an answer: %d", code)
	}
	if code := post(id, `{"auth":{"username":"joe"}}`); code != http.StatusNoContent {
		t.Errorf("an answer: %d", code)
	}
	if auth, err := result(); err != nil || auth == nil || auth.Username != "joe" {
		t.Errorf("%v, %v", auth, err)
	}
	if code := post(id, `{}`); code != http.StatusNotFound {
		t.Errorf("a second answer: %d", code)
	}

	id, result = asking(t.Context())
	post(id, `{}`)
	if auth, err := result(); err != nil || auth != nil {
		t.Errorf("no credentials: %v, %v", auth, err)
	}
	id, result = asking(t.Context())
	post(id, `{"error":"no helper"}`)
	if _, err := result(); err == nil || err.Error() != "no helper" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	id, result = asking(ctx)
	cancel()
	if _, err := result(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if code := post(id, `{}`); code != http.StatusNotFound {
		t.Errorf("an answer to who is gone: %d", code)
	}
}
