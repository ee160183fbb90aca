package programs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Prune removes from dir what other releases unpacked there and nothing uses any
// more: the programs beside those of keep, but for one that inUse, which gets a
// program's path, knows of. Of programs that are in no Set (kubectl) the one that
// was unpacked last stays. What is removed too much is unpacked again when it is
// wanted, and a process goes on without its file.
func Prune(dir string, keep Set, inUse func(path string) bool) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		return fmt.Errorf("programs: %w", err)
	}
	mine := map[string]string{filepath.Base(keep.Pod): keep.Pod, filepath.Base(keep.Start): keep.Start}
	newest := map[string]fs.FileInfo{}
	last := map[string]string{}
	for _, p := range paths {
		name := filepath.Base(p)
		if _, ok := mine[name]; ok {
			continue
		}
		st, err := os.Stat(p)
		if err != nil {
			continue
		}
		if n := newest[name]; n == nil || st.ModTime().After(n.ModTime()) {
			newest[name], last[name] = st, p
		}
	}
	var errs []error
	for _, p := range paths {
		name := filepath.Base(p)
		if mine[name] == p || last[name] == p || inUse(p) {
			continue
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a program of another release: %w", err))
		}
		_ = os.Remove(filepath.Dir(p)) // where it was the last there
	}
	return errors.Join(errs...)
}
