package build

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

// Pruned is what Prune removed.
type Pruned struct {
	// Steps and Caches are how many instructions' results and cache mounts.
	Steps, Caches int
	// Bytes of disk that are free again.
	Bytes int64
}

// Prune removes what was not used for that long: results of instructions, cache
// mounts, and the blobs and layers that only they kept. What a running build uses
// stays.
func (b *Builder) Prune(ctx context.Context, unused time.Duration) (Pruned, error) {
	var gone Pruned
	_, before, _, err := b.deps.Images.Usage(ctx)
	if err != nil {
		return gone, err
	}
	if gone, err = b.forget(unused, 0); err != nil {
		return gone, err
	}
	if err := b.deps.Images.Collect(ctx); err != nil {
		return gone, err
	}
	_, after, _, err := b.deps.Images.Usage(ctx)
	if err != nil {
		return gone, err
	}
	gone.Bytes += max(0, int64(before)-int64(after))
	return gone, nil
}

// forget removes records and cache mounts that were not used for that long, and
// the records longest unused beyond most; 0 is no such limit.
func (b *Builder) forget(unused time.Duration, most int) (Pruned, error) {
	var gone Pruned
	entries, err := os.ReadDir(b.refs)
	if err != nil {
		return gone, fmt.Errorf("build cache: %w", err)
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
			return gone, fmt.Errorf("build cache: %w", err)
		}
		all = append(all, used{filepath.Join(b.refs, e.Name()), fi.ModTime()})
	}
	sort.Slice(all, func(i, k int) bool { return all[i].at.After(all[k].at) })
	limit := b.now().Add(-unused)
	for i, u := range all {
		if (most == 0 || i < most) && u.at.After(limit) {
			continue
		}
		if err := os.Remove(u.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("build cache: %w", err)
		}
		gone.Steps++
	}
	gone.Caches, gone.Bytes, err = b.caches.prune(limit)
	return gone, err
}

// What is kept of the cache without anybody asking: as long as BuildKit keeps
// what costs little, and not more steps than are quickly looked through.
const (
	keepUnused   = 60 * 24 * time.Hour
	keepSteps    = 10_000
	tidyInterval = time.Hour
)

// tidy forgets what is long unused, now and then.
func (b *Builder) tidy() error {
	b.tidyMu.Lock()
	defer b.tidyMu.Unlock()
	now := b.now()
	if now.Sub(b.tidied) < tidyInterval {
		return nil
	}
	b.tidied = now
	_, err := b.forget(keepUnused, keepSteps)
	return err
}
