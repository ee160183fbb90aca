package storage

import (
	"fmt"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// CSINode declares csinodes. Nothing of their status is there while
// CSIVolumeHealth is off.
func CSINode() *resource.Resource {
	status := resource.StatusOf(resource.StrategyOf[*storagev1.CSINode]{
		ResetFields: []string{"metadata", "spec"},
		PrepareUpdate: func(env resource.Env, n, old *storagev1.CSINode) {
			n.Spec = *old.Spec.DeepCopy()
			metav1.ResetObjectMetaForStatus(&n.ObjectMeta, old.ObjectMeta.DeepCopy())
			dropHealth(env.Features, n, old)
		},
		ValidateUpdate: func(_ resource.Env, n, old *storagev1.CSINode) field.ErrorList {
			return resource.ValidateMetaUpdate(n, old)
		},
	})
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "CSINode", Plural: "csinodes", Singular: "csinode",
		Prefix: "/registry/csinodes/", ReturnDeleted: true,
		New:     func() resource.Object { return &storagev1.CSINode{} },
		NewList: func() runtime.Object { return &storagev1.CSINodeList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Drivers", "integer", "Drivers indicates the number of CSI drivers registered on the node", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{status},
	}, resource.StrategyOf[*storagev1.CSINode]{
		ResetFields:   []string{"status"},
		PrepareCreate: func(_ resource.Env, n *storagev1.CSINode) { n.Status = storagev1.CSINodeStatus{} },
		PrepareUpdate: func(env resource.Env, n, old *storagev1.CSINode) {
			n.Status = *old.Status.DeepCopy()
			dropHealth(env.Features, n, old)
		},
		ValidateCreate: func(_ resource.Env, n *storagev1.CSINode) field.ErrorList { return validateCSINode(n) },
		ValidateUpdate: func(_ resource.Env, n, old *storagev1.CSINode) field.ErrorList {
			return append(validateCSINode(n), driverChanges(n, old)...)
		},
		Row: func(n *storagev1.CSINode, now time.Time) []any {
			return []any{n.Name, int64(len(n.Spec.Drivers)), resource.Age(n.CreationTimestamp, now)}
		},
	})
}

func dropHealth(f resource.Features, n, old *storagev1.CSINode) {
	if !f.Enabled("CSIVolumeHealth") && len(old.Status.StorageHealth) == 0 {
		n.Status.StorageHealth = nil
	}
}

const maxNodeID = 256

func validateCSINode(n *storagev1.CSINode) field.ErrorList {
	errs := resource.ValidateMeta(n, false, resource.DNSSubdomain)
	seen := map[string]bool{}
	for i, d := range n.Spec.Drivers {
		p := specPath.Child("drivers").Index(i)
		errs = append(errs, resource.ValidateDriverName(p.Child("name"), d.Name)...)
		if d.NodeID == "" {
			errs = append(errs, field.Required(p.Child("nodeID"), ""))
		} else if len(d.NodeID) > maxNodeID {
			errs = append(errs, field.Invalid(p.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", maxNodeID)))
		}
		if a := d.Allocatable; a != nil && a.Count != nil && *a.Count < 0 {
			errs = append(errs, field.Invalid(p.Child("allocatable", "count"), int64(*a.Count), "must be greater than or equal to 0"))
		}
		if seen[d.Name] {
			errs = append(errs, field.Duplicate(p.Child("name"), d.Name))
		}
		seen[d.Name] = true
		keys := map[string]bool{}
		for _, k := range d.TopologyKeys {
			if k == "" {
				errs = append(errs, field.Required(p, k))
			}
			if keys[k] {
				errs = append(errs, field.Duplicate(p, k))
			}
			keys[k] = true
			for _, msg := range validation.IsQualifiedName(k) {
				errs = append(errs, field.Invalid(p, k, msg))
			}
		}
	}
	return errs
}

// driverChanges: a driver may come and go, and count anew what it can attach;
// nothing else of it changes.
func driverChanges(n, old *storagev1.CSINode) field.ErrorList {
	var errs field.ErrorList
	for _, was := range old.Spec.Drivers {
		was.Allocatable = nil
		for _, is := range n.Spec.Drivers {
			is.Allocatable = nil
			if was.Name == is.Name && !equal(was, is) {
				errs = append(errs, field.Invalid(specPath.Child("drivers"), resource.Shown(is), "field is immutable"))
			}
		}
	}
	return errs
}
