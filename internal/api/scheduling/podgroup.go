package scheduling

import (
	"context"
	"slices"
	"time"

	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/validate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling/rules"
)

type podGroup = schedulingv1beta1.PodGroup

// Feature gates of parts of the group's kinds.
const (
	topologyGate   = "TopologyAwareWorkloadScheduling"
	claimsGate     = "DRAWorkloadResourceClaims"
	preemptionGate = "PodGroupPreemptionPolicy"
	compositeGate  = "CompositePodGroup"
)

// marked returns what the markers on an object's type say of it: of a new one where
// old is nil.
func marked[T any](f resource.Features, rule func(context.Context, operation.Operation, *field.Path, *T, *T) field.ErrorList, obj, old *T) field.ErrorList {
	op := operation.Operation{Type: operation.Create, Options: map[string]bool{}}
	for _, gate := range []string{topologyGate, claimsGate, preemptionGate, compositeGate} {
		op.Options[gate] = f.Enabled(gate)
	}
	if old != nil {
		op.Type = operation.Update
	}
	ctx := context.Background() // no rule waits
	return validate.FilterEnforcedDeclarativeErrors(ctx, rule(ctx, op, nil, obj, old), true)
}

// PodGroup declares podgroups: pods that are scheduled together (KEP 4671).
func PodGroup() *resource.Resource {
	doc := schedulingv1beta1.PodGroupSpec{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: schedulingv1beta1.SchemeGroupVersion, Kind: "PodGroup", Plural: "podgroups", Singular: "podgroup",
		Namespaced: true, Prefix: "/registry/podgroups/",
		New:     func() resource.Object { return &podGroup{} },
		NewList: func() runtime.Object { return &schedulingv1beta1.PodGroupList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Policy", "string", doc["schedulingPolicy"], 0),
			resource.Column("Workload", "string", "Name of the referenced Workload object", 0),
			resource.Column("Status", "string", "Status of the PodGroup", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*podGroup]{
			Default:     defaultPodGroup,
			ResetFields: []string{"metadata", "spec"},
			PrepareUpdate: func(env resource.Env, g, old *podGroup) {
				g.Spec = *old.Spec.DeepCopy()
				metav1.ResetObjectMetaForStatus(&g.ObjectMeta, old.ObjectMeta.DeepCopy())
				if !env.Features.Enabled(claimsGate) && len(old.Spec.ResourceClaims) == 0 {
					g.Status.ResourceClaimStatuses = nil
				}
			},
			ValidateUpdate: validatePodGroupStatus,
		})},
	}, resource.StrategyOf[*podGroup]{
		Default:     defaultPodGroup,
		ResetFields: []string{"status"},
		PrepareCreate: func(env resource.Env, g *podGroup) {
			g.Status = schedulingv1beta1.PodGroupStatus{}
			dropPodGroup(env.Features, &g.Spec, nil)
		},
		PrepareUpdate: func(env resource.Env, g, old *podGroup) {
			g.Status = *old.Status.DeepCopy()
			dropPodGroup(env.Features, &g.Spec, &old.Spec)
		},
		ValidateCreate: func(env resource.Env, g *podGroup) field.ErrorList {
			return append(resource.ValidateMeta(g, true, resource.DNSSubdomain), marked(env.Features, rules.Validate_PodGroup, g, nil)...)
		},
		ValidateUpdate: func(env resource.Env, g, old *podGroup) field.ErrorList {
			return append(resource.ValidateMetaUpdate(g, old), marked(env.Features, rules.Validate_PodGroup, g, old)...)
		},
		Row: func(g *podGroup, now time.Time) []any {
			return []any{g.Name, policyOf(g), workloadOf(g), statusOf(g), resource.Age(g.CreationTimestamp, now)}
		},
	})
}

// defaultPodGroup: pods of a group end each by itself, unless it says otherwise.
func defaultPodGroup(g *podGroup) {
	if g.Spec.DisruptionMode == nil {
		g.Spec.DisruptionMode = &schedulingv1beta1.DisruptionMode{Single: &schedulingv1beta1.SingleDisruptionMode{}}
	}
}

// dropPodGroup drops what belongs to gates that are off, unless the object has it.
func dropPodGroup(f resource.Features, s, old *schedulingv1beta1.PodGroupSpec) {
	if old == nil {
		old = &schedulingv1beta1.PodGroupSpec{}
	}
	if !f.Enabled(topologyGate) && old.SchedulingConstraints == nil {
		s.SchedulingConstraints = nil
	}
	if !f.Enabled(claimsGate) && len(old.ResourceClaims) == 0 {
		s.ResourceClaims = nil
	}
	if !f.Enabled(preemptionGate) && old.PreemptionPolicy == nil {
		s.PreemptionPolicy = nil
	}
	if !f.Enabled(compositeGate) && old.ParentCompositePodGroupName == nil {
		s.ParentCompositePodGroupName = nil
	}
}

func validatePodGroupStatus(env resource.Env, g, old *podGroup) field.ErrorList {
	status := field.NewPath("status")
	errs := resource.ValidateMetaUpdate(g, old)
	errs = append(errs, metavalidation.ValidateConditions(g.Status.Conditions, status.Child("conditions"))...)
	for i, s := range g.Status.ResourceClaimStatuses {
		if !slices.ContainsFunc(g.Spec.ResourceClaims, func(c schedulingv1beta1.PodGroupResourceClaim) bool { return c.Name == s.Name }) {
			errs = append(errs, field.Invalid(status.Child("resourceClaimStatuses").Index(i).Child("name"), s.Name, "must match the name of an entry in `spec.resourceClaims`"))
		}
	}
	return append(errs, marked(env.Features, rules.Validate_PodGroup, g, old)...)
}

func policyOf(g *podGroup) string {
	if g.Spec.SchedulingPolicy.Gang != nil {
		return "Gang"
	}
	return "Basic"
}

func workloadOf(g *podGroup) string {
	if r := g.Spec.WorkloadRef; r != nil {
		return r.WorkloadName
	}
	return "<none>"
}

func statusOf(g *podGroup) string {
	out := "Pending"
	for _, c := range g.Status.Conditions {
		if c.Type != schedulingv1beta1.PodGroupInitiallyScheduled {
			continue
		}
		out = "Unschedulable"
		if c.Status == metav1.ConditionTrue {
			out = "Scheduled"
		}
	}
	for _, c := range g.Status.Conditions {
		if c.Type == schedulingv1beta1.DisruptionTarget {
			out = c.Reason
		}
	}
	return out
}
