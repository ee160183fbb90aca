package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"time"

	"skiff/internal/client"
)

// requestTimeout bounds every request but watches.
const requestTimeout = 60 * time.Second

// maxBody bounds an answer that is held in memory.
const maxBody = 1 << 30

const (
	asJSON     = "application/json"
	asProtobuf = "application/vnd.kubernetes.protobuf"
	asMerge    = "application/merge-patch+json"
	asApply    = "application/apply-patch+yaml"
)

// request is one request to an API server. Body may be nil.
type request struct {
	Method, Path, ContentType, Accept string
	Body                              []byte
}

// caller sends requests, one at a time. The body it returns is valid until the
// next call.
type caller interface {
	call(ctx context.Context, r request) (code int, body []byte, err error)
	close()
}

// endpoint is where an API server is, and who asks.
type endpoint struct {
	host  string // host:port
	base  string // path in front of every request's
	token string
	tls   *tls.Config
}

func newEndpoint(cfg client.HTTPSConfig) (*endpoint, error) {
	u, err := url.Parse(cfg.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("server %q: must be an https URL", cfg.Server)
	}
	e := &endpoint{host: u.Host, token: cfg.Token, tls: &tls.Config{
		RootCAs: cfg.CA, ServerName: u.Hostname(), MinVersion: tls.VersionTLS12,
	}}
	if u.Path != "/" {
		e.base = u.Path
	}
	if u.Port() == "" {
		e.host = net.JoinHostPort(u.Hostname(), "443")
	}
	if cfg.Certificate != nil {
		e.tls.GetClientCertificate = cfg.Certificate
	}
	return e, nil
}

// wire is a connection of its own that speaks HTTP/1.1 and costs its own side as
// little as possible, since both ends share the processors. It connects at the
// first call, and again after an error or a long rest.
type wire struct {
	e    *endpoint
	conn net.Conn
	in   *bufio.Reader
	out  []byte
	body []byte
	used time.Time // when it was last
}

// mostIdle is how long a connection is kept without use: servers end those that
// idle (upstream's API server after 90 s), at any moment.
const mostIdle = 30 * time.Second

func (e *endpoint) wire() *wire { return &wire{e: e} }

func (w *wire) close() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}

func (w *wire) connect(ctx context.Context) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: w.e.tls}
	c, err := d.DialContext(ctx, "tcp", w.e.host)
	if err != nil {
		return err
	}
	w.conn = c
	if w.in == nil {
		w.in = bufio.NewReaderSize(c, 64<<10)
	} else {
		w.in.Reset(c)
	}
	return nil
}

// head is what matters of an answer's header.
type head struct {
	code    int
	length  int64 // -1 where not told
	chunked bool
	closes  bool
}

func (w *wire) send(r request) error {
	b := append(w.out[:0], r.Method...)
	b = append(b, ' ')
	b = append(append(b, w.e.base...), r.Path...)
	b = append(append(b, " HTTP/1.1\r\nHost: "...), w.e.host...)
	b = append(append(b, "\r\nUser-Agent: bench\r\nAccept: "...), r.Accept...)
	if w.e.token != "" {
		b = append(append(b, "\r\nAuthorization: Bearer "...), w.e.token...)
	}
	if r.ContentType != "" {
		b = append(append(b, "\r\nContent-Type: "...), r.ContentType...)
	}
	if r.Body != nil || (r.Method != http.MethodGet && r.Method != http.MethodDelete) {
		b = strconv.AppendInt(append(b, "\r\nContent-Length: "...), int64(len(r.Body)), 10)
	}
	b = append(append(b, "\r\n\r\n"...), r.Body...)
	w.out = b
	_, err := w.conn.Write(b)
	return err
}

func (w *wire) readHead() (head, error) {
	h := head{length: -1}
	line, err := w.in.ReadSlice('\n')
	if err != nil {
		return h, err
	}
	f := bytes.Fields(line)
	if len(f) < 2 || !bytes.HasPrefix(f[0], []byte("HTTP/1.")) {
		return h, fmt.Errorf("not an HTTP/1 answer: %.60q", line)
	}
	if h.code, err = strconv.Atoi(string(f[1])); err != nil {
		return h, fmt.Errorf("not an HTTP/1 answer: %.60q", line)
	}
	for {
		if line, err = w.in.ReadSlice('\n'); err != nil {
			return h, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			return h, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if h.length, err = strconv.ParseInt(string(value), 10, 64); err != nil || h.length < 0 || h.length > maxBody {
				return h, fmt.Errorf("Content-Length %q", value)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			h.chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("Connection")):
			h.closes = bytes.EqualFold(value, []byte("close"))
		}
	}
}

