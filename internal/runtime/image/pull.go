package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// fetchFunc yields the content of a blob.
type fetchFunc func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)

// fetchImage stores the manifest desc, its config and layers under lease, as far
// as they are not stored, and verifies every digest. It returns the manifest and
// the size of the layers unpacked.
func (s *Store) fetchImage(ctx context.Context, lease *Lease, desc v1.Descriptor, fetch fetchFunc, parallel int) (*v1.Manifest, int64, error) {
	rawManifest, err := s.fetchJSON(ctx, lease, desc, fetch)
	if err != nil {
		return nil, 0, fmt.Errorf("manifest: %w", err)
	}
	m, err := parseManifest(rawManifest)
	if err != nil {
		return nil, 0, err
	}
	rawConfig, err := s.fetchJSON(ctx, lease, m.Config, fetch)
	if err != nil {
		return nil, 0, fmt.Errorf("image config: %w", err)
	}
	config, err := parseConfig(rawConfig)
	if err != nil {
		return nil, 0, err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, 0, fmt.Errorf("%w: manifest has %d layers, config %d", ErrCorrupt, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	var total atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range m.Layers {
		g.Go(func() error {
			if err := s.fetchBlob(ctx, lease, l, fetch); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			n, err := s.verifyLayer(ctx, l.Digest, config.RootFS.DiffIDs[i])
			total.Add(n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, 0, err
	}
	return m, total.Load(), nil
}

func (s *Store) fetchJSON(ctx context.Context, lease *Lease, d v1.Descriptor, fetch fetchFunc) ([]byte, error) {
	if d.Size > maxJSON {
		return nil, fmt.Errorf("%s: %w: longer than %d bytes", d.Digest, ErrCorrupt, maxJSON)
	}
	if err := s.fetchBlob(ctx, lease, d, fetch); err != nil {
		return nil, err
	}
	return s.ReadBlob(d.Digest)
}

func (s *Store) fetchBlob(ctx context.Context, lease *Lease, d v1.Descriptor, fetch fetchFunc) error {
	if err := validHash(d.Digest); err != nil {
		return err
	}
	lease.Hold(d.Digest)
	if s.HasBlob(d.Digest) {
		return nil
	}
	r, err := fetch(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	// No more than the manifest says, so that a server cannot fill the disk.
	_, _, err = s.WriteBlob(ctx, lease, io.LimitReader(r, d.Size+1), d.Digest)
	return err
}

// PullError is why a pull failed. Its text is what users of other runtimes
// know; errors.Is finds ErrNotFound, ErrUnauthorized, ErrUnavailable or
// ErrCorrupt in it.
type PullError struct {
	Ref string // canonical
	Err error
}

func (e *PullError) Error() string {
	return fmt.Sprintf("failed to pull and unpack image %q: %v", e.Ref, e.Err)
}

func (e *PullError) Unwrap() error { return e.Err }

// Registry reaches registries (package registry does).
type Registry interface {
	// Find asks the registry of n for the image that n names, for this machine's
	// platform. Errors of it and of Fetch wrap ErrNotFound, ErrUnauthorized,
	// ErrUnavailable or ErrCorrupt.
	Find(ctx context.Context, n Name, auth *Auth) (*RemoteImage, error)
}

// RemoteImage is an image in a registry.
type RemoteImage struct {
	// Manifest describes the image's manifest.
	Manifest v1.Descriptor
	// Digest is what the name means: of the manifest, or of the index that lists
	// it.
	Digest v1.Hash
	// Fetch opens the manifest, the config or a layer. Contents need not be
	// verified.
	Fetch func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// Pull fetches ref from its registry with the credentials given and returns the
// image. What is stored already is not fetched again; a digest that is stored is
// not asked for. Concurrent pulls of one name with the same credentials share
// the work.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth) (*Image, error) {
	n, err := ParseName(ref)
	if err != nil {
		return nil, err
	}
	full := n.String()
	if s.registry == nil {
		return nil, &PullError{Ref: full, Err: fmt.Errorf("%w: this store has no access to registries", ErrUnavailable)}
	}
	if n.Digest != "" && auth == nil {
		if img, err := s.Resolve(ctx, full); err == nil {
			return img, nil
		}
	}
	key, err := json.Marshal([]any{full, auth})
	if err != nil {
		return nil, err
	}
	for {
		// The first caller's context drives the shared pull; when that one gives
		// up, another takes over.
		ch := s.pulls.DoChan(string(key), func() (any, error) { return s.pull(ctx, n, auth) })
		select {
		case <-ctx.Done():
			return nil, &PullError{Ref: full, Err: context.Cause(ctx)}
		case r := <-ch:
			gaveUp := errors.Is(r.Err, context.Canceled) || errors.Is(r.Err, context.DeadlineExceeded)
			if gaveUp && r.Shared && ctx.Err() == nil {
				continue
			}
			if r.Err != nil {
				return nil, &PullError{Ref: full, Err: r.Err}
			}
			return r.Val.(*Image), nil
		}
	}
}

func (s *Store) pull(ctx context.Context, n Name, auth *Auth) (*Image, error) {
	found, err := s.registry.Find(ctx, n, auth)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve reference %q: %w", n, err)
	}
	lease := s.Lease()
	defer lease.Release()
	_, size, err := s.fetchImage(ctx, lease, found.Manifest, found.Fetch, 3)
	if err != nil {
		return nil, fmt.Errorf("failed to copy: %w", err)
	}
	return s.publish(lease, found.Manifest, []string{n.String()}, publication{size: size, pulled: found.Digest.String(), remote: true})
}
