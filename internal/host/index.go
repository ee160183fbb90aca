package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// StateDir is where data directories are by default, each under its instance's
// name.
const StateDir = "/var/lib/skiff"

// Index is the directory by which instances are found by name alone: what is
// there under a name is the data directory, or a symbolic link to it where that
// is elsewhere. Making either fails where the name is taken, so one name never
// means two data directories.
type Index struct{ Dir string }

// Find returns the data directory of the instance of that name; known is false
// where the machine has none. A link's directory may have been removed since.
func (x Index) Find(name string) (dataDir string, known bool, err error) {
	path := filepath.Join(x.Dir, name)
	to, err := os.Readlink(path)
	switch {
	case err == nil:
		return to, true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return path, false, nil
	case errors.Is(err, syscall.EINVAL): // no link
		entries, err := os.ReadDir(path)
		return path, err == nil && len(entries) > 0, nil
	}
	return "", false, fmt.Errorf("look for instance %q: %w", name, err)
}

// Add makes i findable by its name. It fails with fs.ErrExist where the name has
// another data directory.
func (x Index) Add(i Instance) error {
	path := filepath.Join(x.Dir, i.Name)
	if i.DataDir == path {
		return nil // being there is enough
	}
	if err := os.MkdirAll(x.Dir, 0o700); err != nil {
		return fmt.Errorf("note instance %q: %w", i.Name, err)
	}
	err := os.Symlink(i.DataDir, path)
	if errors.Is(err, fs.ErrExist) {
		if to, rerr := os.Readlink(path); rerr == nil && to == i.DataDir {
			return nil
		}
		// An empty directory says nothing; a full one is not removed by this.
		if syscall.Rmdir(path) == nil {
			err = os.Symlink(i.DataDir, path)
		}
	}
	if err != nil {
		return fmt.Errorf("note instance %q: %w", i.Name, err)
	}
	return nil
}

// Remove forgets i; its data directory is not touched.
func (x Index) Remove(i Instance) error {
	path := filepath.Join(x.Dir, i.Name)
	if to, err := os.Readlink(path); err != nil || to != i.DataDir {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget instance %q: %w", i.Name, err)
	}
	return nil
}

// All returns the data directories by name; a machine that has none, or does not
// let its index be read, yields none.
func (x Index) All() map[string]string {
	entries, err := os.ReadDir(x.Dir)
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for _, e := range entries {
		if !nameRE.MatchString(e.Name()) {
			continue
		}
		if dir, known, err := x.Find(e.Name()); err == nil && known {
			out[e.Name()] = dir
		}
	}
	return out
}
