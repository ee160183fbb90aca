package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// csi is a volume of a CSI driver, also where it stands under the name of a type that
// a driver took over. Drivers do not register with this node yet: all that is done is
// to wait until the volume is attached.
type csi struct{}

func (csi) Name() string { return "kubernetes.io~csi" }

func (csi) Has(v *corev1.Volume) bool {
	s := &v.VolumeSource
	return s.CSI != nil || s.AWSElasticBlockStore != nil || s.AzureDisk != nil || s.AzureFile != nil || s.Cinder != nil ||
		s.GCEPersistentDisk != nil || s.PortworxVolume != nil || s.VsphereVolume != nil
}

// HasPersistent implements Persistent.
func (csi) HasPersistent(s *corev1.PersistentVolumeSource) bool {
	return s.CSI != nil || s.AWSElasticBlockStore != nil || s.AzureDisk != nil || s.AzureFile != nil || s.Cinder != nil ||
		s.GCEPersistentDisk != nil || s.PortworxVolume != nil || s.VsphereVolume != nil
}

func (csi) Setup(ctx context.Context, m *Mount) (string, time.Time, error) {
	if s := m.Volume.CSI; s != nil && m.PV == nil {
		return "", time.Time{}, fmt.Errorf("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: %w", unregistered(s.Driver))
	}
	driver, label, err := m.Sources.Attached(ctx, m.Pod, m.Volume, m.PV)
	if err != nil {
		return "", time.Time{}, err
	}
	return "", time.Time{}, &failure{"MountVolume.MountDevice", label, fmt.Errorf(
		"kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: %w", unregistered(driver))}
}

func unregistered(driver string) error {
	return errors.New("driver name " + driver + " not found in the list of registered CSI drivers")
}

// failure is of a step other than that of most volumes.
type failure struct {
	step, volume string
	err          error
}

func (f *failure) Error() string {
	return fmt.Sprintf("%s failed for volume %q : %v", f.step, f.volume, f.err)
}
func (f *failure) Unwrap() error { return f.err }

// NamesVolume implements namesVolume.
func (f *failure) NamesVolume() {}

// namesVolume is an error that says itself of which volume it is, and what failed.
type namesVolume interface {
	error
	NamesVolume()
}
