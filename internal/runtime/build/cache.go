package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

// record is what the cache knows of an instruction.
type record struct {
	image.Ref // keeps the layer's blob
	// Layer is the layer it made; nil where it changed nothing. Layers are not
	// compressed: the digest is the diff ID.
	Layer   *v1.Descriptor `json:"layer,omitempty"`
	Created time.Time      `json:"created"`
}

// digestOf hashes strings so that no two lists have one hash.
func digestOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (b *Builder) cachePath(key string) string { return filepath.Join(b.refs, key+".json") }

// lookup finds what an instruction with that key made before. lease holds its
// layer from then on.
func (b *Builder) lookup(lease *image.Lease, key string) (record, bool) {
	var r record
	data, err := os.ReadFile(b.cachePath(key))
	if err != nil || json.Unmarshal(data, &r) != nil {
		return record{}, false
	}
	if r.Layer != nil {
		lease.Hold(r.Layer.Digest)
		if !b.deps.Images.HasBlob(r.Layer.Digest) {
			return record{}, false
		}
	}
	now := b.now()
	os.Chtimes(b.cachePath(key), now, now) // for Prune; no harm if it fails
	return r, true
}

// remember records what an instruction made; lease holds its layer. The record
// is no loss if the machine crashes, so it is not synced.
func (b *Builder) remember(key string, r record) error {
	if r.Layer != nil {
		r.Keep = []v1.Hash{r.Layer.Digest}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(b.refs, ".tmp-")
	if err != nil {
		return fmt.Errorf("build cache: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), b.cachePath(key))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("build cache: %w", err)
	}
	return nil
}

// Prune forgets what was not used for keep, and the longest unused beyond max
// records. The blobs go with the next collection of the image store.
func (b *Builder) Prune(keep time.Duration, max int) (removed int, err error) {
	entries, err := os.ReadDir(b.refs)
	if err != nil {
		return 0, fmt.Errorf("build cache: %w", err)
	}
	type used struct {
		path string
		at   time.Time
	}
	var all []used
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("build cache: %w", err)
		}
		all = append(all, used{filepath.Join(b.refs, e.Name()), fi.ModTime()})
	}
	sort.Slice(all, func(i, k int) bool { return all[i].at.After(all[k].at) })
	limit := b.now().Add(-keep)
	for i, u := range all {
		if i < max && !u.at.Before(limit) {
			continue
		}
		if err := os.Remove(u.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("build cache: %w", err)
		}
		removed++
	}
	return removed, nil
}
