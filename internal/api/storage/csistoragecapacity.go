package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// CSIStorageCapacity declares csistoragecapacities. They have the usual table, as
// upstream.
func CSIStorageCapacity() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "CSIStorageCapacity", Plural: "csistoragecapacities", Singular: "csistoragecapacity",
		Namespaced: true, Prefix: "/registry/csistoragecapacities/",
		New:     func() resource.Object { return &storagev1.CSIStorageCapacity{} },
		NewList: func() runtime.Object { return &storagev1.CSIStorageCapacityList{} },
	}, resource.StrategyOf[*storagev1.CSIStorageCapacity]{
		ValidateCreate: func(_ resource.Env, c *storagev1.CSIStorageCapacity) field.ErrorList {
			return validateCapacity(c, false)
		},
		ValidateUpdate: func(_ resource.Env, c, old *storagev1.CSIStorageCapacity) field.ErrorList {
			lax := len(metavalidation.ValidateLabelSelector(old.NodeTopology, metavalidation.LabelSelectorValidationOptions{}, nil)) > 0
			errs := append(validateCapacity(c, lax), resource.ValidateMetaUpdate(c, old)...)
			if !equal(c.NodeTopology, old.NodeTopology) {
				errs = append(errs, field.Invalid(topologyPath, c.NodeTopology, "field is immutable"))
			}
			if c.StorageClassName != old.StorageClassName {
				errs = append(errs, field.Invalid(classPath, c.StorageClassName, "field is immutable"))
			}
			return errs
		},
		Warnings: func(_ resource.Env, c, _ *storagev1.CSIStorageCapacity) []string {
			return selectorWarnings(topologyPath, c.NodeTopology)
		},
	})
}

var (
	topologyPath = field.NewPath("nodeTopology")
	classPath    = field.NewPath("storageClassName")
)

// validateCapacity checks a capacity; lax lets the selector have values that no
// label can have.
func validateCapacity(c *storagev1.CSIStorageCapacity, lax bool) field.ErrorList {
	errs := resource.ValidateMeta(c, true, resource.DNSSubdomain)
	errs = append(errs, metavalidation.ValidateLabelSelector(c.NodeTopology,
		metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: lax}, topologyPath)...)
	for _, msg := range resource.DNSSubdomain(c.StorageClassName, false) {
		errs = append(errs, field.Invalid(classPath, c.StorageClassName, msg))
	}
	if q := c.Capacity; q != nil && q.Sign() < 0 {
		errs = append(errs, field.Invalid(field.NewPath("capacity"), q.String(), "must be greater than or equal to 0"))
	}
	return errs
}
