package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// local is a directory of the node that outlives its pods: a PersistentVolume. The
// directory must be there.
type local struct{}

func (local) Name() string            { return "kubernetes.io~local-volume" }
func (local) Has(*corev1.Volume) bool { return false }

// HasPersistent implements Persistent.
func (local) HasPersistent(s *corev1.PersistentVolumeSource) bool { return s.Local != nil }

func (local) Setup(_ context.Context, m *Mount) (string, time.Time, error) {
	path := m.PV.Spec.Local.Path
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", time.Time{}, fmt.Errorf("path %q does not exist", path)
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("local volume: %w", err)
	}
	if !st.IsDir() {
		return "", time.Time{}, fmt.Errorf("local volume %q is no directory: a device must be formatted and mounted before it is used", path)
	}
	group := fsGroup(m.Pod)
	if group == nil || keepsOwner(m.Pod, path, st, *group) {
		return path, time.Time{}, nil
	}
	if err := giveTo(path, group, m.Volume.PersistentVolumeClaim != nil && m.Volume.PersistentVolumeClaim.ReadOnly); err != nil {
		return "", time.Time{}, fmt.Errorf("applyFSGroup failed for vol %s: %w", m.PV.Name, err)
	}
	return path, time.Time{}, nil
}

// keepsOwner tells that the policy OnRootMismatch finds the volume's root as it is
// to be.
func keepsOwner(pod *corev1.Pod, path string, st fs.FileInfo, group int64) bool {
	p := pod.Spec.SecurityContext.FSGroupChangePolicy
	if p == nil || *p != corev1.FSGroupChangeOnRootMismatch {
		return false
	}
	var x unix.Stat_t
	return unix.Stat(path, &x) == nil && int64(x.Gid) == group && x.Mode&0o060 == 0o060 && st.Mode()&os.ModeSetgid != 0
}

// MakeLocal makes the directory of a local volume that skiff provisions. name is
// that of the PersistentVolume. Any user may write into it: who may is a matter of
// the pod that has the claim.
func (s *Set) MakeLocal(name string) (path string, err error) {
	if path, err = s.localDir(name); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", fmt.Errorf("make local volume: %w", err)
	}
	// A former call may have made it and got no further: its mode is set again,
	// since nobody has it before MakeLocal has answered. The umask has no say.
	err = os.Mkdir(path, 0o777)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = unix.Chmod(path, 0o777)
	}
	if err != nil {
		return "", fmt.Errorf("make local volume: %w", err)
	}
	return path, nil
}

// RemoveLocal removes the directory of a local volume, which may be gone already,
// with all that is in it. It refuses while anything is mounted below it.
func (s *Set) RemoveLocal(name string) error {
	path, err := s.localDir(name)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove local volume: %w", err)
	}
	busy, err := mountsBelow(real)
	if err != nil {
		return fmt.Errorf("remove local volume: %w", err)
	}
	if len(busy) > 0 {
		return fmt.Errorf("remove local volume: %s is mounted in it", busy[0])
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove local volume: %w", err)
	}
	return nil
}

func (s *Set) localDir(name string) (string, error) {
	if e := validation.IsDNS1123Subdomain(name); len(e) > 0 {
		return "", fmt.Errorf("name of local volume %q: %s", name, e[0])
	}
	return s.d.Host.Data("volumes", name), nil
}
