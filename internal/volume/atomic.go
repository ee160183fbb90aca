package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// file is a file of a volume that is made of files.
type file struct {
	data []byte
	mode os.FileMode
	// user owns the file; nil for root.
	user *int64
}

const (
	dataLink = "..data"
	tempLink = "..data_tmp"
)

// checkPath refuses names that would leave the volume or hide its machinery.
func checkPath(p string) error {
	switch {
	case p == "":
		return errors.New("invalid path: must not be empty")
	case filepath.IsAbs(p):
		return fmt.Errorf("invalid path: must be relative path: %s", p)
	case len(p) > 4095:
		return fmt.Errorf("invalid path: must be less than or equal to 4096 characters")
	}
	for i, e := range strings.Split(p, "/") {
		if e == ".." {
			return fmt.Errorf("invalid path: must not contain '..': %s", p)
		}
		if i == 0 && strings.HasPrefix(e, "..") {
			return fmt.Errorf("invalid path: must not start with '..': %s", p)
		}
		if len(e) > 255 {
			return fmt.Errorf("invalid path: filenames must be less than or equal to 255 characters")
		}
	}
	return nil
}

// writeFiles makes dir hold exactly these files. Readers see the old ones or the
// new, never a mix: the files are in a directory of their own, to which the link
// ..data leads, and the names at the top are links through it.
func writeFiles(dir string, files map[string]file, group *int64) error {
	clean := map[string]file{}
	for p, f := range files {
		if err := checkPath(p); err != nil {
			return err
		}
		clean[filepath.Clean(p)] = f
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return fmt.Errorf("make volume directory: %w", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return fmt.Errorf("make volume directory: %w", err)
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read volume: %w", err)
	}
	if old != "" && sameFiles(filepath.Join(dir, old), clean, group != nil) {
		return linkNames(dir, clean)
	}
	next, err := os.MkdirTemp(dir, "..")
	if err != nil {
		return fmt.Errorf("make directory for new content: %w", err)
	}
	if err := fill(next, clean, group); err != nil {
		_ = os.RemoveAll(next)
		return err
	}
	temp := filepath.Join(dir, tempLink)
	_ = os.Remove(temp)
	if err := os.Symlink(filepath.Base(next), temp); err != nil {
		_ = os.RemoveAll(next)
		return fmt.Errorf("link new content: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(dir, dataLink)); err != nil {
		_ = os.RemoveAll(next)
		return fmt.Errorf("swap content: %w", err)
	}
	if err := linkNames(dir, clean); err != nil {
		return err
	}
	return sweep(dir, filepath.Base(next))
}

func fill(dir string, files map[string]file, group *int64) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for p, f := range files {
		path := filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write volume: %w", err)
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return fmt.Errorf("write volume: %w", err)
		}
		// The umask has no say here.
		if err := os.Chmod(path, f.mode); err != nil {
			return fmt.Errorf("write volume: %w", err)
		}
		if f.user != nil {
			if err := os.Chown(path, int(*f.user), -1); err != nil {
				return fmt.Errorf("write volume: %w", err)
			}
		}
	}
	if err := giveTo(dir, group, true); err != nil {
		return fmt.Errorf("set group of volume: %w", err)
	}
	return nil
}

// sameFiles tells whether a directory holds these files already. Modes are not
// compared where a group was given rights on top of them.
func sameFiles(dir string, files map[string]file, grouped bool) bool {
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := files[rel]
		if !ok {
			return errors.New("one too many")
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.data) || !grouped && info.Mode().Perm() != f.mode.Perm() {
			return errors.New("different")
		}
		n++
		return nil
	})
	return err == nil && n == len(files)
}

// linkNames makes the names at the top lead to the content, and no others.
func linkNames(dir string, files map[string]file) error {
	want := map[string]bool{}
	for p := range files {
		top, _, _ := strings.Cut(p, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read volume: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "..") {
			continue
		}
		if want[name] {
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && to == filepath.Join(dataLink, name) {
				delete(want, name)
				continue
			}
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("remove old name: %w", err)
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("link name: %w", err)
		}
	}
	return nil
}

// sweep removes former content, that of an interrupted write too.
func sweep(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read volume: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") || slices.Contains([]string{keep, dataLink}, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove old content: %w", err)
		}
	}
	return nil
}
