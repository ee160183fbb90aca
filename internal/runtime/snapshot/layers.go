package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

func (s *Store) writeRecord(l *layer) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.path("tmp"), "record-")
	if err != nil {
		return fmt.Errorf("snapshot store: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), s.path("layers", l.name+".json"))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("snapshot store: %w", err)
	}
	return nil
}

// publish makes an unpacked directory a layer; s.mu is held. Where the layer is
// there already, the directory stays where it is and the old one is returned.
func (s *Store) publish(dir string, l *layer) (*layer, error) {
	if old := s.layers[l.ID]; old != nil {
		return old, nil
	}
	_, hexDigits, _ := strings.Cut(l.ID, ":")
	for _, n := range []int{12, 24, len(hexDigits)} {
		l.name = hexDigits[:min(n, len(hexDigits))]
		if _, err := os.Lstat(s.path("layers", l.name)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	l.Boot = s.boot
	if err := os.Rename(dir, s.path("layers", l.name)); err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	if err := s.writeRecord(l); err != nil {
		return nil, err
	}
	s.layers[l.ID] = l
	return l, nil
}

// chainID is the identity of a layer on top of those below.
func chainID(below string, diffID v1.Hash) string {
	if below == "" {
		return diffID.String()
	}
	sum := sha256.Sum256([]byte(below + " " + diffID.String()))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// acquire waits until name is not busy, or ready holds, and makes it busy. With
// s.mu held; it is released while waiting. It returns false, when ready held.
func (s *Store) acquire(ctx context.Context, name string, ready func() bool) (bool, error) {
	for !ready() {
		ch := s.busy[name]
		if ch == nil {
			s.busy[name] = make(chan struct{})
			return true, nil
		}
		s.mu.Unlock()
		var err error
		select {
		case <-ch:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		s.mu.Lock()
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

func (s *Store) release(name string) {
	close(s.busy[name])
	delete(s.busy, name)
}

// ensure unpacks what is missing of img and returns its layers, lowest first.
// They are pinned: the caller must call unpin with the result.
func (s *Store) ensure(ctx context.Context, img *image.Image) (layers []*layer, err error) {
	defer func() {
		if err != nil {
			s.unpin(layers)
			layers = nil
		}
	}()
	var lease *image.Lease
	chain := ""
	for i, diffID := range img.DiffIDs {
		chain = chainID(chain, diffID)
		find := func() *layer {
			if l := s.layers[diffID.String()]; l != nil && (!l.Dependent || i == 0) {
				return l
			}
			return s.layers[chain]
		}
		s.mu.Lock()
		mine, err := s.acquire(ctx, "layer "+diffID.String(), func() bool { return find() != nil })
		if err != nil {
			s.mu.Unlock()
			return layers, err
		}
		if !mine {
			l := find()
			s.pins[l.ID]++
			layers = append(layers, l)
			s.mu.Unlock()
			continue
		}
		s.mu.Unlock()
		if lease == nil {
			lease = s.images.Lease()
			defer lease.Release()
		}
		lease.Hold(img.Layers[i].Digest, diffID)
		l, err := s.unpackLayer(ctx, img, i, chain, layers)
		s.mu.Lock()
		s.release("layer " + diffID.String())
		if err == nil {
			s.pins[l.ID]++
			layers = append(layers, l)
		}
		s.mu.Unlock()
		if err != nil {
			return layers, fmt.Errorf("unpack layer %s: %w", diffID, err)
		}
	}
	return layers, nil
}

func (s *Store) unpin(layers []*layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if s.pins[l.ID]--; s.pins[l.ID] == 0 {
			delete(s.pins, l.ID)
		}
	}
}

func (s *Store) unpackLayer(ctx context.Context, img *image.Image, i int, chain string, below []*layer) (*layer, error) {
	r, err := s.images.OpenLayer(img, i)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tmp, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	l := &layer{ID: img.DiffIDs[i].String(), DiffID: img.DiffIDs[i].String()}
	if l.Dependent, l.Alone, err = unpack(ctx, r, dir, s.lower(below)); err != nil {
		return nil, err
	}
	if l.Dependent {
		l.ID = chain
	}
	if l.Bytes, l.Inodes, err = usage(dir); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publish(dir, l)
}

// lower are the layers' directories, uppermost first, down to one that hides what
// is below it.
func (s *Store) lower(layers []*layer) []string {
	out := make([]string, 0, len(layers)+1)
	for i := len(layers) - 1; i >= 0; i-- {
		out = append(out, s.path("layers", layers[i].name))
		if layers[i].Alone {
			break
		}
	}
	return out
}

// LayersUsage is what all unpacked layers take on disk.
func (s *Store) LayersUsage() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		bytes += l.Bytes
		inodes += l.Inodes
	}
	return bytes, inodes
}

// Collect deletes layers that no image, key or call needs.
func (s *Store) Collect(ctx context.Context) error {
	need, err := s.images.Needed(ctx)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for d := range need {
		needed[d.String()] = true
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err != nil {
		return fmt.Errorf("snapshot store: collect: %w", err)
	}
	s.mu.Lock()
	used := map[string]bool{}
	for _, ids := range s.keys {
		for _, id := range ids {
			used[id] = true
		}
	}
	for id, l := range s.layers {
		if needed[l.DiffID] || used[id] || s.pins[id] > 0 {
			continue
		}
		// Without its record the directory is nothing, should this end here.
		if err = os.Remove(s.path("layers", l.name+".json")); err == nil {
			err = os.Rename(s.path("layers", l.name), filepath.Join(tmp, l.name))
		}
		if err != nil {
			break
		}
		delete(s.layers, id)
	}
	s.mu.Unlock()
	if err = errors.Join(err, os.RemoveAll(tmp)); err != nil {
		return fmt.Errorf("snapshot store: collect: %w", err)
	}
	return nil
}

// Unpack unpacks what is missing of img.
func (s *Store) Unpack(ctx context.Context, img *image.Image) error {
	layers, err := s.ensure(ctx, img)
	s.unpin(layers)
	return err
}
