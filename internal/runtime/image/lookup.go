package image

import (
	"context"
	"fmt"
	"sort"
	"strings"
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
