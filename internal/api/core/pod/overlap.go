package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// target is a file of a volume, and what it is made from where that is not the
// whole volume's.
type target struct{ path, source string }

func (t target) String() string {
	if t.source == "" {
		return fmt.Sprintf("%q", t.path)
	}
	return fmt.Sprintf("%q (%s)", t.path, t.source)
}

func keyTargets(items []corev1.KeyToPath, source string) []target {
	var out []target
	for _, i := range items {
		out = append(out, target{i.Path, source})
	}
	return out
}

func fileTargets(items []corev1.DownwardAPIVolumeFile, source string) []target {
	var out []target
	for _, i := range items {
		out = append(out, target{i.Path, source})
	}
	return out
}

// overlaps warns of files of a volume that lie at or below one another.
func (w *advice) overlaps(v *corev1.Volume) {
	if m := v.ConfigMap; m != nil {
		w.collide(v.Name, fmt.Sprintf("ConfigMap %q", m.Name), nil, keyTargets(m.Items, ""))
	}
	if s := v.Secret; s != nil {
		w.collide(v.Name, fmt.Sprintf("Secret %q", s.SecretName), nil, keyTargets(s.Items, ""))
	}
	if d := v.DownwardAPI; d != nil {
		w.collide(v.Name, "DownwardAPI", nil, fileTargets(d.Items, ""))
	}
	if v.Projected == nil {
		return
	}
	var all []target
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		if *s == (corev1.VolumeProjection{}) {
			w.texts = append(w.texts, fmt.Sprintf("volume %q (Projected) has no sources provided", v.Name))
			continue
		}
		all = w.collide(v.Name, "Projected", all, projectedTargets(s))
	}
}

// collide warns of every file in list that overlaps with one before it, and
// returns all of them.
func (w *advice) collide(volume, kind string, before, list []target) []target {
	for _, t := range list {
		t.path = strings.TrimRight(t.path, "/")
		for _, o := range before {
			if t.path != "" && o.path != "" &&
				(strings.HasPrefix(o.path+"/", t.path+"/") || strings.HasPrefix(t.path+"/", o.path+"/")) {
				w.texts = append(w.texts, fmt.Sprintf("volume %q (%s): overlapping paths: %s with %s", volume, kind, t, o))
			}
		}
		before = append(before, t)
	}
	return before
}

func projectedTargets(s *corev1.VolumeProjection) []target {
	switch {
	case s.ConfigMap != nil && s.ConfigMap.Items != nil:
		return keyTargets(s.ConfigMap.Items, fmt.Sprintf("ConfigMap %q", s.ConfigMap.Name))
	case s.Secret != nil && s.Secret.Items != nil:
		return keyTargets(s.Secret.Items, fmt.Sprintf("Secret %q", s.Secret.Name))
	case s.DownwardAPI != nil && s.DownwardAPI.Items != nil:
		return fileTargets(s.DownwardAPI.Items, "DownwardAPI")
	case s.ServiceAccountToken != nil:
		return []target{{s.ServiceAccountToken.Path, "ServiceAccountToken"}}
	case s.ClusterTrustBundle != nil:
		name := s.ClusterTrustBundle.Name
		if name == nil {
			name = s.ClusterTrustBundle.SignerName
		}
		if name == nil {
			return nil
		}
		return []target{{s.ClusterTrustBundle.Path, fmt.Sprintf("ClusterTrustBundle %q", *name)}}
	case s.PodCertificate != nil:
		var out []target
		for _, t := range []target{{s.PodCertificate.CertificateChainPath, "PodCertificate chain"},
			{s.PodCertificate.KeyPath, "PodCertificate key"}, {s.PodCertificate.CredentialBundlePath, "PodCertificate credential bundle"}} {
			if t.path != "" {
				out = append(out, t)
			}
		}
		return out
	}
	return nil
}
