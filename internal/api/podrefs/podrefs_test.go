package podrefs

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNeedsAPI(t *testing.T) {
	volume := func(v corev1.VolumeSource) corev1.PodSpec {
		return corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: v}}}
	}
	projected := func(src corev1.VolumeProjection) corev1.PodSpec {
		return volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{}}, src}}})
	}
	env := func(from corev1.EnvVarSource) corev1.PodSpec {
		return corev1.PodSpec{InitContainers: []corev1.Container{{Env: []corev1.EnvVar{{Name: "A", ValueFrom: &from}}}}}
	}
	for want, specs := range map[string][]corev1.PodSpec{
		"": {
			{}, volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}), projected(corev1.VolumeProjection{}),
			env(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}),
		},
		"serviceaccounts": {{ServiceAccountName: "me"}},
		"secrets": {
			{ImagePullSecrets: []corev1.LocalObjectReference{{Name: "s"}}}, {ImagePullSecrets: []corev1.LocalObjectReference{{}}},
			env(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{}}), volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}),
			volume(corev1.VolumeSource{AzureFile: &corev1.AzureFileVolumeSource{SecretName: "s"}}),
			projected(corev1.VolumeProjection{Secret: &corev1.SecretProjection{}}),
		},
		"configmaps": {
			env(corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{}}), volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}),
			projected(corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{}}),
		},
		"resourceclaims":                                 {{ResourceClaims: []corev1.PodResourceClaim{{Name: "c"}}}},
		"csidrivers (via CSI volumes)":                   {volume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{}})},
		"endpoints (via glusterFS volumes)":              {volume(corev1.VolumeSource{Glusterfs: &corev1.GlusterfsVolumeSource{}})},
		"persistentvolumeclaims":                         {volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}})},
		"persistentvolumeclaims (via ephemeral volumes)": {volume(corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}})},
		"serviceaccounts (via projected volumes)":        {projected(corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}})},
		"clustertrustbundles":                            {projected(corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}})},
		"podcertificates":                                {projected(corev1.VolumeProjection{PodCertificate: &corev1.PodCertificateProjection{}})},
	} {
		for _, spec := range specs {
			if got := NeedsAPI(&corev1.Pod{Spec: spec}); got != want {
				t.Errorf("%+v: %q, want %q", spec, got, want)
			}
		}
	}
	// What has no name is nothing to look up.
	p := &corev1.Pod{Spec: corev1.PodSpec{ImagePullSecrets: []corev1.LocalObjectReference{{}, {Name: "s"}}}}
	if refs := Of(p); len(refs) != 1 || refs[0] != (Ref{Secret, "s"}) {
		t.Errorf("refers to %v", refs)
	}
}
