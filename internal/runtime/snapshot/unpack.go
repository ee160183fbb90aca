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
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whPrefix = ".wh."
	whMeta   = ".wh..wh."
	whOpaque = ".wh..wh..opq"

	xattrOpaque = "trusted.overlay.opaque"
	paxXattr    = "SCHILY.xattr."
)

// unpacker writes one layer's tar into a directory.
type unpacker struct {
	root   int      // the directory's descriptor
	lowers []string // what is below, uppermost first
	// plain takes whiteouts for ordinary files.
	plain bool
	// dependent is set when the result depends on lowers.
	dependent bool
	// alone is set when the layer hides all that is below it.
	alone    bool
	implicit map[string]bool      // directories that no entry has named so far
	times    map[string]time.Time // of directories, set last
	buf      []byte

	cachedDir string // the directory that cachedFD is; "" for none
	cachedFD  int
}

// unpack writes the uncompressed tar r into dir, an empty directory, and tells
// whether the result depends on lowers, and whether it hides them all.
func unpack(ctx context.Context, r io.Reader, dir string, lowers []string) (dependent, alone bool, err error) {
	u := &unpacker{lowers: lowers}
	dependent, err = unpackInto(ctx, r, dir, u)
	return dependent, u.alone, err
}

// Extract writes the tar r, uncompressed, into dir, which need not be empty, as
// any archive: whiteouts mean nothing. Nothing outside dir is touched.
func Extract(ctx context.Context, r io.Reader, dir string) error {
	_, err := unpackInto(ctx, r, dir, &unpacker{plain: true})
	return err
}

func unpackInto(ctx context.Context, r io.Reader, dir string, u *unpacker) (dependent bool, err error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	u.root, u.cachedFD, u.buf = root, -1, make([]byte, 256<<10)
	u.implicit, u.times = map[string]bool{}, map[string]time.Time{}
	defer u.forget()
	tr := tar.NewReader(bufio.NewReaderSize(r, 256<<10))
	for {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, fmt.Errorf("read layer: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return false, fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
	// Deepest first: setting a directory's times touches no other.
	dirs := make([]string, 0, len(u.times))
	for d := range u.times {
		dirs = append(dirs, d)
	}
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	for _, d := range dirs {
		if err := u.setDirTime(d, u.times[d]); err != nil {
			return false, fmt.Errorf("unpack %q: %w", d, err)
		}
	}
	return u.dependent || len(u.implicit) > 0, nil
}

// clean returns name as a path in the layer without a leading slash; "" is the
// root.
func clean(name string) (string, error) {
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", fmt.Errorf("%w: %q leaves the layer", ErrUnsafe, name)
	}
	if strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("%w: %q has a zero byte", ErrUnsafe, name)
	}
	if p == "." {
		return "", nil
	}
	return p, nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is no directory", ErrUnsafe)
		}
		return u.rootDir(h)
	}
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	parent, err := u.parent(dir)
	if err != nil {
		return err
	}
	switch {
	case u.plain:
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			return fmt.Errorf("%w: character device 0/0", ErrUnsafe)
		}
	case base == whOpaque && dir == "":
		u.alone = true // overlayfs does not look for the attribute here
		return nil
	case base == whOpaque:
		return unix.Fsetxattr(parent, xattrOpaque, []byte("y"), 0)
	case strings.HasPrefix(base, whMeta):
		return nil // other bookkeeping of aufs
	case strings.HasPrefix(base, whPrefix):
		return u.whiteout(parent, dir, strings.TrimPrefix(base, whPrefix))
	case h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0:
		return u.whiteout(parent, dir, base)
	}
	if base == "." || base == ".." {
		return fmt.Errorf("%w: bad name", ErrUnsafe)
	}

	if h.Typeflag == tar.TypeDir {
		return u.directory(h, parent, name, base)
	}
	return u.create(h, r, parent, dir, base)
}

func (u *unpacker) rootDir(h *tar.Header) error {
	if err := unix.Fchown(u.root, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(u.root, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	u.times["."] = h.ModTime
	return nil
}

// whiteout hides base of the layers below.
func (u *unpacker) whiteout(parent int, dir, base string) error {
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("%w: bad whiteout", ErrUnsafe)
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		// This layer has its own: only what is below goes.
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return unix.Lsetxattr(at(parent, base), xattrOpaque, []byte("y"), 0)
		}
		return nil
	}
	if err != unix.ENOENT {
		return err
	}
	return unix.Mknodat(parent, base, unix.S_IFCHR, 0)
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// at is a path for calls that have no *at form; base is not followed.
func at(fd int, base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", fd, base) }

// makeRoom removes what is at base, if anything, and tells whether that was a
// whiteout.
func (u *unpacker) makeRoom(parent int, base string) (hidden bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.RemoveAll(at(parent, base)); err != nil {
			return false, err
		}
		u.cachedDir = "" // might be below it; the descriptor is still in use
		return false, nil
	}
	return isWhiteout(&st), unix.Unlinkat(parent, base, 0)
}

func (u *unpacker) directory(h *tar.Header, parent int, name, base string) error {
	err := unix.Mkdirat(parent, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			hidden, err := u.makeRoom(parent, base)
			if err != nil {
				return err
			}
			if err := unix.Mkdirat(parent, base, 0o700); err != nil {
				return err
			}
			if hidden {
				if err := unix.Lsetxattr(at(parent, base), xattrOpaque, []byte("y"), 0); err != nil {
					return err
				}
			}
		}
		err = nil
	}
	if err != nil {
		return err
	}
	delete(u.implicit, name)
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(parent, base, uint32(h.Mode&0o7777), 0); err != nil {
		return err
	}
	u.times[name] = h.ModTime
	return setXattrs(parent, base, h)
}

