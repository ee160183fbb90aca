package config

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	configv1 "k8s.io/kube-scheduler/config/v1"
)

// maxShapeScore is the greatest score of a point of a shape.
const maxShapeScore = 10

// Arguments validates the defaulted arguments of a plugin.
func Arguments(path *field.Path, args runtime.Object) error {
	var errs field.ErrorList
	switch a := args.(type) {
	case *configv1.DefaultPreemptionArgs:
		errs = preemption(path, a)
	case *configv1.InterPodAffinityArgs:
		errs = inRange(errs, path.Child("hardPodAffinityWeight"), *a.HardPodAffinityWeight, 0, 100)
	case *configv1.NodeAffinityArgs:
		return addedAffinity(path.Child("addedAffinity"), a.AddedAffinity)
	case *configv1.NodeResourcesBalancedAllocationArgs:
		seen := map[string]bool{}
		for i, r := range a.Resources {
			at := path.Child("resources").Index(i)
			if seen[r.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), r.Name))
			}
			seen[r.Name] = true
			if r.Weight != 1 {
				errs = append(errs, field.Invalid(at.Child("weight"), r.Weight, "must be 1"))
			}
		}
	case *configv1.NodeResourcesFitArgs:
		errs = fit(path, a)
	case *configv1.PodTopologySpreadArgs:
		errs = spread(path, a)
	case *configv1.VolumeBindingArgs:
		if *a.BindTimeoutSeconds < 0 {
			errs = append(errs, field.Invalid(path.Child("bindTimeoutSeconds"), *a.BindTimeoutSeconds, "invalid BindTimeoutSeconds, should not be a negative value"))
		}
		errs = append(errs, shape(path.Child("shape"), a.Shape)...)
	case *configv1.DynamicResourcesArgs:
		if a.FilterTimeout.Duration < 0 {
			errs = append(errs, field.Invalid(path.Child("filterTimeout"), a.FilterTimeout, "must be zero or positive"))
		}
		if a.BindingTimeout.Duration < time.Second {
			errs = append(errs, field.Invalid(path.Child("bindingTimeout"), a.BindingTimeout, "must be at least 1 second"))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errs.ToAggregate()
}

func inRange(errs field.ErrorList, path *field.Path, v, least, most int32) field.ErrorList {
	if v < least || v > most {
		return append(errs, field.Invalid(path, v, fmt.Sprintf("not in valid range [%d, %d]", least, most)))
	}
	return errs
}

func preemption(path *field.Path, a *configv1.DefaultPreemptionArgs) field.ErrorList {
	percent, least := path.Child("minCandidateNodesPercentage"), path.Child("minCandidateNodesAbsolute")
	errs := inRange(nil, percent, *a.MinCandidateNodesPercentage, 0, 100)
	if *a.MinCandidateNodesAbsolute < 0 {
		errs = append(errs, field.Invalid(least, *a.MinCandidateNodesAbsolute, "not in valid range [0, inf)"))
	}
	if *a.MinCandidateNodesPercentage == 0 && *a.MinCandidateNodesAbsolute == 0 {
		errs = append(errs,
			field.Invalid(percent, *a.MinCandidateNodesPercentage, "cannot be zero at the same time as minCandidateNodesAbsolute"),
			field.Invalid(least, *a.MinCandidateNodesAbsolute, "cannot be zero at the same time as minCandidateNodesPercentage"))
	}
	return errs
}

func addedAffinity(path *field.Path, a *corev1.NodeAffinity) error {
	if a == nil {
		return nil
	}
	var errs []error
	if required := a.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
		if _, err := nodeaffinity.NewNodeSelector(required, field.WithPath(path.Child("requiredDuringSchedulingIgnoredDuringExecution"))); err != nil {
			errs = append(errs, err)
		}
	}
	if preferred := a.PreferredDuringSchedulingIgnoredDuringExecution; len(preferred) > 0 {
		if _, err := nodeaffinity.NewPreferredSchedulingTerms(preferred, field.WithPath(path.Child("preferredDuringSchedulingIgnoredDuringExecution"))); err != nil {
			errs = append(errs, err)
		}
	}
	if all := utilerrors.Flatten(utilerrors.NewAggregate(errs)); all != nil {
		return all
	}
	return nil
}

