package pod

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// The doors show the same pod as the pod itself: its defaults and selectable
// fields hold there too.

func statusDoor() resource.Subresource {
	return resource.StatusOf(resource.StrategyOf[*corev1.Pod]{
		Default:             setDefaults,
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec", "metadata.deletionTimestamp", "metadata.ownerReferences"},
		PrepareUpdate:       prepareStatus,
		ValidateUpdate:      validateStatus,
		Warnings: func(_ resource.Env, pod, _ *corev1.Pod) []string {
			var out []string
			for i, ip := range pod.Status.PodIPs {
				out = append(out, validation.GetWarningsForIP(statusPath.Child("podIPs").Index(i).Child("ip"), ip.IP)...)
			}
			for i, ip := range pod.Status.HostIPs {
				out = append(out, validation.GetWarningsForIP(statusPath.Child("hostIPs").Index(i).Child("ip"), ip.IP)...)
			}
			return out
		},
	})
}

func prepareStatus(env resource.Env, pod, old *corev1.Pod) {
	pod.Spec = old.Spec
	pod.Generation = old.Generation
	pod.DeletionTimestamp = nil
	pod.OwnerReferences = old.OwnerReferences
	s, was := &pod.Status, &old.Status
	if s.QOSClass == "" {
		s.QOSClass = was.QOSClass
	}
	// A client that does not know these fields does not clear them; an empty list
	// does.
	if s.ResourceClaimStatuses == nil {
		s.ResourceClaimStatuses = was.ResourceClaimStatuses
	}
	if s.ExtendedResourceClaimStatus == nil {
		s.ExtendedResourceClaimStatus = was.ExtendedResourceClaimStatus
	}
	if s.NodeAllocatableResourceClaimStatuses == nil {
		s.NodeAllocatableResourceClaimStatuses = was.NodeAllocatableResourceClaimStatuses
	}
	if s.ObservedGeneration == 0 {
		s.ObservedGeneration = was.ObservedGeneration
	}
	// Conditions may repeat a type: the first takes the first one's generation.
	seen := map[corev1.PodConditionType][]int64{}
	for _, c := range was.Conditions {
		seen[c.Type] = append(seen[c.Type], c.ObservedGeneration)
	}
	for i := range s.Conditions {
		c := &s.Conditions[i]
		if left := seen[c.Type]; len(left) > 0 {
			seen[c.Type] = left[1:]
			if c.ObservedGeneration == 0 {
				c.ObservedGeneration = left[0]
			}
		}
	}
	dropDisabledPod(env.Features, pod, old)
}

func ephemeralContainersDoor() resource.Subresource {
	s := resource.Untyped(resource.StrategyOf[*corev1.Pod]{
		Default:             setDefaults,
		UnconditionalUpdate: true,
		PrepareUpdate: func(env resource.Env, pod, old *corev1.Pod) {
			list := pod.Spec.EphemeralContainers
			pod.Spec, pod.Status = old.Spec, old.Status
			pod.Spec.EphemeralContainers = list
			metav1.ResetObjectMetaForStatus(&pod.ObjectMeta, &old.ObjectMeta)
			dropDisabledPod(env.Features, pod, old)
			countGeneration(pod, old)
		},
		ValidateUpdate: validateEphemeral,
	})
	return resource.Subresource{Name: "ephemeralcontainers", Verbs: []string{"get", "patch", "update"}, Status: &s}
}

func validateEphemeral(env resource.Env, pod, old *corev1.Pod) field.ErrorList {
	if _, mirror := old.Annotations[mirrorAnnotation]; mirror {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	c := &check{Options: podOptions(env.Features, old)}
	c.add(resource.ValidateMetaUpdate(pod, old)...)
	c.pod(pod)
	c.annotationUpdates(metaPath.Child("annotations"), pod, old)
	p := specPath.Child("ephemeralContainers")
	byName := map[string]*corev1.EphemeralContainer{}
	for i := range pod.Spec.EphemeralContainers {
		byName[pod.Spec.EphemeralContainers[i].Name] = &pod.Spec.EphemeralContainers[i]
	}
	for _, was := range old.Spec.EphemeralContainers {
		if is := byName[was.Name]; is == nil {
			c.forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name))
		} else if !equal(was, *is) {
			c.forbidden(p, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, resource.Diff(was, *is)))
		}
	}
	return c.errs
}

func resizeDoor() resource.Subresource {
	s := resource.Untyped(resource.StrategyOf[*corev1.Pod]{
		Default:             setDefaults,
		UnconditionalUpdate: true,
		PrepareUpdate:       prepareResize,
		ValidateUpdate:      validateResize,
	})
	return resource.Subresource{Name: "resize", Verbs: []string{"get", "patch", "update"}, Status: &s}
}

func prepareResize(env resource.Env, pod, old *corev1.Pod) {
	// Containers added or removed are left for validation to refuse.
	if len(pod.Spec.Containers) == len(old.Spec.Containers) && len(pod.Spec.InitContainers) == len(old.Spec.InitContainers) {
		sent := pod.Spec
		pod.Spec, pod.Status = old.Spec, old.Status
		metav1.ResetObjectMetaForStatus(&pod.ObjectMeta, &old.ObjectMeta)
		pod.Spec.Containers = resized(sent.Containers, old.Spec.Containers)
		pod.Spec.InitContainers = resized(sent.InitContainers, old.Spec.InitContainers)
		if env.Features.Enabled("InPlacePodLevelResourcesVerticalScaling") {
			pod.Spec.Resources = sent.Resources
		}
		if env.Features.Enabled("InPlacePodVerticalScalingMemoryBackedVolumes") {
			pod.Spec.Volumes = sent.Volumes
		}
	}
	keepPodResources(env.Features, pod, old)
	completePodResources(env.Features, pod)
	dropDisabledPod(env.Features, pod, old)
	countGeneration(pod, old)
}

// resized are the old containers with the new ones' resources. Where one is
// renamed or moved, it is the new containers, for validation to refuse.
func resized(list, old []corev1.Container) []corev1.Container {
	if len(list) == 0 {
		return list
	}
	out := make([]corev1.Container, len(old))
	copy(out, old)
	for i := range list {
		if list[i].Name != old[i].Name {
			return list
		}
		out[i].Resources, out[i].ResizePolicy = list[i].Resources, list[i].ResizePolicy
	}
	return out
}
