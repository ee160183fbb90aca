package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// hostPath is a path of the host, checked against the type that the pod expects.
type hostPath struct{}

func (hostPath) Name() string              { return "kubernetes.io~host-path" }
func (hostPath) Has(v *corev1.Volume) bool { return v.HostPath != nil }

// HasPersistent implements Persistent.
func (hostPath) HasPersistent(s *corev1.PersistentVolumeSource) bool { return s.HostPath != nil }

func (hostPath) Setup(_ context.Context, m *Mount) (string, time.Time, error) {
	source := m.Volume.HostPath
	if m.PV != nil {
		source = m.PV.Spec.HostPath
	}
	path := source.Path
	want := corev1.HostPathUnset
	if t := source.Type; t != nil {
		want = *t
	}
	if want == corev1.HostPathUnset {
		return path, time.Time{}, nil
	}
	st, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return "", time.Time{}, fmt.Errorf("hostPath type check failed: %w", err)
	}
	if missing {
		switch want {
		case corev1.HostPathDirectoryOrCreate:
			err = os.MkdirAll(path, 0o755)
		case corev1.HostPathFileOrCreate:
			err = createFile(path)
		default:
			err = nil
		}
		if err != nil {
			return "", time.Time{}, fmt.Errorf("hostPath %s: %w", path, err)
		}
		st, err = os.Stat(path)
	}
	is := func(ok func(os.FileMode) bool) bool { return err == nil && ok(st.Mode()) }
	var fits bool
	what := ""
	switch want {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		fits, what = is(os.FileMode.IsDir), "a directory"
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		fits, what = is(os.FileMode.IsRegular), "a file"
	case corev1.HostPathSocket:
		fits, what = is(func(m os.FileMode) bool { return m&os.ModeSocket != 0 }), "a socket file"
	case corev1.HostPathCharDev:
		fits, what = is(func(m os.FileMode) bool { return m&os.ModeCharDevice != 0 }), "a character device"
	case corev1.HostPathBlockDev:
		fits, what = is(func(m os.FileMode) bool { return m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0 }), "a block device"
	default:
		return "", time.Time{}, fmt.Errorf("%s is an invalid volume type", want)
	}
	if !fits {
		return "", time.Time{}, fmt.Errorf("hostPath type check failed: %s is not %s", path, what)
	}
	return path, time.Time{}, nil
}

func createFile(path string) error {
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
