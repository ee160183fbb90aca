package pod

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func validateResize(env resource.Env, pod, old *corev1.Pod) field.ErrorList {
	whole := field.NewPath("")
	if _, mirror := old.Annotations[mirrorAnnotation]; mirror {
		return field.ErrorList{field.Forbidden(whole, "static pods cannot be resized")}
	}
	if isWindows(&old.Spec) {
		return field.ErrorList{field.Forbidden(whole, "windows pods cannot be resized")}
	}
	c := &check{Options: podOptions(env.Features, old)}
	c.add(resource.ValidateMetaUpdate(pod, old)...)
	c.pod(pod)

	was := old.Status.QOSClass
	if was == "" {
		was = QOSClass(env.Features, old)
	}
	if was != QOSClass(env.Features, pod) {
		c.invalid(specPath, pod.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	if !resizable(old) {
		c.forbidden(specPath, "Pod running on node without support for resize")
	}
	rest := pod.Spec.DeepCopy()
	if namesResources(old) || namesResources(pod) {
		if !env.Features.Enabled("InPlacePodLevelResourcesVerticalScaling") {
			c.forbidden(whole, "resize of pods with pod-level resources is forbidden when InPlacePodLevelResourcesVerticalScalingEnabled feature gate is disabled")
			return c.errs
		}
		c.resizedPod(pod, old, rest)
	}
	inOrder := c.sameOrder("containers", pod.Spec.Containers, old.Spec.Containers)
	if !c.sameOrder("initContainers", pod.Spec.InitContainers, old.Spec.InitContainers) || !inOrder {
		return c.errs
	}
	initToo := env.Features.Enabled("InPlacePodVerticalScalingInitContainers")
	for i := range old.Spec.InitContainers {
		if initToo || isSidecar(&old.Spec.InitContainers[i]) {
			c.nothingRemoved(specPath.Child("initContainers").Index(i).Child("resources"), "resource",
				&pod.Spec.InitContainers[i].Resources, &old.Spec.InitContainers[i].Resources)
		}
	}
	for i := range old.Spec.Containers {
		c.nothingRemoved(specPath.Child("containers").Index(i).Child("resources"), "resource",
			&pod.Spec.Containers[i].Resources, &old.Spec.Containers[i].Resources)
	}
	for i := range rest.Containers {
		was := &old.Spec.Containers[i]
		if unresize(&rest.Containers[i], was); !equal(rest.Containers[i], *was) {
			c.forbidden(specPath, "only cpu and memory resources are mutable")
		}
	}
	for i := range rest.InitContainers {
		c.resizedInit(specPath.Child("initContainers").Index(i), &rest.InitContainers[i], &old.Spec.InitContainers[i], initToo)
	}
	c.resizedVolumes(specPath.Child("volumes"), pod.Spec.Volumes, old.Spec.Volumes, rest)
	if len(c.errs) == 0 && !equal(*rest, old.Spec) {
		c.forbidden(specPath, "only cpu and memory resources are mutable")
	}
	return c.errs
}

func namesResources(pod *corev1.Pod) bool {
	r := pod.Spec.Resources
	return r != nil && len(r.Requests)+len(r.Limits) > 0
}

// resizable tells whether the pod's node reports the resources of containers,
// as one that can resize them does.
func resizable(pod *corev1.Pod) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running != nil {
			return s.Resources != nil
		}
	}
	return true
}

func (c *check) sameOrder(list string, is, was []corev1.Container) bool {
	p := specPath.Child(list)
	if len(is) != len(was) {
		c.forbidden(p, list+" may not be added or removed on resize")
		return false
	}
	same := true
	for i := range was {
		if is[i].Name != was[i].Name {
			c.forbidden(p.Index(i).Child("name"), list+" may not be renamed or reordered on resize")
			same = false
		}
	}
	return same
}

func removed(is, was corev1.ResourceList) bool {
	for n := range was {
		if _, ok := is[n]; !ok {
			return true
		}
	}
	return false
}

func (c *check) nothingRemoved(p *field.Path, what string, is, was *corev1.ResourceRequirements) {
	if removed(is.Requests, was.Requests) {
		c.forbidden(p.Child("requests"), what+" requests cannot be removed")
	}
	if removed(is.Limits, was.Limits) {
		c.forbidden(p.Child("limits"), what+" limits cannot be removed")
	}
}

