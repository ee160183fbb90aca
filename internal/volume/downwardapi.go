package volume

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// downwardAPI is fields of the pod as files, in memory.
type downwardAPI struct{}

func (downwardAPI) Name() string              { return "kubernetes.io~downward-api" }
func (downwardAPI) Has(v *corev1.Volume) bool { return v.DownwardAPI != nil }

func (downwardAPI) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	v := m.Volume.DownwardAPI
	files := map[string]file{}
	if err := addDownward(ctx, m, files, v.Items, v.DefaultMode); err != nil {
		return "", time.Time{}, err
	}
	dir, err := m.Memory()
	if err != nil {
		return "", time.Time{}, err
	}
	return dir, time.Time{}, writeFiles(dir, files, fsGroup(m.Pod))
}

// addDownward adds fields of the pod.
func addDownward(ctx context.Context, m *Mount, files map[string]file, items []corev1.DownwardAPIVolumeFile, def *int32) error {
	for _, it := range items {
		var v string
		var err error
		switch {
		case it.FieldRef != nil:
			v, err = m.Sources.Field(ctx, m.Pod, it.FieldRef)
		case it.ResourceFieldRef != nil:
			v, err = m.Sources.Resource(ctx, m.Pod, it.ResourceFieldRef.ContainerName, it.ResourceFieldRef)
		}
		if err != nil {
			return err
		}
		files[it.Path] = file{data: []byte(v), mode: mode(it.Mode, def)}
	}
	return nil
}
