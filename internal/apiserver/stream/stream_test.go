package stream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	criportforward "k8s.io/cri-streaming/pkg/streaming/portforward"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

func TestMain(m *testing.M) {
	code := m.Run()
	// A SPDY connection that was cut takes a second to end.
	for end := time.Now().Add(patience); code == 0; {
		err := goleak.Find()
		if err == nil {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// patience bounds every wait.
const patience = 20 * time.Second

// process is what runs in the fake node's container.
type process func(in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan criremote.TerminalSize) error

func (p process) ExecInContainer(_ context.Context, _, _, _ string, _ []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan criremote.TerminalSize, _ time.Duration) error {
	return p(in, out, errOut, tty, resize)
}

// forward answers each port's connections.
type forward func(port int32, stream io.ReadWriteCloser) error

func (f forward) PortForward(_ context.Context, _, _ string, port int32, s io.ReadWriteCloser) error {
	return f(port, s)
}

// server is a node that speaks SPDY, and in front of it what is tested.
func server(t *testing.T, kubelet http.Handler, cmd Command) *url.URL {
	t.Helper()
	node := httptest.NewTLSServer(kubelet)
	at, err := url.Parse(node.URL)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Backend = Backend{at, node.Client().Transport}
	cmd.Log = slog.New(slog.DiscardHandler)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case IsCommand(r):
			cmd.Serve(w, r)
		case IsTunnel(r):
			tunnel := Tunnel{cmd.Backend, cmd.Log}
			if err := tunnel.Serve(w, r); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		default:
			http.Error(w, "no stream", http.StatusBadRequest)
		}
	}))
	t.Cleanup(func() {
		front.Close() // waits for nothing that was hijacked; the leak check does
		node.Close()
	})
	u, err := url.Parse(front.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func running(p process, o criremote.Options) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		criremote.ServeExec(w, r, p, "", "", "", nil, &o, time.Hour, patience, criremote.SupportedStreamingProtocols)
	})
}

// start serves p and returns what a client does with it.
func start(t *testing.T, p process, o criremote.Options) func(session) outcomeOf {
	t.Helper()
	return client(t, server(t, running(p, o), Command{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, TTY: o.TTY}))
}

func TestStreamsAndExitCode(t *testing.T) {
	run := start(t, func(in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
		b, err := io.ReadAll(in) // ends by the client's close signal
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "got %s", b)
		fmt.Fprint(errOut, "no good")
		return utilexec.CodeExitError{Err: errors.New("exit"), Code: 42}
	}, criremote.Options{Stdin: true, Stdout: true, Stderr: true})
	var out, errOut bytes.Buffer
	got := run(session{Stdin: strings.NewReader("word"), Stdout: &out, Stderr: &errOut})
	if got.code != "42" || got.reason != "NonZeroExitCode" || got.message != "command terminated with non-zero exit code: command terminated with exit code 42" {
		t.Errorf("outcome %+v, want exit code 42", got)
	}
	if out.String() != "got word" || errOut.String() != "no good" {
		t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
	}
}

func TestMuchBothWays(t *testing.T) {
	run := start(t, func(in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
		_, err := io.Copy(out, in)
		return err
	}, criremote.Options{Stdin: true, Stdout: true})
	want := make([]byte, 8<<20)
	if _, err := rand.Read(want); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if got := run(session{Stdin: bytes.NewReader(want), Stdout: &out}); got.status != "Success" {
		t.Fatal(got)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%d bytes came back of %d, or others", out.Len(), len(want))
	}
}

// TestEndWhileInputFlows: the outcome arrives although the client still sends.
func TestEndWhileInputFlows(t *testing.T) {
	run := start(t, func(in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
		if _, err := io.ReadFull(in, make([]byte, 100)); err != nil {
			return err
		}
		fmt.Fprint(out, "enough")
		return utilexec.CodeExitError{Err: errors.New("exit"), Code: 3}
	}, criremote.Options{Stdin: true, Stdout: true})
	endless, stop := io.Pipe()
	go func() {
		b := make([]byte, 16<<10)
		for {
			if _, err := stop.Write(b); err != nil {
				return
			}
		}
	}()
	defer endless.Close()
	var out bytes.Buffer
	got := run(session{Stdin: endless, Stdout: &out})
	if got.code != "3" || out.String() != "enough" {
		t.Errorf("outcome %+v, stdout %q", got, out.String())
	}
}

