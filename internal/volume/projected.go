package volume

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// projected is several sources in one directory.
type projected struct{}

func (projected) Name() string              { return "kubernetes.io~projected" }
func (projected) Has(v *corev1.Volume) bool { return v.Projected != nil }

func (projected) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	v := m.Volume.Projected
	files := map[string]file{}
	var refresh time.Time
	again := func(at time.Time) {
		if !at.IsZero() && (refresh.IsZero() || at.Before(refresh)) {
			refresh = at
		}
	}
	for i := range v.Sources {
		s := &v.Sources[i]
		var at time.Time
		var err error
		switch {
		case s.ConfigMap != nil:
			err = addConfigMap(ctx, m, files, s.ConfigMap.Name, s.ConfigMap.Items, v.DefaultMode, isOptional(s.ConfigMap.Optional))
		case s.Secret != nil:
			err = addSecret(ctx, m, files, s.Secret.Name, s.Secret.Items, v.DefaultMode, isOptional(s.Secret.Optional))
		case s.DownwardAPI != nil:
			err = addDownward(ctx, m, files, s.DownwardAPI.Items, v.DefaultMode)
		case s.ServiceAccountToken != nil:
			at, err = addToken(ctx, m, files, s.ServiceAccountToken, v.DefaultMode)
		case s.ClusterTrustBundle != nil:
			err = addTrustBundles(ctx, m, files, s.ClusterTrustBundle, v.DefaultMode)
		case s.PodCertificate != nil:
			at, err = addCertificate(ctx, m, files, s.PodCertificate, i, v.DefaultMode)
		default:
			err = fmt.Errorf("projected source %d: this kind is not supported", i)
		}
		if err != nil {
			return "", time.Time{}, err
		}
		again(at)
	}
	dir, err := m.Memory()
	if err != nil {
		return "", time.Time{}, err
	}
	return dir, refresh, writeFiles(dir, files, fsGroup(m.Pod))
}

// addToken adds a token of the pod's service account.
func addToken(ctx context.Context, m *Mount, files map[string]file, t *corev1.ServiceAccountTokenProjection, def *int32) (time.Time, error) {
	seconds := int64(3600)
	if t.ExpirationSeconds != nil {
		seconds = *t.ExpirationSeconds
	}
	value, refresh, err := m.Sources.Token(ctx, m.Pod, t.Audience, seconds)
	if err != nil {
		return time.Time{}, err
	}
	files[t.Path] = private(m, []byte(value), def)
	return refresh, nil
}

// private is a file that, where the pod's containers run as one user or volumes
// belong to a group, nobody else may read.
func private(m *Mount, data []byte, def *int32) file {
	f := file{data: data, mode: mode(nil, def), user: onlyUser(m.Pod)}
	if f.user != nil || fsGroup(m.Pod) != nil {
		f.mode = 0o600
	}
	return f
}

// addTrustBundles adds the trust anchors of bundles, each once, as one file
// (KEP-3257). What stands between the certificates is dropped.
func addTrustBundles(ctx context.Context, m *Mount, files map[string]file, p *corev1.ClusterTrustBundleProjection, def *int32) error {
	if p.Name == nil && p.SignerName == nil {
		return errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
	}
	bundles, err := m.Sources.TrustBundles(ctx, p)
	switch {
	case apierrors.IsNotFound(err) && isOptional(p.Optional):
	case err != nil && p.Name != nil:
		return fmt.Errorf("while getting ClusterTrustBundle: %w", err)
	case err != nil:
		return err
	case len(bundles) == 0 && !isOptional(p.Optional):
		return errors.New("combination of signerName and labelSelector matched zero ClusterTrustBundles")
	}
	anchors := map[string]bool{}
	for _, b := range bundles {
		for block, rest := pem.Decode([]byte(b)); block != nil; block, rest = pem.Decode(rest) {
			anchors[string(block.Bytes)] = true
		}
	}
	var data []byte
	for _, a := range slices.Sorted(maps.Keys(anchors)) {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(a)})...)
	}
	files[p.Path] = private(m, data, def)
	return nil
}
