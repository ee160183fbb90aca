package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/startspec"
)

// makeRoot makes the directory root, in this mount namespace alone: over its parent a
// file system is mounted that everyone may pass through. From then on nothing that is
// mounted here gets to the host.
func makeRoot(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount namespace of its own: %w", err)
	}
	dir := filepath.Dir(root)
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: dir, Err: err}
	}
	return os.Mkdir(root, 0o755)
}

// mapped is a copy of the mount at path, with attr set, that shows the owners of files
// as users has them.
func mapped(path string, users *os.File, attr uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP | attr, Userns_fd: uint64(users.Fd()),
	})
	if err != nil {
		unix.Close(fd)
		hint := ""
		if errors.Is(err, unix.EINVAL) {
			hint = " (maybe the filesystem used doesn't support idmap mounts on this kernel?)"
		}
		return -1, fmt.Errorf("failed to set MOUNT_ATTR_IDMAP on %s: %w%s", path, err, hint)
	}
	return fd, nil
}

// mapLayers makes the layers of o available with their owners mapped, below target: what
// is mounted at target next hides them there.
func mapLayers(target string, o *startspec.Overlay, users *os.File) (*startspec.Overlay, error) {
	if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return nil, &os.PathError{Op: "mount tmpfs", Path: target, Err: err}
	}
	out := &startspec.Overlay{Upper: o.Upper, Work: o.Work, Durable: o.Durable}
	for i, l := range o.Lower {
		at := filepath.Join(target, strconv.Itoa(i))
		if err := os.Mkdir(at, 0o755); err != nil {
			return nil, err
		}
		if err := mountMapped(l, at, users, 0); err != nil {
			return nil, err
		}
		out.Lower = append(out.Lower, at)
	}
	return out, nil
}

// mountMapped mounts mapped at target.
func mountMapped(path, target string, users *os.File, attr uint64) error {
	fd, err := mapped(path, users, attr)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// giveStdio gives the pipes that a process in a user namespace will have to the root
// there: of what belongs to nobody there, nobody could open /dev/stdout.
func giveStdio(config *configs.Config) error {
	uid, err := config.HostRootUID()
	if err != nil {
		return err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return err
	}
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue // a file of the host's, /dev/null for one, stays its own
		}
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("give descriptor %d to the user namespace: %w", fd, err)
		}
	}
	return nil
}
