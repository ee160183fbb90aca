package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/startspec"
)

// mountOverlay mounts o at target. Where what the container writes does not outlive it,
// nothing of it is synced to the disk ("volatile"), if the kernel can do that. With
// users, the owners of what is in the layers are mapped.
func mountOverlay(target string, o *startspec.Overlay, users *os.File) error {
	if len(o.Lower) == 0 {
		return errors.New("no layers")
	}
	single := o.Upper == "" && len(o.Lower) == 1
	if users != nil && single {
		return mountMapped(o.Lower[0], target, users, unix.MOUNT_ATTR_RDONLY)
	}
	if users != nil {
		var err error
		if o, err = mapLayers(target, o, users); err != nil {
			return err
		}
	}
	if single {
		if err := unix.Mount(o.Lower[0], target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	err := mountOverlayFD(target, o, !o.Durable)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		err = mountOverlayOld(target, o)
	}
	return err
}

// mountOverlayFD adds one layer at a time (since Linux 6.5): the old call takes
// no more options than fit a page.
func mountOverlayFD(target string, o *startspec.Overlay, volatile bool) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	set := func(k, v string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, k, v); err != nil {
				err = fmt.Errorf("overlay option %s=%s: %w", k, v, err)
			}
		}
	}
	for _, l := range o.Lower {
		set("lowerdir+", l)
	}
	if o.Upper != "" {
		set("upperdir", o.Upper)
		set("workdir", o.Work)
		if volatile && err == nil {
			if err = unix.FsconfigSetFlag(fs, "volatile"); err != nil {
				return mountOverlayFD(target, o, false)
			}
		}
	}
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("overlay at %s: %w", target, err)
	}
	return nil
}

func mountOverlayOld(target string, o *startspec.Overlay) error {
	esc := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace
	lower := make([]string, len(o.Lower))
	for i, l := range o.Lower {
		lower[i] = esc(l)
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	if o.Upper != "" {
		data += ",upperdir=" + esc(o.Upper) + ",workdir=" + esc(o.Work)
	}
	return unix.Mount("overlay", target, "overlay", 0, data)
}
