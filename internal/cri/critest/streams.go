package critest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Channels of the remote command protocol over WebSockets, v4.
const (
	chanStdin = iota
	chanStdout
	chanStderr
	chanError
	chanResize
)

// remote is a client of a streaming URL.
type remote struct {
	t    *testing.T
	c    *websocket.Conn
	data [3]strings.Builder
	end  *metav1.Status
}

func dial(t *testing.T, ctx context.Context, url string) *remote {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
	c, _, err := d.DialContext(ctx, strings.Replace(url, "http", "ws", 1), nil)
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	t.Cleanup(func() { c.Close() })
	return &remote{t: t, c: c}
}

func (r *remote) send(channel byte, data string) {
	r.t.Helper()
	if err := r.c.WriteMessage(websocket.BinaryMessage, append([]byte{channel}, data...)); err != nil {
		r.t.Fatal(err)
	}
}

// until reads until stdout contains what, or without what until the end.
func (r *remote) until(what string) {
	r.t.Helper()
	for what == "" || !strings.Contains(r.data[chanStdout].String(), what) {
		_, m, err := r.c.ReadMessage()
		if err != nil {
			if what != "" {
				r.t.Fatalf("%v; until then %q", err, r.data[chanStdout].String())
			}
			return
		}
		switch {
		case len(m) == 0:
		case m[0] == chanError:
			r.end = &metav1.Status{}
			if err := json.Unmarshal(m[1:], r.end); err != nil {
				r.t.Errorf("status %q: %v", m[1:], err)
			}
		case m[0] < chanError:
			r.data[m[0]].Write(m[1:])
		}
	}
}

func (f Fixture) testStreams(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	p := f.Run(t, nil)
	c := p.Start(func(c *runtimeapi.ContainerConfig) { c.Stdin = true }, "sh", "-c", "while read l; do echo got $l; done; sleep 1000")
	exec := func(t *testing.T, tty, in bool, cmd ...string) *remote {
		t.Helper()
		r, err := f.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: cmd, Stdin: in, Stdout: true, Stderr: !tty, Tty: tty})
		if err != nil {
			t.Fatal(err)
		}
		return dial(t, ctx, r.GetUrl())
	}
	t.Run("exec", func(t *testing.T) {
		r := exec(t, false, true, "sh", "-c", "read l; echo $l; echo e >&2; exit 4")
		r.send(chanStdin, "in\n")
		r.until("")
		if r.data[1].String() != "in\n" || r.data[2].String() != "e\n" {
			t.Errorf("out %q, err %q", r.data[1].String(), r.data[2].String())
		}
		if r.end == nil || r.end.Status != metav1.StatusFailure || r.end.Details == nil || len(r.end.Details.Causes) == 0 || r.end.Details.Causes[0].Message != "4" {
			t.Errorf("end = %+v", r.end)
		}
		r = exec(t, false, false, "true")
		r.until("")
		if r.end == nil || r.end.Status != metav1.StatusSuccess {
			t.Errorf("end = %+v", r.end)
		}
	})
	t.Run("exec with a terminal", func(t *testing.T) {
		r := exec(t, true, true, "sh", "-c", "trap 'stty size' WINCH; echo ready; until read l; do :; done; echo $l $TERM; tty")
		r.until("ready")
		r.send(chanResize, `{"Width":91,"Height":17}`)
		r.until("17 91")
		r.send(chanStdin, "typed\n")
		r.until("")
		if out := r.data[1].String(); !strings.Contains(out, "typed xterm") || !strings.Contains(out, "/dev/pts/") || r.end == nil || r.end.Status != metav1.StatusSuccess {
			t.Errorf("out %q, end %+v", out, r.end)
		}
	})
	t.Run("attach", func(t *testing.T) {
		a, err := f.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		r := dial(t, ctx, a.GetUrl())
		r.send(chanStdin, "hello\n")
		r.until("got hello\n")
		r.c.Close()
		if st := c.Status(); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container ended with the client: %v", st)
		}
		Until(t, "the log has it too", func() bool { return c.Log("stdout") == "got hello\n" })
	})
	t.Run("attach to a terminal", func(t *testing.T) {
		c := p.Start(func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true }, "sh", "-c", "trap 'stty size' WINCH; until read l; do :; done; echo got $l; sleep 1000")
		a, err := f.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		r := dial(t, ctx, a.GetUrl())
		// The trap may not be set yet: the size is changed until it is heard.
		Until(t, "the new size is seen", func() bool {
			r.send(chanResize, `{"Width":92,"Height":18}`)
			r.send(chanResize, `{"Width":91,"Height":17}`)
			return strings.Contains(c.Log("stdout"), "17 91")
		})
		r.send(chanStdin, "typed\n")
		r.until("got typed\r\n")
		r.c.Close()
		if st := c.Status(); st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container ended with the client: %v", st)
		}
	})
	t.Run("stdin once", func(t *testing.T) {
		c := p.Start(func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }, "cat")
		a, err := f.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		r := dial(t, ctx, a.GetUrl())
		r.send(chanStdin, "once\n")
		r.until("once\n")
		r.c.Close()
		if st := c.Exited(); st.GetExitCode() != 0 {
			t.Errorf("status = %v", st)
		}
		expect(t, "log", c.Log("stdout"), "once")
	})
	t.Run("port forward", func(t *testing.T) {
		p.Start(nil, "nc", "-ll", "-p", "8081", "-e", "echo", "from the pod")
		Until(t, "it listens", func() bool {
			out, _ := c.Exec("cat", "/proc/net/tcp", "/proc/net/tcp6")
			return strings.Contains(out, fmt.Sprintf(":%X", 8081))
		})
		pf, err := f.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{8081}})
		if err != nil {
			t.Fatal(err)
		}
		d := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
		ws, _, err := d.DialContext(ctx, strings.Replace(pf.GetUrl(), "http", "ws", 1), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		var got strings.Builder
		for first := true; !strings.Contains(got.String(), "from the pod\n"); {
			_, m, err := ws.ReadMessage()
			if err != nil {
				t.Fatalf("%v; until then %q", err, got.String())
			}
			if len(m) == 0 || m[0] != 0 {
				continue
			}
			if first { // the port's number
				first = false
				continue
			}
			got.Write(m[1:])
		}
	})
}
