package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Resolve finds an image by name, digest, ID or unique ID prefix. A name that
// could be both wins over an ID prefix. Errors wrap ErrNotFound or
// ErrInvalidName.
func (s *Store) Resolve(ctx context.Context, ref string) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, _, err := s.resolve(ref)
	return img, err
}

// resolve also returns the name by which the image was found; empty where it
// was an ID. s.mu is held.
func (s *Store) resolve(ref string) (*Image, string, error) {
	if digestRE.MatchString(ref) {
		if img := s.images[ref]; img != nil {
			return img, "", nil
		}
		for _, e := range s.entries {
			if e.Digest.String() == ref || e.Annotations[annPulled] == ref {
				return s.images[s.records[e.Digest].id], "", nil
			}
		}
		return nil, "", fmt.Errorf("%s: %w", ref, ErrNotFound)
	}
	n, err := ParseName(ref)
	if err == nil {
		full := n.String()
		if id, ok := s.names[full]; ok {
			return s.images[id], full, nil
		}
		if n.Digest != "" {
			for _, img := range s.images {
				if contains(img.RepoDigests, full) {
					return img, full, nil
				}
			}
		}
	}
	if prefix := strings.TrimPrefix(ref, "sha256:"); hexRE.MatchString(prefix) {
		var found *Image
		for id, img := range s.images {
			if strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), prefix) {
				if found != nil {
					return nil, "", fmt.Errorf("%s: %w: more than one image ID starts with it", ref, ErrNotFound)
				}
				found = img
			}
		}
		if found != nil {
			return found, "", nil
		}
		if err != nil { // 64 digits: no name, but a possible ID
			return nil, "", fmt.Errorf("%s: %w", ref, ErrNotFound)
		}
	}
	if err != nil {
		return nil, "", err
	}
	return nil, "", fmt.Errorf("%s: %w", n, ErrNotFound)
}

// List returns all images, those with names first, by name.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Image, 0, len(s.images))
	for _, img := range s.images {
		out = append(out, img)
	}
	key := func(i *Image) string {
		if len(i.RepoTags) > 0 {
			return "0" + i.RepoTags[0]
		}
		if len(i.RepoDigests) > 0 {
			return "1" + i.RepoDigests[0]
		}
		return "2" + i.ID
	}
	sort.Slice(out, func(a, b int) bool { return key(out[a]) < key(out[b]) })
	return out, nil
}

// Tag gives the image that ref names a further name. An image that had that
// name keeps its other names, or stays without one.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	n, err := ParseName(name)
	if err != nil {
		return err
	}
	if n.Digest != "" {
		return fmt.Errorf("%q: %w: a digest cannot be given as a tag", name, ErrInvalidName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img, _, err := s.resolve(ref)
	if err != nil {
		return err
	}
	return s.save(s.withEntry(s.entryOf(img), n.String(), ""))
}

// entryOf returns an entry of img without its names; s.mu is held.
func (s *Store) entryOf(img *Image) v1.Descriptor {
	for _, e := range s.entries {
		if e.Digest == img.Digest {
			a := map[string]string{annSize: e.Annotations[annSize]}
			if img.Pinned {
				a[annPinned] = "true"
			}
			e.Annotations = a
			return e
		}
	}
	return v1.Descriptor{}
}

// withEntry returns the entries after e got that name, or none; s.mu is held.
func (s *Store) withEntry(e v1.Descriptor, name, pulled string) []v1.Descriptor {
	a := map[string]string{}
	for k, v := range e.Annotations {
		a[k] = v
	}
	if name != "" {
		a[annName] = name
		if i := strings.LastIndexByte(name, ':'); !strings.Contains(name, "@") {
			a[annRef] = name[i+1:]
		}
	}
	if pulled != "" && pulled != e.Digest.String() {
		a[annPulled] = pulled
	}
	e.Annotations = a
	out := make([]v1.Descriptor, 0, len(s.entries)+2)
	var bare []v1.Descriptor // what loses its last name stays, without one
	for _, old := range s.entries {
		oldName := old.Annotations[annName]
		switch {
		case old.Digest == e.Digest && oldName == "": // replaced by e
		case name != "" && oldName == name:
			if old.Digest != e.Digest {
				old.Annotations = map[string]string{annSize: old.Annotations[annSize]}
				bare = append(bare, old)
			}
		default:
			out = append(out, old)
		}
	}
	for _, b := range bare {
		named := false
		for _, o := range out {
			named = named || o.Digest == b.Digest
		}
		if !named {
			out = append(out, b)
		}
	}
	if name == "" {
		for _, o := range out {
			if o.Digest == e.Digest {
				return out // has names already
			}
		}
	}
	return append(out, e)
}

// Put stores an image made of layers that are stored and that lease holds, under
// names (canonical or not; none makes an image that only its ID finds).
// config.RootFS must have the layers' diff IDs. size is that of the layers
// unpacked.
func (s *Store) Put(ctx context.Context, lease *Lease, names []string, config *v1.ConfigFile, layers []v1.Descriptor, size int64) (*Image, error) {
	if len(config.RootFS.DiffIDs) != len(layers) {
		return nil, fmt.Errorf("image config has %d layers, got %d", len(config.RootFS.DiffIDs), len(layers))
	}
	rawConfig, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	configDesc, err := s.putJSON(ctx, lease, rawConfig, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	if layers == nil {
		layers = []v1.Descriptor{}
	}
	rawManifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: configDesc, Layers: layers,
	})
	if err != nil {
		return nil, err
	}
	desc, err := s.putJSON(ctx, lease, rawManifest, types.OCIManifestSchema1)
	if err != nil {
		return nil, err
	}
	return s.publish(lease, desc, names, publication{size: size})
}

