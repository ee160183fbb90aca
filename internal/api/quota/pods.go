package quota

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	resourcehelper "k8s.io/component-helpers/resource"

	podapi "skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

var podNames = []corev1.ResourceName{
	countOf(schema.GroupResource{Resource: "pods"}), corev1.ResourcePods,
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
}

// requiredNames: where a quota limits one of these, every container must say how
// much it uses.
var requiredNames = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
}

func pods(f resource.Features) *Counter {
	c := &podCounter{f}
	return &Counter{Matching: matchingPods, Usage: c.usage, inScope: c.inScope, required: c.required}
}

type podCounter struct{ features resource.Features }

func matchingPods(names []corev1.ResourceName) []corev1.ResourceName {
	out := both(names, podNames)
	for _, n := range names {
		s := string(n)
		if strings.HasPrefix(s, corev1.ResourceHugePagesPrefix) || strings.HasPrefix(s, corev1.ResourceRequestsHugePagesPrefix) {
			out = append(out, n)
		}
		foreign := !isNative(n) || strings.HasPrefix(s, corev1.DefaultResourceRequestsPrefix+resourcev1.ResourceDeviceClassPrefix)
		if foreign && strings.HasPrefix(s, corev1.DefaultResourceRequestsPrefix) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func isNative(n corev1.ResourceName) bool {
	return !strings.Contains(string(n), "/") || strings.Contains(string(n), corev1.ResourceDefaultNamespacePrefix)
}

// isExtended tells of what pods request that others define.
func isExtended(n corev1.ResourceName) bool {
	if strings.HasPrefix(string(n), resourcev1.ResourceDeviceClassPrefix) {
		return true
	}
	return !isNative(n) && !strings.HasPrefix(string(n), corev1.DefaultResourceRequestsPrefix) &&
		len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(n))) == 0
}

// usage counts every pod there is, and what those use that have not ended.
func (c *podCounter) usage(obj resource.Object, now time.Time) corev1.ResourceList {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	out := corev1.ResourceList{podNames[0]: number(1)}
	if !charged(pod, now) {
		return out
	}
	o := resourcehelper.PodResourcesOptions{
		UseStatusResources:    c.features.Enabled("InPlacePodVerticalScaling"),
		SkipPodLevelResources: !c.features.Enabled("PodLevelResources"),
	}
	return Add(out, computed(resourcehelper.PodRequests(pod, o), resourcehelper.PodLimits(pod, o)))
}

// charged: a pod that ended uses nothing, nor one that should be gone by now, on a
// node that was lost.
func charged(pod *corev1.Pod, now time.Time) bool {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return false
	}
	if at, grace := pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds; at != nil && grace != nil {
		return !now.After(at.Add(time.Duration(*grace) * time.Second))
	}
	return true
}

// computed names requests and limits as quotas do.
func computed(requests, limits corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{corev1.ResourcePods: number(1)}
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if q, ok := requests[n]; ok {
			out[n], out[corev1.DefaultResourceRequestsPrefix+n] = q, q
		}
		if q, ok := limits[n]; ok {
			out["limits."+n] = q
		}
	}
	for n, q := range requests {
		if strings.HasPrefix(string(n), corev1.ResourceHugePagesPrefix) {
			out[n], out[corev1.DefaultResourceRequestsPrefix+n] = q, q
		}
		if isExtended(n) {
			out[corev1.DefaultResourceRequestsPrefix+n] = q
		}
	}
	return out
}

func (c *podCounter) required(names []corev1.ResourceName, obj resource.Object) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok || c.features.Enabled("PodLevelResources") && resourcehelper.IsPodLevelResourcesSet(pod) {
		return nil
	}
	names = both(names, requiredNames)
	missing := map[corev1.ResourceName][]string{}
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			has := computed(list[i].Resources.Requests, list[i].Resources.Limits)
			for _, n := range names {
				if _, ok := has[n]; !ok {
					missing[n] = append(missing[n], list[i].Name)
				}
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(missing)) {
		slices.Sort(missing[n])
		parts = append(parts, fmt.Sprintf("%s for: %s", n, strings.Join(slices.Compact(missing[n]), ",")))
	}
	return fmt.Errorf("must specify %s", strings.Join(parts, "; "))
}

// Terminating tells whether a pod ends by itself after a time.
func Terminating(pod *corev1.Pod) bool {
	d := pod.Spec.ActiveDeadlineSeconds
	return d != nil && *d >= 0
}

func (c *podCounter) inScope(s corev1.ScopedResourceSelectorRequirement, obj resource.Object) (bool, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return false, nil
	}
	class := pod.Spec.PriorityClassName
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return Terminating(pod), nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return !Terminating(pod), nil
	case corev1.ResourceQuotaScopeBestEffort:
		return c.bestEffort(pod), nil
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !c.bestEffort(pod), nil
	case corev1.ResourceQuotaScopePriorityClass:
		if s.Operator == corev1.ScopeSelectorOpExists {
			return class != "", nil
		}
		if class == "" {
			return selects(s)
		}
		return selects(s, class)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return acrossNamespaces(pod.Spec.Affinity), nil
	}
	return false, nil
}

func (c *podCounter) bestEffort(pod *corev1.Pod) bool {
	class := pod.Status.QOSClass
	if class == "" {
		class = podapi.QOSClass(c.features, pod)
	}
	return class == corev1.PodQOSBestEffort
}

// acrossNamespaces tells whether pods of other namespaces matter for where one
// runs.
func acrossNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	across := func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil }
	weighted := func(t corev1.WeightedPodAffinityTerm) bool { return across(t.PodAffinityTerm) }
	if p := a.PodAffinity; p != nil && (slices.ContainsFunc(p.RequiredDuringSchedulingIgnoredDuringExecution, across) ||
		slices.ContainsFunc(p.PreferredDuringSchedulingIgnoredDuringExecution, weighted)) {
		return true
	}
	p := a.PodAntiAffinity
	return p != nil && (slices.ContainsFunc(p.RequiredDuringSchedulingIgnoredDuringExecution, across) ||
		slices.ContainsFunc(p.PreferredDuringSchedulingIgnoredDuringExecution, weighted))
}
