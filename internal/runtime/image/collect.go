package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

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
	for c, d := range s.compressions {
		if !keep[d.Digest] {
			delete(s.compressions, c)
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
