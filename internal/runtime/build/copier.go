package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// copier writes files into a root file system.
type copier struct {
	*writer
	ctx      context.Context // of the one copy that the copier is for
	mode     *chmod          // nil keeps the files'
	uid, gid int             // for all files; -1 keeps theirs
	chown    string
	intoDir  bool
}

// owners of directories that copying makes.
func (c *copier) dirOwner() (int, int) { return max(c.uid, 0), max(c.gid, 0) }

func (c *copier) source(src source, dest string) error {
	uid, gid := c.dirOwner()
	if src.dir {
		dest = path.Join(dest, src.keep)
		if _, err := c.mkdirAllAs(dest, uid, gid); err != nil {
			return err
		}
		for _, f := range src.files {
			if err := c.file(f, path.Join(dest, f.rel)); err != nil {
				return fmt.Errorf("copy %s: %w", path.Join(src.name, f.rel), err)
			}
		}
		return nil
	}
	f := src.files[0]
	if src.unpack {
		done, err := c.extract(f, dest)
		if done || err != nil {
			return err
		}
	}
	switch {
	case src.keep != "":
		dest = path.Join(dest, src.keep)
	case c.intoDir || c.isDir(dest):
		dest = path.Join(dest, path.Base(src.name))
	}
	if err := c.file(f, dest); err != nil {
		return fmt.Errorf("copy %s: %w", src.name, err)
	}
	return nil
}

// extract unpacks f into dest, if it is an archive.
func (c *copier) extract(f file, dest string) (bool, error) {
	if !f.info.Mode().IsRegular() {
		return false, nil
	}
	open := func() (*os.File, io.ReadCloser, error) {
		file, err := os.Open(f.full)
		if err != nil {
			return nil, nil, err
		}
		r, err := image.Decompress(file)
		if err != nil {
			file.Close()
			return nil, nil, err
		}
		return file, r, nil
	}
	file, r, err := open()
	if errors.Is(err, image.ErrFormat) {
		return false, fmt.Errorf("ADD %s: %w", f.rel, err)
	}
	if err != nil {
		return false, nil // no archive: something that looks compressed
	}
	_, err = tar.NewReader(r).Next()
	r.Close()
	file.Close()
	if err != nil {
		return false, nil
	}
	if file, r, err = open(); err != nil {
		return false, err
	}
	defer file.Close()
	defer r.Close()
	full, err := c.mkdirAll(dest)
	if err != nil {
		return false, err
	}
	if err := c.keepTime(full); err != nil {
		return false, err
	}
	var content io.Reader = r
	if c.chown != "" {
		owned := c.withOwner(r)
		defer owned.Close()
		content = owned
	}
	if err := snapshot.Extract(c.ctx, content, full); err != nil {
		return false, fmt.Errorf("ADD %s: %w", f.rel, err)
	}
	return true, nil
}

// withOwner is the archive r with all files the copier's owner's. The reader
// must be closed.
func (c *copier) withOwner(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() { // ends with the archive, or when pr is closed
		in, out := tar.NewReader(r), tar.NewWriter(pw)
		for {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				pw.CloseWithError(out.Close())
				return
			}
			if err == nil {
				h.Uid, h.Gid, h.Uname, h.Gname = c.uid, c.gid, "", ""
				err = out.WriteHeader(h)
			}
			if err == nil {
				_, err = io.Copy(out, in)
			}
			if err != nil {
				pw.CloseWithError(err)
				return
			}
		}
	}()
	return pr
}

// file copies one file to a path of the image.
func (c *copier) file(f file, name string) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	st, ok := f.info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("no owner known")
	}
	uid, gid := c.uid, c.gid
	if uid < 0 {
		uid, gid = int(st.Uid), int(st.Gid)
	}
	dirUID, dirGID := c.dirOwner()
	if f.info.IsDir() {
		full, err := c.path(name)
		if err != nil {
			return err
		}
		if fi, err := os.Lstat(full); err == nil && fi.IsDir() {
			return nil // what is there keeps its owner and mode
		}
		if full, err = c.mkdirAllAs(name, dirUID, dirGID); err != nil {
			return err
		}
		c.times[full] = f.info.ModTime()
		return c.meta(f, st, full, uid, gid)
	}
	full, err := c.place(name, dirUID, dirGID)
	if err != nil {
		return err
	}
	switch f.info.Mode() & fs.ModeType {
	case 0:
		err = copyContent(f.full, full)
	case fs.ModeSymlink:
		err = os.Symlink(f.link, full)
	case fs.ModeNamedPipe, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		err = unix.Mknod(full, st.Mode, int(st.Rdev))
	default:
		return fmt.Errorf("a file of kind %s cannot be copied", f.info.Mode().Type())
	}
	if err != nil {
		return err
	}
	return c.meta(f, st, full, uid, gid)
}

func copyContent(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// meta sets owner, mode, attributes and time.
func (c *copier) meta(f file, st *syscall.Stat_t, full string, uid, gid int) error {
	if err := os.Lchown(full, uid, gid); err != nil {
		return err
	}
	if f.info.Mode()&fs.ModeSymlink == 0 {
		mode := c.mode.apply(st.Mode&0o7777, f.info.IsDir())
		if err := unix.Chmod(full, mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: full, Err: err}
		}
	}
	if err := snapshot.CopyXattrs(f.full, full); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(f.info.ModTime().UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// content writes a here document.
func (c *copier) content(src instructions.SourceContent, dest string) error {
	if c.intoDir || c.isDir(dest) {
		dest = path.Join(dest, src.Path)
	}
	uid, gid := c.dirOwner()
	full, err := c.place(dest, uid, gid)
	if err != nil {
		return err
	}
	mode := c.mode.apply(0o644, false)
	if err := os.WriteFile(full, []byte(src.Data), 0o600); err != nil {
		return err
	}
	if err := os.Lchown(full, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(full, mode); err != nil {
		return err
	}
	return os.Chtimes(full, time.Unix(0, 0), time.Unix(0, 0))
}

// readInside opens a file of the image.
func (w *writer) readInside(name string) (*os.File, error) {
	full, err := w.path(name)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: no regular file", name)
	}
	return os.Open(filepath.Clean(full))
}
