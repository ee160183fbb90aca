package volume

import (
	"context"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func mode(own, byDefault *int32) os.FileMode {
	m := int32(0o644)
	if byDefault != nil {
		m = *byDefault
	}
	if own != nil {
		m = *own
	}
	// The wire has the Unix bits.
	return os.FileMode(m) & os.ModePerm
}

func isOptional(o *bool) bool { return o != nil && *o }

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

func addKeys(files map[string]file, data map[string][]byte, items []corev1.KeyToPath, def *int32, optional bool, missing string) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v, mode: mode(nil, def)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf(missing, it.Key)
		}
		files[it.Path] = file{data: v, mode: mode(it.Mode, def)}
	}
	return nil
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

// projected is several sources in one directory.
type projected struct{}

func (projected) Name() string              { return "kubernetes.io~projected" }
func (projected) Has(v *corev1.Volume) bool { return v.Projected != nil }

func (projected) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	v := m.Volume.Projected
	files := map[string]file{}
	var refresh time.Time
	for i := range v.Sources {
		s := &v.Sources[i]
		var err error
		switch {
		case s.ConfigMap != nil:
			err = addConfigMap(ctx, m, files, s.ConfigMap.Name, s.ConfigMap.Items, v.DefaultMode, isOptional(s.ConfigMap.Optional))
		case s.Secret != nil:
			err = addSecret(ctx, m, files, s.Secret.Name, s.Secret.Items, v.DefaultMode, isOptional(s.Secret.Optional))
		case s.DownwardAPI != nil:
			err = addDownward(ctx, m, files, s.DownwardAPI.Items, v.DefaultMode)
		case s.ServiceAccountToken != nil:
			var at time.Time
			if at, err = addToken(ctx, m, files, s.ServiceAccountToken, v.DefaultMode); err == nil && (refresh.IsZero() || at.Before(refresh)) {
				refresh = at
			}
		default:
			err = fmt.Errorf("projected source %d: this kind is not supported", i)
		}
		if err != nil {
			return "", time.Time{}, err
		}
	}
	dir, err := m.Memory()
	if err != nil {
		return "", time.Time{}, err
	}
	return dir, refresh, writeFiles(dir, files, fsGroup(m.Pod))
}

// addToken adds a token of the pod's service account. Where the pod's containers
// run as one user, or volumes belong to a group, nobody else may read it.
func addToken(ctx context.Context, m *Mount, files map[string]file, t *corev1.ServiceAccountTokenProjection, def *int32) (time.Time, error) {
	seconds := int64(3600)
	if t.ExpirationSeconds != nil {
		seconds = *t.ExpirationSeconds
	}
	value, refresh, err := m.Sources.Token(ctx, m.Pod, t.Audience, seconds)
	if err != nil {
		return time.Time{}, err
	}
	f := file{data: []byte(value), mode: mode(nil, def), user: onlyUser(m.Pod)}
	if f.user != nil || fsGroup(m.Pod) != nil {
		f.mode = 0o600
	}
	files[t.Path] = f
	return refresh, nil
}