func fit(path *field.Path, a *configv1.NodeResourcesFitArgs) (errs field.ErrorList) {
	for i, r := range a.IgnoredResources {
		errs = append(errs, metav1validation.ValidateLabelName(r, path.Child("ignoredResources").Index(i))...)
	}
	for i, g := range a.IgnoredResourceGroups {
		at := path.Child("ignoredResourceGroups").Index(i)
		if strings.Contains(g, "/") {
			errs = append(errs, field.Invalid(at, g, "resource group name can't contain '/'"))
		}
		errs = append(errs, metav1validation.ValidateLabelName(g, at)...)
	}
	s, path := a.ScoringStrategy, path.Child("scoringStrategy")
	switch s.Type {
	case configv1.LeastAllocated, configv1.MostAllocated, configv1.RequestedToCapacityRatio:
	default:
		errs = append(errs, field.NotSupported(path.Child("type"), s.Type, []string{"LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"}))
	}
	for i, r := range s.Resources {
		if r.Weight <= 0 || r.Weight > 100 {
			errs = append(errs, field.Invalid(path.Child("resources").Index(i).Child("weight"), r.Weight, fmt.Sprintf("resource weight of %v not in valid range (0, 100]", r.Name)))
		}
	}
	ratio := path.Child("requestedToCapacityRatio")
	switch {
	case s.Type == configv1.RequestedToCapacityRatio && s.RequestedToCapacityRatio == nil:
		errs = append(errs, field.Required(ratio, "must be specified when type is RequestedToCapacityRatio"))
	case s.Type == configv1.RequestedToCapacityRatio:
		errs = append(errs, shape(ratio.Child("shape"), s.RequestedToCapacityRatio.Shape)...)
	case s.RequestedToCapacityRatio != nil:
		errs = append(errs, field.Forbidden(ratio, "must be nil when type is not RequestedToCapacityRatio"))
	}
	return errs
}

func shape(path *field.Path, points []configv1.UtilizationShapePoint) (errs field.ErrorList) {
	if len(points) == 0 {
		return field.ErrorList{field.Required(path, "at least one point must be specified")}
	}
	for i := 1; i < len(points); i++ {
		if points[i-1].Utilization >= points[i].Utilization {
			errs = append(errs, field.Invalid(path.Index(i).Child("utilization"), points[i].Utilization, "values must be sorted in increasing order"))
			break
		}
	}
	for i, p := range points {
		errs = inRange(errs, path.Index(i).Child("utilization"), p.Utilization, 0, 100)
		errs = inRange(errs, path.Index(i).Child("score"), p.Score, 0, maxShapeScore)
	}
	return errs
}

func spread(path *field.Path, a *configv1.PodTopologySpreadArgs) (errs field.ErrorList) {
	kind := path.Child("defaultingType")
	switch {
	case a.DefaultingType != configv1.SystemDefaulting && a.DefaultingType != configv1.ListDefaulting:
		errs = append(errs, field.NotSupported(kind, a.DefaultingType, []string{"System", "List"}))
	case a.DefaultingType == configv1.SystemDefaulting && len(a.DefaultConstraints) > 0:
		errs = append(errs, field.Invalid(kind, a.DefaultingType, "when .defaultConstraints are not empty"))
	}
	list := path.Child("defaultConstraints")
	for i, c := range a.DefaultConstraints {
		at := list.Index(i)
		if c.MaxSkew <= 0 {
			errs = append(errs, field.Invalid(at.Child("maxSkew"), c.MaxSkew, "not in valid range (0, inf)"))
		}
		if c.TopologyKey == "" {
			errs = append(errs, field.Required(at.Child("topologyKey"), "can not be empty"))
		} else {
			errs = append(errs, metav1validation.ValidateLabelName(c.TopologyKey, at.Child("topologyKey"))...)
		}
		switch c.WhenUnsatisfiable {
		case corev1.DoNotSchedule, corev1.ScheduleAnyway:
		case "":
			errs = append(errs, field.Required(at.Child("whenUnsatisfiable"), "can not be empty"))
		default:
			errs = append(errs, field.NotSupported(at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, []string{"DoNotSchedule", "ScheduleAnyway"}))
		}
		if c.LabelSelector != nil {
			errs = append(errs, field.Forbidden(at.Child("labelSelector"), "constraint must not define a selector, as they deduced for each pod"))
		}
		for _, o := range a.DefaultConstraints[:i] {
			if o.TopologyKey == c.TopologyKey && o.WhenUnsatisfiable == c.WhenUnsatisfiable {
				errs = append(errs, field.Duplicate(at, fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)))
				break
			}
		}
	}
	return errs
}
