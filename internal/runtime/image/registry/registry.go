// Package registry finds and fetches images in container registries. It is
// apart from the image store, so that only programs that pull link a registry
// client.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"skiff/internal/runtime/image"
)

// Deps of a Client.
type Deps struct {
	// Transport reaches registries; a default one where nil.
	Transport http.RoundTripper
	// Mirrors are asked before a registry, by its domain ("docker.io"), in their
	// order: URLs without a path. They are not given the registry's credentials.
	Mirrors map[string][]string
}

// Client implements image.Registry. Registries on loopback and private
// addresses are tried with TLS first, then without.
type Client struct{ deps Deps }

// New returns a client.
func New(d Deps) *Client { return &Client{d} }

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

// Find implements image.Registry.
func (c *Client) Find(ctx context.Context, n image.Name, auth *image.Auth) (*image.RemoteImage, error) {
	for _, m := range c.deps.Mirrors[n.Domain] {
		ref, err := atMirror(n, m)
		if err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", n.Domain, err)
		}
		// A mirror that is away, or has no such image, is passed over.
		if found, err := c.find(ctx, n, ref, nil); err == nil || ctx.Err() != nil {
			return found, err
		}
	}
	ref, err := name.ParseReference(n.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", image.ErrInvalidName, err)
	}
	return c.find(ctx, n, ref, auth)
}

func (c *Client) find(ctx context.Context, n image.Name, ref name.Reference, auth *image.Auth) (*image.RemoteImage, error) {
	options := func(ctx context.Context) []remote.Option {
		opts := []remote.Option{
			remote.WithContext(ctx), remote.WithUserAgent("skiff"),
			remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
			remote.WithAuth(authenticator(auth)),
		}
		if c.deps.Transport != nil {
			opts = append(opts, remote.WithTransport(c.deps.Transport))
		}
		return opts
	}
	desc, err := remote.Get(ref, options(ctx)...)
	if err != nil {
		return nil, kindOf(n, err)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, kindOf(n, err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, kindOf(n, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, kindOf(n, err)
	}
	mt, err := img.MediaType()
	if err != nil {
		return nil, kindOf(n, err)
	}
	return &image.RemoteImage{
		Manifest: v1.Descriptor{MediaType: mt, Digest: digest, Size: int64(len(raw))},
		Digest:   desc.Digest,
		Fetch: func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
			if d.Digest == digest {
				return io.NopCloser(bytes.NewReader(raw)), nil
			}
			l, err := remote.Layer(ref.Context().Digest(d.Digest.String()), options(ctx)...)
			if err != nil {
				return nil, kindOf(n, err)
			}
			r, err := l.Compressed()
			if err != nil {
				return nil, kindOf(n, err)
			}
			return body{r, n}, nil
		},
	}, nil
}

// body gives errors of reading a blob their kind.
type body struct {
	io.ReadCloser
	name image.Name
}

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	// The client verifies digests, and its error for that has no public type.
	if strings.Contains(err.Error(), "error verifying") {
		return n, withKind(image.ErrCorrupt, err)
	}
	return n, kindOf(b.name, err)
}

func authenticator(a *image.Auth) authn.Authenticator {
	if a == nil || *a == (image.Auth{ServerAddress: a.ServerAddress}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	})
}

// kindOf sorts what the registry client says into the kinds that callers
// distinguish, in the words that users of other runtimes know.
func kindOf(n image.Name, err error) error {
	var te *transport.Error
	switch {
	case errors.As(err, &te) && te.StatusCode == http.StatusNotFound:
		return withKind(image.ErrNotFound, fmt.Errorf("%s: not found", n))
	case errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden):
		return withKind(image.ErrUnauthorized,
			fmt.Errorf("pull access denied, repository does not exist or may require authorization: %w", err))
	case errors.As(err, &te):
		return withKind(image.ErrUnavailable, fmt.Errorf("unexpected status: %w", err))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return withKind(image.ErrUnavailable, fmt.Errorf("failed to do request: %w", err))
}

// kindError reads as err and is a kind as well.
type kindError struct{ kind, err error }

func withKind(kind, err error) error { return &kindError{kind, err} }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }
