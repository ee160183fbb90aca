package volume

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// fsGroup is the group that owns the pod's volumes, nil where none is asked for.
func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// giveTo makes a tree readable, and unless readOnly writable, for a group; new
// files in its directories will belong to it.
func giveTo(dir string, group *int64, readOnly bool) error {
	if group == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type()&fs.ModeSymlink != 0 {
			return os.Lchown(path, -1, int(*group))
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		mode := st.Mode&0o7777 | 0o660
		if readOnly {
			mode = st.Mode&0o7777 | 0o440
		}
		if e.IsDir() {
			mode |= unix.S_ISGID | 0o110
		}
		if err := os.Lchown(path, -1, int(*group)); err != nil {
			return err
		}
		return unix.Chmod(path, mode)
	})
}

// onlyUser is the user that all containers of the pod run as, nil where they
// differ or do not say.
func onlyUser(pod *corev1.Pod) *int64 {
	var user *int64
	of := func(s *corev1.SecurityContext) *int64 {
		if s != nil && s.RunAsUser != nil {
			return s.RunAsUser
		}
		if pod.Spec.SecurityContext != nil {
			return pod.Spec.SecurityContext.RunAsUser
		}
		return nil
	}
	var all []*int64
	for i := range pod.Spec.InitContainers {
		all = append(all, of(pod.Spec.InitContainers[i].SecurityContext))
	}
	for i := range pod.Spec.Containers {
		all = append(all, of(pod.Spec.Containers[i].SecurityContext))
	}
	for i := range pod.Spec.EphemeralContainers {
		all = append(all, of(pod.Spec.EphemeralContainers[i].SecurityContext))
	}
	for _, u := range all {
		if u == nil || user != nil && *u != *user {
			return nil
		}
		user = u
	}
	return user
}
