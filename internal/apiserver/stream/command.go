package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// closeSignal, followed by a channel, says that no more comes on it.
const closeSignal = 255

// Command joins a client with a process in a container.
type Command struct {
	Backend
	// Stdin, Stdout and Stderr are the streams that the client asked for; with
	// TTY, stderr comes as stdout.
	Stdin, Stdout, Stderr, TTY bool
	Log                        *slog.Logger
}

// remote are the streams of a process.
type remote struct {
	conn                       httpstream.Connection
	raw                        net.Conn
	fault                      httpstream.Stream
	in, out, errOut, sizeEvent httpstream.Stream
}

// close ends the streams. Nothing holds it up: not even a kubelet that does not
// read.
func (m *remote) close() {
	_ = m.raw.SetWriteDeadline(time.Now().Add(time.Second))
	m.conn.Close()
	m.raw.Close()
}

// Serve answers the request. Whatever happens after the client's handshake, the
// client hears of it in the error channel.
func (c *Command) Serve(w http.ResponseWriter, r *http.Request) {
	s, err := accept(w, r, commandV5)
	if err != nil {
		c.Log.Debug("refused a stream", "err", err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	var g errgroup.Group
	read := make(chan struct{})
	m, err := c.begin(ctx, s)
	g.Go(func() error {
		s.keepAlive(ctx)
		if m != nil {
			m.raw.Close()
		}
		return nil
	})
	if err != nil {
		g.Go(func() error { defer close(read); s.discard(); return nil })
		c.report(s, failure(err))
	} else {
		g.Go(func() error {
			defer close(read)
			if err := c.toRemote(s, m); !left(err) {
				c.Log.Debug("read of a stream's client", "err", err)
			}
			m.close() // the process's streams end with the client
			s.discard()
			return nil
		})
		c.report(s, c.toClient(s, m))
		m.close()
	}
	s.part(websocket.CloseNormalClosure, read)
	cancel()
	_ = g.Wait() // nothing in it fails
}

// report sends the outcome.
func (c *Command) report(s *socket, st *metav1.Status) {
	b, err := json.Marshal(st)
	if err == nil {
		err = s.send(append([]byte{remotecommand.StreamErr}, b...))
	}
	if err != nil {
		c.Log.Debug("report of a stream's end", "err", err)
	}
}

func failure(err error) *metav1.Status {
	var st apierrors.APIStatus
	if !errors.As(err, &st) {
		st = apierrors.NewInternalError(err)
	}
	out := st.Status()
	return &out
}

// begin tells the client that it is connected and opens the process's streams.
func (c *Command) begin(ctx context.Context, s *socket) (*remote, error) {
	first := byte(remotecommand.StreamErr)
	switch {
	case c.Stdout:
		first = remotecommand.StreamStdOut
	case c.Stderr:
		first = remotecommand.StreamStdErr
	}
	if err := s.send([]byte{first}); err != nil {
		return nil, err
	}
	conn, resp, err := c.upgrade(ctx, commandV4)
	if err != nil {
		return nil, fmt.Errorf("error sending request: Post %q: %w", c.Location, err)
	}
	if conn == nil {
		return nil, fmt.Errorf("unable to upgrade connection: %s", refusal(resp))
	}
	if p := resp.Header.Get(headerProtocol); p != commandV4 {
		conn.Close()
		return nil, fmt.Errorf("unable to upgrade connection: protocol %q is not %s", p, commandV4)
	}
	sc, err := spdy.NewClientConnectionWithPings(conn, pingPeriod)
	if err != nil {
		conn.Close()
		return nil, err
	}
	m := &remote{conn: sc, raw: conn}
	for _, st := range []struct {
		wanted bool
		kind   string
		to     *httpstream.Stream
	}{
		{true, corev1.StreamTypeError, &m.fault},
		{c.Stdin, corev1.StreamTypeStdin, &m.in},
		{c.Stdout, corev1.StreamTypeStdout, &m.out},
		{c.Stderr && !c.TTY, corev1.StreamTypeStderr, &m.errOut},
		{c.TTY, corev1.StreamTypeResize, &m.sizeEvent},
	} {
		if !st.wanted {
			continue
		}
		h := http.Header{}
		h.Set(corev1.StreamType, st.kind)
		if *st.to, err = sc.CreateStream(h); err != nil {
			m.close()
			return nil, fmt.Errorf("open the %s stream: %w", st.kind, err)
		}
	}
	return m, nil
}

// refusal is what a kubelet says in an answer that is not a stream.
func refusal(resp *http.Response) string {
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	var st metav1.Status
	if json.Unmarshal(b, &st) == nil && st.Message != "" {
		return st.Message
	}
	if msg := strings.TrimSpace(string(b)); msg != "" {
		return msg
	}
	return "empty server response"
}

// toRemote carries what the client sends, until it leaves.
func (c *Command) toRemote(s *socket, m *remote) error {
	buf := make([]byte, bufferSize)
	deaf := false
	for {
		_, r, err := s.ws.NextReader()
		if err != nil {
			return err
		}
		var head [1]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				continue // an empty message says nothing
			}
			return err
		}
		var to httpstream.Stream
		switch head[0] {
		case remotecommand.StreamStdIn:
			to = m.in
		case remotecommand.StreamResize:
			to = m.sizeEvent
		case closeSignal:
			if err := c.closed(r, m); err != nil {
				return err
			}
			continue
		}
		if to != nil && !deaf {
			// A process that has ended takes no more, but how it ended is yet to be
			// read: that its input is closed ends nothing.
			w := &tolerant{w: to}
			_, err = io.CopyBuffer(w, r, buf)
			deaf = w.failed
		} else {
			_, err = io.CopyBuffer(onlyWriter{io.Discard}, r, buf)
		}
		if err != nil {
			return err
		}
	}
}

