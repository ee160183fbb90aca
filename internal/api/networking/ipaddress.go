// Package networking declares the resources of networking.k8s.io.
package networking

import (
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// IPAddress declares networking.k8s.io/v1 ipaddresses.
func IPAddress() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: networkingv1.SchemeGroupVersion, Kind: "IPAddress", Plural: "ipaddresses", Singular: "ipaddress",
		ShortNames: []string{"ip"}, Prefix: "/registry/ipaddresses/",
		New:     func() resource.Object { return &networkingv1.IPAddress{} },
		NewList: func() runtime.Object { return &networkingv1.IPAddressList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("ParentRef", "string", networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"], 0),
		},
	}, resource.StrategyOf[*networkingv1.IPAddress]{
		UnconditionalUpdate: true,
		ValidateCreate:      func(_ resource.Env, a *networkingv1.IPAddress) field.ErrorList { return validateIPAddress(a) },
		ValidateUpdate: func(_ resource.Env, a, old *networkingv1.IPAddress) field.ErrorList {
			errs := append(validateIPAddress(a), resource.ValidateMetaUpdate(a, old)...)
			return append(errs, parentFixed(a, old)...)
		},
		Row: func(a *networkingv1.IPAddress, now time.Time) []any {
			// One cell more than columns, as upstream.
			return []any{a.Name, parentCell(a.Spec.ParentRef), resource.Age(a.CreationTimestamp, now)}
		},
	})
}

func parentCell(p *networkingv1.ParentReference) string {
	if p == nil {
		return "<none>"
	}
	parts := []string{strings.ToLower(schema.GroupResource{Group: p.Group, Resource: p.Resource}.String())}
	if p.Namespace != "" {
		parts = append(parts, p.Namespace)
	}
	return strings.Join(append(parts, p.Name), "/")
}

// addressName is the rule of names: the address in its usual form.
func addressName(name string, _ bool) []string {
	var out []string
	for _, e := range validation.IsValidIP(&field.Path{}, name) {
		out = append(out, e.Detail)
	}
	return out
}

func validateIPAddress(a *networkingv1.IPAddress) field.ErrorList {
	errs := resource.ValidateMeta(a, false, addressName)
	path, p := field.NewPath("spec", "parentRef"), a.Spec.ParentRef
	if p == nil {
		return append(errs, field.Required(path, ""))
	}
	text := func(name, v string, required bool, rule func(string) []string) {
		if v == "" {
			if required {
				errs = append(errs, field.Required(path.Child(name), ""))
			}
			return
		}
		for _, m := range rule(v) {
			errs = append(errs, field.Invalid(path.Child(name), v, m))
		}
	}
	// The group of Services is the empty one.
	text("group", p.Group, false, validation.IsDNS1123Subdomain)
	text("resource", p.Resource, true, content.IsPathSegmentName)
	text("name", p.Name, true, content.IsPathSegmentName)
	text("namespace", p.Namespace, false, content.IsPathSegmentName)
	return errs
}

// parentFixed refuses another parent; upstream shows no value of it.
func parentFixed(a, old *networkingv1.IPAddress) field.ErrorList {
	if apiequality.Semantic.DeepEqual(a.Spec.ParentRef, old.Spec.ParentRef) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("spec", "parentRef"), nil, apivalidation.FieldImmutableErrorMsg)}
}
