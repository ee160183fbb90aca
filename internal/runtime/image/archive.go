package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"reflect"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ImportOptions say how to read what is imported.
type ImportOptions struct {
	// Names for the image. A root file system needs at least one or stays
	// without; an archive with one image gets them instead of its own.
	Names []string
	// Config of an image made from a root file system: command, env, user.
	Config v1.Config
	// RootFS takes the tar as a root file system even if it looks like an
	// image archive.
	RootFS bool
	// Pinned images are never garbage collected.
	Pinned bool
}

// files is what an archive or a layout directory holds, by clean slash path.
type files interface {
	open(name string) (io.ReadCloser, error) // fs.ErrNotExist
}

// Import reads an archive as `docker save` or OCI tools write it, or the tar of
// a root file system, plain or compressed with gzip, zstd or bzip2, and returns
// the images it stored. Digests are verified. Nothing of an archive that fails
// can be seen, save images before the one that failed.
func (s *Store) Import(ctx context.Context, r io.Reader, opts ImportOptions) ([]*Image, error) {
	for _, n := range opts.Names {
		if _, err := ParseName(n); err != nil {
			return nil, err
		}
	}
	lease := s.Lease()
	defer lease.Release()

	// An uncompressed file is read where it is, unless it is a root file system;
	// anything else is written to a blob first.
	if f, ok := r.(*os.File); ok && !opts.RootFS {
		if at, size := plainFile(f); at != nil {
			ar, err := scan(ctx, at, size)
			if err != nil {
				return nil, err
			}
			if ar.kind() != "" {
				return s.importFiles(ctx, lease, ar, ar.kind(), opts)
			}
		}
	}
	w, err := s.NewBlob(lease)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	plain, err := Decompress(contextReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer plain.Close()
	if _, err := io.Copy(w, plain); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	ar, err := scan(ctx, w.file, w.Size())
	if err != nil {
		return nil, err
	}
	if kind := ar.kind(); kind != "" && !opts.RootFS {
		return s.importFiles(ctx, lease, ar, kind, opts)
	}
	return s.importRootFS(ctx, lease, w, opts)
}

// ImportLayout reads an OCI image layout directory.
func (s *Store) ImportLayout(ctx context.Context, dir string, opts ImportOptions) ([]*Image, error) {
	lease := s.Lease()
	defer lease.Release()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer root.Close()
	d := layoutDir{root}
	f, err := d.open("index.json")
	if err != nil {
		return nil, fmt.Errorf("import %s: %w: no OCI layout: %w", dir, ErrFormat, err)
	}
	f.Close()
	return s.importFiles(ctx, lease, d, "oci", opts)
}

type layoutDir struct{ root *os.Root }

func (s *Store) importFiles(ctx context.Context, lease *Lease, f files, kind string, opts ImportOptions) ([]*Image, error) {
	var imgs []*Image
	var err error
	if kind == "oci" {
		imgs, err = s.importOCI(ctx, lease, f, opts)
	} else {
		imgs, err = s.importDocker(ctx, lease, f, opts)
	}
	if err != nil {
		return imgs, fmt.Errorf("import: %w", err)
	}
	return imgs, nil
}

func readJSON(f files, name string, into any) error {
	r, err := f.open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := readLimited(r)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrCorrupt, err)
	}
	return nil
}

// dockerManifest is an element of manifest.json in a docker archive.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Store) importDocker(ctx context.Context, lease *Lease, f files, opts ImportOptions) ([]*Image, error) {
	var list []dockerManifest
	if err := readJSON(f, "manifest.json", &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: manifest.json names no image", ErrFormat)
	}
	var out []*Image
	for _, m := range list {
		names := m.RepoTags
		if len(opts.Names) > 0 && len(list) == 1 {
			names = opts.Names
		}
		img, err := s.importDockerImage(ctx, lease, f, m, names, opts.Pinned)
		if err != nil {
			return out, err
		}
		out = append(out, img)
	}
	return out, nil
}

