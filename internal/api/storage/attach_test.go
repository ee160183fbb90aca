package storage

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// The names are what drivers, kubelets and older control planes go by: upstream's
// pkg/volume/csi and pkg/volume/util.
func TestAttachable(t *testing.T) {
	pv := func(s corev1.PersistentVolumeSource, modes ...corev1.PersistentVolumeAccessMode) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: s, AccessModes: modes},
		}
	}
	once, many := corev1.ReadWriteOnce, corev1.ReadWriteMany
	for _, tt := range []struct {
		pv             *corev1.PersistentVolume
		inline         *corev1.VolumeSource
		name           corev1.UniqueVolumeName
		driver, handle string
		exclusive      bool
	}{
		{pv: pv(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d.example.com", VolumeHandle: "v^1"}}, once),
			name: "kubernetes.io/csi/d.example.com^v^1", driver: "d.example.com", handle: "v^1", exclusive: true},
		{pv: pv(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "v"}}, corev1.ReadWriteOncePod),
			name: "kubernetes.io/csi/d^v", driver: "d", handle: "v", exclusive: true},
		{pv: pv(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "v"}}, once, many),
			name: "kubernetes.io/csi/d^v", driver: "d", handle: "v"},
		{pv: pv(corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "v"}}),
			name: "kubernetes.io/csi/d^v", driver: "d", handle: "v"},
		{pv: pv(corev1.PersistentVolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "vol-1"}}, once),
			name: "kubernetes.io/csi/ebs.csi.aws.com^vol-1", driver: "ebs.csi.aws.com", handle: "vol-1", exclusive: true},
		{pv: pv(corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{TargetPortal: "10.0.0.1", IQN: "iqn.x", Lun: 3}}, once),
			name: "kubernetes.io/iscsi/10.0.0.1:iqn.x:3", exclusive: true},
		{pv: pv(corev1.PersistentVolumeSource{FC: &corev1.FCVolumeSource{TargetWWNs: []string{"a", "b"}, Lun: ptr.To(int32(1))}}, many),
			name: "kubernetes.io/fc/[a b]:1"},
		{pv: pv(corev1.PersistentVolumeSource{FC: &corev1.FCVolumeSource{WWIDs: []string{"w"}}}, many), name: "kubernetes.io/fc/[w]"},
		{pv: pv(corev1.PersistentVolumeSource{FC: &corev1.FCVolumeSource{}}, many)},
		{pv: pv(corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}, once)},
		{pv: pv(corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "s", Path: "/x"}}, many)},
		{inline: &corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "d"}}},
		{inline: &corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{inline: &corev1.VolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "vol-1"}},
			name: "kubernetes.io/csi/ebs.csi.aws.com^vol-1", driver: "ebs.csi.aws.com", handle: "vol-1", exclusive: true},
		{inline: &corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "p", IQN: "i"}}, name: "kubernetes.io/iscsi/p:i:0"},
		{inline: &corev1.VolumeSource{FC: &corev1.FCVolumeSource{WWIDs: []string{"w"}}}, name: "kubernetes.io/fc/[w]"},
	} {
		var got Attachable
		var ok bool
		if tt.pv != nil {
			got, ok = AttachableVolume(tt.pv)
		} else {
			got, ok = AttachableInline("ns", &corev1.Volume{Name: "v", VolumeSource: *tt.inline})
		}
		if ok != (tt.name != "") || ok && (got.Name != tt.name || got.Driver != tt.driver || got.Handle != tt.handle || got.Exclusive != tt.exclusive) {
			t.Errorf("%q: %+v, %v", tt.name, got, ok)
		}
		if !ok {
			continue
		}
		if again, ok := AttachableNamed(tt.name); !ok || again.Driver != tt.driver || again.Handle != tt.handle {
			t.Errorf("%q by name: %+v, %v", tt.name, again, ok)
		}
		if s := got.Source; tt.driver != "" && (s.PersistentVolumeName != nil) != (tt.pv != nil) || s.InlineVolumeSpec != nil && tt.pv != nil {
			t.Errorf("%q: source is %+v", tt.name, s)
		}
		if s := got.Source.InlineVolumeSpec; s != nil {
			if again, ok := AttachableSpec(s); !ok || again.Name != tt.name {
				t.Errorf("%q by its spec: %+v, %v", tt.name, again, ok)
			}
		}
	}
	for _, name := range []corev1.UniqueVolumeName{"", "kubernetes.io", "kubernetes.io/csi", "kubernetes.io/csi/d", "kubernetes.io/csi/^h", "kubernetes.io/flexvolume/x"} {
		if x, ok := AttachableNamed(name); ok {
			t.Errorf("%q is %+v", name, x)
		}
	}
	// sha256("v" + "d" + "n"), as upstream's getAttachmentName.
	if got := AttachmentName("d", "v", "n"); got != "csi-f6543f8bea2891cc00a459964655191915ab214b9a56d0f1d7bd1a2d56de77d7" {
		t.Errorf("name is %s", got)
	}
}
