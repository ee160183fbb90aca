package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// WriteLayer writes directory dir as a layer's tar: an overlay's upper directory
// or the tree of a whole root file system. Overlay whiteouts and opaque
// directories become those of the image format. The same tree gives the same
// bytes: entries are sorted and have no names of users and no access times.
// Sockets are left out.
func WriteLayer(ctx context.Context, w io.Writer, dir string) error {
	bw := bufio.NewWriterSize(w, 256<<10)
	lw := &layerWriter{tw: tar.NewWriter(bw), links: map[inode]string{}, buf: make([]byte, 256<<10)}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &os.PathError{Op: "read", Path: dir, Err: unix.ENOTDIR}
	}
	// The root's own entry only where it says something: most tools omit it.
	if st.Mode&0o7777 != 0o755 || st.Uid != 0 || st.Gid != 0 {
		if err := lw.add(dir, "./", &st); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
	}
	if err := lw.children(ctx, dir, ""); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := lw.tw.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type layerWriter struct {
	tw    *tar.Writer
	links map[inode]string
	buf   []byte
}

func (w *layerWriter) children(ctx context.Context, full, name string) error {
	entries, err := os.ReadDir(full) // sorted
	if err != nil {
		return err
	}
	sort.Slice(entries, func(a, b int) bool { return entries[a].Name() < entries[b].Name() })
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		child, childName := filepath.Join(full, e.Name()), path.Join(name, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(child, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: child, Err: err}
		}
		if isWhiteout(&st) {
			if err := w.marker(path.Join(name, whPrefix+e.Name())); err != nil {
				return err
			}
			continue
		}
		if strings.HasPrefix(e.Name(), whPrefix) {
			return fmt.Errorf("%s: a file name starting with %q cannot be in an image", childName, whPrefix)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFSOCK:
			continue
		case unix.S_IFDIR:
			if err := w.add(child, childName+"/", &st); err != nil {
				return err
			}
			if opaque(child) {
				if err := w.marker(path.Join(childName, whOpaque)); err != nil {
					return err
				}
			}
			if err := w.children(ctx, child, childName); err != nil {
				return err
			}
		default:
			if err := w.add(child, childName, &st); err != nil {
				return err
			}
		}
	}
	return nil
}

// marker writes an empty file that means something.
func (w *layerWriter) marker(name string) error {
	return w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0)})
}

func (w *layerWriter) add(full, name string, st *unix.Stat_t) error {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}
	if h.ModTime.Nanosecond() == 0 {
		h.Format = tar.FormatUnknown // plain ustar where it can say it all
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		id := inode{st.Dev, st.Ino}
		if first, ok := w.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return w.tw.WriteHeader(h)
		}
		w.links[id] = name
	}
	for _, x := range readXattrs(full) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
			h.Format = tar.FormatPAX
		}
		h.PAXRecords[paxXattr+x[0]] = x[1]
	}
	if h.Typeflag != tar.TypeReg {
		return w.tw.WriteHeader(h)
	}
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := w.tw.WriteHeader(h); err != nil {
		return err
	}
	// A file that grows meanwhile is cut, one that shrinks is an error.
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tw}, io.LimitReader(f, h.Size), w.buf)
	if err == nil && n != h.Size {
		err = fmt.Errorf("%s changed while it was read", name)
	}
	return err
}

// readXattrs returns the attributes of a file that belong into an image, sorted.
func readXattrs(full string) [][2]string {
	buf := make([]byte, 1024)
	n, err := unix.Llistxattr(full, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10)
		n, err = unix.Llistxattr(full, buf)
	}
	if err != nil || n == 0 {
		return nil
	}
	var out [][2]string
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if !keepXattr(name) {
			continue
		}
		value := make([]byte, 64<<10)
		if m, err := unix.Lgetxattr(full, name, value); err == nil {
			out = append(out, [2]string{name, string(value[:m])})
		}
	}
	sort.Slice(out, func(a, b int) bool { return out[a][0] < out[b][0] })
	return out
}

// CopyXattrs gives file to the attributes of file from that belong into an
// image.
func CopyXattrs(from, to string) error {
	for _, x := range readXattrs(from) {
		if err := unix.Lsetxattr(to, x[0], []byte(x[1]), 0); err != nil && err != unix.ENOTSUP {
			return &os.PathError{Op: "set attribute " + x[0], Path: to, Err: err}
		}
	}
	return nil
}

// ImportDir stores directory dir as an image of one layer: a root file system
// that another program made.
func ImportDir(ctx context.Context, images *image.Store, dir string, opts image.ImportOptions) (*image.Image, error) {
	r, w := io.Pipe()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := WriteLayer(gctx, w, dir)
		w.CloseWithError(err)
		return err
	})
	opts.RootFS = true
	imgs, err := images.Import(ctx, r, opts)
	r.CloseWithError(err)
	if err := errors.Join(g.Wait(), err); err != nil {
		return nil, err
	}
	return imgs[0], nil
}
