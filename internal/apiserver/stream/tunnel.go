package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
)

// Tunnel joins a client that speaks SPDY inside of WebSocket messages with a
// kubelet that speaks SPDY.
type Tunnel struct {
	Backend
	Log *slog.Logger
}

// Serve answers the request. An error means that nothing was answered yet. A
// kubelet that refuses has its answer passed on.
func (t *Tunnel) Serve(w http.ResponseWriter, r *http.Request) error {
	conn, resp, err := t.upgrade(r.Context(), tunnelled(r)...)
	if err != nil {
		return fmt.Errorf("error dialing backend: %w", err)
	}
	if conn == nil {
		for _, h := range []string{"Content-Type", "X-Content-Type-Options"} {
			if v := resp.Header.Get(h); v != "" {
				w.Header().Set(h, v)
			}
		}
		w.WriteHeader(resp.StatusCode)
		if _, err := io.Copy(w, resp.Body); err != nil {
			t.Log.Debug("pass the kubelet's refusal on", "err", err)
		}
		return nil
	}
	defer conn.Close()
	s, err := accept(w, r, tunnelPrefix+resp.Header.Get(headerProtocol))
	if err != nil {
		t.Log.Debug("refused a tunnel", "err", err)
		return nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	var g errgroup.Group
	g.Go(func() error {
		s.keepAlive(ctx)
		conn.Close()
		return nil
	})
	read := make(chan struct{})
	g.Go(func() error {
		defer close(read)
		if err := receive(conn, s); !left(err) {
			t.Log.Debug("read of a tunnel's client", "err", err)
		}
		conn.Close()
		s.discard()
		return nil
	})
	buf := make([]byte, bufferSize)
	for err == nil {
		var n int
		n, err = conn.Read(buf)
		if n > 0 {
			if serr := s.send(buf[:n]); serr != nil {
				err = serr
			}
		}
	}
	if !left(err) {
		t.Log.Debug("read of a tunnel's kubelet", "err", err)
	}
	conn.Close()
	s.part(websocket.CloseNormalClosure, read)
	cancel()
	_ = g.Wait() // nothing in it fails
	return nil
}

// receive carries what the client sends, until it leaves.
func receive(to io.Writer, s *socket) error {
	buf := make([]byte, bufferSize)
	for {
		kind, r, err := s.ws.NextReader()
		if err != nil {
			return err
		}
		if kind != websocket.BinaryMessage {
			return errors.New("a message of a tunnel must be binary")
		}
		if _, err := io.CopyBuffer(onlyWriter{to}, r, buf); err != nil {
			return err
		}
	}
}
