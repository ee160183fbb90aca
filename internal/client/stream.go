package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// CommandProtocol is the subprotocol of commands (exec, attach): KEP-4006. A message
// begins with its channel.
const (
	CommandProtocol = "v5.channel.k8s.io"

	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelResize = 4
	channelClose  = 255
)

// pingEvery keeps a quiet connection alive; one that answers nothing for silence is
// gone.
const (
	pingEvery = 5 * time.Second
	silence   = 30 * time.Second
)

// TerminalSize is that of a terminal, in characters.
type TerminalSize struct{ Width, Height uint16 }

// Streams are those of a command. In may be nil, as Err is with a terminal; Resize
// brings the sizes of a terminal.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Resize   <-chan TerminalSize
}

// Command connects streams with a process by exec or attach and returns its exit
// code, for attach always 0. sub is the path below the pod with the query q.
// An error of In other than io.EOF ends the connection and is returned; the
// goroutine that reads In may outlive the call.
func (h *HTTPS) Command(ctx context.Context, ref Ref, q url.Values, s Streams) (int, error) {
	q = cloned(q)
	for name, on := range map[string]bool{"stdin": s.In != nil, "stdout": s.Out != nil, "stderr": s.Err != nil} {
		if on {
			q.Set(name, "true")
		}
	}
	ws, err := h.socket(ctx, ref, q)
	if err != nil {
		return 0, err
	}
	return Converse(ctx, ws, s)
}

// Converse connects streams with a process at the other end of ws, which speaks
// CommandProtocol, and is Command in all else. ws is closed.
func Converse(ctx context.Context, ws *websocket.Conn, s Streams) (int, error) {
	c := &command{ws: ws}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { ws.Close() })
	defer stop()
	defer ws.Close()
	if s.In != nil {
		go func() {
			if err := c.sendAll(s.In); err != nil {
				cancel(err)
			}
		}()
	}
	go c.beat(ctx, s.Resize)
	code, err := c.receive(s)
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return 0, cause
	}
	return code, err
}

func cloned(q url.Values) url.Values {
	out := url.Values{}
	for k, v := range q {
		out[k] = v
	}
	return out
}

// socket opens the connection. Errors of the server are *apierrors.StatusError.
func (h *HTTPS) socket(ctx context.Context, ref Ref, q url.Values) (*websocket.Conn, error) {
	u, err := url.Parse(h.url(ref, q))
	if err != nil {
		return nil, err
	}
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	d := websocket.Dialer{
		Subprotocols: []string{CommandProtocol}, HandshakeTimeout: 45 * time.Second, Proxy: http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{RootCAs: h.cfg.CA, GetClientCertificate: h.cfg.Certificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
	}
	header := http.Header{"User-Agent": {h.cfg.UserAgent}}
	if h.cfg.Token != "" {
		header.Set("Authorization", "Bearer "+h.cfg.Token)
	}
	ws, resp, err := d.DialContext(ctx, u.String(), header)
	if err == nil {
		return ws, nil
	}
	if resp == nil || resp.StatusCode < 400 {
		return nil, err
	}
	defer resp.Body.Close()
	b, rerr := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if rerr != nil {
		return nil, err
	}
	var st metav1.Status
	if json.Unmarshal(b, &st) == nil && st.Status == metav1.StatusFailure {
		return nil, &apierrors.StatusError{ErrStatus: st}
	}
	return nil, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
}

// command is a connection of a command.
type command struct {
	ws *websocket.Conn
	mu sync.Mutex // one message is written at a time
}

func (c *command) send(b []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws.WriteMessage(websocket.BinaryMessage, b)
}

// sendAll sends input to its end.
func (c *command) sendAll(in io.Reader) error {
	buf := make([]byte, 1+32<<10)
	buf[0] = channelStdin
	for {
		n, err := in.Read(buf[1:])
		if n > 0 && c.send(buf[:1+n]) != nil {
			return nil // the reader of the connection knows why
		}
		if errors.Is(err, io.EOF) {
			_ = c.send([]byte{channelClose, channelStdin})
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// beat sends sizes and signs of life until ctx ends.
func (c *command) beat(ctx context.Context, sizes <-chan TerminalSize) {
	t := time.NewTicker(pingEvery)
	defer t.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			err = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(pingEvery))
		case s, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			var b []byte
			if b, err = json.Marshal(s); err == nil {
				err = c.send(append([]byte{channelResize}, b...))
			}
		}
		if err != nil {
			return
		}
	}
}

// errNoOutcome: the connection ended before the process.
var errNoOutcome = errors.New("the connection ended before the process")

// receive writes output where it belongs until the server says how it ended.
func (c *command) receive(s Streams) (int, error) {
	alive := func(string) error { return c.ws.SetReadDeadline(time.Now().Add(silence)) }
	c.ws.SetPongHandler(alive)
	var outcome []byte
	for {
		// Anew each time: a writer that is slow is no silence.
		_ = alive("")
		_, b, err := c.ws.ReadMessage()
		if err != nil {
			if outcome != nil {
				return exitCode(outcome)
			}
			if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				return 0, nil
			}
			return 0, fmt.Errorf("%w: %w", errNoOutcome, err)
		}
		if len(b) < 2 {
			continue
		}
		to := map[byte]io.Writer{channelStdout: s.Out, channelStderr: s.Err}[b[0]]
		switch {
		case b[0] == channelError:
			outcome = append(outcome, b[1:]...)
		case to != nil:
			if _, err := to.Write(b[1:]); err != nil {
				return 0, err
			}
		}
	}
}

// exitCode reads the outcome of a command: a Status, with the code among its causes.
func exitCode(b []byte) (int, error) {
	var st metav1.Status
	if err := json.Unmarshal(b, &st); err != nil {
		return 0, fmt.Errorf("read how the process ended: %w", err)
	}
	if st.Status == metav1.StatusSuccess {
		return 0, nil
	}
	if st.Reason == "NonZeroExitCode" && st.Details != nil {
		for _, c := range st.Details.Causes {
			if n, err := strconv.Atoi(c.Message); c.Type == "ExitCode" && err == nil {
				return n, nil
			}
		}
	}
	return 0, &apierrors.StatusError{ErrStatus: st}
}

// Follow gets a path of the server and hands out its body while it comes: a log that
// is followed. The caller closes it.
func (h *HTTPS) Follow(ctx context.Context, p string, q url.Values) (io.ReadCloser, error) {
	resp, err := h.get(ctx, p, q, "")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 400 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	return nil, statusError(resp.StatusCode, http.MethodGet, Ref{}, b)
}