func (u *unpacker) create(h *tar.Header, r io.Reader, parent int, dir, base string) error {
	mode := uint32(h.Mode & 0o7777)
	make := func() error { return nil }
	switch h.Typeflag {
	case tar.TypeReg:
		return u.regular(h, r, parent, base)
	case tar.TypeLink:
		return u.hardLink(h, parent, dir, base)
	case tar.TypeSymlink:
		make = func() error { return unix.Symlinkat(h.Linkname, parent, base) }
	case tar.TypeFifo:
		make = func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|mode, 0) }
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		make = func() error {
			return unix.Mknodat(parent, base, kind|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
		}
	default:
		return fmt.Errorf("%w: entry type %q", ErrUnsafe, h.Typeflag)
	}
	err := make()
	if err == unix.EEXIST {
		if _, err := u.makeRoom(parent, base); err != nil {
			return err
		}
		err = make()
	}
	if err == unix.EPERM && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock) {
		return nil // no device nodes here; containers get their own /dev
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, base, mode, 0); err != nil {
			return err
		}
	}
	if err := setXattrs(parent, base, h); err != nil {
		return err
	}
	return unix.UtimesNanoAt(parent, base, timespecs(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) regular(h *tar.Header, r io.Reader, parent int, base string) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, base, flags, 0o600)
	if err == unix.EEXIST {
		if _, err := u.makeRoom(parent, base); err != nil {
			return err
		}
		fd, err = unix.Openat(parent, base, flags, 0o600)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, u.buf); err != nil {
		return err
	}
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	if err := setXattrs(parent, base, h); err != nil {
		return err
	}
	return unix.UtimesNanoAt(parent, base, timespecs(h), unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) hardLink(h *tar.Header, parent int, dir, base string) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return fmt.Errorf("%w: hard link to the root", ErrUnsafe)
	}
	tdir, tbase := path.Split(target)
	tdir = strings.TrimSuffix(tdir, "/")
	// parent is u's cached descriptor: looking up the target must not close it.
	own, err := unix.FcntlInt(uintptr(parent), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	tparent, err := u.parent(tdir)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(tparent, tbase, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT && len(u.lowers) > 0 {
		u.dependent = true
		err = u.copyUp(target, tparent, tbase)
	} else if err == nil && isWhiteout(&st) {
		err = unix.ENOENT
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
	}
	link := func() error { return unix.Linkat(tparent, tbase, own, base, 0) }
	err = link()
	if err == unix.EEXIST {
		if target == path.Join(dir, base) {
			return nil
		}
		if _, err := u.makeRoom(own, base); err != nil {
			return err
		}
		err = link()
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
	}
	return nil
}

// copyUp copies a file from the layers below into this one.
func (u *unpacker) copyUp(name string, parent int, base string) error {
	full, st, err := lookup(u.lowers, name)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, parent, base); err != nil {
			return err
		}
		return unix.Fchownat(parent, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFREG:
		src, err := os.Open(full)
		if err != nil {
			return err
		}
		defer src.Close()
		fi := tar.Header{
			Uid: int(st.Uid), Gid: int(st.Gid), Mode: int64(st.Mode & 0o7777),
			ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), PAXRecords: map[string]string{},
		}
		for _, x := range readXattrs(full) {
			fi.PAXRecords[paxXattr+x[0]] = x[1]
		}
		return u.regular(&fi, src, parent, base)
	}
	return unix.EPERM
}

func timespecs(h *tar.Header) []unix.Timespec {
	a, m := h.AccessTime, h.ModTime
	if a.IsZero() {
		a = m
	}
	return []unix.Timespec{unix.NsecToTimespec(a.UnixNano()), unix.NsecToTimespec(m.UnixNano())}
}

func (u *unpacker) setDirTime(name string, t time.Time) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(u.root, name, &how)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil // replaced by a later entry
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{ts, ts}, 0)
}

// keepXattr tells whether a tar may set the attribute.
func keepXattr(name string) bool {
	return name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default" ||
		strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay.")
}

func setXattrs(parent int, base string, h *tar.Header) error {
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || !keepXattr(name) {
			continue
		}
		err := unix.Lsetxattr(at(parent, base), name, []byte(v), 0)
		// Not every file system has every attribute; nor has a symbolic link.
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