func (w *wire) call(ctx context.Context, r request) (int, []byte, error) {
	if time.Since(w.used) > mostIdle {
		w.close()
	}
	if w.conn == nil {
		if err := w.connect(ctx); err != nil {
			return 0, nil, err
		}
	}
	conn := w.conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	code, body, err := w.exchange(r)
	if err != nil {
		w.close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, nil, fmt.Errorf("%s %s: %w", r.Method, r.Path, err)
	}
	w.used = time.Now()
	return code, body, nil
}

func (w *wire) exchange(r request) (int, []byte, error) {
	if err := w.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, nil, err
	}
	if err := w.send(r); err != nil {
		return 0, nil, err
	}
	h, err := w.readHead()
	if err != nil {
		return 0, nil, err
	}
	w.body = w.body[:0]
	switch {
	case h.chunked:
		buf := bytes.NewBuffer(w.body)
		if _, err := buf.ReadFrom(io.LimitReader(httputil.NewChunkedReader(w.in), maxBody)); err != nil {
			return 0, nil, err
		}
		w.body = buf.Bytes()
		// The reader leaves the line after the last chunk.
		if _, err := w.in.ReadSlice('\n'); err != nil {
			return 0, nil, err
		}
	case h.length > 0:
		if int64(cap(w.body)) < h.length {
			w.body = make([]byte, h.length)
		}
		w.body = w.body[:h.length]
		if _, err := io.ReadFull(w.in, w.body); err != nil {
			return 0, nil, err
		}
	case h.length < 0:
		return 0, nil, errors.New("an answer of unknown length")
	}
	if h.closes {
		w.close()
	}
	return h.code, w.body, nil
}

// stream opens a request whose answer has no end, a watch, and returns its body.
// The connection is closed with ctx. An answer that is not 200 is an error.
func (w *wire) stream(ctx context.Context, r request) (io.Reader, error) {
	if err := w.connect(ctx); err != nil {
		return nil, err
	}
	conn := w.conn
	context.AfterFunc(ctx, func() { conn.Close() })
	if err := w.send(r); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	h, err := w.readHead()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Path, err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if !h.chunked {
		return nil, fmt.Errorf("%s: code %d, and not a stream", r.Path, h.code)
	}
	body := httputil.NewChunkedReader(w.in)
	if h.code != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(body, 4096)) // an error itself: what there is of it
		return nil, answerError(r, h.code, b)
	}
	return body, nil
}

// multiplexed speaks HTTP/2 by the standard library, on a connection of its own.
type multiplexed struct {
	e    *endpoint
	http *http.Client
	body bytes.Buffer
}

func (e *endpoint) multiplexed() *multiplexed {
	t := &http.Transport{TLSClientConfig: e.tls.Clone(), ForceAttemptHTTP2: true, DisableCompression: true, MaxConnsPerHost: 1}
	return &multiplexed{e: e, http: &http.Client{Transport: t, Timeout: requestTimeout}}
}

func (m *multiplexed) close() { m.http.CloseIdleConnections() }

func (m *multiplexed) call(ctx context.Context, r request) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+m.e.host+m.e.base+r.Path, bytes.NewReader(r.Body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Accept", r.Accept)
	req.Header.Set("User-Agent", "bench")
	if r.ContentType != "" {
		req.Header.Set("Content-Type", r.ContentType)
	}
	if m.e.token != "" {
		req.Header.Set("Authorization", "Bearer "+m.e.token)
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	m.body.Reset()
	if _, err := m.body.ReadFrom(io.LimitReader(resp.Body, maxBody)); err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, m.body.Bytes(), nil
}

// answerError is the error that a code of 400 or more stands for.
func answerError(r request, code int, body []byte) error {
	var st struct{ Message string }
	if json.Unmarshal(body, &st) != nil || st.Message == "" {
		st.Message = fmt.Sprintf("%.200q", body)
	}
	return fmt.Errorf("%s %s: code %d: %s", r.Method, r.Path, code, st.Message)
}

// must sends a request and returns its body; any code of 400 or more is an error.
func must(ctx context.Context, c caller, r request) ([]byte, error) {
	code, body, err := c.call(ctx, r)
	if err != nil {
		return nil, err
	}
	if code >= 400 {
		return body, answerError(r, code, body)
	}
	return body, nil
}
