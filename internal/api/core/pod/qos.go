package pod

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"skiff/internal/api/resource"
)

// QOSClass computes a pod's class: BestEffort where no container asks for cpu or
// memory, Guaranteed where all limit both to what they request, else Burstable.
// Resources of the pod as a whole count instead of those of its containers.
func QOSClass(f resource.Features, pod *corev1.Pod) corev1.PodQOSClass {
	if f.Enabled("PodLevelResources") && hasPodResources(pod) {
		return requirementsQOS(pod.Spec.Resources)
	}
	class := corev1.PodQOSClass("")
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			class = joinQOS(class, requirementsQOS(&list[i].Resources))
		}
	}
	if class == "" {
		return corev1.PodQOSBestEffort
	}
	return class
}

// hasPodResources tells whether the pod as a whole names a resource that pods
// may name.
func hasPodResources(pod *corev1.Pod) bool {
	r := pod.Spec.Resources
	if r == nil {
		return false
	}
	for n := range r.Requests {
		if resourcehelper.IsSupportedPodLevelResource(n) {
			return true
		}
	}
	for n := range r.Limits {
		if resourcehelper.IsSupportedPodLevelResource(n) {
			return true
		}
	}
	return false
}

func joinQOS(a, b corev1.PodQOSClass) corev1.PodQOSClass {
	if a == "" || a == b {
		return b
	}
	return corev1.PodQOSBurstable
}

func requirementsQOS(r *corev1.ResourceRequirements) corev1.PodQOSClass {
	class := corev1.PodQOSClass("")
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		request, limit := r.Requests[n], r.Limits[n]
		one := corev1.PodQOSGuaranteed
		if request.Cmp(limit) != 0 {
			one = corev1.PodQOSBurstable
		} else if request.IsZero() {
			one = corev1.PodQOSBestEffort
		}
		class = joinQOS(class, one)
	}
	return class
}

// completePodResources fills in resources of the pod as a whole, where it names
// some, from those of its containers: limits of huge pages; then requests, of
// which those without a container's are the limits; then limits that every
// container has, at least the requests.
func completePodResources(f resource.Features, pod *corev1.Pod) {
	r := pod.Spec.Resources
	if !f.Enabled("PodLevelResources") || !f.Enabled("PodLevelResourcesFixDefaulting") || r == nil || len(r.Requests)+len(r.Limits) == 0 {
		return
	}
	// Ephemeral containers have no resources.
	sum := &corev1.Pod{Spec: corev1.PodSpec{Containers: pod.Spec.Containers, InitContainers: pod.Spec.InitContainers}}
	limits := resourcehelper.AggregateContainerLimits(sum, resourcehelper.PodResourcesOptions{})
	requests := resourcehelper.AggregateContainerRequests(sum, resourcehelper.PodResourcesOptions{})
	put := func(l *corev1.ResourceList, n corev1.ResourceName, from corev1.ResourceList) {
		if _, ok := (*l)[n]; ok || !resourcehelper.IsSupportedPodLevelResource(n) {
			return
		}
		if *l == nil {
			*l = corev1.ResourceList{}
		}
		(*l)[n] = from[n].DeepCopy()
	}
	for n := range limits {
		if _, requested := r.Requests[n]; isHugePages(n) && !requested {
			put(&r.Limits, n, limits)
		}
	}
	for n := range requests {
		if MayOvercommit(n) {
			put(&r.Requests, n, requests)
		}
	}
	for n := range r.Limits {
		put(&r.Requests, n, r.Limits)
	}
	for n, request := range r.Requests {
		limit, ok := limits[n]
		if !ok || anyContainer(&pod.Spec, func(c *corev1.Container) bool { _, ok := c.Resources.Limits[n]; return !ok }) {
			continue
		}
		if request.Cmp(limit) > 0 {
			limit = request
		}
		put(&r.Limits, n, corev1.ResourceList{n: limit})
	}
}
