package volume

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// secret is the keys of a secret as files, in memory.
type secret struct{}

func (secret) Name() string              { return "kubernetes.io~secret" }
func (secret) Has(v *corev1.Volume) bool { return v.Secret != nil }

func (secret) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	v := m.Volume.Secret
	files := map[string]file{}
	if err := addSecret(ctx, m, files, v.SecretName, v.Items, v.DefaultMode, isOptional(v.Optional)); err != nil {
		return "", time.Time{}, err
	}
	dir, err := m.Memory()
	if err != nil {
		return "", time.Time{}, err
	}
	return dir, time.Time{}, writeFiles(dir, files, fsGroup(m.Pod))
}

// addSecret adds a secret's keys, or the items chosen of them.
func addSecret(ctx context.Context, m *Mount, files map[string]file, name string, items []corev1.KeyToPath, def *int32, optional bool) error {
	s, err := m.Sources.Secret(ctx, m.Pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional {
			return nil
		}
		return err
	}
	return addKeys(files, s.Data, items, def, optional, "references non-existent secret key: %s")
}
