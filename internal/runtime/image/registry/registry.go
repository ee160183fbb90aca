// Package registry finds, fetches and pushes images in container registries (OCI
// distribution specification 1.1). It is apart from the image store, so that only
// programs that pull link a registry client.
//
// # What may go wrong
//
// A registry is asked again, after a growing pause, when it is busy (429 and 5xx;
// Retry-After is heeded up to a minute) or the connection breaks or stalls. A blob
// whose connection breaks goes on where it was. What a registry says of digests
// and sizes is believed only as far as it was verified: errors wrap
// image.ErrCorrupt then. Manifests longer than image.MaxJSON are refused.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// Deps of a Client; the zero value reaches public registries.
type Deps struct {
	// Transport reaches registries; one of its own, with each registry's
	// certificates, where nil.
	Transport http.RoundTripper
	// Mirrors are asked before a registry, by its domain ("docker.io", or "*" for
	// all that have none), in their order: URLs without a path. They are not given
	// the registry's credentials.
	Mirrors map[string][]string
	// Insecure are registries whose certificate is not verified and that may lack
	// TLS: by domain with port, or, for addresses, a range (10.0.0.0/8).
	Insecure []string
	// Certs are directories like docker's certs.d: HOST[:PORT]/ca.crt, and
	// NAME.cert with NAME.key for registries that want a client's certificate.
	Certs []string
	// Stall is how long nothing may come; a minute where zero.
	Stall time.Duration
	// Backoff is the first pause before a request is repeated; 200 ms where zero.
	Backoff time.Duration
}

// Client implements image.Registry. Registries on loopback and private addresses
// are tried with TLS first, then without.
type Client struct {
	deps Deps

	mu         sync.Mutex
	transports map[string]http.RoundTripper // by host, "insecure " before it
}

// New returns a client.
func New(d Deps) *Client {
	if d.Stall == 0 {
		d.Stall = time.Minute
	}
	if d.Backoff == 0 {
		d.Backoff = 200 * time.Millisecond
	}
	return &Client{deps: d, transports: map[string]http.RoundTripper{}}
}

// CheckMirror tells what is wrong with the URL of a mirror.
func CheckMirror(mirror string) error {
	_, err := atMirror(image.Name{Path: "x", Tag: "x"}, mirror)
	return err
}

// atMirror is a name in a mirror of its registry.
func atMirror(n image.Name, mirror string) (name.Reference, error) {
	u, err := url.Parse(mirror)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%q: must be a URL such as https://mirror.example.com:5000", mirror)
	}
	var options []name.Option
	if u.Scheme == "http" {
		options = append(options, name.Insecure)
	}
	n.Domain = u.Host
	return name.ParseReference(n.String(), options...)
}

// place is where an image may be found: its registry, or a mirror of it.
type place struct {
	name   image.Name
	ref    name.Reference
	access image.Access
	mirror bool

	once    sync.Mutex
	session *session
}

// places are where n is looked for, in order.
func (c *Client) places(n image.Name, a image.Access) ([]*place, error) {
	var out []*place
	mirrors, ok := c.deps.Mirrors[n.Domain]
	if !ok {
		mirrors = c.deps.Mirrors["*"]
	}
	for _, m := range mirrors {
		ref, err := atMirror(n, m)
		if err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", n.Domain, err)
		}
		out = append(out, &place{name: n, ref: ref, mirror: true})
	}
	p, err := c.home(n, a)
	if err != nil {
		return nil, err
	}
	return append(out, p), nil
}

// home is n in its own registry.
func (c *Client) home(n image.Name, a image.Access) (*place, error) {
	a.Insecure = a.Insecure || c.insecure(n.Domain)
	var options []name.Option
	if a.Insecure {
		options = append(options, name.Insecure)
	}
	ref, err := name.ParseReference(n.String(), options...)
	if err != nil {
		return nil, withKind(image.ErrInvalidName, err)
	}
	return &place{name: n, ref: ref, access: a}, nil
}

// open returns the session with the place.
func (c *Client) open(ctx context.Context, p *place) (*session, error) {
	p.once.Lock()
	defer p.once.Unlock()
	if p.session == nil {
		s, err := c.session(ctx, p.name, p.ref.Context(), p.access, transport.PullScope)
		if err != nil {
			return nil, err
		}
		if p.mirror {
			s.namespace = p.name.Domain
		}
		p.session = s
	}
	return p.session, nil
}

// Find implements image.Registry.
func (c *Client) Find(ctx context.Context, n image.Name, p v1.Platform, a image.Access) (*image.RemoteImage, error) {
	places, err := c.places(n, a)
	if err != nil {
		return nil, err
	}
	for i, at := range places {
		found, err := c.find(ctx, at, p)
		switch {
		case err == nil:
			found.Fetch = c.fetcher(places[i:], found.Fetch)
			return found, nil
		case ctx.Err() != nil || !at.mirror:
			return nil, err
		}
		// A mirror that is away, or has no such image, is passed over.
	}
	return nil, errors.New("no registry") // not reached: the last place is none of mirrors
}

// fetcher fetches blobs where the manifest was found, and from what comes after
// that where it fails.
func (c *Client) fetcher(places []*place, first func(context.Context, v1.Descriptor) (io.ReadCloser, error)) func(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		r, err := first(ctx, d)
		for _, p := range places[1:] {
			if err == nil || ctx.Err() != nil {
				break
			}
			var s *session
			if s, err = c.open(ctx, p); err == nil {
				r, err = c.blob(ctx, s, d)
			}
		}
		return r, err
	}
}

// accept are the media types of manifests that are understood.
var accept = []string{
	string(types.DockerManifestSchema2), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.OCIImageIndex), "*/*;q=0.1",
}

func (c *Client) find(ctx context.Context, at *place, p v1.Platform) (*image.RemoteImage, error) {
	s, err := c.open(ctx, at)
	if err != nil {
		return nil, err
	}
	desc, raw, err := s.manifest(ctx, at.ref.Identifier())
	if err != nil {
		return nil, err
	}
	named := desc.Digest
	for depth := 0; desc.MediaType.IsIndex(); depth++ {
		if depth > 3 {
			return nil, withKind(image.ErrCorrupt, fmt.Errorf("%w: indexes within indexes", image.ErrCorrupt))
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(raw, &index); err != nil {
			return nil, withKind(image.ErrCorrupt, fmt.Errorf("index %s: %w: %w", desc.Digest, image.ErrCorrupt, err))
		}
		chosen, err := pick(&index, p)
		if err != nil {
			return nil, err
		}
		if desc, raw, err = s.manifest(ctx, chosen.Digest.String()); err != nil {
			return nil, err
		}
	}
	if !desc.MediaType.IsImage() {
		return nil, withKind(image.ErrCorrupt, fmt.Errorf("%w: media type %q is not that of an image", image.ErrCorrupt, desc.MediaType))
	}
	return &image.RemoteImage{
		Manifest: desc, Digest: named,
		Fetch: func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
			if d.Digest == desc.Digest {
				return io.NopCloser(bytes.NewReader(raw)), nil
			}
			return c.blob(ctx, s, d)
		},
	}, nil
}

// blob opens a blob; the first answer has come when it returns.
func (c *Client) blob(ctx context.Context, s *session, d v1.Descriptor) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, session: s, desc: d, backoff: c.deps.Backoff}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}
