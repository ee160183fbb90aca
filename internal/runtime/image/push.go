package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// PushOptions say how an image is pushed.
type PushOptions struct {
	Access
	// Compression of layers that have none: gzip (also for ""), zstd, or none.
	Compression string
	// Progress may be nil.
	Progress Progress
}

// PushError is why a push failed; errors.Is finds what Registry names in it.
type PushError struct {
	Ref string // canonical
	Err error
}

func (e *PushError) Error() string { return fmt.Sprintf("failed to push image %q: %v", e.Ref, e.Err) }

func (e *PushError) Unwrap() error { return e.Err }

// pushName is what something can be pushed as.
func (s *Store) pushName(ref string) (Name, error) {
	n, err := ParseName(ref)
	if err != nil {
		return n, err
	}
	if n.Digest != "" {
		return n, fmt.Errorf("%q: %w: cannot push a digest reference", ref, ErrInvalidName)
	}
	if s.registry == nil {
		return n, &PushError{n.String(), fmt.Errorf("%w: this store has no access to registries", ErrUnavailable)}
	}
	return n, nil
}

// Push brings the image named ref to the registry that its name says, and returns
// it. Layers without compression are compressed first, and the image is from then
// on stored as it was pushed: its digest, not its ID, is another one.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (*Image, error) {
	n, err := s.pushName(ref)
	if err != nil {
		return nil, err
	}
	full := n.String()
	if o.Progress == nil {
		o.Progress = silent
	}
	lease := s.Lease()
	defer lease.Release()
	s.mu.Lock()
	id, ok := s.names[full]
	if !ok {
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: %w: an image is pushed by its name; give it one with tag", full, ErrNotFound)
	}
	img, entry := s.images[id], v1.Descriptor{}
	for _, e := range s.entries {
		if e.Annotations[annName] == full {
			entry = e
		}
	}
	m := s.records[entry.Digest].manifest
	lease.hold(entry.Digest, m.Config.Digest)
	for _, l := range m.Layers {
		lease.hold(l.Digest)
	}
	from := s.sources(n)
	s.mu.Unlock()

	if entry, m, err = s.compressed(ctx, lease, img, entry, m, o); err != nil {
		return nil, &PushError{full, err}
	}
	raw, err := s.ReadBlob(entry.Digest)
	if err != nil {
		return nil, &PushError{full, err}
	}
	err = s.registry.Push(ctx, n, Upload{
		Manifest: v1.Descriptor{MediaType: entry.MediaType, Digest: entry.Digest, Size: int64(len(raw))}, Raw: raw,
		Blobs: append(append([]v1.Descriptor{}, m.Layers...), m.Config),
		Open:  s.OpenBlob, From: from, Progress: o.Progress,
	}, o.Access)
	if err != nil {
		return nil, &PushError{full, err}
	}
	return s.Resolve(ctx, full)
}

// sources are the repositories of the registry of n, other than its own, that
// stored images say they come from, by the blobs that those have; s.mu is held.
func (s *Store) sources(n Name) map[v1.Hash][]string {
	out := map[v1.Hash][]string{}
	for _, e := range s.entries {
		other, err := ParseName(e.Annotations[annName])
		if err != nil || other.Domain != n.Domain || other.Path == n.Path {
			continue
		}
		m := s.records[e.Digest].manifest
		for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if !contains(out[d.Digest], other.Path) {
				out[d.Digest] = append(out[d.Digest], other.Path)
			}
		}
	}
	return out
}

// compressed stores the image with compressed layers, where it has others, and
// returns the manifest that it has then.
func (s *Store) compressed(ctx context.Context, lease *Lease, img *Image, entry v1.Descriptor, m *v1.Manifest, o PushOptions) (v1.Descriptor, *v1.Manifest, error) {
	layers, changed, err := s.compressLayers(ctx, lease, m.Layers, img.DiffIDs, m.MediaType, o)
	if err != nil {
		return entry, nil, err
	}
	out := *m
	out.Layers = layers
	if !changed {
		return entry, m, nil
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return entry, nil, err
	}
	desc, err := s.putJSON(ctx, lease, raw, entry.MediaType)
	if err != nil {
		return entry, nil, err
	}
	return desc, &out, s.restate(entry.Digest, desc)
}