func TestTerminal(t *testing.T) {
	run := start(t, func(_ io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan criremote.TerminalSize) error {
		if !tty || errOut != nil {
			return fmt.Errorf("tty %v, stderr %v", tty, errOut)
		}
		for range 2 {
			select {
			case s := <-resize:
				fmt.Fprintf(out, "%dx%d ", s.Width, s.Height)
			case <-time.After(patience):
				return errors.New("no size came")
			}
		}
		return nil
	}, criremote.Options{Stdin: true, Stdout: true, TTY: true})
	in, stop := io.Pipe()
	defer stop.Close()
	var out bytes.Buffer
	if got := run(session{Stdin: in, Stdout: &out, Sizes: []string{`{"Width":80,"Height":24}`, `{"Width":132,"Height":50}`}}); got.status != "Success" {
		t.Fatal(got)
	}
	if out.String() != "80x24 132x50 " {
		t.Errorf("sizes %q", out.String())
	}
}

// dial opens a v5 WebSocket by hand.
func dial(t *testing.T, u *url.URL) *websocket.Conn {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{commandV5}}
	ws, resp, err := d.DialContext(t.Context(), "ws://"+u.Host, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return ws
}

func TestClientLeaves(t *testing.T) {
	for name, reads := range map[string]bool{"while the process waits": true, "while the process does not read": false} {
		t.Run(name, func(t *testing.T) {
			started, ended := make(chan struct{}), make(chan error, 1)
			release := make(chan struct{})
			u := server(t, running(func(in io.Reader, _, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
				close(started)
				if !reads {
					<-release
				}
				_, err := io.Copy(io.Discard, in)
				ended <- err
				return err
			}, criremote.Options{Stdin: true, Stdout: true}), Command{Stdin: true, Stdout: true})
			ws := dial(t, u)
			<-started
			if !reads {
				// Fill everything between the client and the process.
				_ = ws.SetWriteDeadline(time.Now().Add(time.Second))
				msg := make([]byte, 64<<10)
				for ws.WriteMessage(websocket.BinaryMessage, msg) == nil {
				}
			}
			ws.Close()
			close(release)
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the process's input did not end with the client")
			}
		})
	}
}

// TestKubeletLost: a node that goes away is no success.
func TestKubeletLost(t *testing.T) {
	conns := make(chan net.Conn, 1)
	run := running(func(in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
		fmt.Fprint(out, "here")
		c := <-conns
		c.Close()
		_, err := io.Copy(io.Discard, in)
		return err
	}, criremote.Options{Stdin: true, Stdout: true})
	u := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		run.ServeHTTP(catcher{w, conns}, r)
	}), Command{Stdin: true, Stdout: true})
	in, stop := io.Pipe()
	defer stop.Close()
	var out bytes.Buffer
	if got := client(t, u)(session{Stdin: in, Stdout: &out}); got.status != "Failure" {
		t.Errorf("a lost node was reported as %+v", got)
	}
}

func TestKubeletRefuses(t *testing.T) {
	u := server(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "container not found (\"c\")", http.StatusNotFound)
	}), Command{Stdout: true})
	got := client(t, u)(session{Stdout: io.Discard})
	if want := `Internal error occurred: unable to upgrade connection: container not found ("c")`; got.message != want || got.reason != "InternalError" {
		t.Errorf("outcome %+v, want %s", got, want)
	}
}

