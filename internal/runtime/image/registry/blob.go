package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

// blob reads a blob and goes on where it was when its connection breaks, with a
// range request (RFC 9110 14.2).
type blob struct {
	ctx     context.Context
	session *session
	desc    v1.Descriptor
	backoff time.Duration

	body io.ReadCloser
	at   int64 // how much was read
	// failed counts broken connections since mark, where enough had come to count
	// as progress.
	failed int
	mark   int64
}

const (
	// maxBroken is how many connections in a row may break without progress.
	maxBroken = 5
	// progressBytes is what counts as progress.
	progressBytes = 1 << 20
)

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
		}
		n, err := b.body.Read(p)
		b.at += int64(n)
		if b.at-b.mark >= progressBytes {
			b.mark, b.failed = b.at, 0
		}
		if err == io.EOF && b.at < b.desc.Size {
			err = io.ErrUnexpectedEOF
		}
		if n > 0 && err != io.EOF {
			if err != nil {
				b.drop()
			}
			return n, nil // an error, if it matters, comes back
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		b.drop()
		if !broken(err) {
			return 0, b.session.kindOf(err)
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// again waits before the next connection, and gives up after too many.
func (b *blob) again(why error) error {
	b.failed++
	if b.failed >= maxBroken {
		return withKind(image.ErrUnavailable, fmt.Errorf("%d of %d bytes came, then: %w", b.at, b.desc.Size, why))
	}
	return sleep(b.ctx, pause(b.backoff, b.failed))
}

func (b *blob) drop() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// Close implements io.Closer.
func (b *blob) Close() error {
	b.drop()
	return nil
}

// open asks for what is left.
func (b *blob) open() error {
	if b.at > b.mark+progressBytes {
		b.mark, b.failed = b.at, 0
	}
	for {
		resp, err := b.session.do(b.ctx, http.MethodGet, "blobs/"+b.desc.Digest.String(), func(r *http.Request) {
			if b.at > 0 {
				r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.desc.Size-1))
			}
		})
		if err == nil {
			err = b.take(resp)
		}
		if err == nil {
			return nil
		}
		if b.at == 0 || !broken(err) {
			return b.session.kindOf(err)
		}
		if err := b.again(err); err != nil {
			return err
		}
	}
}

// take makes an answer the body, at the place that is to be read next.
func (b *blob) take(resp *http.Response) error {
	b.body = resp.Body
	lies := func(format string, args ...any) error {
		b.drop()
		return withKind(image.ErrCorrupt, fmt.Errorf("blob %s: %w: "+format, append([]any{b.desc.Digest, image.ErrCorrupt}, args...)...))
	}
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != b.desc.Size {
			return lies("the registry has %d bytes, the manifest says %d", resp.ContentLength, b.desc.Size)
		}
		// It knows no ranges: what is there already is read again.
		if _, err := io.CopyN(io.Discard, b.body, b.at); err != nil {
			b.drop()
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		return nil
	case http.StatusPartialContent:
		want := fmt.Sprintf("bytes %d-", b.at)
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
			return lies("asked for %s, the registry sent %q", strings.TrimSuffix(want, "-"), got)
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		return lies("the registry has no more than %d bytes, the manifest says %d", b.at, b.desc.Size)
	}
	err := b.session.status(resp)
	b.drop()
	return err
}
