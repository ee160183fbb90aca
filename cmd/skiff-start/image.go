package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/startspec"
)

// mountImage makes an image ready to be bound into the container. What an image
// has in place of the part that is asked for, a link to the host say, is looked up
// inside the image.
func mountImage(i startspec.Image, users *os.File) error {
	// A file system of its own takes the mount points: a part may be a file.
	if err := unix.Mount("tmpfs", i.At, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: i.At, Err: err}
	}
	root := filepath.Join(i.At, startspec.ImageRoot)
	if err := os.Mkdir(root, 0o700); err != nil {
		return err
	}
	if err := mountOverlay(root, &startspec.Overlay{Lower: i.Lower}, users); err != nil {
		return err
	}
	if i.Sub == "" {
		return nil
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, i.Sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("the image has no %q", i.Sub)
	}
	if err != nil {
		return fmt.Errorf("open %q of the image: %w", i.Sub, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("open %q of the image: %w", i.Sub, err)
	}
	part := filepath.Join(i.At, startspec.ImageSub)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(part, 0o700)
	case unix.S_IFREG:
		err = os.WriteFile(part, nil, 0o600)
	default:
		return fmt.Errorf("%q of the image is neither a directory nor a file", i.Sub)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), part, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %q of the image: %w", i.Sub, err)
	}
	return nil
}