func (s *Store) importDockerImage(ctx context.Context, lease *Lease, f files, m dockerManifest, names []string, pinned bool) (*Image, error) {
	r, err := f.open(m.Config)
	if err != nil {
		return nil, fmt.Errorf("%w: image config: %w", ErrCorrupt, err)
	}
	raw, err := readLimited(r)
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("image config %s: %w", m.Config, err)
	}
	config, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	// The file is named after its digest; another content is a damaged archive.
	var want v1.Hash
	if base := strings.TrimSuffix(path.Base(m.Config), ".json"); hex64RE.MatchString(base) {
		want = v1.Hash{Algorithm: "sha256", Hex: base}
	}
	configHash, configSize, err := s.WriteBlob(ctx, lease, strings.NewReader(string(raw)), v1.Hash{})
	if err != nil {
		return nil, err
	}
	if want != (v1.Hash{}) && want != configHash {
		return nil, fmt.Errorf("image config %s: %w: its content has digest %s", m.Config, ErrCorrupt, configHash)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: manifest.json has %d layers, the image config %d", ErrCorrupt, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	layers := make([]v1.Descriptor, len(m.Layers))
	var total int64
	for i, name := range m.Layers {
		r, err := f.open(name)
		if err != nil {
			return nil, fmt.Errorf("%w: layer: %w", ErrCorrupt, err)
		}
		h, n, err := s.WriteBlob(ctx, lease, r, v1.Hash{})
		r.Close()
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", name, err)
		}
		mt, err := s.layerType(h)
		if err != nil {
			return nil, err
		}
		layers[i] = v1.Descriptor{MediaType: mt, Digest: h, Size: n}
		if mt == types.OCIUncompressedLayer && h != config.RootFS.DiffIDs[i] {
			return nil, fmt.Errorf("layer %s: %w: its content has digest %s, the image config says %s", name, ErrCorrupt, h, config.RootFS.DiffIDs[i])
		}
		size, err := s.verifyLayer(ctx, h, config.RootFS.DiffIDs[i], s.room())
		if err != nil {
			return nil, err
		}
		total += size
	}
	rawManifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: configHash, Size: configSize},
		Layers: layers,
	})
	if err != nil {
		return nil, err
	}
	desc, err := s.putJSON(ctx, lease, rawManifest, types.OCIManifestSchema1)
	if err != nil {
		return nil, err
	}
	return s.publish(lease, desc, names, publication{size: total, pinned: pinned})
}

// layerType is the media type of a stored layer, by its first bytes.
func (s *Store) layerType(h v1.Hash) (types.MediaType, error) {
	f, err := s.OpenBlob(h)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [6]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return "", err
	}
	switch Compression(head[:n]) {
	case "gzip":
		return types.OCILayer, nil
	case "zstd":
		return types.OCILayerZStd, nil
	}
	return types.OCIUncompressedLayer, nil
}

