// Package wire is the protocol of skiff-pod, version 1, as its clients see it:
// packets of NUL-separated fields over a SOCK_SEQPACKET unix socket, described
// in cmd/skiff-pod/PROTOCOL.md. Unknown fields are ignored on both sides; a
// request that an older program does not know is answered with ENOSYS.
package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Version is the protocol this package speaks.
const Version = 1

// maxPacket is the most that either side sends.
const maxPacket = 32768

// ErrClosed says that the other side is gone.
var ErrClosed = errors.New("pod process is gone")

// Error is a refusal.
type Error struct {
	Errno syscall.Errno
	Msg   string
}

func (e *Error) Error() string { return e.Msg }
func (e *Error) Unwrap() error { return e.Errno }

// Msg is one packet.
type Msg struct {
	Verb   string
	Fields map[string]string
	// File came with the packet; its receiver closes it.
	File *os.File
}

// Int returns a field as a number, 0 when it is absent or none.
func (m Msg) Int(key string) int64 {
	n, _ := strconv.ParseInt(m.Fields[key], 10, 64)
	return n
}

// Time returns a field of unix nanoseconds; the zero time for 0.
func (m Msg) Time(key string) time.Time {
	if n := m.Int(key); n > 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// Parse reads the fields of a packet, or of an exit record, which has the same
// form.
func Parse(b []byte) Msg {
	m := Msg{Fields: map[string]string{}}
	for i, f := range strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00") {
		if k, v, ok := strings.Cut(f, "="); ok {
			m.Fields[k] = v
		} else if i == 0 {
			m.Verb = f
		}
	}
	return m
}

type reply struct {
	items []Msg
	msg   Msg
	err   error
}

// Conn is one connection. Its methods may be called concurrently.
type Conn struct {
	c       *net.UnixConn
	onEvent func(Msg)
	readers sync.WaitGroup
	done    chan struct{}

	mu      sync.Mutex
	seq     uint64
	pending map[string]chan reply
	items   map[string][]Msg
	err     error
}

// Dial connects to the socket of that name in dir, however long dir's path is.
// onEvent, which may be nil, gets events in order, on the connection's own
// goroutine: it must not call back into the connection.
func Dial(dir, name string, onEvent func(Msg)) (*Conn, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(d)
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{
		Name: filepath.Join("/proc/self/fd", strconv.Itoa(d), name), Net: "unixpacket",
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", filepath.Join(dir, name), err)
	}
	w := &Conn{c: c, onEvent: onEvent, done: make(chan struct{}), pending: map[string]chan reply{}, items: map[string][]Msg{}}
	w.readers.Go(w.read)
	return w, nil
}

// Close ends the connection; calls under way fail with ErrClosed.
func (w *Conn) Close() {
	w.c.Close()
	w.readers.Wait()
}

// Done is closed when the connection has ended.
func (w *Conn) Done() <-chan struct{} { return w.done }

func (w *Conn) read() {
	defer close(w.done)
	buf, oob := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := w.c.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			w.fail()
			return
		}
		m := Parse(buf[:n])
		m.File = takeFile(oob[:oobn])
		seq := m.Fields["seq"]
		w.mu.Lock()
		ch := w.pending[seq]
		switch m.Verb {
		case "event":
			w.mu.Unlock()
			if w.onEvent != nil {
				w.onEvent(m)
			}
			continue
		case "item":
			if ch != nil {
				w.items[seq] = append(w.items[seq], m)
			}
		case "ok", "err":
			r := reply{items: w.items[seq], msg: m}
			if m.Verb == "err" {
				r.err = &Error{Errno: syscall.Errno(m.Int("errno")), Msg: m.Fields["msg"]}
			}
			delete(w.pending, seq)
			delete(w.items, seq)
			if ch != nil {
				ch <- r
			} else if m.File != nil {
				m.File.Close()
			}
		}
		w.mu.Unlock()
	}
}

func (w *Conn) fail() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = ErrClosed
	for k, ch := range w.pending {
		ch <- reply{err: ErrClosed}
		delete(w.pending, k)
	}
}

func takeFile(oob []byte) *os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var first *os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if first != nil {
				unix.Close(fd)
				continue
			}
			unix.CloseOnExec(fd)
			first = os.NewFile(uintptr(fd), "passed")
		}
	}
	return first
}

// Call sends a request, with copies of files, and waits for its answer and the
// items before that. A cancelled ctx does not undo the request.
func (w *Conn) Call(ctx context.Context, verb string, fields map[string]string, files ...*os.File) (Msg, []Msg, error) {
	ch := make(chan reply, 1)
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return Msg{}, nil, w.err
	}
	w.seq++
	seq := strconv.FormatUint(w.seq, 10)
	w.pending[seq] = ch
	w.mu.Unlock()

	var b strings.Builder
	fmt.Fprintf(&b, "%s\x00seq=%s\x00", verb, seq)
	for k, v := range fields {
		if strings.ContainsRune(v, 0) {
			return Msg{}, nil, w.drop(seq, &Error{Errno: syscall.EINVAL, Msg: k + " contains a NUL byte"})
		}
		fmt.Fprintf(&b, "%s=%s\x00", k, v)
	}
	if b.Len() > maxPacket {
		return Msg{}, nil, w.drop(seq, &Error{Errno: syscall.E2BIG, Msg: verb + ": request too long"})
	}
	var oob []byte
	if len(files) > 0 {
		// Not File.Fd: that would make the file block.
		fds := make([]int, 0, len(files))
		for _, f := range files {
			rc, err := f.SyscallConn()
			if err == nil {
				err = rc.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
			}
			if err != nil {
				return Msg{}, nil, w.drop(seq, fmt.Errorf("%s: %w", verb, err))
			}
		}
		defer runtime.KeepAlive(files)
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := w.c.WriteMsgUnix([]byte(b.String()), oob, nil); err != nil {
		return Msg{}, nil, w.drop(seq, fmt.Errorf("%w: %w", ErrClosed, err))
	}
	select {
	case r := <-ch:
		return r.msg, r.items, r.err
	case <-ctx.Done():
		return Msg{}, nil, w.drop(seq, ctx.Err())
	}
}

func (w *Conn) drop(seq string, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, seq)
	delete(w.items, seq)
	return err
}