type publication struct {
	size   int64
	pulled string // digest by which the registry knows it, where another
	pinned bool
}

// publish makes an image seen whose blobs are all stored and held by lease.
func (s *Store) publish(lease *Lease, desc v1.Descriptor, names []string, p publication) (*Image, error) {
	canonical := make([]string, 0, len(names))
	for _, name := range names {
		n, err := ParseName(name)
		if err != nil {
			return nil, err
		}
		canonical = append(canonical, n.String())
	}
	if len(canonical) == 0 {
		canonical = append(canonical, "")
	}
	desc = v1.Descriptor{MediaType: desc.MediaType, Size: desc.Size, Digest: desc.Digest, Annotations: map[string]string{}}
	desc.Annotations[annSize] = fmt.Sprint(p.size)
	if p.pinned {
		desc.Annotations[annPinned] = "true"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.loadRecord(desc.Digest); err != nil {
		return nil, fmt.Errorf("store image: %w", err)
	}
	id := s.records[desc.Digest].id
	before := s.entries
	for _, name := range canonical {
		s.entries = s.withEntry(desc, name, p.pulled)
	}
	after := s.entries
	s.entries = before
	if err := s.save(after); err != nil {
		return nil, err
	}
	return s.images[id], nil
}

func (s *Store) putJSON(ctx context.Context, lease *Lease, raw []byte, mt types.MediaType) (v1.Descriptor, error) {
	h, n, err := s.WriteBlob(ctx, lease, strings.NewReader(string(raw)), v1.Hash{})
	return v1.Descriptor{MediaType: mt, Size: n, Digest: h}, err
}

// Remove takes a name from an image, and with its last name the image goes;
// given an ID or a digest without a name, the image goes with all its names.
// What only it needed is deleted; layers that a container uses stay for as long.
// The error wraps ErrNotFound where there is none.
func (s *Store) Remove(ctx context.Context, ref string) error {
	s.mu.Lock()
	img, name, err := s.resolve(ref)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	var keep []v1.Descriptor
	for _, e := range s.entries {
		if s.records[e.Digest].id != img.ID || (name != "" && !named(e, name)) {
			keep = append(keep, e)
		}
	}
	err = s.save(keep)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.Collect(ctx)
}

// named tells whether an entry is found by a full name, which may be
// repository@digest of an entry with a tag.
func named(e v1.Descriptor, name string) bool {
	if e.Annotations[annName] == name {
		return true
	}
	n, err := ParseName(e.Annotations[annName])
	if err != nil {
		return false
	}
	for _, d := range []string{e.Digest.String(), e.Annotations[annPulled]} {
		if d != "" && n.Repository()+"@"+d == name {
			return true
		}
	}
	return false
}

// Prune removes the images that have no name and returns them.
func (s *Store) Prune(ctx context.Context) ([]*Image, error) {
	s.mu.Lock()
	var pruned []*Image
	gone := map[string]bool{}
	for id, img := range s.images {
		if len(img.RepoTags)+len(img.RepoDigests) == 0 && !img.Pinned {
			gone[id] = true
			pruned = append(pruned, img)
		}
	}
	var keep []v1.Descriptor
	for _, e := range s.entries {
		if !gone[s.records[e.Digest].id] {
			keep = append(keep, e)
		}
	}
	err := s.save(keep)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return pruned, s.Collect(ctx)
}

// Attach tells the store about the unpacked layers, so that Collect and Usage
// include them.
func (s *Store) Attach(l Layers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers = l
}

// Ref is a record below refs: an owner's note that keeps blobs alive. Owners
// may put more fields beside Keep.
type Ref struct {
	Keep []v1.Hash `json:"keep"`
}

// RefDir is the directory in which owner keeps its records, each a JSON file
// that contains a Ref. A record must be complete when it appears there, and be
// written while a lease holds what it names.
func (s *Store) RefDir(owner string) (string, error) {
	dir := filepath.Join(s.dir, "refs", owner)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("image store: %w", err)
	}
	return dir, nil
}

