package devices

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
)

// Requests are the device requests that the extended resources of a pod amount to,
// named container-I-request-J by container and by the place of the resource in the
// container's requests; and which of them each container is given. amounts are the
// resources to be asked of devices, classOf their device classes.
//
// Containers that run side by side, sidecars among them, have devices of their own.
// Init containers that end before use again what later ones have, and share what is
// needed beyond that: only the largest such request is made (KEP-5004).
func Requests(pod *corev1.Pod, amounts map[corev1.ResourceName]int64, classOf func(corev1.ResourceName) *resourcev1.DeviceClass) ([]resourcev1.DeviceRequest, []corev1.ContainerExtendedResourceRequest) {
	var requests []resourcev1.DeviceRequest
	var mappings []corev1.ContainerExtendedResourceRequest
	names := make([]corev1.ResourceName, 0, len(amounts))
	for n := range amounts {
		names = append(names, n)
	}
	slices.Sort(names)
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	for _, name := range names {
		class := classOf(name)
		if class == nil {
			continue
		}
		lasting := make([]*resourcev1.DeviceRequest, len(containers))
		for i := range containers {
			if endsBefore(pod, i) {
				continue
			}
			r, m := requestOf(i, &containers[i], name, class.Name, nil)
			lasting[i] = r
			mappings = append(mappings, m...)
		}
		var largest *resourcev1.DeviceRequest
		var passing []corev1.ContainerExtendedResourceRequest
		made := map[string]bool{}
		for i := range containers {
			if !endsBefore(pod, i) {
				continue
			}
			r, m := requestOf(i, &containers[i], name, class.Name, lasting[i:])
			passing = append(passing, m...)
			if r == nil {
				continue
			}
			made[r.Name] = true
			if largest == nil || r.Exactly.Count > largest.Exactly.Count {
				largest = r
			}
		}
		for i := range passing {
			if made[passing[i].RequestName] {
				passing[i].RequestName = largest.Name
			}
		}
		mappings = append(mappings, passing...)
		if largest != nil {
			requests = append(requests, *largest)
		}
		for _, r := range lasting {
			if r != nil {
				requests = append(requests, *r)
			}
		}
	}
	slices.SortFunc(requests, func(a, b resourcev1.DeviceRequest) int { return cmp.Compare(a.Name, b.Name) })
	return requests, mappings
}

// endsBefore tells whether container i, init containers counted first, ends before
// the next one starts.
func endsBefore(pod *corev1.Pod, i int) bool {
	if i >= len(pod.Spec.InitContainers) {
		return false
	}
	p := pod.Spec.InitContainers[i].RestartPolicy
	return p == nil || *p != corev1.ContainerRestartPolicyAlways
}

// requestOf is what one container needs of a resource beyond what it may use again;
// nil where that is nothing.
func requestOf(index int, c *corev1.Container, name corev1.ResourceName, class string, again []*resourcev1.DeviceRequest) (*resourcev1.DeviceRequest, []corev1.ContainerExtendedResourceRequest) {
	q, ok := c.Resources.Requests[name]
	if !ok {
		return nil, nil
	}
	want, ok := q.AsInt64()
	if !ok || want == 0 {
		return nil, nil
	}
	var mappings []corev1.ContainerExtendedResourceRequest
	use := func(request string) {
		mappings = append(mappings, corev1.ContainerExtendedResourceRequest{ContainerName: c.Name, ResourceName: string(name), RequestName: request})
	}
	for _, r := range again {
		if r == nil {
			continue
		}
		use(r.Name)
		if want -= r.Exactly.Count; want <= 0 {
			return nil, mappings
		}
	}
	keys := make([]corev1.ResourceName, 0, len(c.Resources.Requests))
	for k := range c.Resources.Requests {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	request := fmt.Sprintf("container-%d-request-%d", index, slices.Index(keys, name))
	use(request)
	return &resourcev1.DeviceRequest{Name: request, Exactly: &resourcev1.ExactDeviceRequest{
		DeviceClassName: class, AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: want,
	}}, mappings
}
