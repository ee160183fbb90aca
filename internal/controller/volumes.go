package controller

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// Annotations of volumes and claims. They are an interface: external provisioners
// and the scheduler read and write them too.
const (
	// annBindCompleted on a claim: it was bound once; if its volume is gone now, so
	// is its data.
	annBindCompleted = "pv.kubernetes.io/bind-completed"
	// annBoundByController on either: the controller made the reference to the
	// other, and takes it back where the binding comes to nothing.
	annBoundByController = "pv.kubernetes.io/bound-by-controller"
	// annProvisionedBy on a volume names its provisioner, who is also to delete it.
	annProvisionedBy = "pv.kubernetes.io/provisioned-by"
	// annSelectedNode on a claim is where the scheduler wants the volume.
	annSelectedNode = "volume.kubernetes.io/selected-node"
	// annStorageProvisioner on a claim asks that provisioner for a volume.
	annStorageProvisioner     = "volume.kubernetes.io/storage-provisioner"
	annBetaStorageProvisioner = "volume.beta.kubernetes.io/storage-provisioner"
	// annMigratedTo on a volume names the CSI driver that took over for its type.
	annMigratedTo = "pv.kubernetes.io/migrated-to"
)

// byClaim is the index of pods by the claims that they use, ephemeral ones
// included, and of volumes by the claim that they are for; its values are
// namespace/name.
const byClaim = "claim"

func indexPodClaims(pods *client.Informer[*corev1.Pod]) {
	pods.AddIndex(byClaim, func(p *corev1.Pod) []string {
		var out []string
		for i := range p.Spec.Volumes {
			if name := claimName(p, &p.Spec.Volumes[i]); name != "" {
				out = append(out, p.Namespace+"/"+name)
			}
		}
		return out
	})
}

func indexVolumeClaims(volumes *client.Informer[*corev1.PersistentVolume]) {
	volumes.AddIndex(byClaim, func(v *corev1.PersistentVolume) []string {
		if r := v.Spec.ClaimRef; r != nil {
			return []string{r.Namespace + "/" + r.Name}
		}
		return nil
	})
}

// claimName is the claim that a volume of a pod uses, empty where it uses none.
func claimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(p, v)
	}
	return ""
}

// claimKey names a claim as events and indices do.
func claimKey(c *corev1.PersistentVolumeClaim) string { return c.Namespace + "/" + c.Name }

func refKey(r *corev1.ObjectReference) control.Key {
	return control.Key{Namespace: r.Namespace, Name: r.Name}
}

// claimClass is the class that a claim asks for, empty where it wants none or says
// nothing; classSaid tells these apart.
func claimClass(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return ptr.Deref(c.Spec.StorageClassName, "")
}

func classSaid(c *corev1.PersistentVolumeClaim) bool {
	_, ok := c.Annotations[corev1.BetaStorageClassAnnotation]
	return ok || c.Spec.StorageClassName != nil
}

func volumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

func delays(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

func sameMode(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return ptr.Deref(c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == ptr.Deref(v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}

func sameAttributes(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return ptr.Deref(c.Spec.VolumeAttributesClassName, "") == ptr.Deref(v.Spec.VolumeAttributesClassName, "")
}

func hasAccess(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return !slices.ContainsFunc(c.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool { return !slices.Contains(v.Spec.AccessModes, m) })
}

// volumeIsFor tells whether a volume is reserved for a claim or bound to it.
func volumeIsFor(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	r := v.Spec.ClaimRef
	return r != nil && r.Name == c.Name && r.Namespace == c.Namespace && (r.UID == "" || r.UID == c.UID)
}

// matchVolume finds the volume to bind a claim to: one that is reserved for it
// where there is one, otherwise the smallest that is large enough, among those with
// the fewest access modes. With delay, where the scheduler is to choose, only a
// reserved one will do. Nil where there is none.
func matchVolume(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delay bool) (*corev1.PersistentVolume, error) {
	selector := labels.Everything()
	if c.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(c.Spec.Selector); err != nil {
			return nil, fmt.Errorf("error creating internal label selector for claim: %v: %w", claimKey(c), err)
		}
	}
	want := c.Spec.Resources.Requests[corev1.ResourceStorage]
	var best *corev1.PersistentVolume
	// better orders by upstream's search: groups of access modes, reserved ones
	// within a group, then size; names make it the same every time.
	better := func(a, b *corev1.PersistentVolume) bool {
		if x, y := len(a.Spec.AccessModes), len(b.Spec.AccessModes); x != y {
			return x < y
		}
		if x, y := volumeIsFor(a, c), volumeIsFor(b, c); x != y {
			return x
		}
		if d := a.Spec.Capacity.Storage().Cmp(*b.Spec.Capacity.Storage()); d != 0 {
			return d < 0
		}
		return a.Name < b.Name
	}
	for _, v := range volumes {
		switch {
		case v.Spec.ClaimRef != nil && !volumeIsFor(v, c), v.DeletionTimestamp != nil,
			v.Spec.Capacity.Storage().Cmp(want) < 0, !sameMode(c, v), !sameAttributes(c, v), !hasAccess(c, v):
			continue
		case volumeIsFor(v, c):
		case delay, v.Status.Phase != corev1.VolumeAvailable, !selector.Matches(labels.Set(v.Labels)), volumeClass(v) != claimClass(c):
			continue
		}
		if best == nil || better(v, best) {
			best = v
		}
	}
	return best, nil
}

// mismatch says why a claim cannot have the volume that it names; empty where it
// can.
func mismatch(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) string {
	want := c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case v.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", v.Name)
	case v.Spec.Capacity.Storage().Cmp(want) < 0:
		return "requested PV is too small"
	case volumeClass(v) != claimClass(c):
		return "storageClassName does not match"
	case !sameAttributes(c, v):
		return "volumeAttributesClassName does not match"
	case !sameMode(c, v):
		return "incompatible volumeMode"
	case !hasAccess(c, v):
		return "incompatible accessMode"
	}
	return ""
}

// drivers are the CSI drivers that took over for the provisioners that upstream
// once had built in.
var drivers = map[string]string{
	"kubernetes.io/aws-ebs":         "ebs.csi.aws.com",
	"kubernetes.io/azure-disk":      "disk.csi.azure.com",
	"kubernetes.io/azure-file":      "file.csi.azure.com",
	"kubernetes.io/cinder":          "cinder.csi.openstack.org",
	"kubernetes.io/gce-pd":          "pd.csi.storage.gke.io",
	"kubernetes.io/portworx-volume": "pxd.portworx.com",
	"kubernetes.io/vsphere-volume":  "csi.vsphere.vmware.com",
}

const builtInPrefix = "kubernetes.io/"

// provisionerOf is who is asked for volumes of a class; an error tells that nobody
// can make them.
func provisionerOf(class *storagev1.StorageClass) (string, error) {
	if d, ok := drivers[class.Provisioner]; ok {
		return d, nil
	}
	if strings.HasPrefix(class.Provisioner, builtInPrefix) {
		return "", fmt.Errorf("no volume plugin matched name: %s", class.Provisioner)
	}
	return class.Provisioner, nil
}
