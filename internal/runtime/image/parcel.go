package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// Parcel is a manifest that goes elsewhere without being an image of the store.
type Parcel struct {
	// Config is JSON, of the media type ConfigType.
	Config     []byte
	ConfigType types.MediaType
	// Layers are stored, and a lease holds them; DiffIDs are theirs.
	Layers  []v1.Descriptor
	DiffIDs []v1.Hash
}

// packed is a parcel whose blobs are all stored.
type packed struct {
	desc     v1.Descriptor // of the manifest
	raw      []byte
	manifest v1.Manifest
}

// pack stores the manifest and the config of a parcel, and its layers compressed as
// o says.
func (s *Store) pack(ctx context.Context, lease *Lease, p Parcel, o PushOptions) (*packed, error) {
	layers, _, err := s.compressLayers(ctx, lease, p.Layers, p.DiffIDs, types.OCIManifestSchema1, o)
	if err != nil {
		return nil, err
	}
	out := &packed{manifest: v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: layers}}
	if out.manifest.Config, err = s.putJSON(ctx, lease, p.Config, p.ConfigType); err != nil {
		return nil, err
	}
	if out.raw, err = json.Marshal(out.manifest); err != nil {
		return nil, err
	}
	out.desc, err = s.putJSON(ctx, lease, out.raw, types.OCIManifestSchema1)
	return out, err
}

// blobs are those that the manifest names.
func (p *packed) blobs() []v1.Descriptor {
	return append(append([]v1.Descriptor{}, p.manifest.Layers...), p.manifest.Config)
}

// PushParcel makes p known as ref in its registry. Errors are PushErrors, or wrap
// ErrInvalidName.
func (s *Store) PushParcel(ctx context.Context, ref string, p Parcel, o PushOptions) error {
	n, err := s.pushName(ref)
	if err != nil {
		return err
	}
	full := n.String()
	if o.Progress == nil {
		o.Progress = silent
	}
	lease := s.Lease()
	defer lease.Release()
	ready, err := s.pack(ctx, lease, p, o)
	if err != nil {
		return &PushError{full, err}
	}
	s.mu.Lock()
	from := s.sources(n)
	s.mu.Unlock()
	err = s.registry.Push(ctx, n, Upload{
		Manifest: ready.desc, Raw: ready.raw, Blobs: ready.blobs(), Open: s.OpenBlob, From: from, Progress: o.Progress,
	}, o.Access)
	if err != nil {
		return &PushError{full, err}
	}
	return nil
}

// WriteParcel makes p the manifest with that tag in an OCI image layout directory,
// which it makes where there is none. What another manifest had that tag for goes,
// unless other entries of the index may need it.
func (s *Store) WriteParcel(ctx context.Context, dir, tag string, p Parcel, o PushOptions) error {
	if o.Progress == nil {
		o.Progress = silent
	}
	lease := s.Lease()
	defer lease.Release()
	ready, err := s.pack(ctx, lease, p, o)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	unlock, err := lockLayout(dir)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := readIndex(dir)
	if errors.Is(err, ErrNotFound) {
		index, err = &v1.IndexManifest{}, nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	for _, d := range append(ready.blobs(), ready.desc) {
		if err := s.copyBlob(ctx, d, filepath.Join(dir, blobName(d.Digest))); err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
	}
	entry := ready.desc
	entry.Annotations = map[string]string{annRef: tag}
	next := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Annotations: index.Annotations, Manifests: []v1.Descriptor{entry}}
	var old []v1.Hash
	for _, m := range index.Manifests {
		switch {
		case m.Annotations[annRef] == tag:
			old = append(old, m.Digest)
		default:
			next.Manifests = append(next.Manifests, m)
		}
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(dir, "oci-layout"), []byte(layoutText)); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(dir, "index.json"), data); err != nil {
		return err
	}
	for _, f := range []string{"oci-layout", "index.json"} { // a layout is there to be read by others
		if err := os.Chmod(filepath.Join(dir, f), 0o644); err != nil {
			return err
		}
	}
	if len(next.Manifests) > 1 {
		return nil
	}
	return dropOld(dir, old, ready)
}

// lockLayout waits until nobody else writes to a layout directory. Where its file system
// has no locks, there is none.
func lockLayout(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX), unix.EINTR) {
	}
	return func() { f.Close() }, nil
}

// copyBlob writes a blob of the store to a file, unless that is there.
func (s *Store) copyBlob(ctx context.Context, d v1.Descriptor, to string) error {
	if fi, err := os.Lstat(to); err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size {
		return nil
	}
	from, err := s.OpenBlob(d.Digest)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.CreateTemp(filepath.Dir(to), ".tmp-")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, contextReader{ctx, from})
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// dropOld removes manifests of a layout, and what they name, that now does not. One
// that cannot be read keeps what it has.
func dropOld(dir string, old []v1.Hash, now *packed) error {
	keep := map[v1.Hash]bool{now.desc.Digest: true}
	for _, d := range now.blobs() {
		keep[d.Digest] = true
	}
	for _, h := range old {
		if validHash(h) != nil {
			continue
		}
		f, err := openIn(dir, blobName(h))
		if err != nil {
			continue
		}
		raw, err := readJSONBlob(f, h)
		f.Close()
		if err != nil {
			continue
		}
		m, err := parseManifest(raw)
		if err != nil {
			continue
		}
		gone := []v1.Hash{h, m.Config.Digest}
		for _, l := range m.Layers {
			gone = append(gone, l.Digest)
		}
		for _, g := range gone {
			if keep[g] {
				continue
			}
			if err := os.Remove(filepath.Join(dir, blobName(g))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
