package volume

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// emptyDir is a directory that lives as long as its pod: on disk, or a tmpfs of
// its own with medium Memory, or huge pages.
type emptyDir struct{}

func (emptyDir) Name() string              { return "kubernetes.io~empty-dir" }
func (emptyDir) Has(v *corev1.Volume) bool { return v.EmptyDir != nil }

func (emptyDir) Setup(_ context.Context, m *Mount) (string, time.Time, error) {
	e := m.Volume.EmptyDir
	_, statErr := os.Lstat(m.Dir)
	if err := os.MkdirAll(m.Dir, 0o777); err != nil {
		return "", time.Time{}, fmt.Errorf("make emptyDir: %w", err)
	}
	fresh := statErr != nil
	if e.Medium != corev1.StorageMediumDefault {
		mounted, err := isMountPoint(m.Dir)
		if err != nil {
			return "", time.Time{}, err
		}
		if !mounted {
			if err := mountMedium(m, e); err != nil {
				return "", time.Time{}, err
			}
			fresh = true
		}
	}
	if fresh {
		// The umask has no say here; what containers changed later stays.
		if err := unix.Chmod(m.Dir, 0o777); err != nil {
			return "", time.Time{}, fmt.Errorf("make emptyDir: %w", err)
		}
		if err := giveTo(m.Dir, fsGroup(m.Pod), false); err != nil {
			return "", time.Time{}, fmt.Errorf("set group of emptyDir: %w", err)
		}
	}
	return m.Dir, time.Time{}, nil
}

func mountMedium(m *Mount, e *corev1.EmptyDirVolumeSource) error {
	size, hasSize := int64(0), false
	if e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
		size, hasSize = e.SizeLimit.Value(), true
	}
	switch medium := string(e.Medium); {
	case e.Medium == corev1.StorageMediumMemory:
		if limit, ok := memoryLimit(m.Pod); ok && (!hasSize || limit < size) {
			size, hasSize = limit, true
		}
		options := "mode=0777"
		if hasSize {
			options += fmt.Sprintf(",size=%d", size)
		}
		if err := mountTmpfs(m.Dir, 0, options); err != nil {
			return fmt.Errorf("mount tmpfs for emptyDir: %w", err)
		}
		return nil
	case strings.HasPrefix(medium, string(corev1.StorageMediumHugePagesPrefix)), e.Medium == corev1.StorageMediumHugePages:
		page := strings.TrimPrefix(medium, string(corev1.StorageMediumHugePagesPrefix))
		if e.Medium == corev1.StorageMediumHugePages {
			page = "2Mi"
		}
		options := "pagesize=" + strings.TrimSuffix(page, "i")
		if hasSize {
			options += fmt.Sprintf(",size=%d", size)
		}
		if err := unix.Mount("nodev", m.Dir, "hugetlbfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return fmt.Errorf("mount huge pages for emptyDir: %w", err)
		}
		return nil
	}
	return fmt.Errorf("unknown storage medium %q", e.Medium)
}

// memoryLimit is what the pod's containers may use together; false where one of
// them has no limit.
func memoryLimit(pod *corev1.Pod) (int64, bool) {
	if r := pod.Spec.Resources; r != nil {
		if q, ok := r.Limits[corev1.ResourceMemory]; ok {
			return q.Value(), true
		}
	}
	var sum int64
	for i := range pod.Spec.Containers {
		q, ok := pod.Spec.Containers[i].Resources.Limits[corev1.ResourceMemory]
		if !ok || q.IsZero() {
			return 0, false
		}
		sum += q.Value()
	}
	return sum, sum > 0
}
