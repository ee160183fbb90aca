package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// ResourceQuota declares core/v1 resourcequotas.
func ResourceQuota() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "ResourceQuota", Plural: "resourcequotas", Singular: "resourcequota",
		ShortNames: []string{"quota"}, Namespaced: true, Prefix: "/registry/resourcequotas/", ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.ResourceQuota{} },
		NewList: func() runtime.Object { return &corev1.ResourceQuotaList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Request", "string", "Request represents a minimum amount of cpu/memory that a container may consume.", 0),
			resource.Column("Limit", "string", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{
			resource.StatusOf(resource.StrategyOf[*corev1.ResourceQuota]{
				Default:             defaultQuota,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate:       func(_ resource.Env, q, old *corev1.ResourceQuota) { q.Spec = old.Spec },
				ValidateUpdate: func(_ resource.Env, q, old *corev1.ResourceQuota) field.ErrorList {
					errs := resource.ValidateMetaUpdate(q, old)
					errs = append(errs, validateQuantities(statusPath.Child("hard"), q.Status.Hard)...)
					return append(errs, validateQuantities(statusPath.Child("used"), q.Status.Used)...)
				},
			}),
		},
	}, resource.StrategyOf[*corev1.ResourceQuota]{
		Default:             defaultQuota,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate:       func(_ resource.Env, q *corev1.ResourceQuota) { q.Status = corev1.ResourceQuotaStatus{} },
		PrepareUpdate:       func(_ resource.Env, q, old *corev1.ResourceQuota) { q.Status = old.Status },
		ValidateCreate: func(_ resource.Env, q *corev1.ResourceQuota) field.ErrorList {
			return append(resource.ValidateMeta(q, true, resource.DNSSubdomain), validateQuotaSpec(&q.Spec)...)
		},
		ValidateUpdate: func(_ resource.Env, q, old *corev1.ResourceQuota) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(q, old), validateQuotaSpec(&q.Spec)...)
			if !sameScopes(q.Spec.Scopes, old.Spec.Scopes) {
				errs = append(errs, field.Invalid(specPath.Child("scopes"), q.Spec.Scopes, "field is immutable"))
			}
			return errs
		},
		Warnings: quotaWarnings,
		Row:      quotaRow,
	})
}

func defaultQuota(q *corev1.ResourceQuota) {
	pod.WholeMillis(q.Spec.Hard, q.Status.Hard, q.Status.Used)
}

func sameScopes(a, b []corev1.ResourceQuotaScope) bool {
	sorted := func(list []corev1.ResourceQuotaScope) []corev1.ResourceQuotaScope {
		list = slices.Clone(list)
		slices.Sort(list)
		return slices.Compact(list)
	}
	return slices.Equal(sorted(a), sorted(b))
}

func validateQuantities(p *field.Path, list corev1.ResourceList) field.ErrorList {
	var errs field.ErrorList
	for _, n := range sortedKeys(list) {
		errs = append(errs, pod.ValidateQuotaResource(p.Key(string(n)), n, list[n])...)
	}
	return errs
}

func validateQuotaSpec(s *corev1.ResourceQuotaSpec) field.ErrorList {
	errs := validateQuantities(specPath.Child("hard"), s.Hard)
	p := specPath.Child("scopes")
	for _, scope := range s.Scopes {
		if !knownScope(scope) {
			errs = append(errs, field.Invalid(p, s.Scopes, "unsupported scope"))
		}
		for range outOfScope(scope, s.Hard) {
			errs = append(errs, field.Invalid(p, s.Scopes, "unsupported scope applied to resource"))
		}
	}
	errs = append(errs, conflictingScopes(p, s.Scopes, s.Scopes)...)
	if s.ScopeSelector == nil {
		return errs
	}
	p = specPath.Child("scopeSelector", "matchExpressions")
	var named []corev1.ResourceQuotaScope
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !knownScope(r.ScopeName) {
			errs = append(errs, field.Invalid(p.Child("scopeName"), r.ScopeName, "unsupported scope"))
		}
		for range outOfScope(r.ScopeName, s.Hard) {
			errs = append(errs, field.Invalid(p, resource.Shown(s.ScopeSelector), "unsupported scope applied to resource"))
		}
		errs = append(errs, validateScopeOperator(p, &r)...)
		named = append(named, r.ScopeName)
	}
	return append(errs, conflictingScopes(p, named, s.Scopes)...)
}

