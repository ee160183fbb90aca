package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"skiff/internal/client"
)

// defaultDetachKeys are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// errDetached: the user left, and what runs goes on.
var errDetached = errors.New("detached")

// console is the terminal or the pipes that skiff was started with, lent to a
// process in a container.
type console struct {
	in       io.Reader // nil where input is not wanted
	out, err io.Writer
	tty      bool
	sizes    chan client.TerminalSize
	restore  func()
}

// console prepares the streams of run.
func (c *command) console(o *runFlags) (*console, error) {
	want := func(name string) bool {
		if len(o.Attach) == 0 {
			return true
		}
		for _, a := range o.Attach {
			if strings.EqualFold(a, name) {
				return true
			}
		}
		return false
	}
	return c.consoleFor(o.Interactive && want("stdin"), o.Terminal, want("stdout"), want("stderr"), o.detachKeys)
}

func (c *command) consoleFor(in, tty, out, errs bool, detachKeys string) (*console, error) {
	con := &console{tty: tty, restore: func() {}}
	if out {
		con.out = c.out
	}
	if errs && !tty {
		con.err = c.err
	}
	if in {
		con.in = os.Stdin
	}
	if !tty {
		return con, nil
	}
	keys, err := parseKeys(detachKeys)
	if err != nil {
		return nil, err
	}
	fd := int(os.Stdin.Fd())
	if in {
		if !term.IsTerminal(fd) {
			return nil, errors.New("the input device is not a TTY: use -i without -t for pipes")
		}
		state, err := term.MakeRaw(fd)
		if err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		con.restore = sync.OnceFunc(func() { _ = term.Restore(fd, state) })
		con.in = &escapable{in: os.Stdin, keys: keys}
	}
	con.followSize()
	return con, nil
}

// followSize sends the terminal's size now and whenever it changes.
func (con *console) followSize() {
	con.sizes = make(chan client.TerminalSize, 1)
	size := func() (client.TerminalSize, bool) {
		w, h, err := term.GetSize(int(os.Stdout.Fd()))
		return client.TerminalSize{Width: uint16(w), Height: uint16(h)}, err == nil
	}
	put := func() {
		s, ok := size()
		if !ok {
			return
		}
		select { // the newest counts
		case <-con.sizes:
		default:
		}
		con.sizes <- s
	}
	put()
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				put()
			case <-done:
				return
			}
		}
	}()
	restore := con.restore
	con.restore = sync.OnceFunc(func() {
		signal.Stop(changed)
		close(done)
		restore()
	})
}

// streams of the console for a connection.
func (con *console) streams() client.Streams {
	return client.Streams{In: con.in, Out: con.out, Err: con.err, Resize: con.sizes}
}

// parseKeys reads a list such as ctrl-p,ctrl-q or a,b.
func parseKeys(s string) ([]byte, error) {
	var out []byte
	for _, k := range strings.Split(s, ",") {
		letter, control := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		switch {
		case len(k) == 1:
			out = append(out, k[0])
		case control && len(letter) == 1 && (letter[0] >= 'a' && letter[0] <= 'z' || strings.ContainsAny(letter, "@[\\]^_")):
			out = append(out, strings.ToUpper(letter)[0]&0x1f)
		default:
			return nil, fmt.Errorf("--detach-keys %q: must be letters and ctrl-LETTERs, with commas", s)
		}
	}
	return out, nil
}

// escapable is input in which a sequence of keys means to leave. What could be its
// beginning is held back until it is known not to be.
type escapable struct {
	in   io.Reader
	keys []byte
	got  int    // keys of the sequence that were typed
	rest []byte // read, not yet handed out
	left bool
}

func (e *escapable) Read(b []byte) (int, error) {
	for len(e.rest) == 0 {
		if e.left {
			return 0, errDetached
		}
		buf := make([]byte, 4096)
		n, err := e.in.Read(buf)
		for _, k := range buf[:n] {
			if e.left {
				break
			}
			e.take(k)
		}
		if err != nil && len(e.rest) == 0 && !e.left {
			return 0, err
		}
	}
	n := copy(b, e.rest)
	e.rest = e.rest[n:]
	return n, nil
}

func (e *escapable) take(k byte) {
	if k == e.keys[e.got] {
		if e.got++; e.got == len(e.keys) {
			e.left = true
		}
		return
	}
	e.rest = append(e.rest, e.keys[:e.got]...)
	if e.got = 0; k == e.keys[0] {
		e.take(k)
		return
	}
	e.rest = append(e.rest, k)
}
