// Package rbac declares the resources of rbac.authorization.k8s.io.
//
// Nobody grants what he does not have: a write of a role or of a binding is
// refused unless the writer holds every permission that it grants, or was
// allowed to "escalate" the role or to "bind" to it (see escalation.go).
package rbac

import (
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// Role declares roles.
func Role() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: rbacv1.SchemeGroupVersion, Kind: "Role", Plural: "roles", Singular: "role",
		Namespaced: true, Prefix: "/registry/roles/",
		New:     func() resource.Object { return &rbacv1.Role{} },
		NewList: func() runtime.Object { return &rbacv1.RoleList{} },
	}, resource.StrategyOf[*rbacv1.Role]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateCreate: func(_ resource.Env, r *rbacv1.Role) field.ErrorList {
			return append(validateRole(r), needVerbs(r.Rules)...)
		},
		ValidateUpdate: func(_ resource.Env, r, old *rbacv1.Role) field.ErrorList {
			return append(append(validateRole(r), resource.ValidateMetaUpdate(r, old)...), needVerbs(r.Rules)...)
		},
		Begin: beginRole,
	})
}

// ClusterRole declares clusterroles.
func ClusterRole() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: rbacv1.SchemeGroupVersion, Kind: "ClusterRole", Plural: "clusterroles", Singular: "clusterrole",
		Prefix:  "/registry/clusterroles/",
		New:     func() resource.Object { return &rbacv1.ClusterRole{} },
		NewList: func() runtime.Object { return &rbacv1.ClusterRoleList{} },
	}, resource.StrategyOf[*rbacv1.ClusterRole]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ValidateCreate: func(_ resource.Env, r *rbacv1.ClusterRole) field.ErrorList {
			return append(validateClusterRole(r, false), needVerbs(r.Rules)...)
		},
		ValidateUpdate: func(_ resource.Env, r, old *rbacv1.ClusterRole) field.ErrorList {
			return append(append(validateClusterRole(r, hasInvalidSelector(old)), resource.ValidateMetaUpdate(r, old)...), needVerbs(r.Rules)...)
		},
		Begin: beginClusterRole,
	})
}

// RoleBinding declares rolebindings. The role it refers to never changes.
func RoleBinding() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: rbacv1.SchemeGroupVersion, Kind: "RoleBinding", Plural: "rolebindings", Singular: "rolebinding",
		Namespaced: true, Prefix: "/registry/rolebindings/",
		New:     func() resource.Object { return &rbacv1.RoleBinding{} },
		NewList: func() runtime.Object { return &rbacv1.RoleBindingList{} },
		Columns: bindingColumns("roleBinding", rbacv1.RoleBinding{}.SwaggerDoc()["roleRef"]),
	}, resource.StrategyOf[*rbacv1.RoleBinding]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Default: func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
		ValidateCreate: func(_ resource.Env, b *rbacv1.RoleBinding) field.ErrorList {
			return validateBinding(b, true, b.RoleRef, b.Subjects)
		},
		ValidateUpdate: func(_ resource.Env, b, old *rbacv1.RoleBinding) field.ErrorList {
			errs := append(validateBinding(b, true, b.RoleRef, b.Subjects), resource.ValidateMetaUpdate(b, old)...)
			return append(errs, sameRoleRef(b.RoleRef, old.RoleRef)...)
		},
		Begin: beginRoleBinding,
		Row: func(b *rbacv1.RoleBinding, now time.Time) []any {
			return bindingRow(b, b.RoleRef, b.Subjects, now)
		},
	})
}

// ClusterRoleBinding declares clusterrolebindings.
func ClusterRoleBinding() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: rbacv1.SchemeGroupVersion, Kind: "ClusterRoleBinding", Plural: "clusterrolebindings", Singular: "clusterrolebinding",
		Prefix:  "/registry/clusterrolebindings/",
		New:     func() resource.Object { return &rbacv1.ClusterRoleBinding{} },
		NewList: func() runtime.Object { return &rbacv1.ClusterRoleBindingList{} },
		Columns: bindingColumns("clusterRoleBinding", rbacv1.ClusterRoleBinding{}.SwaggerDoc()["roleRef"]),
	}, resource.StrategyOf[*rbacv1.ClusterRoleBinding]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Default: func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) },
		ValidateCreate: func(_ resource.Env, b *rbacv1.ClusterRoleBinding) field.ErrorList {
			return validateBinding(b, false, b.RoleRef, b.Subjects)
		},
		ValidateUpdate: func(_ resource.Env, b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
			errs := append(validateBinding(b, false, b.RoleRef, b.Subjects), resource.ValidateMetaUpdate(b, old)...)
			return append(errs, sameRoleRef(b.RoleRef, old.RoleRef)...)
		},
		Begin: beginClusterRoleBinding,
		Row: func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
			return bindingRow(b, b.RoleRef, b.Subjects, now)
		},
	})
}

func bindingColumns(kind, roleRef string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		resource.NameColumn(),
		// The text of the first version of this API, which said no more.
		resource.Column("Role", "string", strings.TrimSuffix(roleRef, " This field is immutable."), 0),
		resource.AgeColumn(),
		resource.Column("Users", "string", "Users in the "+kind, 1),
		resource.Column("Groups", "string", "Groups in the "+kind, 1),
		resource.Column("ServiceAccounts", "string", "ServiceAccounts in the "+kind, 1),
	}
}

