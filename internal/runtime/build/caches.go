package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// caches are the directories of RUN --mount=type=cache: below dir, one of a name
// that says what the mount's identity is; a private one that several want at
// once has numbered sisters. A directory's change time in the sense of Prune is
// that of its marker file beside it.
type caches struct {
	dir   string
	locks keyed

	mu    sync.Mutex
	users map[string]int // of directories, by name
}

// cacheSpec is a cache mount.
type cacheSpec struct {
	name    string // from its identity
	sharing instructions.ShareMode
	// seed fills a new directory; nil leaves it empty.
	seed     func(dir string) error
	mode     os.FileMode
	uid, gid int
	owned    bool // mode, uid, gid are given
}

// take returns the directory for a mount. release must be called when nobody has
// it mounted.
func (c *caches) take(ctx context.Context, s cacheSpec) (dir string, release func(), err error) {
	name := s.name
	unlock := func() {}
	switch s.sharing {
	case instructions.MountSharingLocked:
		if unlock, err = c.locks.lock(ctx, name); err != nil {
			return "", nil, err
		}
	case instructions.MountSharingPrivate:
		for i := 0; ; i++ {
			if i > 0 {
				name = fmt.Sprintf("%s.%d", s.name, i)
			}
			if free, _ := c.locks.try(name); free != nil {
				unlock = free
				break
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	dir = filepath.Join(c.dir, name)
	if err := c.ensure(dir, s); err != nil {
		unlock()
		return "", nil, fmt.Errorf("cache mount: %w", err)
	}
	c.users[name]++
	return dir, func() {
		c.mu.Lock()
		if c.users[name]--; c.users[name] == 0 {
			delete(c.users, name)
		}
		now := time.Now()
		os.Chtimes(dir+usedSuffix, now, now) // for Prune; no harm if it fails
		c.mu.Unlock()
		unlock()
	}, nil
}

// usedSuffix is that of the files whose time says when a directory was last used.
const usedSuffix = ".used"

// ensure makes the directory where it is not; c.mu is held.
func (c *caches) ensure(dir string, s cacheSpec) error {
	if _, err := os.Stat(dir); err == nil {
		return os.WriteFile(dir+usedSuffix, nil, 0o600)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(c.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	mode, uid, gid := os.FileMode(0o755), 0, 0
	if s.seed != nil {
		if err := s.seed(tmp); err != nil {
			return err
		}
		if fi, err := os.Stat(tmp); err == nil {
			mode = fi.Mode() & 0o7777
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				uid, gid = int(st.Uid), int(st.Gid)
			}
		}
		if mode&0o7777 == 0o700 {
			mode = 0o755 // the temporary directory's own
		}
	}
	if s.owned {
		mode, uid, gid = s.mode, s.uid, s.gid
	}
	if err := errors.Join(os.Chown(tmp, uid, gid), os.Chmod(tmp, mode)); err != nil {
		return err
	}
	if err := os.WriteFile(dir+usedSuffix, nil, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// lastUse are the directories, by name, with when each was last used; what a killed
// process left half made has the zero time.
func (c *caches) lastUse() (map[string]time.Time, error) {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cache mounts: %w", err)
	}
	out := map[string]time.Time{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		out[e.Name()] = time.Time{}
		if fi, err := os.Stat(filepath.Join(c.dir, e.Name()) + usedSuffix); err == nil && !strings.HasPrefix(e.Name(), ".new-") {
			out[e.Name()] = fi.ModTime()
		}
	}
	return out, nil
}

// remove removes a directory and returns what it took on disk; one that is in use
// stays, which gone tells.
func (c *caches) remove(name string) (bytes int64, gone bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users[name] > 0 {
		return 0, false, nil
	}
	dir := filepath.Join(c.dir, name)
	bytes, err = diskUse(dir)
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if rerr := os.Remove(dir + usedSuffix); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return 0, false, fmt.Errorf("cache mounts: %w", err)
	}
	return bytes, true, nil
}

// diskUse is what a directory takes on disk, bytes.
func diskUse(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, err
}
