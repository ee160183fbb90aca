package runtime_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
)

// attachBefore attaches to a container that is created and returns the connection once
// the runtime tells of it.
func attachBefore(t *testing.T, s cri.Services, c *critest.Container, tty bool, resize string) *websocket.Conn {
	t.Helper()
	a, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true, Stderr: !tty, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	d := websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}
	ws, _, err := d.DialContext(t.Context(), strings.Replace(a.GetUrl(), "http", "ws", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	if resize != "" {
		if err := ws.WriteMessage(websocket.BinaryMessage, append([]byte{4}, resize...)); err != nil {
			t.Fatal(err)
		}
	}
	critest.Until(t, "the runtime tells of the client", func() bool { return c.Status().GetAnnotations()[cri.AnnotationAttached] == "true" })
	return ws
}

// output is all of a stream until the connection ends.
func output(ws *websocket.Conn, channel byte) string {
	var out strings.Builder
	for {
		_, b, err := ws.ReadMessage()
		if err != nil {
			return out.String()
		}
		if len(b) > 1 && b[0] == channel {
			out.Write(b[1:])
		}
	}
}

// Who is attached before the start misses nothing, and a terminal has its size from
// the first moment.
func TestAttachBeforeStart(t *testing.T) {
	b := newBench(t)
	r, _ := b.start(t, nil)
	s := cri.InProcess(r)
	p := b.fixture(s).Run(t, nil)
	create := func(tty bool, args ...string) *critest.Container {
		t.Helper()
		c, err := p.Create(func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce, c.Tty = true, true, tty }, args...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	begin := func(c *critest.Container) {
		t.Helper()
		if err := s.Runtime.StartContainer(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}

	c := create(false, "seq", "1", "100000")
	ws := attachBefore(t, s, c, false, "")
	begin(c)
	var want strings.Builder
	for i := range 100000 {
		fmt.Fprintln(&want, i+1)
	}
	if got := output(ws, 1); got != want.String() {
		t.Errorf("%d bytes came, want %d", len(got), want.Len())
	}
	c.Exited()

	c = create(false, "sh", "-c", "read l; echo got $l >&2")
	ws = attachBefore(t, s, c, false, "")
	begin(c)
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte("\x00input\n")); err != nil {
		t.Fatal(err)
	}
	if got := output(ws, 2); got != "got input\n" {
		t.Errorf("stderr = %q", got)
	}
	c.Exited()

	c = create(true, "stty", "size")
	ws = attachBefore(t, s, c, true, `{"Width":91,"Height":17}`)
	begin(c)
	if got := output(ws, 1); got != "17 91\r\n" {
		t.Errorf("the size at the start is %q", got)
	}
	c.Exited()

	// A client that does not read holds the process, however long that takes: it is
	// not cut off as those are that come later.
	c = create(false, "sh", "-c", "head -c 3000000 /dev/zero; echo end >&2")
	ws = attachBefore(t, s, c, false, "")
	begin(c)
	time.Sleep(11 * time.Second) // longer than others may
	if got := output(ws, 1); len(got) != 3000000 {
		t.Errorf("%d bytes came to a slow client", len(got))
	}
	c.Exited()

	// One that leaves before is forgotten; the next is taken.
	c = create(false, "echo", "hello")
	attachBefore(t, s, c, false, "").Close()
	critest.Until(t, "the client that left is forgotten", func() bool { return c.Status().GetAnnotations()[cri.AnnotationAttached] == "" })
	ws = attachBefore(t, s, c, false, "")
	begin(c)
	if got := output(ws, 1); got != "hello\n" {
		t.Errorf("stdout = %q", got)
	}
	c.Exited()

	// Where the program cannot be run, the client hears the end.
	c = create(false, "nonesuch")
	ws = attachBefore(t, s, c, false, "")
	if err := s.Runtime.StartContainer(t.Context(), c.ID); err == nil {
		t.Error("nonesuch was started")
	}
	if got := output(ws, 1); got != "" {
		t.Errorf("nonesuch wrote %q", got)
	}
	// And where the container is removed instead.
	c = create(false, "echo")
	ws = attachBefore(t, s, c, false, "")
	if err := s.Runtime.RemoveContainer(context.WithoutCancel(t.Context()), c.ID); err != nil {
		t.Fatal(err)
	}
	output(ws, 1)
}
