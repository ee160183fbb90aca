package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errStalled: nothing came for as long as is waited.
type errStalled struct{ after time.Duration }

func (e errStalled) Error() string { return fmt.Sprintf("no data for %v", e.after) }

// watched ends requests whose other side does nothing for limit: while the
// answer is waited for, and within any read of the answer or write of the body.
type watched struct {
	inner http.RoundTripper
	limit time.Duration
}

// watch fires while something is waited for.
type watch struct {
	timer  *time.Timer
	limit  time.Duration
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (w *watch) start() { w.timer.Reset(w.limit) }
func (w *watch) stop()  { w.timer.Stop() }

// why replaces an error by the stall that it comes from.
func (w *watch) why(err error) error {
	if stalled := (errStalled{}); err != nil && errors.As(context.Cause(w.ctx), &stalled) {
		return stalled
	}
	return err
}

// RoundTrip implements http.RoundTripper.
func (t *watched) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	w := &watch{limit: t.limit, ctx: ctx, cancel: cancel}
	w.timer = time.AfterFunc(t.limit, func() { cancel(errStalled{t.limit}) })
	req = req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &watchedUpload{req.Body, w}
	}
	resp, err := t.inner.RoundTrip(req)
	w.stop()
	if err != nil {
		err = w.why(err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &watchedBody{resp.Body, w}
	return resp, nil
}

type watchedBody struct {
	io.ReadCloser
	w *watch
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.start()
	n, err := b.ReadCloser.Read(p)
	b.w.stop()
	return n, b.w.why(err)
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.w.stop()
	b.w.cancel(nil)
	return err
}

// watchedUpload prolongs the wait whenever the other side took something.
type watchedUpload struct {
	io.ReadCloser
	w *watch
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	b.w.start()
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// Registries store a large blob before they answer.
		b.w.timer.Reset(10 * b.w.limit)
	}
	return n, err
}

// retrying asks again what can be asked again, when the registry is busy or the
// connection broke.
type retrying struct {
	inner    http.RoundTripper
	attempts int
	backoff  time.Duration // before the second attempt; doubled for each further one
}

// longestWait is how long a registry may ask us to wait and be waited for.
const longestWait = time.Minute

// RoundTrip implements http.RoundTripper.
func (t *retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return t.inner.RoundTrip(req)
	}
	for attempt := 1; ; attempt++ {
		resp, err := t.inner.RoundTrip(req)
		wait := pause(t.backoff, attempt)
		again := broken(err)
		if err == nil {
			again = busy(resp.StatusCode)
			if asked := retryAfter(resp.Header.Get("Retry-After"), time.Now()); asked > 0 {
				wait = asked
			}
		}
		if !again || attempt >= t.attempts || wait > longestWait || req.Context().Err() != nil {
			return resp, err
		}
		if resp != nil {
			// The connection is of further use when its answer was read.
			_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
			resp.Body.Close()
		}
		if err := sleep(req.Context(), wait); err != nil {
			return nil, err
		}
	}
}

// pause is the wait before attempt+1, spread so that clients that failed together
// do not come back together.
func pause(first time.Duration, attempt int) time.Duration {
	d := min(first<<(attempt-1), 10*time.Second)
	return d/2 + rand.N(d/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// busy tells whether a status will be another one soon.
func busy(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusRequestTimeout ||
		status >= 500 && status != http.StatusNotImplemented && status != http.StatusHTTPVersionNotSupported
}

// retryAfter reads a Retry-After header (RFC 9110 10.2.3): seconds or a date.
func retryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if n, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(n, 0), 1<<20)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return t.Sub(now)
	}
	return 0
}

// broken tells whether a connection failed in a way that another one may not.
func broken(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if stalled := (errStalled{}); errors.As(err, &stalled) {
		return true
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	// A registry that cannot be reached is not asked again and again.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return true
	}
	// What HTTP/2 says of a stream or a connection that the server gave up has no
	// public type.
	return strings.Contains(err.Error(), "stream error: ") || strings.Contains(err.Error(), "http2: ")
}
