package volume

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// image is an image of containers (KEP-4639). The kubelet pulls it and the runtime
// mounts it, for each container anew: the volume's own directory stays empty.
type image struct{}

func (image) Name() string              { return "kubernetes.io~image" }
func (image) Has(v *corev1.Volume) bool { return v.Image != nil }

func (image) Setup(_ context.Context, m *Mount) (string, time.Time, error) {
	if err := os.MkdirAll(m.Dir, 0o750); err != nil {
		return "", time.Time{}, fmt.Errorf("make directory of image volume: %w", err)
	}
	return m.Dir, time.Time{}, nil
}