// compressLayers stores layers that have no compression with the one that o says, for a
// manifest of that media type. changed tells whether there were any.
func (s *Store) compressLayers(ctx context.Context, lease *Lease, layers []v1.Descriptor, diffIDs []v1.Hash, manifest types.MediaType, o PushOptions) (out []v1.Descriptor, changed bool, err error) {
	if o.Compression == "" {
		o.Compression = "gzip"
	}
	if o.Compression != "gzip" && o.Compression != "zstd" && o.Compression != "none" {
		return nil, false, fmt.Errorf("compression %q: must be gzip, zstd or none", o.Compression)
	}
	out = append([]v1.Descriptor{}, layers...)
	for i, l := range out {
		if o.Compression == "none" || l.Digest != diffIDs[i] {
			continue
		}
		as := compression{l.Digest, o.Compression, manifest}
		d, ok := s.compressedBefore(lease, as)
		if !ok {
			o.Progress(Event{Digest: l.Digest, Stage: Preparing})
			if d, err = s.compress(ctx, lease, as); err != nil {
				return nil, false, fmt.Errorf("compress layer %s: %w", l.Digest, err)
			}
		}
		d.Annotations = l.Annotations
		out[i], changed = d, true
	}
	return out, changed, nil
}

// restate makes every name of one manifest a name of another, which is the same
// image in other blobs.
func (s *Store) restate(old v1.Hash, desc v1.Descriptor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.loadRecord(desc.Digest); err != nil {
		return fmt.Errorf("store image: %w", err)
	}
	entries := append([]v1.Descriptor{}, s.entries...)
	for i, e := range entries {
		if e.Digest == old {
			a := map[string]string{}
			for k, v := range e.Annotations {
				if k != annPulled { // it is no longer what was pulled
					a[k] = v
				}
			}
			entries[i] = v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, Annotations: a}
		}
	}
	return s.save(entries)
}

// compression is a blob that is compressed, how (gzip or zstd), and for a manifest of
// which media type.
type compression struct {
	blob     v1.Hash
	how      string
	manifest types.MediaType
}

// compressedBefore is what compress made of the same, if that is still there; lease
// then holds it.
func (s *Store) compressedBefore(lease *Lease, c compression) (v1.Descriptor, bool) {
	s.mu.Lock()
	d, ok := s.compressions[c]
	s.mu.Unlock()
	if !ok {
		return d, false
	}
	lease.Hold(d.Digest)
	return d, s.HasBlob(d.Digest)
}

// compress stores a blob compressed. The same content gives the same bytes.
func (s *Store) compress(ctx context.Context, lease *Lease, c compression) (v1.Descriptor, error) {
	f, err := s.OpenBlob(c.blob)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	w, err := s.NewBlob(lease)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer w.Close()
	var z io.WriteCloser
	mt := types.OCILayer
	switch {
	case c.how == "zstd":
		// One goroutine: where frames are cut depends on how many work.
		if z, err = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1)); err != nil {
			return v1.Descriptor{}, err
		}
		mt = types.OCILayerZStd
	default:
		z = gzip.NewWriter(w)
		if strings.HasPrefix(string(c.manifest), "application/vnd.docker.") {
			mt = types.DockerLayer
		}
	}
	if _, err := io.Copy(z, contextReader{ctx, f}); err != nil {
		return v1.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return v1.Descriptor{}, err
	}
	h, err := w.Commit(v1.Hash{})
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mt, Digest: h, Size: w.Size()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compressions[c] = d
	return d, nil
}
