package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

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
	e := s.entryOf(img)
	e.Annotations[annGiven] = "true"
	return s.save(s.withEntry(e, n.String(), ""))
}

// Give marks the name of an image, if there is one of that name, as given here.
func (s *Store) Give(name string) error {
	n, err := ParseName(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.entries, func(e v1.Descriptor) bool { return e.Annotations[annName] == n.String() })
	if i < 0 || s.entries[i].Annotations[annGiven] != "" {
		return nil
	}
	after := slices.Clone(s.entries)
	after[i].Annotations = maps.Clone(after[i].Annotations)
	after[i].Annotations[annGiven] = "true"
	return s.save(after)
}

// entryOf returns an entry of img without its names; s.mu is held.
func (s *Store) entryOf(img *Image) v1.Descriptor {
	for _, e := range s.entries {
		if e.Digest == img.Digest {
			a := map[string]string{annSize: e.Annotations[annSize]}
			if img.Pinned {
				a[annPinned] = "true"
			}
			if img.Remote {
				a[annRemote] = "true"
			}
			e.Annotations = a
			return e
		}
	}
	return v1.Descriptor{Annotations: map[string]string{}}
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
	rawConfig, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	return s.PutConfig(ctx, lease, Parts{Names: names, Config: rawConfig, Layers: layers, Size: size})
}

type publication struct {
	size   int64
	pulled string // digest by which the registry knows it, where another
	pinned bool
	remote bool // it came from a registry
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
	if p.remote {
		desc.Annotations[annRemote] = "true"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.loadRecord(desc.Digest); err != nil {
		return nil, fmt.Errorf("store image: %w", err)
	}
	id := s.records[desc.Digest].id
	if s.published(desc, canonical, p.pulled) {
		return s.images[id], nil
	}
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

// published tells whether the index says all that publish would write; s.mu is
// held.
func (s *Store) published(desc v1.Descriptor, names []string, pulled string) bool {
	for _, name := range names {
		found := false
		for _, e := range s.entries {
			samePull := e.Annotations[annPulled] == pulled || pulled == "" || pulled == desc.Digest.String() && e.Annotations[annPulled] == ""
			if e.Digest == desc.Digest && e.Annotations[annPinned] == desc.Annotations[annPinned] && samePull &&
				(name == "" || e.Annotations[annName] == name) {
				found = true
			}
		}
		if !found {
			return false
		}
	}
	return true
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

// Prune removes the images that which chooses, with all their names, and returns
// them. Pinned ones stay. What nothing names any more is deleted in any case: also
// what pulls left that did not succeed.
func (s *Store) Prune(ctx context.Context, which func(*Image) bool) ([]*Image, error) {
	s.mu.Lock()
	var pruned []*Image
	gone := map[string]bool{}
	for id, img := range s.images {
		if !img.Pinned && which(img) {
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

// Dangling tells whether an image has no name.
func (i *Image) Dangling() bool { return len(i.RepoTags)+len(i.RepoDigests) == 0 }

// Named returns the names by which an image is known here: those with tags, and
// the digests that it was pulled by.
func (s *Store) Named(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name, of := range s.names {
		if of == id {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}
