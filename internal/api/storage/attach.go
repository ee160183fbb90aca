package storage

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	csi "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
)

// ManagedAttach on a node says that the control plane attaches its volumes; every
// kubelet sets it.
const ManagedAttach = "volumes.kubernetes.io/controller-managed-attach-detach"

// Plugins whose volumes are attached to nodes, as they stand in the names of volumes
// in a node's status.
const (
	csiPlugin   = "kubernetes.io/csi"
	iscsiPlugin = "kubernetes.io/iscsi"
	fcPlugin    = "kubernetes.io/fc"
)

// Attachable is a volume that is attached to a node before pods there can have it.
type Attachable struct {
	// Name is the volume's in status.volumesAttached and status.volumesInUse of
	// nodes.
	Name corev1.UniqueVolumeName
	// Driver and Handle are the CSI driver and its name for the volume. Both are
	// empty where a node attaches the volume itself (iSCSI, Fibre Channel): then it
	// only is to be listed in the node's status.
	Driver, Handle string
	// Label is what events call the volume.
	Label string
	// Exclusive tells that its access modes allow one node at a time.
	Exclusive bool
	// Source is what a VolumeAttachment says of it.
	Source storagev1.VolumeAttachmentSource
}

// AttachableVolume is how a PersistentVolume is attached; false where it is not. That
// a driver may have no need of it (attachRequired) is not looked at. Volumes of types
// that CSI drivers took over are those of the drivers.
func AttachableVolume(pv *corev1.PersistentVolume) (Attachable, bool) {
	a := Attachable{Label: pv.Name, Exclusive: exclusive(pv.Spec.AccessModes)}
	switch s := &pv.Spec.PersistentVolumeSource; {
	case s.CSI != nil:
	case s.ISCSI != nil:
		return a.named(iscsiPlugin, iscsiName(s.ISCSI.TargetPortal, s.ISCSI.IQN, s.ISCSI.Lun))
	case s.FC != nil:
		return a.named(fcPlugin, fcName(s.FC))
	case !csi.New().IsPVMigratable(pv):
		return Attachable{}, false
	default:
		translated, err := csi.New().TranslateInTreePVToCSI(klog.Background(), pv)
		if err != nil {
			return Attachable{}, false
		}
		pv = translated
	}
	a.Source.PersistentVolumeName = ptr.To(pv.Name)
	return a.driven(pv.Spec.CSI)
}

// AttachableInline is how a volume that stands in a pod is attached; false where it
// is not.
func AttachableInline(namespace string, v *corev1.Volume) (Attachable, bool) {
	switch s := &v.VolumeSource; {
	case s.ISCSI != nil:
		return Attachable{Label: v.Name}.named(iscsiPlugin, iscsiName(s.ISCSI.TargetPortal, s.ISCSI.IQN, s.ISCSI.Lun))
	case s.FC != nil:
		return Attachable{Label: v.Name}.named(fcPlugin, fcName(s.FC))
	case s.AWSElasticBlockStore == nil && s.AzureDisk == nil && s.AzureFile == nil && s.Cinder == nil && s.GCEPersistentDisk == nil &&
		s.PortworxVolume == nil && s.VsphereVolume == nil:
		return Attachable{}, false
	}
	pv, err := csi.New().TranslateInTreeInlineVolumeToCSI(klog.Background(), v, namespace)
	if err != nil {
		return Attachable{}, false
	}
	a := Attachable{Label: pv.Name, Exclusive: exclusive(pv.Spec.AccessModes)}
	a.Source.InlineVolumeSpec = &pv.Spec
	return a.driven(pv.Spec.CSI)
}

// AttachableSpec is the volume of a VolumeAttachment that has it inline.
func AttachableSpec(s *corev1.PersistentVolumeSpec) (Attachable, bool) {
	a := Attachable{Exclusive: exclusive(s.AccessModes), Source: storagev1.VolumeAttachmentSource{InlineVolumeSpec: s}}
	return a.driven(s.CSI)
}

// AttachableNamed is what the name of a volume tells of it; false where it is not the
// name of one that AttachableVolume or AttachableInline knows.
func AttachableNamed(name corev1.UniqueVolumeName) (Attachable, bool) {
	plugin, of, ok := cutPlugin(name)
	if !ok {
		return Attachable{}, false
	}
	switch plugin {
	case iscsiPlugin, fcPlugin:
		return Attachable{Name: name}, true
	case csiPlugin:
		driver, handle, _ := strings.Cut(of, "^")
		return Attachable{Name: name, Driver: driver, Handle: handle}, driver != "" && handle != ""
	}
	return Attachable{}, false
}

// cutPlugin splits kubernetes.io/plugin/volume.
func cutPlugin(name corev1.UniqueVolumeName) (plugin, volume string, ok bool) {
	parts := strings.SplitN(string(name), "/", 3)
	if len(parts) != 3 {
		return "", "", false
	}
	return parts[0] + "/" + parts[1], parts[2], true
}

func (a Attachable) named(plugin, of string) (Attachable, bool) {
	a.Name = corev1.UniqueVolumeName(plugin + "/" + of)
	return a, of != ""
}

func (a Attachable) driven(s *corev1.CSIPersistentVolumeSource) (Attachable, bool) {
	if s == nil || s.Driver == "" || s.VolumeHandle == "" {
		return Attachable{}, false
	}
	a.Driver, a.Handle = s.Driver, s.VolumeHandle
	return a.named(csiPlugin, s.Driver+"^"+s.VolumeHandle)
}

// exclusive tells that these access modes are for one node at a time. Who says
// nothing is not held to it: the driver knows.
func exclusive(modes []corev1.PersistentVolumeAccessMode) bool {
	return len(modes) > 0 && !slices.Contains(modes, corev1.ReadWriteMany) && !slices.Contains(modes, corev1.ReadOnlyMany)
}

func iscsiName(portal, iqn string, lun int32) string {
	return fmt.Sprintf("%s:%s:%d", portal, iqn, lun)
}

func fcName(s *corev1.FCVolumeSource) string {
	switch {
	case len(s.TargetWWNs) > 0 && s.Lun != nil:
		return fmt.Sprintf("%v:%v", s.TargetWWNs, *s.Lun)
	case len(s.WWIDs) > 0:
		return fmt.Sprintf("%v", s.WWIDs)
	}
	return ""
}

// AttachmentName is that of the VolumeAttachment by which a CSI volume is attached to
// a node. Drivers and kubelets rely on it.
func AttachmentName(driver, handle, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(handle+driver+node)))
}
