package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// inVolume keeps a look-up inside the directory it begins at: a symbolic link that
// leads out, or an absolute one, is an error.
const inVolume = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// SubPath makes subPath of a volume a mount of its own and returns where. What is
// mounted is what was looked up: whoever can write to the volume cannot exchange
// it for something outside. A path that does not exist is made, as a directory.
func (s *Set) SubPath(ctx context.Context, pod *corev1.Pod, container string, index int, mount corev1.VolumeMount, subPath string) (string, error) {
	if filepath.IsAbs(subPath) {
		return "", fmt.Errorf("subPath %q: must not be an absolute path", subPath)
	}
	for _, e := range strings.Split(subPath, "/") {
		if e == ".." {
			return "", fmt.Errorf("subPath %q: must not contain '..'", subPath)
		}
	}
	var vol *corev1.Volume
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == mount.Name {
			vol = &pod.Spec.Volumes[i]
		}
	}
	if vol == nil {
		return "", fmt.Errorf("volume %q: the pod has none of this name", mount.Name)
	}
	root, err := s.path(ctx, pod, vol)
	if err != nil {
		return "", err
	}
	if err := s.note(); err != nil {
		return "", err
	}
	defer s.lock(pod.UID)()
	fd, err := openIn(root, subPath)
	if err != nil {
		return "", fmt.Errorf("subPath %q of volume %q: %w", subPath, vol.Name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("subPath %q of volume %q: %w", subPath, vol.Name, err)
	}
	target := filepath.Join(s.podDir(pod.UID), "volume-subpaths", vol.Name, container, strconv.Itoa(index))
	if err := s.target(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("mount subPath %q of volume %q: %w", subPath, vol.Name, err)
	}
	return target, nil
}

// path is where a volume that Setup made is.
func (s *Set) path(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	if v.HostPath != nil {
		return v.HostPath.Path, nil
	}
	pv, _, err := s.typeOf(ctx, pod, v)
	switch {
	case err != nil:
		return "", fmt.Errorf("volume %q: %w", v.Name, err)
	case pv != nil && pv.Spec.Local != nil:
		return pv.Spec.Local.Path, nil
	case pv != nil && pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, nil
	}
	for _, t := range s.d.Types {
		if !t.Has(v) {
			continue
		}
		for _, dir := range []string{
			filepath.Join(s.memoryDir(), string(pod.UID), t.Name(), v.Name),
			filepath.Join(s.podDir(pod.UID), "volumes", t.Name(), v.Name),
		} {
			if st, err := os.Lstat(dir); err == nil && st.IsDir() {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("volume %q: not set up", v.Name)
}

// target makes an empty place to mount on, free of a former instance's mount.
func (s *Set) target(path string, dir bool) error {
	if err := unmountBelow(path); err != nil {
		return err
	}
	if st, err := os.Lstat(path); err == nil && st.IsDir() != dir {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
	}
	if dir {
		if err := os.MkdirAll(path, 0o750); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	return f.Close()
}

// openIn opens a path inside root, making what is missing with root's permissions.
func openIn(root, path string) (int, error) {
	base, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(base)
	open := func(at int, p string) (int, error) {
		for {
			fd, err := unix.Openat2(at, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: inVolume})
			// The kernel gives up where something was renamed meanwhile.
			if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return fd, err
			}
		}
	}
	clean := filepath.Clean(path)
	fd, err := open(base, clean)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(base, &st); err != nil {
		return -1, err
	}
	at := ""
	for _, e := range strings.Split(clean, "/") {
		parent := base
		if at != "" {
			if parent, err = open(base, at); err != nil {
				return -1, err
			}
		}
		err := unix.Mkdirat(parent, e, st.Mode&0o7777)
		if err == nil {
			// The umask has no say here.
			if fd, err := open(parent, e); err == nil {
				_ = os.Chmod("/proc/self/fd/"+strconv.Itoa(fd), os.FileMode(st.Mode&0o777)|special(st.Mode))
				_ = unix.Fchownat(fd, "", -1, int(st.Gid), unix.AT_EMPTY_PATH)
				unix.Close(fd)
			}
		}
		if parent != base {
			unix.Close(parent)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
		at = filepath.Join(at, e)
	}
	return open(base, clean)
}

func special(mode uint32) (m os.FileMode) {
	if mode&unix.S_ISGID != 0 {
		m |= os.ModeSetgid
	}
	if mode&unix.S_ISUID != 0 {
		m |= os.ModeSetuid
	}
	if mode&unix.S_ISVTX != 0 {
		m |= os.ModeSticky
	}
	return m
}
