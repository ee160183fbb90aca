package volume

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

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
