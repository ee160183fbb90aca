package storage

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"
)

// Annotations of volumes and claims. They are an interface: external provisioners
// and the scheduler read and write them too.
const (
	// BindCompleted on a claim: it was bound once; if its volume is gone now, so
	// is its data.
	BindCompleted = "pv.kubernetes.io/bind-completed"
	// BoundByController on either: the controller made the reference to the
	// other, and takes it back where the binding comes to nothing.
	BoundByController = "pv.kubernetes.io/bound-by-controller"
	// ProvisionedBy on a volume names its provisioner, who is also to delete it.
	ProvisionedBy = "pv.kubernetes.io/provisioned-by"
	// SelectedNode on a claim is where the scheduler wants the volume.
	SelectedNode = "volume.kubernetes.io/selected-node"
	// StorageProvisioner on a claim asks that provisioner for a volume.
	StorageProvisioner     = "volume.kubernetes.io/storage-provisioner"
	BetaStorageProvisioner = "volume.beta.kubernetes.io/storage-provisioner"
	// MigratedTo on a volume names the CSI driver that took over for its type.
	MigratedTo = "pv.kubernetes.io/migrated-to"
)

// ClaimOf is the claim that a volume of a pod uses, empty where it uses none.
func ClaimOf(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return ephemeral.VolumeClaimName(p, v)
	}
	return ""
}

// ClaimClass is the class that a claim asks for, empty where it wants none or says
// nothing; NamesClass tells these apart.
func ClaimClass(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return ptr.Deref(c.Spec.StorageClassName, "")
}

func NamesClass(c *corev1.PersistentVolumeClaim) bool {
	_, ok := c.Annotations[corev1.BetaStorageClassAnnotation]
	return ok || c.Spec.StorageClassName != nil
}

func VolumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

func Delays(class *storagev1.StorageClass) bool {
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

func SameMode(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return ptr.Deref(c.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == ptr.Deref(v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
}

func sameAttributes(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return ptr.Deref(c.Spec.VolumeAttributesClassName, "") == ptr.Deref(v.Spec.VolumeAttributesClassName, "")
}

func hasAccess(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) bool {
	return !slices.ContainsFunc(c.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool { return !slices.Contains(v.Spec.AccessModes, m) })
}

// IsFor tells whether a volume is reserved for a claim or bound to it.
func IsFor(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	r := v.Spec.ClaimRef
	return r != nil && r.Name == c.Name && r.Namespace == c.Namespace && (r.UID == "" || r.UID == c.UID)
}

// Reference is what a volume's claimRef says of its claim.
func Reference(c *corev1.PersistentVolumeClaim) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion,
	}
}

// Allows tells whether the allowedTopologies of a class have a node with these
// labels; none have all.
func Allows(terms []corev1.TopologySelectorTerm, labels map[string]string) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(t corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, labels[r.Key])
		})
	})
}

// Reaches tells whether the pods of a node can use a volume.
func Reaches(v *corev1.PersistentVolume, node *corev1.Node) bool {
	a := v.Spec.NodeAffinity
	if a == nil || a.Required == nil {
		return true
	}
	s, err := nodeaffinity.NewNodeSelector(a.Required)
	return err == nil && s.Match(node)
}

// Match finds the volume to bind a claim to: one that is reserved for it
// where there is one, otherwise the smallest that is large enough, among those with
// the fewest access modes. With delay, where the scheduler is to choose, only a
// reserved one will do. Nil where there is none.
func Match(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume, delay bool) (*corev1.PersistentVolume, error) {
	selector := labels.Everything()
	if c.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(c.Spec.Selector); err != nil {
			return nil, fmt.Errorf("error creating internal label selector for claim: %s/%s: %w", c.Namespace, c.Name, err)
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
		if x, y := IsFor(a, c), IsFor(b, c); x != y {
			return x
		}
		if d := a.Spec.Capacity.Storage().Cmp(*b.Spec.Capacity.Storage()); d != 0 {
			return d < 0
		}
		return a.Name < b.Name
	}
	for _, v := range volumes {
		switch {
		case v.Spec.ClaimRef != nil && !IsFor(v, c), v.DeletionTimestamp != nil,
			v.Spec.Capacity.Storage().Cmp(want) < 0, !SameMode(c, v), !sameAttributes(c, v), !hasAccess(c, v):
			continue
		case IsFor(v, c):
		case delay, v.Status.Phase != corev1.VolumeAvailable, !selector.Matches(labels.Set(v.Labels)), VolumeClass(v) != ClaimClass(c):
			continue
		}
		if best == nil || better(v, best) {
			best = v
		}
	}
	return best, nil
}

// Mismatch says why a claim cannot have the volume that it names; empty where it
// can.
func Mismatch(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) string {
	want := c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case v.DeletionTimestamp != nil:
		return fmt.Sprintf("the volume is marked for deletion %q", v.Name)
	case v.Spec.Capacity.Storage().Cmp(want) < 0:
		return "requested PV is too small"
	case VolumeClass(v) != ClaimClass(c):
		return "storageClassName does not match"
	case !sameAttributes(c, v):
		return "volumeAttributesClassName does not match"
	case !SameMode(c, v):
		return "incompatible volumeMode"
	case !hasAccess(c, v):
		return "incompatible accessMode"
	}
	return ""
}
