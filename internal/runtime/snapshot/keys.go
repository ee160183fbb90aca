package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// EphemeralPrefix starts keys that end with the process: the next Open removes
// them, and Keys leaves them out.
const EphemeralPrefix = "tmp-"

func checkKey(key string) error {
	if key == "" || len(key) > 128 || key[0] == '.' || strings.ContainsAny(key, "/\x00") {
		return fmt.Errorf("key %q: %w", key, ErrInvalidKey)
	}
	return nil
}

// Prepare unpacks the image's layers that are not yet and makes a writable
// rootfs under key. A second call with the same key returns the same.
func (s *Store) Prepare(ctx context.Context, key string, img *image.Image) (Rootfs, error) {
	if err := checkKey(key); err != nil {
		return Rootfs{}, err
	}
	s.mu.Lock()
	if _, err := s.acquire(ctx, "key "+key, func() bool { return s.rootfsOf(key) != nil }); err != nil {
		s.mu.Unlock()
		return Rootfs{}, fmt.Errorf("prepare %s: %w", key, err)
	}
	if r := s.rootfsOf(key); r != nil {
		s.mu.Unlock()
		return *r, nil
	}
	s.mu.Unlock()
	err := s.makeKey(ctx, key, img)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release("key " + key)
	if err != nil {
		return Rootfs{}, fmt.Errorf("prepare %s: %w", key, err)
	}
	return *s.rootfsOf(key), nil
}

// makeKey does Prepare's work; the key is busy.
func (s *Store) makeKey(ctx context.Context, key string, img *image.Image) error {
	layers, err := s.ensure(ctx, img)
	if err != nil {
		return err
	}
	defer s.unpin(layers)
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, l.ID)
	}
	record, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, old := s.keys[key]
	s.mu.Unlock()
	if old {
		// Its record was damaged, or its layers were lost in a crash of the
		// machine. What the container wrote stays.
		if err := os.WriteFile(s.path("keys", key, "layers.json"), record, 0o600); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keys[key] = ids
		return nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "key-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Mkdir(filepath.Join(tmp, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(tmp, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	// The overlay's root is the upper directory's: it must look like the image's.
	top := s.path("empty")
	if low := s.lower(layers); len(low) > 0 {
		top = low[0]
	}
	if err := copyDirMeta(top, upper); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layers.json"), record, 0o600); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, s.path("keys", key)); err != nil {
		return err
	}
	s.keys[key] = ids
	return nil
}

func copyDirMeta(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, ts, 0); err != nil {
		return &os.PathError{Op: "utimes", Path: to, Err: err}
	}
	return nil
}

// rootfsOf returns what key has, nil where it has none or lacks a layer; s.mu is
// held.
func (s *Store) rootfsOf(key string) *Rootfs {
	ids := s.keys[key]
	if ids == nil {
		return nil
	}
	layers := make([]*layer, len(ids))
	for i, id := range ids {
		if layers[i] = s.layers[id]; layers[i] == nil {
			return nil
		}
	}
	r := &Rootfs{Lower: s.lower(layers), Upper: s.path("keys", key, "fs"), Work: s.path("keys", key, "work")}
	if len(r.Lower) == 0 {
		r.Lower = []string{s.path("empty")}
	}
	return r
}

// View unpacks the image's layers that are not yet and returns a read-only
// rootfs. Its layers stay until done is called.
func (s *Store) View(ctx context.Context, img *image.Image) (r Rootfs, done func(), err error) {
	layers, err := s.ensure(ctx, img)
	if err != nil {
		return Rootfs{}, nil, err
	}
	r.Lower = s.lower(layers)
	if len(r.Lower) == 0 {
		r.Lower = []string{s.path("empty")}
	}
	var once sync.Once
	return r, func() { once.Do(func() { s.unpin(layers) }) }, nil
}

// Commit makes what was written under key the layer with that diff ID, without
// copying, and forgets the key. Nothing may have it mounted. The blob of the
// layer must be stored and held.
func (s *Store) Commit(ctx context.Context, key string, diffID v1.Hash) error {
	l := &layer{ID: diffID.String(), DiffID: diffID.String()}
	upper := s.path("keys", key, "fs")
	var err error
	if l.Bytes, l.Inodes, err = usage(upper); err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	s.mu.Lock()
	if s.keys[key] == nil {
		s.mu.Unlock()
		return fmt.Errorf("commit %s: %w", key, ErrNotFound)
	}
	_, err = s.publish(upper, l)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	return s.Remove(ctx, key)
}

// Remove forgets key and deletes what the container wrote. A key that is not
// there is no error.
func (s *Store) Remove(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s.mu.Lock()
	if _, ok := s.keys[key]; !ok {
		s.mu.Unlock()
		return nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err == nil {
		err = os.Rename(s.path("keys", key), filepath.Join(tmp, "key"))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(s.keys, key)
		err = nil
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

// Usage returns bytes and inodes that the container wrote.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes uint64, err error) {
	s.mu.Lock()
	_, ok := s.keys[key]
	s.mu.Unlock()
	if !ok {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, ErrNotFound)
	}
	if bytes, inodes, err = usage(s.path("keys", key, "fs")); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, err)
	}
	return bytes, inodes, nil
}

// Keys lists what exists, without ephemeral keys.
func (s *Store) Keys(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.keys))
	for k := range s.keys {
		if !strings.HasPrefix(k, EphemeralPrefix) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out, nil
}

// usage walks a directory: disk blocks and inodes, a hard-linked file once. What
// vanishes meanwhile does not count.
func usage(dir string) (bytes, inodes uint64, err error) {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		var fi fs.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			if st.Nlink > 1 && !fi.IsDir() {
				if n := (inode{st.Dev, st.Ino}); linked[n] {
					return nil
				} else {
					linked[n] = true
				}
			}
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}