// closed ends a stream after the client's signal.
func (c *Command) closed(r io.Reader, m *remote) error {
	b, err := io.ReadAll(io.LimitReader(r, 2))
	if err != nil {
		return err
	}
	if len(b) != 1 || b[0] > remotecommand.StreamResize {
		return fmt.Errorf("close signal for channel %v", b)
	}
	// Where the process has ended already, that is no mistake of the client's.
	switch {
	case b[0] == remotecommand.StreamStdIn && m.in != nil:
		_ = m.in.Close()
	case b[0] == remotecommand.StreamResize && m.sizeEvent != nil:
		_ = m.sizeEvent.Close()
	}
	return nil
}

// toClient carries what the process writes, and returns how it ended.
func (c *Command) toClient(s *socket, m *remote) *metav1.Status {
	var g errgroup.Group
	for channel, from := range map[byte]httpstream.Stream{remotecommand.StreamStdOut: m.out, remotecommand.StreamStdErr: m.errOut} {
		if from == nil {
			continue
		}
		g.Go(func() error {
			buf := make([]byte, 1+bufferSize)
			buf[0] = channel
			for {
				n, err := from.Read(buf[1:])
				if n > 0 {
					if serr := s.send(buf[:1+n]); serr != nil {
						m.close() // the client is gone
						return serr
					}
				}
				if errors.Is(err, io.EOF) {
					return nil
				}
				if err != nil {
					return err
				}
			}
		})
	}
	// Beside the others: what is not taken from one stream holds up the end of all.
	b, rerr := io.ReadAll(io.LimitReader(m.fault, maxAnswer))
	err := g.Wait()
	switch {
	case rerr != nil:
		return failure(fmt.Errorf("error reading from error stream: %w", rerr))
	case len(b) == 0 && err != nil:
		return failure(err)
	}
	return outcome(b)
}

// outcome makes of the kubelet's last word what the API says.
func outcome(b []byte) *metav1.Status {
	if len(b) == 0 {
		// A kubelet always says how it ended.
		return failure(errors.New("the connection to the node was lost"))
	}
	var st metav1.Status
	if err := json.Unmarshal(b, &st); err != nil {
		return failure(fmt.Errorf("error stream protocol error: %w in %q", err, b))
	}
	switch {
	case st.Status == metav1.StatusSuccess:
		return &metav1.Status{Status: metav1.StatusSuccess}
	case st.Status != metav1.StatusFailure:
		return failure(errors.New("error stream protocol error: unknown error"))
	case st.Reason != remotecommand.NonZeroExitCodeReason:
		return failure(errors.New(st.Message))
	}
	if st.Details == nil {
		return failure(errors.New("error stream protocol error: details must be set"))
	}
	for _, cause := range st.Details.Causes {
		if cause.Type == remotecommand.ExitCodeCauseType {
			return &metav1.Status{
				Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
				Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: cause.Message}}},
				Message: "command terminated with non-zero exit code: command terminated with exit code " + cause.Message,
			}
		}
	}
	return failure(fmt.Errorf("error stream protocol error: no %s cause given", remotecommand.ExitCodeCauseType))
}

// tolerant takes everything, also after its writer failed.
type tolerant struct {
	w      io.Writer
	failed bool
}

func (t *tolerant) Write(b []byte) (int, error) {
	if !t.failed {
		_, err := t.w.Write(b)
		t.failed = err != nil
	}
	return len(b), nil
}

// onlyWriter hides other methods, so that a copy uses its own buffer.
type onlyWriter struct{ io.Writer }
