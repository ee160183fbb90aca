// Package coordination declares the resources of coordination.k8s.io.
package coordination

import (
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// Lease declares coordination.k8s.io/v1 leases.
func Lease() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: coordinationv1.SchemeGroupVersion, Kind: "Lease", Plural: "leases", Singular: "lease",
		Namespaced: true, Prefix: "/registry/leases/",
		New:     func() resource.Object { return &coordinationv1.Lease{} },
		NewList: func() runtime.Object { return &coordinationv1.LeaseList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Holder", "string", coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*coordinationv1.Lease]{
		CreateOnUpdate: true,
		PrepareCreate: func(env resource.Env, l *coordinationv1.Lease) {
			if !env.Features.Enabled("CoordinatedLeaderElection") {
				l.Spec.Strategy, l.Spec.PreferredHolder = nil, nil
			}
		},
		PrepareUpdate: func(env resource.Env, l, old *coordinationv1.Lease) {
			if env.Features.Enabled("CoordinatedLeaderElection") {
				return
			}
			if old.Spec.Strategy == nil {
				l.Spec.Strategy = nil
			}
			if old.Spec.PreferredHolder == nil {
				l.Spec.PreferredHolder = nil
			}
		},
		ValidateCreate: func(_ resource.Env, l *coordinationv1.Lease) field.ErrorList {
			return append(resource.ValidateMeta(l, true, resource.DNSSubdomain), validateLease(&l.Spec)...)
		},
		ValidateUpdate: func(_ resource.Env, l, old *coordinationv1.Lease) field.ErrorList {
			return append(resource.ValidateMetaUpdate(l, old), validateLease(&l.Spec)...)
		},
		Row: func(l *coordinationv1.Lease, now time.Time) []any {
			holder := ""
			if l.Spec.HolderIdentity != nil {
				holder = *l.Spec.HolderIdentity
			}
			return []any{l.Name, holder, resource.Age(l.CreationTimestamp, now)}
		},
	})
}

func validateLease(s *coordinationv1.LeaseSpec) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	if s.LeaseDurationSeconds != nil && *s.LeaseDurationSeconds <= 0 {
		errs = append(errs, field.Invalid(path.Child("leaseDurationSeconds"), s.LeaseDurationSeconds, "must be greater than 0"))
	}
	if s.LeaseTransitions != nil && *s.LeaseTransitions < 0 {
		errs = append(errs, field.Invalid(path.Child("leaseTransitions"), s.LeaseTransitions, "must be greater than or equal to 0"))
	}
	if s.Strategy != nil {
		errs = append(errs, validateStrategy(*s.Strategy, path.Child("strategy"))...)
	}
	if s.PreferredHolder != nil && *s.PreferredHolder != "" && (s.Strategy == nil || *s.Strategy == "") {
		errs = append(errs, field.Forbidden(path.Child("preferredHolder"), "may only be specified if `strategy` is defined"))
	}
	return errs
}

// validateStrategy: a name without a domain is one of Kubernetes' own. The path
// names the field twice, as upstream's.
func validateStrategy(s coordinationv1.CoordinatedLeaseStrategy, path *field.Path) field.ErrorList {
	path = path.Child("strategy")
	known := []coordinationv1.CoordinatedLeaseStrategy{coordinationv1.OldestEmulationVersion}
	if !strings.Contains(string(s), "/") {
		if !slices.Contains(known, s) {
			return field.ErrorList{field.NotSupported(path, s, known)}
		}
		return nil
	}
	var errs field.ErrorList
	for _, msg := range validation.IsQualifiedName(string(s)) {
		errs = append(errs, field.Invalid(path, s, msg))
	}
	return errs
}
