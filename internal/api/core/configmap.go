// Package core declares the resources of the core group.
package core

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// ConfigMap declares core/v1 configmaps.
func ConfigMap() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "ConfigMap", Plural: "configmaps", Singular: "configmap",
		ShortNames: []string{"cm"}, Namespaced: true, Prefix: "/registry/configmaps/",
		New:     func() resource.Object { return &corev1.ConfigMap{} },
		NewList: func() runtime.Object { return &corev1.ConfigMapList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Data", "string", corev1.ConfigMap{}.SwaggerDoc()["data"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*corev1.ConfigMap]{
		UnconditionalUpdate: true,
		ValidateCreate: func(_ resource.Env, c *corev1.ConfigMap) field.ErrorList {
			return append(resource.ValidateMeta(c, true, resource.DNSSubdomain), validateConfigMap(c)...)
		},
		ValidateUpdate: func(_ resource.Env, c, old *corev1.ConfigMap) field.ErrorList {
			errs := resource.ValidateMetaUpdate(c, old)
			if old.Immutable != nil && *old.Immutable {
				if c.Immutable == nil || !*c.Immutable {
					errs = append(errs, field.Forbidden(field.NewPath("immutable"), "field is immutable when `immutable` is set"))
				}
				if !equal(c.Data, old.Data) {
					errs = append(errs, field.Forbidden(field.NewPath("data"), "field is immutable when `immutable` is set"))
				}
				if !equal(c.BinaryData, old.BinaryData) {
					errs = append(errs, field.Forbidden(field.NewPath("binaryData"), "field is immutable when `immutable` is set"))
				}
			}
			errs = append(errs, resource.ValidateMeta(c, true, resource.DNSSubdomain)...)
			return append(errs, validateConfigMap(c)...)
		},
		Row: func(c *corev1.ConfigMap, now time.Time) []any {
			return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), resource.Age(c.CreationTimestamp, now)}
		},
	})
}

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	total := 0
	for _, k := range sortedKeys(c.Data) {
		for _, msg := range validation.IsConfigMapKey(k) {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, msg))
		}
		if _, ok := c.BinaryData[k]; ok {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(k), k, "duplicate of key present in binaryData"))
		}
		total += len(c.Data[k])
	}
	for _, k := range sortedKeys(c.BinaryData) {
		for _, msg := range validation.IsConfigMapKey(k) {
			errs = append(errs, field.Invalid(field.NewPath("binaryData").Key(k), k, msg))
		}
		total += len(c.BinaryData[k])
	}
	if total > corev1.MaxSecretSize {
		// The path is empty: no single field is too long.
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}
