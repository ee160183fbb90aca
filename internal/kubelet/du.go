package kubelet

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"skiff/internal/kubelet/eviction"
)

// du measures directories. To measure one is to walk it: what was measured is good for
// a hundred times as long as it took, so that walking takes no more than a hundredth
// of the time, but at most a minute.
type du struct {
	mu   sync.Mutex
	last map[string]measured
}

type measured struct {
	eviction.Disk
	at   time.Time
	took time.Duration
}

const (
	duAtMost  = time.Minute
	duAtLeast = 5 * time.Second
	duKeep    = 10 * time.Minute
)

// of is what a directory takes on its file system.
func (d *du) of(dir string, now time.Time) eviction.Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m, ok := d.last[dir]; ok && now.Sub(m.at).Abs() < min(max(100*m.took, duAtLeast), duAtMost) {
		return m.Disk
	}
	if d.last == nil {
		d.last = map[string]measured{}
	}
	for path, m := range d.last {
		if now.Sub(m.at).Abs() > duKeep {
			delete(d.last, path)
		}
	}
	begin := time.Now()
	m := measured{Disk: walk(dir), at: now}
	m.took = time.Since(begin)
	d.last[dir] = m
	return m.Disk
}

// walk sums what is below dir and on its file system, each file once however many
// names it has. What goes while it walks, or cannot be read, does not count.
func walk(dir string) eviction.Disk {
	var out eviction.Disk
	var root syscall.Stat_t
	if err := syscall.Lstat(dir, &root); err != nil {
		return out
	}
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{}
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Dev != root.Dev {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !e.IsDir() && st.Nlink > 1 {
			if id := (inode{st.Dev, st.Ino}); linked[id] {
				return nil
			} else {
				linked[id] = true
			}
		}
		out.Bytes += st.Blocks * 512
		out.Inodes++
		return nil
	})
	return out
}

// deviceOf is the file system of a path, or of the nearest directory above it that
// exists.
func deviceOf(path string) uint64 {
	for {
		info, err := os.Stat(path)
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				return st.Dev
			}
			return 0
		}
		up := filepath.Dir(path)
		if up == path {
			return 0
		}
		path = up
	}
}
