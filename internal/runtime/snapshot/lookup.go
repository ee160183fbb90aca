package snapshot

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds how many symbolic links one path may go through, as the
// kernel does.
const maxLinks = 40

// forget drops the cached directory.
func (u *unpacker) forget() {
	if u.cachedFD >= 0 {
		unix.Close(u.cachedFD)
	}
	u.cachedFD, u.cachedDir = -1, ""
}

// parent returns a descriptor of the directory dir of the layer, which it makes
// where missing. The descriptor is valid until the next call.
func (u *unpacker) parent(dir string) (int, error) {
	if dir == "" {
		return u.root, nil
	}
	if dir == u.cachedDir {
		return u.cachedFD, nil
	}
	u.forget()
	fd, err := u.openDir(dir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		var resolved string
		if resolved, err = u.makeDirs(dir); err != nil {
			return -1, err
		}
		if resolved == "" {
			resolved = "."
		}
		fd, err = u.openDir(resolved)
	}
	if err != nil {
		return -1, fmt.Errorf("directory %q: %w", dir, err)
	}
	u.cachedDir, u.cachedFD = dir, fd
	return fd, nil
}

func (u *unpacker) openDir(dir string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(u.root, dir, &how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// makeDirs makes the directories of dir that the layer lacks, as the layers
// below have them, and returns where dir really is after symbolic links.
func (u *unpacker) makeDirs(dir string) (string, error) {
	var cur []string
	pending := strings.Split(dir, "/")
	for links := 0; len(pending) > 0; {
		comp := pending[0]
		pending = pending[1:]
		switch comp {
		case "", ".":
			continue
		case "..":
			cur = cur[:max(len(cur)-1, 0)]
			continue
		}
		here := "."
		if len(cur) > 0 {
			here = strings.Join(cur, "/")
		}
		fd, err := u.openDir(here)
		if err != nil {
			return "", fmt.Errorf("directory %q: %w", here, err)
		}
		target, err := u.step(fd, path.Join(here, comp), comp)
		unix.Close(fd)
		if err != nil {
			return "", err
		}
		if target == "" {
			cur = append(cur, comp)
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("directory %q: %w", dir, unix.ELOOP)
		}
		if strings.HasPrefix(target, "/") {
			cur = nil
		}
		pending = append(strings.Split(target, "/"), pending...)
	}
	return strings.Join(cur, "/"), nil
}

// step makes sure that comp, in the directory fd, can be entered. It returns a
// symbolic link's target where it is one.
func (u *unpacker) step(fd int, name, comp string) (target string, err error) {
	var st unix.Stat_t
	hidden := false
	switch err := unix.Fstatat(fd, comp, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return "", nil
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return os.Readlink(at(fd, comp))
	case err == nil && isWhiteout(&st):
		hidden = true
		if err := unix.Unlinkat(fd, comp, 0); err != nil {
			return "", err
		}
	case err == nil:
		return "", fmt.Errorf("directory %q: %w", name, unix.ENOTDIR)
	case err != unix.ENOENT:
		return "", err
	}
	mode, uid, gid := uint32(0o755), 0, 0
	if !hidden {
		full, low, err := lookup(u.lowers, name)
		switch {
		case err == nil && low.Mode&unix.S_IFMT == unix.S_IFLNK:
			u.dependent = true
			return os.Readlink(full)
		case err == nil && low.Mode&unix.S_IFMT == unix.S_IFDIR:
			mode, uid, gid = low.Mode&0o7777, int(low.Uid), int(low.Gid)
		}
	}
	if err := unix.Mkdirat(fd, comp, 0o700); err != nil {
		return "", err
	}
	u.implicit[name] = true
	if err := unix.Fchownat(fd, comp, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", err
	}
	if err := unix.Fchmodat(fd, comp, mode, 0); err != nil {
		return "", err
	}
	if hidden {
		return "", unix.Lsetxattr(at(fd, comp), xattrOpaque, []byte("y"), 0)
	}
	return "", nil
}

// lookup finds name in a stack of layers, uppermost first, as overlayfs would,
// without following symbolic links: unix.ENOENT where nothing shows.
func lookup(lowers []string, name string) (string, *unix.Stat_t, error) {
	dirs := lowers
	comps := strings.Split(name, "/")
	for i, comp := range comps {
		var next []string
		var first unix.Stat_t
		var firstPath string
	layers:
		for _, d := range dirs {
			p := filepath.Join(d, comp)
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				continue
			}
			if isWhiteout(&st) {
				break
			}
			isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
			if firstPath == "" {
				first, firstPath = st, p
			}
			if !isDir {
				break layers
			}
			next = append(next, p)
			if opaque(p) {
				break
			}
		}
		if firstPath == "" {
			return "", nil, unix.ENOENT
		}
		if i == len(comps)-1 {
			return firstPath, &first, nil
		}
		if first.Mode&unix.S_IFMT != unix.S_IFDIR {
			return "", nil, unix.ENOTDIR
		}
		dirs = next
	}
	return "", nil, unix.ENOENT
}

func opaque(dir string) bool {
	var b [1]byte
	n, err := unix.Lgetxattr(dir, xattrOpaque, b[:])
	return err == nil && n == 1 && b[0] == 'y'
}
