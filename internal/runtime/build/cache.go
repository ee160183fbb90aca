package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

// record is what the cache knows of an instruction.
type record struct {
	image.Ref // keeps the layer's blob
	// Layer is the layer it made; nil where it changed nothing.
	Layer   *v1.Descriptor `json:"layer,omitempty"`
	Created time.Time      `json:"created"`
	// Unpacked is set where the layer came from elsewhere, compressed, as it may be
	// there; what is made here is not, so that its digest is the diff ID.
	Unpacked *unpacked `json:"unpacked,omitempty"`
}

// unpacked is what a compressed layer unpacks to.
type unpacked struct {
	DiffID v1.Hash `json:"diffID"`
	Size   int64   `json:"size"` // bytes
}

// diffID is the digest of the layer without compression, and size its bytes.
func (r *record) diffID() v1.Hash {
	if r.Unpacked != nil {
		return r.Unpacked.DiffID
	}
	return r.Layer.Digest
}

func (r *record) size() int64 {
	if r.Unpacked != nil {
		return r.Unpacked.Size
	}
	return r.Layer.Size
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
		lease.Hold(r.Layer.Digest, r.diffID())
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
		if r.Unpacked != nil { // the unpacked layer goes by that
			r.Keep = append(r.Keep, r.Unpacked.DiffID)
		}
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

// Free removes what was longest unused, steps and cache mounts alike, until so many
// bytes of disk are free again, or nothing is left, and returns how many are.
func (b *Builder) Free(ctx context.Context, bytes int64) (int64, error) {
	list, err := b.kept()
	if err != nil {
		return 0, err
	}
	var freed int64
	// What steps keep overlaps: only the disk tells, which is looked at a few times.
	for batch := (len(list) + 7) / 8; len(list) > 0 && freed < bytes; list = list[min(batch, len(list)):] {
		_, before, _, err := b.deps.Images.Usage(ctx)
		if err != nil {
			return freed, err
		}
		gone, err := b.drop(list[:min(batch, len(list))])
		freed += gone.Bytes
		if err == nil {
			err = b.deps.Images.Collect(ctx)
		}
		if err != nil {
			return freed, err
		}
		_, after, _, err := b.deps.Images.Usage(ctx)
		if err != nil {
			return freed, err
		}
		freed += max(0, int64(before)-int64(after))
	}
	return freed, nil
}

// kept is something of the cache: the record of a step, or a cache mount.
type kept struct {
	record string // its path
	mount  string // its name
	used   time.Time
}

// kept is all of the cache, the longest unused first.
func (b *Builder) kept() ([]kept, error) {
	entries, err := os.ReadDir(b.refs)
	if err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	var out []kept
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("build cache: %w", err)
		}
		out = append(out, kept{record: filepath.Join(b.refs, e.Name()), used: fi.ModTime()})
	}
	mounts, err := b.caches.lastUse()
	if err != nil {
		return nil, err
	}
	for name, at := range mounts {
		out = append(out, kept{mount: name, used: at})
	}
	slices.SortFunc(out, func(a, b kept) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.record, b.record), cmp.Compare(a.mount, b.mount))
	})
	return out, nil
}

// drop removes records, and cache mounts that nobody uses. Bytes are those of the
// latter alone.
func (b *Builder) drop(list []kept) (gone Pruned, err error) {
	for _, k := range list {
		if k.mount != "" {
			bytes, removed, err := b.caches.remove(k.mount)
			if err != nil {
				return gone, err
			}
			if removed {
				gone.Caches, gone.Bytes = gone.Caches+1, gone.Bytes+bytes
			}
			continue
		}
		if err := os.Remove(k.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("build cache: %w", err)
		}
		gone.Steps++
	}
	return gone, nil
}

// forget removes records and cache mounts that were not used for that long, and
// the records longest unused beyond most; 0 is no such limit.
func (b *Builder) forget(unused time.Duration, most int) (Pruned, error) {
	list, err := b.kept()
	if err != nil {
		return Pruned{}, err
	}
	records := 0
	for _, k := range list {
		if k.record != "" {
			records++
		}
	}
	limit := b.now().Add(-unused)
	list = slices.DeleteFunc(list, func(k kept) bool {
		if k.mount != "" {
			return k.used.After(limit)
		}
		records-- // how many are younger
		return k.used.After(limit) && (most == 0 || records < most)
	})
	return b.drop(list)
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
