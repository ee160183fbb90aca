package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Elsewhere is an image that is not one of the store's, or need not be: what was
// read of it is its manifest and its config, and layers are fetched one by one.
type Elsewhere struct {
	// Config is the image's config, JSON. It has the digest that the manifest says.
	Config []byte
	// Layers are as the manifest has them: nothing of them is verified.
	Layers []v1.Descriptor

	store *Store
	fetch fetchFunc
}

// Look finds ref in its registry, for a platform. Errors wrap what Registry names,
// or ErrInvalidName.
func (s *Store) Look(ctx context.Context, ref string, p v1.Platform, a Access) (*Elsewhere, error) {
	n, err := ParseName(ref)
	if err != nil {
		return nil, err
	}
	if s.registry == nil {
		return nil, fmt.Errorf("%s: %w: this store has no access to registries", n, ErrUnavailable)
	}
	found, err := s.registry.Find(ctx, n, p, a)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n, err)
	}
	e, err := s.elsewhere(ctx, found.Manifest, found.Fetch)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n, err)
	}
	return e, nil
}

// LookHere is an image of the store.
func (s *Store) LookHere(ctx context.Context, img *Image) (*Elsewhere, error) {
	s.mu.Lock()
	desc := s.entryOf(img)
	s.mu.Unlock()
	return s.elsewhere(ctx, desc, func(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) { return s.OpenBlob(d.Digest) })
}

// LookLayout finds the manifest with that digest, or else with that tag, in an OCI
// image layout directory.
func (s *Store) LookLayout(ctx context.Context, dir, tag, digest string) (*Elsewhere, error) {
	e, err := s.lookLayout(ctx, dir, tag, digest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return e, nil
}

func (s *Store) lookLayout(ctx context.Context, dir, tag, digest string) (*Elsewhere, error) {
	fetch := func(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
		if err := validHash(d.Digest); err != nil {
			return nil, err
		}
		return openIn(dir, blobName(d.Digest))
	}
	index, err := readIndex(dir)
	if err != nil {
		return nil, err
	}
	for _, m := range index.Manifests {
		if !m.MediaType.IsImage() {
			continue
		}
		if digest != "" && m.Digest.String() == digest || digest == "" && m.Annotations[annRef] == tag {
			return s.elsewhere(ctx, m, fetch)
		}
	}
	if digest != "" {
		return nil, fmt.Errorf("%w: no manifest has the digest %s", ErrNotFound, digest)
	}
	return nil, fmt.Errorf("%w: no manifest has the tag %s", ErrNotFound, tag)
}

// readIndex reads the index of a layout directory; ErrNotFound where there is none.
func readIndex(dir string) (*v1.IndexManifest, error) {
	f, err := openIn(dir, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no OCI image layout", ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := readLimited(f)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index.json: %w: %w", ErrCorrupt, err)
	}
	return &index, nil
}

// openIn opens a file below dir; no link in it leads out.
func openIn(dir, name string) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: %w: not a regular file", name, ErrCorrupt))
	}
	return f, nil
}

// elsewhere reads a manifest and its config.
func (s *Store) elsewhere(ctx context.Context, desc v1.Descriptor, fetch fetchFunc) (*Elsewhere, error) {
	read := func(d v1.Descriptor) ([]byte, error) {
		if err := validHash(d.Digest); err != nil {
			return nil, err
		}
		if d.Size > MaxJSON {
			return nil, fmt.Errorf("%s: %w: longer than %d bytes", d.Digest, ErrCorrupt, MaxJSON)
		}
		r, err := fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readJSONBlob(contextReader{ctx, r}, d.Digest)
	}
	raw, err := read(desc)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := parseManifest(raw)
	if err != nil {
		return nil, err
	}
	config, err := read(m.Config)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	return &Elsewhere{Config: config, Layers: m.Layers, store: s, fetch: fetch}, nil
}

// Layer stores layer i, which lease then holds, and returns what it is and its
// unpacked size in bytes. It must have the digest and size that the manifest says,
// and unpack to diffID; ErrCorrupt otherwise, and ErrNoRoom where it is larger than
// the disk has room for.
func (e *Elsewhere) Layer(ctx context.Context, lease *Lease, i int, diffID v1.Hash) (v1.Descriptor, int64, error) {
	s, d := e.store, e.Layers[i]
	room := s.room()
	if d.Size < 0 || d.Size > room {
		return d, 0, fmt.Errorf("layer %s: %w: it has %d bytes, there is room for %d", d.Digest, ErrNoRoom, d.Size, room)
	}
	if err := s.fetchBlob(ctx, lease, d, e.fetch, silent); err != nil {
		return d, 0, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	f, err := s.OpenBlob(d.Digest)
	if err != nil {
		return d, 0, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	fi, err := f.Stat()
	f.Close()
	if err != nil {
		return d, 0, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	if fi.Size() != d.Size {
		return d, 0, fmt.Errorf("layer %s: %w: it has %d bytes, the manifest says %d", d.Digest, ErrCorrupt, fi.Size(), d.Size)
	}
	// What else the manifest says of it, such as other places to get it, goes no further.
	mt, err := s.layerType(d.Digest)
	if err != nil {
		return d, 0, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	if (mt == types.OCIUncompressedLayer) != (d.Digest == diffID) {
		return d, 0, fmt.Errorf("layer %s: %w: it does not unpack to %s", d.Digest, ErrCorrupt, diffID)
	}
	size, err := s.verifyLayer(ctx, d.Digest, diffID, room)
	return v1.Descriptor{MediaType: mt, Digest: d.Digest, Size: d.Size}, size, err
}