// refs reads what all records keep.
func (s *Store) refs() (map[v1.Hash]bool, error) {
	keep := map[v1.Hash]bool{}
	files, err := filepath.Glob(filepath.Join(s.dir, "refs/*/*.json"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var r Ref
		if json.Unmarshal(data, &r) != nil {
			continue // keeps nothing
		}
		for _, h := range r.Keep {
			keep[h] = true
		}
	}
	return keep, nil
}

// Needed returns the diff IDs of all layers that images, records and live leases
// name: what the snapshotter should keep unpacked.
func (s *Store) Needed(ctx context.Context) (map[v1.Hash]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	need, err := s.refs()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, img := range s.images {
		for _, d := range img.DiffIDs {
			need[d] = true
		}
	}
	for _, l := range s.live() {
		for b := range l.blobs {
			need[b] = true
		}
	}
	return need, nil
}

// live returns the leases that have not expired and forgets the others; s.mu is
// held.
func (s *Store) live() []*Lease {
	now := s.now()
	var out []*Lease
	for l := range s.leases {
		if now.After(l.expires) {
			delete(s.leases, l)
			continue
		}
		out = append(out, l)
	}
	return out
}

// Collect deletes blobs, and unpacked layers, that nothing names.
func (s *Store) Collect(ctx context.Context) error {
	layers, err := s.collectBlobs(ctx)
	if err != nil {
		return fmt.Errorf("image store: collect: %w", err)
	}
	if layers != nil {
		return layers.Collect(ctx)
	}
	return nil
}

func (s *Store) collectBlobs(ctx context.Context) (Layers, error) {
	s.mu.Lock() // held to the end: what a lease gets during this is kept, or gone already
	defer s.mu.Unlock()
	keep, err := s.refs()
	if err != nil {
		return nil, err
	}
	for digest, r := range s.records {
		keep[digest], keep[r.manifest.Config.Digest] = true, true
		for _, l := range r.manifest.Layers {
			keep[l.Digest] = true
		}
	}
	for _, l := range s.live() {
		for b := range l.blobs {
			keep[b] = true
		}
	}
	dir := filepath.Join(s.dir, "blobs/sha256")
	blobs, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, b := range blobs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !keep[v1.Hash{Algorithm: "sha256", Hex: b.Name()}] {
			if err := os.Remove(filepath.Join(dir, b.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
	}
	return s.layers, nil
}

// Usage returns what the store and the unpacked layers take on disk, and the
// store's directory.
func (s *Store) Usage(ctx context.Context) (dir string, bytes, inodes uint64, err error) {
	bytes, inodes, err = diskUsage(s.dir)
	if err != nil {
		return "", 0, 0, fmt.Errorf("image store: usage: %w", err)
	}
	s.mu.Lock()
	layers := s.layers
	s.mu.Unlock()
	if layers != nil {
		b, i := layers.LayersUsage()
		bytes, inodes = bytes+b, inodes+i
	}
	return s.dir, bytes, inodes, nil
}
