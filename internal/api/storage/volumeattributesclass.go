package storage

import (
	"maps"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// VolumeAttributesClass declares volumeattributesclasses.
func VolumeAttributesClass() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses", Singular: "volumeattributesclass",
		ShortNames: []string{"vac"}, Prefix: "/registry/volumeattributesclasses/", ReturnDeleted: true,
		New:     func() resource.Object { return &storagev1.VolumeAttributesClass{} },
		NewList: func() runtime.Object { return &storagev1.VolumeAttributesClassList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("DriverName", "string", storagev1.VolumeAttributesClass{}.SwaggerDoc()["driverName"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*storagev1.VolumeAttributesClass]{
		UnconditionalUpdate: true,
		ValidateCreate:      func(_ resource.Env, c *storagev1.VolumeAttributesClass) field.ErrorList { return validateAttributes(c) },
		ValidateUpdate: func(_ resource.Env, c, old *storagev1.VolumeAttributesClass) field.ErrorList {
			errs := resource.ValidateMetaUpdate(c, old)
			if c.DriverName != old.DriverName {
				errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
			}
			if !maps.Equal(c.Parameters, old.Parameters) {
				errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
			}
			return append(errs, validateAttributes(c)...)
		},
		Row: func(c *storagev1.VolumeAttributesClass, now time.Time) []any {
			return []any{c.Name, c.DriverName, resource.Age(c.CreationTimestamp, now)}
		},
	})
}

func validateAttributes(c *storagev1.VolumeAttributesClass) field.ErrorList {
	errs := resource.ValidateMeta(c, false, resource.DNSSubdomain)
	if c.DriverName == "" {
		errs = append(errs, field.Required(field.NewPath("driverName"), ""))
	} else {
		errs = append(errs, validateProvisioner(field.NewPath("driverName"), c.DriverName)...)
	}
	p := field.NewPath("parameters")
	errs = append(errs, validateParameters(p, c.Parameters)...)
	if len(c.Parameters) == 0 {
		errs = append(errs, field.Required(p, "must contain at least one key/value pair"))
	}
	return errs
}