func (s *Store) importOCI(ctx context.Context, lease *Lease, f files, opts ImportOptions) ([]*Image, error) {
	var index v1.IndexManifest
	if err := readJSON(f, "index.json", &index); err != nil {
		return nil, err
	}
	// docker save writes both forms; names may be in its manifest.json alone.
	var docker []dockerManifest
	if err := readJSON(f, "manifest.json", &docker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	type found struct {
		desc   v1.Descriptor
		names  []string
		pulled string
	}
	var order []v1.Hash
	byDigest := map[v1.Hash]*found{}
	for _, e := range index.Manifests {
		desc, err := ociManifest(f, e, 0)
		if err != nil {
			return nil, err
		}
		if desc == nil {
			continue // another platform
		}
		got := byDigest[desc.Digest]
		if got == nil {
			got = &found{desc: *desc, pulled: e.Digest.String()}
			byDigest[desc.Digest] = got
			order = append(order, desc.Digest)
		}
		if n := ociName(e); n != "" {
			got.names = append(got.names, n)
		}
	}
	if len(order) == 0 {
		return nil, fmt.Errorf("%w: index.json names no image for linux/%s", ErrFormat, runtime.GOARCH)
	}
	var out []*Image
	for _, d := range order {
		got := byDigest[d]
		names := got.names
		if len(opts.Names) > 0 && len(order) == 1 {
			names = opts.Names
		}
		img, err := s.importOCIImage(ctx, lease, f, got.desc, names, docker, publication{pulled: got.pulled, pinned: opts.Pinned})
		if err != nil {
			return out, err
		}
		out = append(out, img)
	}
	return out, nil
}

// ociName is the image name that an entry of index.json has, if it has a whole
// one.
func ociName(e v1.Descriptor) string {
	for _, n := range []string{e.Annotations[annName], e.Annotations[annRef]} {
		if _, err := ParseName(n); err == nil && (n == e.Annotations[annName] || strings.ContainsAny(n, "/:")) {
			return n
		}
	}
	return ""
}

// ociManifest follows an entry, through indexes, to the manifest for this
// machine; nil where there is none.
func ociManifest(f files, e v1.Descriptor, depth int) (*v1.Descriptor, error) {
	if depth > 4 {
		return nil, fmt.Errorf("%w: indexes within indexes", ErrCorrupt)
	}
	if e.MediaType.IsImage() {
		return &e, nil
	}
	if !e.MediaType.IsIndex() {
		return nil, nil
	}
	r, err := openBlobFile(f, e.Digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := readJSONBlob(r, e.Digest)
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("index %s: %w: %w", e.Digest, ErrCorrupt, err)
	}
	for _, m := range index.Manifests {
		if p := m.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		if d, err := ociManifest(f, m, depth+1); d != nil || err != nil {
			return d, err
		}
	}
	return nil, nil
}

func openBlobFile(f files, h v1.Hash) (io.ReadCloser, error) {
	if err := validHash(h); err != nil {
		return nil, err
	}
	r, err := f.open("blobs/sha256/" + h.Hex)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return r, nil
}

func (s *Store) importOCIImage(ctx context.Context, lease *Lease, f files, desc v1.Descriptor, names []string, docker []dockerManifest, p publication) (*Image, error) {
	fetch := func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) { return openBlobFile(f, d.Digest) }
	got, err := s.fetchImage(ctx, lease, desc, fetch, 1, nil, silent)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		for _, d := range docker {
			if path.Base(d.Config) == got.manifest.Config.Digest.Hex || strings.TrimSuffix(path.Base(d.Config), ".json") == got.manifest.Config.Digest.Hex {
				names = d.RepoTags
			}
		}
	}
	p.size = got.size
	return s.publish(lease, desc, names, p)
}

func (s *Store) importRootFS(ctx context.Context, lease *Lease, w *BlobWriter, opts ImportOptions) ([]*Image, error) {
	size := w.Size()
	h, err := w.Commit(v1.Hash{})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	// The same again is the same image, whenever it was first imported.
	if desc, ok := s.sameRootFS(lease, h, opts.Config); ok {
		img, err := s.publish(lease, desc, opts.Names, publication{size: size, pinned: opts.Pinned})
		if err != nil {
			return nil, fmt.Errorf("import: %w", err)
		}
		return []*Image{img}, nil
	}
	now := v1.Time{Time: s.now().UTC()}
	config := &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: now, Config: opts.Config,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{h}},
		History: []v1.History{{Created: now, CreatedBy: "skiff image import", Comment: "Imported from a root file system"}},
	}
	layers := []v1.Descriptor{{MediaType: types.OCIUncompressedLayer, Digest: h, Size: size}}
	img, err := s.Put(ctx, lease, opts.Names, config, layers, size)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return []*Image{img}, nil
}

// sameRootFS finds the manifest of an image of that one layer and config, and
// holds it.
func (s *Store) sameRootFS(lease *Lease, layer v1.Hash, config v1.Config) (v1.Descriptor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, img := range s.images {
		if len(img.DiffIDs) == 1 && img.DiffIDs[0] == layer && img.Layers[0].Digest == layer && reflect.DeepEqual(img.Config.Config, config) {
			e := s.entryOf(img)
			lease.hold(e.Digest, s.records[e.Digest].manifest.Config.Digest, layer)
			return e, true
		}
	}
	return v1.Descriptor{}, false
}
