package volume

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// configMap is the keys of a config map as files.
type configMap struct{}

func (configMap) Name() string              { return "kubernetes.io~configmap" }
func (configMap) Has(v *corev1.Volume) bool { return v.ConfigMap != nil }

func (configMap) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	v := m.Volume.ConfigMap
	files := map[string]file{}
	if err := addConfigMap(ctx, m, files, v.Name, v.Items, v.DefaultMode, isOptional(v.Optional)); err != nil {
		return "", time.Time{}, err
	}
	return m.Dir, time.Time{}, writeFiles(m.Dir, files, fsGroup(m.Pod))
}

// addConfigMap adds a config map's keys, or the items chosen of them.
func addConfigMap(ctx context.Context, m *Mount, files map[string]file, name string, items []corev1.KeyToPath, def *int32, optional bool) error {
	cm, err := m.Sources.ConfigMap(ctx, m.Pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional {
			return nil
		}
		return err
	}
	data := map[string][]byte{}
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return addKeys(files, data, items, def, optional, "configmap references non-existent config key: %s")
}
