package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/api/resource"
)

// maxAsked bounds the answer that Ask holds, bytes.
const maxAsked = 64 << 20

// Ask gets a path under user's identity, in JSON, as a client elsewhere would: for
// discovery, and for what has no Go types here. It is not for watches and streams.
func (s *Server) Ask(ctx context.Context, user resource.User, path string, q url.Values) (code int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: "kubernetes.default.svc", Path: path, RawQuery: q.Encode()}).String(), http.NoBody)
	if err != nil {
		return 0, nil, apierrors.NewBadRequest(err.Error())
	}
	r.Header.Set("Accept", "application/json")
	a := &held{header: http.Header{}, code: http.StatusOK}
	defer func() {
		// An answer that was cut off.
		if p := recover(); p != nil {
			code, body, err = 0, nil, apierrors.NewInternalError(fmt.Errorf("%v", p))
		}
	}()
	s.guard(func(w http.ResponseWriter, r *http.Request) { s.serveAs(w, r, &user) }).ServeHTTP(a, r)
	if ctx.Err() != nil {
		return 0, nil, ctx.Err()
	}
	if a.body.Len() > maxAsked {
		return 0, nil, apierrors.NewRequestEntityTooLargeError("the answer is too large to be held")
	}
	return a.code, a.body.Bytes(), nil
}

// held keeps what a handler answers, up to a byte more than maxAsked.
type held struct {
	header  http.Header
	code    int
	written bool
	body    bytes.Buffer
}

func (a *held) Header() http.Header { return a.header }

func (a *held) WriteHeader(code int) {
	if !a.written {
		a.code, a.written = code, true
	}
}

func (a *held) Write(b []byte) (int, error) {
	a.written = true
	a.body.Write(b[:min(len(b), maxAsked+1-a.body.Len())])
	return len(b), nil
}
