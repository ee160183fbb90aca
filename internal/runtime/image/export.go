package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Format of an export.
type Format string

const (
	// FormatDocker is what `docker load` of any age reads. It is an OCI archive
	// too.
	FormatDocker Format = "docker"
	// FormatOCI is an OCI image layout in a tar.
	FormatOCI Format = "oci"
)

// Export writes images as one archive. A name exports that name alone; an ID
// exports all names of the image. The same images give the same bytes.
func (s *Store) Export(ctx context.Context, w io.Writer, refs []string, format Format) error {
	if format != FormatDocker && format != FormatOCI {
		return fmt.Errorf("export: format %q: must be %q or %q", format, FormatDocker, FormatOCI)
	}
	if len(refs) == 0 {
		return fmt.Errorf("export: no image named")
	}
	lease := s.Lease()
	defer lease.Release()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	var docker []dockerManifest
	var blobs []v1.Descriptor
	seen := map[v1.Hash]bool{}
	add := func(d v1.Descriptor) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			blobs = append(blobs, d)
		}
	}
	for _, ref := range refs {
		s.mu.Lock()
		img, name, err := s.resolve(ref)
		if err != nil {
			s.mu.Unlock()
			return fmt.Errorf("export: %w", err)
		}
		entry, rec := s.entryOf(img), s.records[img.Digest]
		lease.hold(entry.Digest, rec.manifest.Config.Digest)
		for _, l := range rec.manifest.Layers {
			lease.hold(l.Digest)
		}
		s.mu.Unlock()
		names := img.RepoTags
		if name != "" && !strings.Contains(name, "@") {
			names = []string{name}
		}
		manifest := v1.Descriptor{MediaType: entry.MediaType, Size: entry.Size, Digest: entry.Digest}
		add(manifest)
		add(rec.manifest.Config)
		dm := dockerManifest{Config: blobName(rec.manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
		for _, l := range rec.manifest.Layers {
			add(l)
			dm.Layers = append(dm.Layers, blobName(l.Digest))
		}
		for _, full := range names {
			d := manifest
			d.Annotations = map[string]string{annName: full, annRef: full[strings.LastIndexByte(full, ':')+1:]}
			index.Manifests = append(index.Manifests, d)
			if n, err := ParseName(full); err == nil {
				dm.RepoTags = append(dm.RepoTags, n.Familiar())
			}
		}
		if len(names) == 0 {
			index.Manifests = append(index.Manifests, manifest)
		}
		docker = append(docker, dm)
	}
	tw := tar.NewWriter(w)
	if err := s.exportBlobs(ctx, tw, blobs); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	meta := []struct {
		name string
		v    any
	}{{"index.json", index}, {"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}}}
	if format == FormatDocker {
		meta = append(meta, struct {
			name string
			v    any
		}{"manifest.json", docker})
	}
	for _, m := range meta {
		data, err := json.Marshal(m.v)
		if err != nil {
			return err
		}
		if err := tarFile(tw, m.name, int64(len(data)), strings.NewReader(string(data))); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (s *Store) exportBlobs(ctx context.Context, tw *tar.Writer, blobs []v1.Descriptor) error {
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	for _, b := range blobs {
		f, err := s.OpenBlob(b.Digest)
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err == nil {
			err = tarFile(tw, blobName(b.Digest), fi.Size(), contextReader{ctx, f})
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func tarFile(tw *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(tw, r)
	return err
}
