package volume_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/volume"
	"skiff/internal/volume/volumetest"
)

// No driver registers with this node: a pod that needs one is told so.
func TestVolumesOfDrivers(t *testing.T) {
	pv := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		CSI: &corev1.CSIPersistentVolumeSource{Driver: "disks.example.com", VolumeHandle: "h"},
	}}}
	pv.Name = "pv-1"
	set := volume.New(volume.Deps{Host: volumetest.Instance(t), Sources: &volumetest.Sources{Volumes: map[string]*corev1.PersistentVolume{"c": pv}}})
	for want, v := range map[string]corev1.VolumeSource{
		`MountVolume.MountDevice failed for volume "pv-1" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name disks.example.com not found in the list of registered CSI drivers`: {
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}},
		`MountVolume.SetUp failed for volume "v" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name inline.example.com not found in the list of registered CSI drivers`: {
			CSI: &corev1.CSIVolumeSource{Driver: "inline.example.com"}},
	} {
		_, _, err := set.Setup(context.Background(), volumetest.Pod(src(v)))
		if err == nil || err.Error() != want {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}
