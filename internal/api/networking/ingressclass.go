package networking

import (
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// maxControllerName is the longest name of a controller of Ingresses, in bytes.
const maxControllerName = 250

func isDefaultClass(c *networkingv1.IngressClass) bool {
	return c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
}

// DefaultClass returns the class of Ingresses that name none: of those so marked
// the newest, and of these the first by name. Nil where there is none.
func DefaultClass(list []*networkingv1.IngressClass) *networkingv1.IngressClass {
	return resource.Newest(list, isDefaultClass)
}

// IngressClass declares networking.k8s.io/v1 ingressclasses.
func IngressClass() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: networkingv1.SchemeGroupVersion, Kind: "IngressClass", Plural: "ingressclasses", Singular: "ingressclass",
		Prefix:  "/registry/ingressclasses/",
		New:     func() resource.Object { return &networkingv1.IngressClass{} },
		NewList: func() runtime.Object { return &networkingv1.IngressClassList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Controller", "string", "Controller that is responsible for handling this class", 0),
			resource.Column("Parameters", "string", "A reference to a resource with additional parameters", 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*networkingv1.IngressClass]{
		UnconditionalUpdate: true,
		Default: func(c *networkingv1.IngressClass) {
			if p := c.Spec.Parameters; p != nil && p.Scope == nil {
				scope := networkingv1.IngressClassParametersReferenceScopeCluster
				p.Scope = &scope
			}
		},
		PrepareCreate: func(_ resource.Env, c *networkingv1.IngressClass) { c.Generation = 1 },
		PrepareUpdate: func(_ resource.Env, c, old *networkingv1.IngressClass) {
			if !apiequality.Semantic.DeepEqual(c.Spec, old.Spec) {
				c.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(_ resource.Env, c *networkingv1.IngressClass) field.ErrorList { return validateIngressClass(c) },
		ValidateUpdate: func(_ resource.Env, c, old *networkingv1.IngressClass) field.ErrorList {
			errs := resource.ValidateMetaUpdate(c, old)
			errs = append(errs, apivalidation.ValidateImmutableField(c.Spec.Controller, old.Spec.Controller, field.NewPath("spec", "controller"))...)
			return append(errs, validateIngressClass(c)...)
		},
		Row: func(c *networkingv1.IngressClass, now time.Time) []any {
			name := c.Name
			if isDefaultClass(c) {
				name += " (default)"
			}
			return []any{name, c.Spec.Controller, parametersCell(c.Spec.Parameters), resource.Age(c.CreationTimestamp, now)}
		},
	})
}

func parametersCell(p *networkingv1.IngressClassParametersReference) string {
	if p == nil {
		return "<none>"
	}
	kind := p.Kind
	if p.APIGroup != nil {
		kind += "." + *p.APIGroup
	}
	return kind + "/" + p.Name
}

func validateIngressClass(c *networkingv1.IngressClass) field.ErrorList {
	errs := resource.ValidateMeta(c, false, resource.DNSSubdomain)
	path := field.NewPath("spec", "controller")
	if len(c.Spec.Controller) > maxControllerName {
		errs = append(errs, field.TooLong(path, "", maxControllerName))
	}
	errs = append(errs, validation.IsDomainPrefixedPath(path, c.Spec.Controller)...)
	if c.Spec.Parameters != nil {
		errs = append(errs, validateParameters(field.NewPath("spec", "parameters"), c.Spec.Parameters)...)
	}
	return errs
}

// validateParameters: what is required by markers on the type comes last.
func validateParameters(p *field.Path, r *networkingv1.IngressClassParametersReference) field.ErrorList {
	errs := validateGroup(p, r.APIGroup)
	errs = append(errs, validateSegment(p.Child("kind"), r.Kind)...)
	errs = append(errs, validateSegment(p.Child("name"), r.Name)...)
	errs = append(errs, validateScope(p, r)...)
	if r.Kind == "" {
		errs = append(errs, field.Required(p.Child("kind"), ""))
	}
	if r.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	return errs
}

func validateScope(p *field.Path, r *networkingv1.IngressClassParametersReference) field.ErrorList {
	const inNamespace, inCluster = networkingv1.IngressClassParametersReferenceScopeNamespace, networkingv1.IngressClassParametersReferenceScopeCluster
	scope, namespace := p.Child("scope"), p.Child("namespace")
	switch {
	case r.Scope == nil:
		return field.ErrorList{field.Required(scope, "")}
	case *r.Scope == inNamespace && r.Namespace == nil:
		return field.ErrorList{field.Required(namespace, "`parameters.scope` is set to 'Namespace'")}
	case *r.Scope == inNamespace:
		return resource.Invalid(namespace, *r.Namespace, apivalidation.ValidateNamespaceName(*r.Namespace, false))
	case *r.Scope != inCluster:
		return field.ErrorList{field.NotSupported(scope, *r.Scope, []string{inCluster, inNamespace})}
	case r.Namespace != nil:
		return field.ErrorList{field.Forbidden(namespace, "`parameters.scope` is set to 'Cluster'")}
	}
	return nil
}

func validateGroup(p *field.Path, group *string) field.ErrorList {
	if group == nil {
		return nil
	}
	return resource.Invalid(p.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group))
}

// validateSegment checks what stands in a path, if anything.
func validateSegment(p *field.Path, v string) field.ErrorList {
	if v == "" {
		return nil
	}
	return resource.Invalid(p, v, content.IsPathSegmentName(v))
}
