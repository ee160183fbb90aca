package networking

import (
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// ServiceCIDR declares networking.k8s.io/v1 servicecidrs. A controller keeps them
// from going (by a finalizer) while addresses of theirs are in use.
func ServiceCIDR() *resource.Resource {
	status := resource.StatusOf(resource.StrategyOf[*networkingv1.ServiceCIDR]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"metadata", "spec"},
		PrepareUpdate: func(_ resource.Env, c, old *networkingv1.ServiceCIDR) {
			c.Spec = *old.Spec.DeepCopy()
			metav1.ResetObjectMetaForStatus(&c.ObjectMeta, old.ObjectMeta.DeepCopy())
		},
		ValidateUpdate: func(_ resource.Env, c, old *networkingv1.ServiceCIDR) field.ErrorList {
			return resource.ValidateMetaUpdate(c, old)
		},
	})
	return resource.Define(resource.Resource{
		GroupVersion: networkingv1.SchemeGroupVersion, Kind: "ServiceCIDR", Plural: "servicecidrs", Singular: "servicecidr",
		Prefix:  "/registry/servicecidrs/",
		New:     func() resource.Object { return &networkingv1.ServiceCIDR{} },
		NewList: func() runtime.Object { return &networkingv1.ServiceCIDRList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("CIDRs", "string", networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"], 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{status},
	}, resource.StrategyOf[*networkingv1.ServiceCIDR]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(_ resource.Env, c *networkingv1.ServiceCIDR) {
			c.Status = networkingv1.ServiceCIDRStatus{}
		},
		PrepareUpdate: func(_ resource.Env, c, old *networkingv1.ServiceCIDR) {
			c.Status = *old.Status.DeepCopy()
		},
		ValidateCreate: func(_ resource.Env, c *networkingv1.ServiceCIDR) field.ErrorList {
			return append(resource.ValidateMeta(c, false, resource.DNSSubdomain), validateCIDRs(&c.Spec)...)
		},
		ValidateUpdate: func(_ resource.Env, c, old *networkingv1.ServiceCIDR) field.ErrorList {
			return append(resource.ValidateMetaUpdate(c, old), validateCIDRChange(&c.Spec, &old.Spec)...)
		},
		Row: func(c *networkingv1.ServiceCIDR, now time.Time) []any {
			return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), resource.Age(c.CreationTimestamp, now)}
		},
	})
}

var cidrsPath = field.NewPath("spec", "cidrs")

func validateCIDRs(s *networkingv1.ServiceCIDRSpec) field.ErrorList {
	var errs field.ErrorList
	switch n := len(s.CIDRs); {
	case n == 0:
		return append(errs, field.Required(cidrsPath, "at least one CIDR required"))
	case n > 2:
		return append(errs, field.Invalid(cidrsPath, resource.Shown(s), "may only hold up to 2 values"))
	}
	for i, c := range s.CIDRs {
		errs = append(errs, validation.IsValidCIDR(cidrsPath.Index(i), c)...)
	}
	if len(s.CIDRs) == 2 {
		a, b := netutils.IPFamilyOfCIDRString(s.CIDRs[0]), netutils.IPFamilyOfCIDRString(s.CIDRs[1])
		if a == b && a != netutils.IPFamilyUnknown {
			errs = append(errs, field.Invalid(cidrsPath, s.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
		}
	}
	return errs
}

// validateCIDRChange: a second range may come; else nothing changes.
func validateCIDRChange(s, old *networkingv1.ServiceCIDRSpec) field.ErrorList {
	var errs field.ErrorList
	fixed := func(i int) {
		if s.CIDRs[i] != old.CIDRs[i] {
			errs = append(errs, field.Invalid(cidrsPath.Index(i), s.CIDRs[i], apivalidation.FieldImmutableErrorMsg))
		}
	}
	switch {
	case len(s.CIDRs) == len(old.CIDRs):
		for i := range s.CIDRs {
			fixed(i)
		}
	case len(old.CIDRs) == 1 && len(s.CIDRs) == 2:
		fixed(0)
		errs = append(errs, validateCIDRs(s)...)
	default:
		errs = append(errs, field.Invalid(cidrsPath, s.CIDRs, apivalidation.FieldImmutableErrorMsg))
	}
	return errs
}
