package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// logReader reads a log in CRI's format: RFC 3339 time, stream, tags, text. It
// follows the file across rotation.
type logReader struct {
	path  string
	file  *os.File
	buf   *bufio.Reader
	opts  *corev1.PodLogOptions
	since time.Time
	left  int64 // bytes still to be given out; < 0 for no limit
	part  []byte
	mid   bool // the last line given out was a partial one
}

// openLog starts to read a log. The reader's Close, or the end of ctx, ends it.
func (k *Kubelet) openLog(ctx context.Context, id, path string, opts *corev1.PodLogOptions) (io.ReadCloser, error) {
	r := &logReader{path: path, opts: opts, left: -1}
	if opts.LimitBytes != nil {
		r.left = *opts.LimitBytes
	}
	if opts.SinceTime != nil {
		r.since = opts.SinceTime.Time
	} else if opts.SinceSeconds != nil {
		r.since = k.d.Now().Add(-time.Duration(*opts.SinceSeconds) * time.Second)
	}
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, apierrors.NewNotFound(corev1.Resource("log"), filepath.Base(path))
		}
		return nil, apierrors.NewInternalError(err)
	}
	if opts.TailLines != nil {
		if err := seekTail(f, *opts.TailLines); err != nil {
			f.Close()
			return nil, apierrors.NewInternalError(err)
		}
	}
	r.file, r.buf = f, bufio.NewReaderSize(f, 32<<10)
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	out := &logStream{PipeReader: pr, cancel: cancel}
	k.mu.Lock()
	spawn := k.spawn
	k.mu.Unlock()
	if spawn == nil {
		cancel()
		f.Close()
		return nil, apierrors.NewServiceUnavailable("the kubelet is not running")
	}
	spawn(func(life context.Context) {
		defer cancel()
		unhook := context.AfterFunc(life, cancel)
		defer unhook()
		// A reader that goes away, or waits while ctx ends, must not hold this.
		stop := context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
		defer stop()
		defer func() { r.file.Close() }()
		err := r.copy(ctx, k, id, pw)
		if errors.Is(err, errLogEnd) || errors.Is(err, context.Canceled) {
			err = nil
		}
		pw.CloseWithError(err)
	})
	return out, nil
}

type logStream struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (s *logStream) Close() error {
	s.cancel()
	return s.PipeReader.Close()
}

// seekTail puts f before its last n lines.
func seekTail(f *os.File, n int64) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 || end == 0 {
		return err
	}
	const block = 32 << 10
	buf := make([]byte, block)
	pos := end
	for pos > 0 {
		size := min(int64(block), pos)
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			// The newline at the very end closes the last line.
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if n--; n == 0 {
				_, err := f.Seek(pos+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

func (r *logReader) copy(ctx context.Context, k *Kubelet, id string, w io.Writer) error {
	var ended <-chan struct{}
	var changed <-chan struct{}
	over := false
	if r.opts.Follow {
		var forget func()
		ended, forget = k.onExit(id)
		defer forget()
		n, err := newNotifier(filepath.Dir(r.path))
		if err != nil {
			return err
		}
		changed = n.changed
		done := make(chan struct{})
		k.spawn(func(context.Context) { defer close(done); n.run() })
		defer func() { n.file.Close(); <-done }()
		// What ended before onExit is found here.
		if resp, err := k.d.Runtime.ContainerStatus(ctx, id, false); err != nil || !isRunning(resp.Status.State) {
			over = true
		}
	}
	for {
		if err := r.drain(w); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.rotated() {
			if err := r.drain(w); err != nil {
				return err
			}
			if err := r.reopen(); err != nil {
				return err
			}
			continue
		}
		if !r.opts.Follow || over || r.removed() {
			return r.flush(w)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			over, ended = true, nil
		case <-changed:
		}
	}
}

// drain gives out all complete lines that are there.
func (r *logReader) drain(w io.Writer) error {
	for {
		b, err := r.buf.ReadSlice('\n')
		r.part = append(r.part, b...)
		switch {
		case err == nil:
			line := r.part
			if err := r.give(w, line); err != nil {
				return err
			}
			r.part = r.part[:0]
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// flush gives out a last line without its newline.
func (r *logReader) flush(w io.Writer) error {
	if len(r.part) > 0 {
		return r.give(w, r.part)
	}
	return nil
}

// give gives out one line of the file. Lines that are not of the format are
// passed over.
func (r *logReader) give(w io.Writer, line []byte) error {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return nil
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return nil
	}
	tags, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return nil
	}
	if s := r.opts.Stream; s != nil && (*s == corev1.LogStreamStdout && string(stream) != "stdout" || *s == corev1.LogStreamStderr && string(stream) != "stderr") {
		return nil
	}
	if !r.since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil || at.Before(r.since) {
			return nil
		}
	}
	partial := len(tags) > 0 && tags[0] == 'P'
	if partial {
		text = bytes.TrimSuffix(text, []byte{'\n'})
	}
	var out []byte
	if r.opts.Timestamps && !r.mid {
		out = append(append(out, stamp...), ' ')
	}
	out = append(out, text...)
	r.mid = partial
	if r.left >= 0 && int64(len(out)) >= r.left {
		if _, err := w.Write(out[:r.left]); err != nil {
			return err
		}
		return errLogEnd
	}
	if r.left >= 0 {
		r.left -= int64(len(out))
	}
	_, err := w.Write(out)
	return err
}

// rotated tells that the path has another file by now.
func (r *logReader) rotated() bool {
	if !r.opts.Follow {
		return false
	}
	a, err := r.file.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(r.path)
	return err == nil && !os.SameFile(a, b)
}

// removed tells that the log is gone, with its pod.
func (r *logReader) removed() bool {
	st, err := r.file.Stat()
	if err != nil {
		return true
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Nlink > 0 {
		return false
	}
	_, err = os.Stat(filepath.Dir(r.path))
	return err != nil
}

func (r *logReader) reopen() error {
	f, err := os.Open(r.path)
	if err != nil {
		return err
	}
	r.file.Close()
	r.file = f
	r.buf.Reset(f)
	return nil
}

// notifier tells of changes in a directory.
type notifier struct {
	file    *os.File
	changed chan struct{}
}

func newNotifier(dir string) (*notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_CLOSE_WRITE|unix.IN_DELETE|unix.IN_DELETE_SELF); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("inotify_add_watch", err)
	}
	return &notifier{os.NewFile(uintptr(fd), "inotify"), make(chan struct{}, 1)}, nil
}

// run passes changes on, as one where several come before they are taken, until
// the file is closed.
func (n *notifier) run() {
	buf := make([]byte, 4096)
	for {
		if _, err := n.file.Read(buf); err != nil {
			return
		}
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
}
