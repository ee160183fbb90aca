package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Options is the overlay's data string for mount(2). It may be longer than the
// page that the kernel copies: Mount and Open know a way round that.
func (r Rootfs) Options() string {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	lower := make([]string, len(r.Lower))
	for i, l := range r.Lower {
		lower[i] = escape(l)
	}
	o := "lowerdir=" + strings.Join(lower, ":")
	if r.Upper != "" {
		o += ",upperdir=" + escape(r.Upper) + ",workdir=" + escape(r.Work)
	}
	return o + ",index=off,redirect_dir=off,metacopy=off"
}

// Mount mounts the rootfs at target, in the caller's mount namespace. flags are
// MOUNT_ATTR_* flags (unix.MOUNT_ATTR_RDONLY, say).
func (r Rootfs) Mount(target string, flags int) error {
	f, err := r.open(flags)
	if errors.Is(err, errOldKernel) {
		return r.mountOld(target, flags)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount rootfs", Path: target, Err: err}
	}
	return nil
}

// Open mounts the rootfs nowhere: the result is its root directory, and the
// mount ends with it. Paths below /proc/self/fd/<fd> lead into it.
func (r Rootfs) Open() (*os.File, error) {
	f, err := r.open(0)
	if errors.Is(err, errOldKernel) {
		return r.openOld()
	}
	return f, err
}

// errOldKernel: the kernel cannot be handed layers one by one, or refuses them
// that way; mount(2) will do, or say why not.
var errOldKernel = errors.New("overlayfs without lowerdir+")

// single tells whether the rootfs is one read-only directory, which overlayfs
// refuses.
func (r Rootfs) single() bool { return r.Upper == "" && len(r.Lower) == 1 }

func (r Rootfs) open(flags int) (*os.File, error) {
	if r.single() {
		fd, err := unix.OpenTree(unix.AT_FDCWD, r.Lower[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("open tree %s: %w", r.Lower[0], err)
		}
		f := os.NewFile(uintptr(fd), "rootfs")
		attr := unix.MountAttr{Attr_set: uint64(flags) | unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			f.Close()
			return nil, fmt.Errorf("make rootfs read-only: %w", err)
		}
		return f, nil
	}
	r.again()
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return nil, errOldKernel
	}
	if err != nil {
		return nil, fmt.Errorf("overlayfs: %w", err)
	}
	defer unix.Close(ctx)
	for _, l := range r.Lower {
		if err := unix.FsconfigSetString(ctx, "lowerdir+", l); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return nil, errOldKernel // or a path too long for it: the old way knows
			}
			return nil, fmt.Errorf("overlayfs: layer %s: %w", l, err)
		}
	}
	set := [][2]string{{"index", "off"}, {"redirect_dir", "off"}, {"metacopy", "off"}}
	if r.Upper != "" {
		set = append(set, [2]string{"upperdir", r.Upper}, [2]string{"workdir", r.Work})
	}
	for _, kv := range set {
		if err := unix.FsconfigSetString(ctx, kv[0], kv[1]); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return nil, errOldKernel
			}
			return nil, fmt.Errorf("overlayfs: %s %s: %w", kv[0], kv[1], err)
		}
	}
	if r.Upper != "" {
		// Where the kernel has it (5.10); without, unmounting syncs the disk.
		if err := unix.FsconfigSetFlag(ctx, "volatile"); err != nil && !errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("overlayfs: volatile: %w", err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		// Older kernels take any option before, and look at them only here.
		if errors.Is(err, unix.EINVAL) {
			return nil, errOldKernel
		}
		return nil, fmt.Errorf("overlayfs: %w", err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, flags)
	if err != nil {
		return nil, fmt.Errorf("overlayfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}

// incompat is where overlayfs marks, below its work directory, that it was mounted
// without syncing anything ("volatile"): it refuses to mount that again while the mark
// is there.
const incompat = "work/incompat"

// again lets a writable rootfs be mounted a second time: after a volatile mount
// overlayfs wants to be told that the machine did not crash in between. Where it
// did, containers are made anew.
func (r Rootfs) again() {
	if r.Work != "" {
		os.RemoveAll(filepath.Join(r.Work, incompat))
	}
}

// maxOptions is what mount(2) copies: a page, with its last byte zero.
const maxOptions = 4095

// mountOld mounts with mount(2), relative to a descriptor of the layers'
// directory where the options would not fit otherwise.
func (r Rootfs) mountOld(target string, flags int) error {
	mflags := uintptr(0)
	for attr, ms := range map[int]uintptr{
		unix.MOUNT_ATTR_RDONLY: unix.MS_RDONLY, unix.MOUNT_ATTR_NOSUID: unix.MS_NOSUID,
		unix.MOUNT_ATTR_NODEV: unix.MS_NODEV, unix.MOUNT_ATTR_NOEXEC: unix.MS_NOEXEC,
	} {
		if flags&attr != 0 {
			mflags |= ms
		}
	}
	if r.single() {
		if err := unix.Mount(r.Lower[0], target, "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "mount rootfs", Path: target, Err: err}
		}
		return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|mflags, "")
	}
	options := r.Options()
	if len(options) > maxOptions {
		dir, err := os.Open(filepath.Dir(r.Lower[0]))
		if err != nil {
			return err
		}
		defer dir.Close()
		short := Rootfs{Upper: r.Upper, Work: r.Work}
		for _, l := range r.Lower {
			if filepath.Dir(l) != dir.Name() {
				return fmt.Errorf("mount rootfs: %d layers of different directories do not fit into the mount options", len(r.Lower))
			}
			short.Lower = append(short.Lower, at(int(dir.Fd()), filepath.Base(l)))
		}
		options = short.Options()
	}
	if len(options) > maxOptions {
		return fmt.Errorf("mount rootfs: %d layers do not fit into the mount options", len(r.Lower))
	}
	r.again()
	err := unix.EINVAL
	if volatile := options + ",volatile"; r.Upper != "" && len(volatile) <= maxOptions {
		err = errno(unix.Mount("overlay", target, "overlay", mflags, volatile))
	}
	if err == unix.EINVAL {
		err = errno(unix.Mount("overlay", target, "overlay", mflags, options))
	}
	if err != 0 {
		return &os.PathError{Op: "mount rootfs", Path: target, Err: err}
	}
	return nil
}

func errno(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}

// openOld does Open's work with mount(2): in a mount namespace that ends at
// once, and with it every name of the mount.
func (r Rootfs) openOld() (f *os.File, err error) {
	done := make(chan struct{})
	go r.openOnThread(done, &f, &err)
	<-done
	return f, err
}

func (r Rootfs) openOnThread(done chan struct{}, f **os.File, err *error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The process is known by its first thread, which must stay as it is.
		// While it is locked here the next goroutine runs on another.
		defer runtime.UnlockOSThread()
		go r.openOnThread(done, f, err)
		<-done
		return
	}
	// Never unlocked: the thread ends with the goroutine, since it is no longer
	// like the others.
	defer close(done)
	*f, *err = r.openInNamespace()
}

func (r Rootfs) openInNamespace() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("mount namespace: %w", err)
	}
	// Any directory will do, since nobody else sees it covered.
	target := filepath.Dir(r.Lower[0])
	if r.Work != "" {
		target = filepath.Join(filepath.Dir(r.Work), "fs")
	}
	if err := r.mountOld(target, 0); err != nil {
		return nil, err
	}
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: target, Err: err}
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}
