package stream

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// session is what a client sends and where it puts what it gets.
type session struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Sizes          []string
}

// outcomeOf a session, as the error channel tells it.
type outcomeOf struct{ status, reason, message, code string }

// client speaks v5.channel.k8s.io as kubectl does: input ends by a close signal,
// and all is read until the server says goodbye.
func client(t *testing.T, u *url.URL) func(session) outcomeOf {
	t.Helper()
	return func(s session) outcomeOf {
		ws := dial(t, u)
		defer ws.Close()
		_ = ws.SetReadDeadline(time.Now().Add(patience))
		var g errgroup.Group
		g.Go(func() error {
			for _, size := range s.Sizes {
				if err := ws.WriteMessage(websocket.BinaryMessage, append([]byte{4}, size...)); err != nil {
					return err
				}
			}
			if s.Stdin == nil {
				return nil
			}
			buf := make([]byte, 1+32<<10)
			for {
				n, err := s.Stdin.Read(buf[1:])
				if n > 0 {
					if werr := ws.WriteMessage(websocket.BinaryMessage, buf[:1+n]); werr != nil {
						return nil // the server said goodbye
					}
				}
				if err != nil {
					_ = ws.WriteMessage(websocket.BinaryMessage, []byte{closeSignal, 0}) // or it said so now
					return nil
				}
			}
		})
		var out outcomeOf
		for {
			_, b, err := ws.ReadMessage()
			if err != nil {
				if !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					t.Errorf("the session ended with %v", err)
				}
				break
			}
			switch to := map[byte]io.Writer{1: s.Stdout, 2: s.Stderr}[b[0]]; {
			case b[0] == 3 && len(b) > 1:
				out = parse(b[1:])
			case to != nil:
				if _, err := to.Write(b[1:]); err != nil {
					t.Error(err)
				}
			case len(b) > 1:
				t.Errorf("data on channel %d: %q", b[0], b[1:])
			}
		}
		ws.Close()
		if c, ok := s.Stdin.(io.Closer); ok {
			c.Close()
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		return out
	}
}

func parse(b []byte) outcomeOf {
	var st metav1.Status
	if err := json.Unmarshal(b, &st); err != nil {
		return outcomeOf{message: fmt.Sprintf("%q: %v", b, err)}
	}
	out := outcomeOf{status: st.Status, reason: string(st.Reason), message: st.Message}
	if st.Details != nil {
		for _, c := range st.Details.Causes {
			if c.Type == "ExitCode" {
				out.code = c.Message
			}
		}
	}
	return out
}

// wsConn is bytes inside of binary messages.
type wsConn struct {
	*websocket.Conn
	r io.Reader
}

func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.r == nil {
			var err error
			if _, c.r, err = c.NextReader(); err != nil {
				return 0, io.EOF
			}
		}
		n, err := c.r.Read(p)
		if err == io.EOF { //nolint:errorlint // an end of message is this value
			c.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *wsConn) Write(p []byte) (int, error) {
	return len(p), c.WriteMessage(websocket.BinaryMessage, p)
}

func (c *wsConn) SetDeadline(at time.Time) error {
	if err := c.SetReadDeadline(at); err != nil {
		return err
	}
	return c.SetWriteDeadline(at)
}

var _ net.Conn = (*wsConn)(nil)

func dialTunnel(t *testing.T, u *url.URL) (httpstream.Connection, string) {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{tunnelPrefix + "portforward.k8s.io"}}
	ws, resp, err := d.DialContext(t.Context(), "ws://"+u.Host, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	conn, err := spdy.NewClientConnection(&wsConn{Conn: ws})
	if err != nil {
		t.Fatal(err)
	}
	return conn, ws.Subprotocol()
}
