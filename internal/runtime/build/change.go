package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// change puts a layer on the stage that has what fn writes, or what the cache
// has under key.
func (s *step) change(ctx context.Context, key, text string, fn func(*writer) error) (cached bool, err error) {
	return s.cachedOr(ctx, key, text, s.image(), written(fn))
}

// linked is change for what does not depend on the layers below: neither their
// directories nor their links count.
func (s *step) linked(ctx context.Context, key, text string, fn func(*writer) error) (cached bool, err error) {
	return s.cachedOr(ctx, key, text, scratch(s.platform).image(), written(fn))
}

// written is what fn writes into a rootfs.
func written(fn func(*writer) error) func(snapshot.Rootfs) error {
	return func(rootfs snapshot.Rootfs) error {
		f, err := rootfs.Open()
		if err != nil {
			return err
		}
		w := &writer{root: fdPath(f), times: map[string]time.Time{}}
		err = fn(w)
		if err == nil {
			err = w.setTimes()
		}
		return errors.Join(err, f.Close())
	}
}

// cachedOr puts the layer on the stage that the cache has under key, this store's or
// one from elsewhere, or else what fn leaves in the upper directory of a rootfs on top
// of below.
func (s *step) cachedOr(ctx context.Context, key, text string, below *image.Image, fn func(snapshot.Rootfs) error) (cached bool, err error) {
	if !s.noCache {
		// A build that does the same now is waited for.
		unlock, err := s.b.steps.lock(ctx, key)
		if err != nil {
			return false, err
		}
		defer unlock()
		rec, ok := s.b.lookup(s.lease, key)
		if !ok {
			if rec, ok, err = s.imported(ctx, key); err != nil {
				return false, err
			}
		}
		if ok {
			s.add(key, rec)
			s.addHistory(text, rec.Layer == nil)
			return true, nil
		}
	}
	id := snapshot.EphemeralPrefix + "build-" + rand.Text()
	rootfs, err := s.b.deps.Snapshots.Prepare(ctx, id, below)
	if err != nil {
		return false, err
	}
	// What was cancelled is removed all the same.
	defer func() { err = errors.Join(err, s.b.deps.Snapshots.Remove(context.WithoutCancel(ctx), id)) }()
	if err := fn(rootfs); err != nil {
		return false, err
	}
	rec, err := s.commit(ctx, id, rootfs.Upper)
	if err != nil {
		return false, err
	}
	if err := s.b.remember(key, rec); err != nil {
		return false, err
	}
	s.add(key, rec)
	s.addHistory(text, rec.Layer == nil)
	return false, nil
}

// commit stores the upper directory as a layer; none where it is empty.
func (s *step) commit(ctx context.Context, id, upper string) (record, error) {
	rec := record{Created: s.b.now().UTC()}
	names, err := os.ReadDir(upper)
	if err != nil {
		return rec, err
	}
	if len(names) == 0 {
		return rec, nil
	}
	blob, err := s.b.deps.Images.NewBlob(s.lease)
	if err != nil {
		return rec, err
	}
	defer blob.Close()
	if err := snapshot.WriteLayer(ctx, blob, upper); err != nil {
		return rec, err
	}
	digest, err := blob.Commit(v1.Hash{})
	if err != nil {
		return rec, err
	}
	rec.Layer = &v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: digest, Size: blob.Size()}
	return rec, s.b.deps.Snapshots.Commit(ctx, id, digest)
}

// writer changes a root file system from outside: no link in it leads out of it.
type writer struct {
	root string
	// times are those that directories get in the end: the ones they had, so
	// that the same input gives the same layer.
	times map[string]time.Time
}

// path is where a path of the image is, after the links on the way to it and it
// itself.
func (w *writer) path(name string) (string, error) { return securejoin.SecureJoin(w.root, name) }

// made is the time of directories that nobody gave one.
var made = time.Unix(0, 0)

// keepTime notes the time of a directory that is about to change.
func (w *writer) keepTime(full string) error {
	if _, ok := w.times[full]; ok {
		return nil
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return err
	}
	w.times[full] = fi.ModTime()
	return nil
}

func (w *writer) setTimes() error {
	for full, t := range w.times {
		if err := os.Chtimes(full, t, t); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// mkdirAll makes a directory and its parents and returns where it is.
func (w *writer) mkdirAll(name string) (string, error) { return w.mkdirAllAs(name, 0, 0) }

func (w *writer) mkdirAllAs(name string, uid, gid int) (string, error) {
	full, err := w.path(name)
	if err != nil {
		return "", err
	}
	var missing []string
	for dir := full; dir != w.root; dir = filepath.Dir(dir) {
		fi, err := os.Lstat(dir)
		if err == nil && !fi.IsDir() {
			return "", fmt.Errorf("%s is not a directory", strings.TrimPrefix(dir, w.root))
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		missing = append(missing, dir)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		dir := missing[i]
		if err := w.keepTime(filepath.Dir(dir)); err != nil {
			return "", err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		w.times[dir] = made
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", err
		}
		if err := os.Lchown(dir, uid, gid); err != nil {
			return "", err
		}
	}
	return full, nil
}

// isDir tells whether a path of the image is a directory.
func (w *writer) isDir(name string) bool {
	full, err := w.path(name)
	if err != nil {
		return false
	}
	fi, err := os.Stat(full)
	return err == nil && fi.IsDir()
}

// place makes room for a file at a path of the image, whose parent it makes, and
// returns where to put it: a link there is replaced, not followed.
func (w *writer) place(name string, uid, gid int) (string, error) {
	dir, err := w.mkdirAllAs(path.Dir(name), uid, gid)
	if err != nil {
		return "", err
	}
	full := filepath.Join(dir, path.Base(name))
	if err := w.keepTime(dir); err != nil {
		return "", err
	}
	fi, err := os.Lstat(full)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return full, nil
	case err != nil:
		return "", err
	case fi.IsDir():
		return "", fmt.Errorf("cannot replace directory %s with a file", name)
	}
	return full, os.Remove(full)
}
