package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"skiff/internal/runtime/image"
)

// maxUploads is how many blobs of a push are under way at once.
const maxUploads = 3

// Push implements image.Registry: blobs that the registry has are not sent, those
// that another of its repositories has are mounted from there, the manifest comes
// last.
func (c *Client) Push(ctx context.Context, n image.Name, u image.Upload, a image.Access) error {
	at, err := c.home(n, a)
	if err != nil {
		return err
	}
	var more []string
	asked := map[string]bool{}
	for _, repos := range u.From {
		for _, r := range repos {
			if repo, err := name.NewRepository(n.Domain + "/" + r); err == nil && !asked[r] {
				asked[r] = true
				more = append(more, repo.Scope(transport.PullScope))
			}
		}
	}
	s, err := c.session(ctx, n, at.ref.Context(), at.access, transport.PushScope, more...)
	if err != nil && len(more) > 0 {
		// A registry may refuse the whole for a repository that it does not show us.
		u.From = nil
		s, err = c.session(ctx, n, at.ref.Context(), at.access, transport.PushScope)
	}
	if err != nil {
		return err
	}
	p := &push{session: s, upload: u, client: c}
	for _, b := range u.Blobs {
		u.Progress(image.Event{Digest: b.Digest, Stage: image.Waiting})
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUploads)
	for _, b := range u.Blobs {
		g.Go(func() error {
			if err := p.repeat(gctx, func() error { return p.blob(gctx, b) }); err != nil {
				return fmt.Errorf("blob %s: %w", b.Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return p.repeat(ctx, func() error { return p.manifest(ctx, at.ref.Identifier()) })
}

type push struct {
	client  *Client
	session *session
	upload  image.Upload
}

// repeat does something again where the connection broke or the registry was busy.
// Each try starts anew: an upload that was cut off is not known to be whole.
func (p *push) repeat(ctx context.Context, f func() error) error {
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return nil
		}
		var te *transport.Error
		again := broken(err) || errors.As(err, &te) && busy(te.StatusCode)
		if !again || attempt >= maxBroken || ctx.Err() != nil {
			return p.session.kindOf(err)
		}
		if err := sleep(ctx, pause(p.client.deps.Backoff, attempt)); err != nil {
			return err
		}
	}
}

// done reads an answer to its end; another status than those wanted is an error.
func done(resp *http.Response, err error, want ...int) (*http.Response, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, want...); err != nil {
		return nil, err
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection serves again
	return resp, nil
}

// blob brings one blob to the repository, unless it is there.
func (p *push) blob(ctx context.Context, d v1.Descriptor) error {
	tell := func(stage image.Stage, from string) {
		p.upload.Progress(image.Event{Digest: d.Digest, Stage: stage, From: from})
	}
	resp, err := p.session.do(ctx, http.MethodHead, "blobs/"+d.Digest.String(), nil)
	if resp, err = done(resp, err, http.StatusOK, http.StatusNotFound); err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		tell(image.Present, "")
		return nil
	}
	var to *url.URL
	for _, from := range p.upload.From[d.Digest] {
		resp, err = p.start(ctx, url.Values{"mount": {d.Digest.String()}, "from": {from}})
		if err != nil {
			return err
		}
		if resp.StatusCode == http.StatusCreated {
			tell(image.Mounted, from)
			return nil
		}
		// Not mounted: the answer is an upload that has begun.
		if to, err = resp.Location(); err != nil {
			return fmt.Errorf("the registry does not say where to upload to: %w", err)
		}
		break
	}
	if to == nil {
		if resp, err = p.start(ctx, nil); err != nil {
			return err
		}
		if to, err = resp.Location(); err != nil {
			return fmt.Errorf("the registry does not say where to upload to: %w", err)
		}
	}
	if err := p.send(ctx, d, to); err != nil {
		return err
	}
	tell(image.Pushed, "")
	return nil
}

// start begins an upload.
func (p *push) start(ctx context.Context, q url.Values) (*http.Response, error) {
	resp, err := p.session.do(ctx, http.MethodPost, "blobs/uploads/", func(r *http.Request) {
		r.URL.RawQuery = q.Encode()
	})
	return done(resp, err, http.StatusAccepted, http.StatusCreated)
}

// send uploads a blob whole.
func (p *push) send(ctx context.Context, d v1.Descriptor, to *url.URL) error {
	q := to.Query()
	q.Set("digest", d.Digest.String())
	to.RawQuery = q.Encode()
	// A file of its own for every try: a transport may read on from one that failed.
	body := func() (io.ReadCloser, error) {
		again, err := p.upload.Open(d.Digest)
		if err != nil {
			return nil, err
		}
		e := image.Event{Digest: d.Digest, Stage: image.Pushing, Total: d.Size}
		return struct {
			io.Reader
			io.Closer
		}{image.Counted(again, e, p.upload.Progress), again}, nil
	}
	first, err := body()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to.String(), first)
	if err != nil {
		first.Close()
		return err
	}
	req.GetBody, req.ContentLength = body, d.Size
	if d.Size == 0 {
		first.Close()
		req.Body = http.NoBody
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := p.session.client.Do(req)
	_, err = done(resp, err, http.StatusCreated, http.StatusNoContent)
	return err
}

func (p *push) manifest(ctx context.Context, identifier string) error {
	resp, err := p.session.do(ctx, http.MethodPut, "manifests/"+identifier, func(r *http.Request) {
		r.Header.Set("Content-Type", string(p.upload.Manifest.MediaType))
		body := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(p.upload.Raw))), nil }
		r.GetBody, r.ContentLength = body, int64(len(p.upload.Raw))
		r.Body, _ = body()
	})
	resp, err = done(resp, err, http.StatusCreated, http.StatusOK)
	if err != nil {
		return err
	}
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != p.upload.Manifest.Digest.String() {
		return withKind(image.ErrCorrupt, fmt.Errorf("manifest %s: %w: the registry took it for %s", p.upload.Manifest.Digest, image.ErrCorrupt, got))
	}
	return nil
}