func validateScopeOperator(p *field.Path, r *corev1.ScopedResourceSelectorRequirement) field.ErrorList {
	var errs field.ErrorList
	switch r.ScopeName {
	case corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeTerminating,
		corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		if r.Operator != corev1.ScopeSelectorOpExists {
			errs = append(errs, field.Invalid(p.Child("operator"), r.Operator,
				"must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
		}
	}
	switch r.Operator {
	case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
		if len(r.Values) == 0 {
			errs = append(errs, field.Required(p.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
		}
	case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
		if len(r.Values) != 0 {
			errs = append(errs, field.Invalid(p.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"))
		}
	default:
		errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "not a valid selector operator"))
	}
	return errs
}

// conflictingScopes: no object is in both.
func conflictingScopes(p *field.Path, scopes, shown []corev1.ResourceQuotaScope) field.ErrorList {
	var errs field.ErrorList
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort},
		{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating},
	} {
		if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
			errs = append(errs, field.Invalid(p, shown, "conflicting scopes"))
		}
	}
	return errs
}

func knownScope(s corev1.ResourceQuotaScope) bool {
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
		corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeVolumeAttributesClass,
		corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return true
	}
	return false
}

// outOfScope are the standard resources of a quota that a scope does not go with:
// scopes of pods go with what pods use.
func outOfScope(s corev1.ResourceQuotaScope, hard corev1.ResourceList) []corev1.ResourceName {
	var with []corev1.ResourceName
	switch s {
	case corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeNotBestEffort,
		corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		with = []corev1.ResourceName{corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU,
			corev1.ResourceRequestsMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory}
	case corev1.ResourceQuotaScopeBestEffort:
		with = []corev1.ResourceName{corev1.ResourcePods}
	case corev1.ResourceQuotaScopeVolumeAttributesClass:
		with = []corev1.ResourceName{corev1.ResourcePersistentVolumeClaims, corev1.ResourceRequestsStorage}
	default:
		return nil
	}
	var out []corev1.ResourceName
	for n := range hard {
		if pod.IsQuotaResource(n) && !slices.Contains(with, n) {
			out = append(out, n)
		}
	}
	return out
}

func quotaWarnings(_ resource.Env, q, old *corev1.ResourceQuota) []string {
	if old != nil {
		return nil
	}
	var out []string
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceStorage, corev1.ResourceEphemeralStorage} {
		name := corev1.DefaultResourceRequestsPrefix + n
		request, ok := q.Spec.Hard[name]
		if !ok && (n == corev1.ResourceCPU || n == corev1.ResourceMemory) {
			if request, ok = q.Spec.Hard[n]; ok {
				name = n
			}
		}
		limit, limited := q.Spec.Hard["limits."+n]
		if ok && limited && request.Cmp(limit) > 0 {
			out = append(out, fmt.Sprintf("ResourceQuota %s (%s) should be less than limits.%s (%s)", name, request.String(), n, limit.String()))
		}
	}
	return out
}

func quotaRow(q *corev1.ResourceQuota, now time.Time) []any {
	var requests, limits []string
	for _, n := range sortedKeys(q.Status.Hard) {
		used, hard := q.Status.Used[n], q.Status.Hard[n]
		cell := fmt.Sprintf("%s: %s/%s", n, used.String(), hard.String())
		if strings.HasPrefix(string(n), "limits.") {
			limits = append(limits, cell)
		} else {
			requests = append(requests, cell)
		}
	}
	return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), resource.Age(q.CreationTimestamp, now)}
}
