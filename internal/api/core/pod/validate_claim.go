package pod

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// ClaimOptions say what the spec of a PersistentVolumeClaim may keep that would be
// refused today.
type ClaimOptions struct {
	anyLabelValues bool // in the selector
	anySourceGroup bool // the API group of the data source
}

// ClaimOptionsOf are the options for a change of a claim that is stored already.
func ClaimOptionsOf(old *corev1.PersistentVolumeClaimSpec) ClaimOptions {
	return ClaimOptions{
		anyLabelValues: len(metavalidation.ValidateLabelSelector(old.Selector, metavalidation.LabelSelectorValidationOptions{}, nil)) > 0,
		anySourceGroup: old.DataSource != nil && old.DataSource.APIGroup != nil || old.DataSourceRef != nil && old.DataSourceRef.APIGroup != nil,
	}
}

// ValidateClaimSpec checks the spec of a PersistentVolumeClaim.
func ValidateClaimSpec(p *field.Path, s *corev1.PersistentVolumeClaimSpec, o ClaimOptions) field.ErrorList {
	c := &check{}
	c.claimSpec(p, s, o)
	return c.errs
}

func (c *check) claimSpec(p *field.Path, s *corev1.PersistentVolumeClaimSpec, o ClaimOptions) {
	modes := p.Child("accessModes")
	if len(s.AccessModes) == 0 {
		c.required(modes, "at least 1 access mode is required")
	}
	c.selector(p.Child("selector"), s.Selector, o.anyLabelValues)
	c.accessModes(modes, s.AccessModes)
	rp := p.Child("resources").Key(string(corev1.ResourceStorage))
	if q, ok := s.Resources.Requests[corev1.ResourceStorage]; !ok {
		c.required(rp, "")
	} else if q.Sign() <= 0 {
		c.invalid(rp, q.String(), "must be greater than zero")
	}
	if n := s.StorageClassName; n != nil && *n != "" {
		c.name(p.Child("storageClassName"), *n)
	}
	c.volumeMode(p.Child("volumeMode"), s.VolumeMode)
	if d := s.DataSource; d != nil {
		c.dataSource(p.Child("dataSource"), d.APIGroup, d.Kind, d.Name, o.anySourceGroup)
	}
	across := false
	if d := s.DataSourceRef; d != nil {
		c.dataSource(p.Child("dataSourceRef"), d.APIGroup, d.Kind, d.Name, o.anySourceGroup)
		if d.Namespace != nil && *d.Namespace != "" {
			across = true
			c.all(p.Child("dataSourceRef", "namespace"), *d.Namespace, resource.DNSLabel(*d.Namespace, false))
		}
	}
	// The value shown is the path itself, which has no members.
	switch {
	case s.DataSource == nil || s.DataSourceRef == nil:
	case across:
		c.invalid(p, struct{}{}, "may not be specified when dataSourceRef.namespace is specified")
	case !sameSource(s.DataSource, s.DataSourceRef):
		c.invalid(p, struct{}{}, "must match dataSourceRef")
	}
	if n := s.VolumeAttributesClassName; n != nil && *n != "" {
		c.name(p.Child("volumeAttributesClassName"), *n)
	}
}

// accessModes checks how a volume may be mounted.
func (c *check) accessModes(p *field.Path, modes []corev1.PersistentVolumeAccessMode) {
	single, other := false, false
	for _, m := range modes {
		ok := oneOf(c, p, m, corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod)
		single = single || m == corev1.ReadWriteOncePod
		other = other || ok && m != corev1.ReadWriteOncePod
	}
	if single && other {
		c.forbidden(p, "may not use ReadWriteOncePod with other access modes")
	}
}

func (c *check) volumeMode(p *field.Path, m *corev1.PersistentVolumeMode) {
	if m != nil {
		oneOf(c, p, *m, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
}

func sameSource(a *corev1.TypedLocalObjectReference, b *corev1.TypedObjectReference) bool {
	return reflect.DeepEqual(a.APIGroup, b.APIGroup) && a.Kind == b.Kind && a.Name == b.Name
}

func (c *check) dataSource(p *field.Path, group *string, kind, name string, anyGroup bool) {
	c.filled(p.Child("name"), name)
	c.filled(p.Child("kind"), kind)
	if group == nil || *group == "" {
		if kind != "PersistentVolumeClaim" {
			c.invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
		}
		return
	}
	if !anyGroup {
		c.subdomain(p.Child("apiGroup"), *group)
	}
}