// oldBase returns list with was' cpu and memory.
func oldBase(list, was corev1.ResourceList) corev1.ResourceList {
	if list == nil && was == nil {
		return nil
	}
	out := maps.Clone(list)
	if out == nil {
		out = corev1.ResourceList{}
	}
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		delete(out, n)
		if q, ok := was[n]; ok {
			out[n] = q
		}
	}
	return out
}

// unresize gives a container the old one's cpu and memory.
func unresize(ctr, was *corev1.Container) {
	ctr.Resources.Limits = oldBase(ctr.Resources.Limits, was.Resources.Limits)
	ctr.Resources.Requests = oldBase(ctr.Resources.Requests, was.Resources.Requests)
}

// resizedPod checks the resources of the pod as a whole, and gives rest the old
// ones.
func (c *check) resizedPod(pod, old *corev1.Pod, rest *corev1.PodSpec) {
	p := specPath.Child("resources")
	was := old.Spec.Resources
	if was != nil && pod.Spec.Resources == nil {
		c.forbidden(p, "pod-level resources cannot be removed")
		return
	}
	if was != nil {
		c.nothingRemoved(p, "pod-level resource", pod.Spec.Resources, was)
	}
	if r := rest.Resources; r != nil {
		var requests, limits corev1.ResourceList
		if was != nil {
			requests, limits = was.Requests, was.Limits
		}
		r.Requests, r.Limits = oldBase(r.Requests, requests), oldBase(r.Limits, limits)
		if was == nil && len(r.Requests)+len(r.Limits)+len(r.Claims) == 0 {
			rest.Resources = nil
		}
	}
	if !equal(rest.Resources, was) {
		c.forbidden(specPath, "only cpu and memory resources are mutable at pod-level")
	}
}

func (c *check) resizedInit(p *field.Path, ctr, was *corev1.Container, initToo bool) {
	changed := !equal(*ctr, *was)
	sidecar := isSidecar(ctr)
	if !sidecar && !initToo {
		if changed {
			c.forbidden(specPath, "resources for non-sidecar init containers are immutable")
		}
		return
	}
	if unresize(ctr, was); !equal(*ctr, *was) {
		c.forbidden(p, "only cpu and memory resources for init or sidecar containers are mutable")
	}
	if !changed || sidecar {
		return
	}
	for _, r := range ctr.ResizePolicy {
		if r.RestartPolicy == corev1.RestartContainer {
			c.forbidden(p, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
		}
	}
}

// resizedVolumes lets the size of a volume in memory change, where that feature
// is on, and gives rest the old volumes.
func (c *check) resizedVolumes(p *field.Path, is, was []corev1.Volume, rest *corev1.PodSpec) {
	if !c.features.Enabled("InPlacePodVerticalScalingMemoryBackedVolumes") {
		if !equal(is, was) {
			c.forbidden(p, "volumes are immutable on resize when InPlacePodVerticalScalingMemoryBackedVolumes feature gate is disabled")
		}
		return
	}
	rest.Volumes = was
	if len(is) != len(was) {
		c.forbidden(p, "volumes may not be added or removed on resize")
		return
	}
	for i := range is {
		vp := p.Index(i)
		if is[i].Name != was[i].Name {
			c.forbidden(vp.Child("name"), "volumes may not be renamed or reordered on resize")
			continue
		}
		v, old := is[i].DeepCopy(), &was[i]
		both := v.EmptyDir != nil && old.EmptyDir != nil
		if both {
			v.EmptyDir.SizeLimit = old.EmptyDir.SizeLimit
		}
		if !equal(v, old) {
			c.forbidden(vp, "only sizeLimit of memory-backed emptyDir volumes is mutable on resize")
			continue
		}
		if !both {
			continue
		}
		sp := vp.Child("emptyDir", "sizeLimit")
		a, b := is[i].EmptyDir.SizeLimit, old.EmptyDir.SizeLimit
		if (a != nil && !a.IsZero()) != (b != nil && !b.IsZero()) {
			c.forbidden(sp, "adding or removing sizeLimit on an existing volume is not allowed")
		} else if a != nil && b != nil && a.Cmp(*b) != 0 && is[i].EmptyDir.Medium != corev1.StorageMediumMemory {
			c.forbidden(sp, "sizeLimit is only mutable for memory-backed emptyDir volumes")
		}
	}
}
