package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// Inherit returns the rootfs that the key to has once Move has given it what is under
// the key from, with the layers of img, which it unpacks where they are not. Nothing is
// changed. The error wraps ErrNotFound where there is no key from, and ErrOtherImage
// where that has other layers than img, or nobody knows which.
func (s *Store) Inherit(ctx context.Context, from, to string, img *image.Image) (Rootfs, error) {
	if err := errors.Join(checkKey(from), checkKey(to)); err != nil {
		return Rootfs{}, err
	}
	layers, err := s.ensure(ctx, img)
	if err != nil {
		return Rootfs{}, fmt.Errorf("inherit %s: %w", from, err)
	}
	defer s.unpin(layers)
	s.mu.Lock()
	defer s.mu.Unlock()
	ids, ok := s.keys[from]
	if !ok {
		return Rootfs{}, fmt.Errorf("inherit %s: %w", from, ErrNotFound)
	}
	r := s.rootfsOf(from)
	if r == nil || !slices.EqualFunc(ids, layers, func(id string, l *layer) bool { return id == l.ID }) {
		return Rootfs{}, fmt.Errorf("inherit %s: %w", from, ErrOtherImage)
	}
	r.Upper, r.Work = s.path("keys", to, "fs"), s.path("keys", to, "work")
	return *r, nil
}

// Move gives all that is under the key from, which nothing may have mounted any more, to
// the key to, which there must not be: at once, so that a crash of the process or the
// machine leaves one of the two with all of it. The error wraps ErrNotFound where there
// is no key from.
func (s *Store) Move(ctx context.Context, from, to string) error {
	if err := errors.Join(checkKey(from), checkKey(to)); err != nil {
		return err
	}
	if err := s.move(ctx, from, to); err != nil {
		return fmt.Errorf("move %s to %s: %w", from, to, err)
	}
	return nil
}

func (s *Store) move(ctx context.Context, from, to string) error {
	s.mu.Lock()
	_, ok := s.keys[from]
	s.mu.Unlock()
	if !ok {
		return ErrNotFound
	}
	// What was written without being synced may be mounted with: it must be on the disk
	// before anybody believes that.
	mark := s.path("keys", from, "work", incompat)
	if _, err := os.Lstat(mark); err == nil {
		if err := s.syncDir(unix.Syncfs, "keys", from); err != nil {
			return err
		}
		if err := os.RemoveAll(mark); err != nil {
			return err
		}
	}
	s.mu.Lock()
	ids, ok := s.keys[from]
	_, taken := s.keys[to]
	var err error
	switch {
	case !ok:
		err = ErrNotFound
	case taken:
		err = fs.ErrExist
	default:
		err = os.Rename(s.path("keys", from), s.path("keys", to))
	}
	if err == nil {
		delete(s.keys, from)
		s.keys[to] = ids
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	// It has moved, whatever the disk says to this: a caller who heard of an error would
	// remove what is under the key to.
	_ = s.syncDir(unix.Fsync, "keys")
	return nil
}

// syncDir has a directory synced in that way.
func (s *Store) syncDir(sync func(fd int) error, elem ...string) error {
	d, err := os.Open(s.path(elem...))
	if err != nil {
		return err
	}
	defer d.Close()
	if err := sync(int(d.Fd())); err != nil {
		return &os.PathError{Op: "sync", Path: d.Name(), Err: err}
	}
	return nil
}