func bindingRow(o resource.Object, ref rbacv1.RoleRef, subjects []rbacv1.Subject, now time.Time) []any {
	var users, groups, accounts []string
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			users = append(users, s.Name)
		case rbacv1.GroupKind:
			groups = append(groups, s.Name)
		case rbacv1.ServiceAccountKind:
			accounts = append(accounts, s.Namespace+"/"+s.Name)
		}
	}
	return []any{
		o.GetName(), ref.Kind + "/" + ref.Name, resource.Age(o.GetCreationTimestamp(), now),
		strings.Join(users, ", "), strings.Join(groups, ", "), strings.Join(accounts, ", "),
	}
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if ref.APIGroup == "" {
		ref.APIGroup = rbacv1.GroupName
	}
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

func validateRole(r *rbacv1.Role) field.ErrorList {
	errs := resource.ValidateMeta(r, true, resource.PathSegment)
	for i := range r.Rules {
		errs = append(errs, validateRule(&r.Rules[i], true, field.NewPath("rules").Index(i))...)
	}
	return errs
}

func validateClusterRole(r *rbacv1.ClusterRole, anySelectorValue bool) field.ErrorList {
	errs := resource.ValidateMeta(r, false, resource.PathSegment)
	for i := range r.Rules {
		errs = append(errs, validateRule(&r.Rules[i], false, field.NewPath("rules").Index(i))...)
	}
	if r.AggregationRule == nil {
		return errs
	}
	path := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
		errs = append(errs, field.Required(path, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
	}
	o := metav1validation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: anySelectorValue}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		s := &r.AggregationRule.ClusterRoleSelectors[i]
		errs = append(errs, metav1validation.ValidateLabelSelector(s, o, path.Index(i))...)
		if sel, err := metav1.LabelSelectorAsSelector(s); err != nil {
			errs = append(errs, field.Invalid(path.Index(i), sel, "invalid label selector."))
		}
	}
	return errs
}

func hasInvalidSelector(r *rbacv1.ClusterRole) bool {
	if r.AggregationRule == nil {
		return false
	}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		if len(metav1validation.ValidateLabelSelector(&r.AggregationRule.ClusterRoleSelectors[i], metav1validation.LabelSelectorValidationOptions{}, nil)) > 0 {
			return true
		}
	}
	return false
}

// needVerbs reports rules without verbs: upstream does after everything else.
func needVerbs(rules []rbacv1.PolicyRule) field.ErrorList {
	var errs field.ErrorList
	for i := range rules {
		if len(rules[i].Verbs) == 0 {
			errs = append(errs, field.Required(field.NewPath("rules").Index(i).Child("verbs"), ""))
		}
	}
	return errs
}

func validateRule(r *rbacv1.PolicyRule, namespaced bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(r.NonResourceURLs) > 0 {
		urls := path.Child("nonResourceURLs")
		if namespaced {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
		}
		if len(r.APIGroups) > 0 || len(r.Resources) > 0 || len(r.ResourceNames) > 0 {
			errs = append(errs, field.Invalid(urls, r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		return errs
	}
	if len(r.APIGroups) == 0 {
		errs = append(errs, field.Required(path.Child("apiGroups"), "resource rules must supply at least one api group"))
	}
	if len(r.Resources) == 0 {
		errs = append(errs, field.Required(path.Child("resources"), "resource rules must supply at least one resource"))
	}
	return errs
}

func validateBinding(b resource.Object, namespaced bool, ref rbacv1.RoleRef, subjects []rbacv1.Subject) field.ErrorList {
	errs := resource.ValidateMeta(b, namespaced, resource.PathSegment)
	path := field.NewPath("roleRef")
	if ref.APIGroup != rbacv1.GroupName {
		errs = append(errs, field.NotSupported(path.Child("apiGroup"), ref.APIGroup, []string{rbacv1.GroupName}))
	}
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	if ref.Kind != "ClusterRole" && !(namespaced && ref.Kind == "Role") {
		errs = append(errs, field.NotSupported(path.Child("kind"), ref.Kind, kinds))
	}
	if ref.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		for _, msg := range resource.PathSegment(ref.Name, false) {
			errs = append(errs, field.Invalid(path.Child("name"), ref.Name, msg))
		}
	}
	for i := range subjects {
		errs = append(errs, validateSubject(&subjects[i], namespaced, field.NewPath("subjects").Index(i))...)
	}
	return errs
}

func validateSubject(s *rbacv1.Subject, namespaced bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		if s.Name != "" {
			for _, msg := range apivalidation.ValidateServiceAccountName(s.Name, false) {
				errs = append(errs, field.Invalid(path.Child("name"), s.Name, msg))
			}
		}
		if s.APIGroup != "" {
			errs = append(errs, field.NotSupported(path.Child("apiGroup"), s.APIGroup, []string{""}))
		}
		if !namespaced && s.Namespace == "" {
			errs = append(errs, field.Required(path.Child("namespace"), ""))
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
		if s.APIGroup != rbacv1.GroupName {
			errs = append(errs, field.NotSupported(path.Child("apiGroup"), s.APIGroup, []string{rbacv1.GroupName}))
		}
	default:
		errs = append(errs, field.NotSupported(path.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
	}
	if s.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	return errs
}

func sameRoleRef(ref, old rbacv1.RoleRef) field.ErrorList {
	if apiequality.Semantic.DeepEqual(ref, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("roleRef"), resource.Shown(ref), apivalidation.FieldImmutableErrorMsg)}
}