func TestBrokenCloseSignal(t *testing.T) {
	for _, msg := range [][]byte{{closeSignal}, {closeSignal, 9}, {closeSignal, 0, 0}} {
		ended := make(chan struct{})
		u := server(t, running(func(in io.Reader, _, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize) error {
			_, err := io.Copy(io.Discard, in)
			close(ended)
			return err
		}, criremote.Options{Stdin: true, Stdout: true}), Command{Stdin: true, Stdout: true})
		ws := dial(t, u)
		if err := ws.WriteMessage(websocket.BinaryMessage, msg); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("message %v did not end the streams", msg)
		}
		ws.Close()
	}
}

// forwarding serves port-forward on the fake node.
func forwarding(f forward) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		criportforward.ServePortForward(w, r, f, "", "", nil, time.Hour, patience, criportforward.SupportedProtocols)
	})
}

func TestTunnel(t *testing.T) {
	u := server(t, forwarding(func(port int32, s io.ReadWriteCloser) error {
		if port == 9 {
			return errors.New("nobody listens")
		}
		_, err := io.Copy(s, s)
		return err
	}), Command{})
	conn, protocol := dialTunnel(t, u)
	defer conn.Close()
	if protocol != tunnelPrefix+"portforward.k8s.io" {
		t.Errorf("protocol %q", protocol)
	}
	id := 0
	// open asks for a connection to a port: its data and its error.
	open := func(port string) (io.ReadWriteCloser, io.Reader) {
		h := http.Header{}
		h.Set(corev1.PortHeader, port)
		h.Set(corev1.PortForwardRequestIDHeader, fmt.Sprint(id))
		id++
		h.Set(corev1.StreamType, corev1.StreamTypeError)
		fault, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		fault.Close()
		h.Set(corev1.StreamType, corev1.StreamTypeData)
		data, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		return data, fault
	}
	echo := func(n int) {
		t.Helper()
		want := make([]byte, n)
		if _, err := rand.Read(want); err != nil {
			t.Fatal(err)
		}
		data, _ := open("80")
		done := make(chan error, 1)
		go func() {
			_, err := data.Write(want)
			data.Close()
			done <- err
		}()
		got, err := io.ReadAll(data)
		if err := errors.Join(err, <-done); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came back of %d, or others", len(got), n)
		}
	}
	echo(10)
	_, fault := open("9")
	msg, err := io.ReadAll(fault)
	if err != nil || !strings.Contains(string(msg), "nobody listens") {
		t.Errorf("error stream says %q, %v", msg, err)
	}
	// One failed connection leaves the others.
	echo(4 << 20)
	echo(10)
}

func TestTunnelRefused(t *testing.T) {
	u := server(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no such pod", http.StatusNotFound)
	}), Command{})
	d := websocket.Dialer{Subprotocols: []string{tunnelPrefix + "portforward.k8s.io"}}
	ws, resp, err := d.DialContext(t.Context(), "ws://"+u.Host, nil)
	if err == nil {
		ws.Close()
		t.Fatal("the tunnel opened")
	}
	b, rerr := io.ReadAll(resp.Body)
	if rerr != nil || resp.StatusCode != http.StatusNotFound || strings.TrimSpace(string(b)) != "no such pod" {
		t.Errorf("answer %d %q, %v", resp.StatusCode, b, rerr)
	}
}

// TestTunnelEnds: either end's leaving is the other's.
func TestTunnelEnds(t *testing.T) {
	conns := make(chan net.Conn, 2)
	serve := forwarding(func(int32, io.ReadWriteCloser) error { return nil })
	ended := make(chan struct{}, 2)
	u := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve.ServeHTTP(catcher{w, conns}, r)
		ended <- struct{}{}
	}), Command{})
	for _, first := range []string{"client", "kubelet"} {
		conn, _ := dialTunnel(t, u)
		node := <-conns
		if first == "client" {
			conn.Close()
		} else {
			node.Close()
			select {
			case <-conn.CloseChan():
			case <-time.After(patience):
				t.Error("the client was not told that the kubelet left")
			}
			conn.Close()
		}
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("the kubelet's side did not end after the %s left", first)
		}
	}
}
