package kubelet

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	minShares      = 2
	maxShares      = 262144
	cpuPeriod      = 100000
	minQuotaPeriod = 1000
	minMilliLimit  = 10
)

func shares(milli int64) int64 {
	if milli == 0 {
		return minShares
	}
	return min(max(milli*1024/1000, minShares), maxShares)
}

func quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*cpuPeriod/1000, minQuotaPeriod)
}

// qosClass is the pod's quality of service.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	if r := pod.Spec.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		return qosOf([]corev1.ResourceRequirements{*r})
	}
	var all []corev1.ResourceRequirements
	for i := range pod.Spec.InitContainers {
		all = append(all, pod.Spec.InitContainers[i].Resources)
	}
	for i := range pod.Spec.Containers {
		all = append(all, pod.Spec.Containers[i].Resources)
	}
	return qosOf(all)
}

func qosOf(all []corev1.ResourceRequirements) corev1.PodQOSClass {
	guaranteed, any := true, false
	for _, r := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, hasReq := r.Requests[name]
			lim, hasLim := r.Limits[name]
			hasReq, hasLim = hasReq && !req.IsZero(), hasLim && !lim.IsZero()
			any = any || hasReq || hasLim
			if !hasLim || hasReq && req.Cmp(lim) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func quantity(l corev1.ResourceList, n corev1.ResourceName) *resource.Quantity {
	q, ok := l[n]
	if !ok || q.IsZero() {
		return nil
	}
	return &q
}

// cpuAndMemory is the CRI form of what a container may use of CPU and memory.
func cpuAndMemory(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	limit := func(n corev1.ResourceName) *resource.Quantity {
		if q := quantity(c.Resources.Limits, n); q != nil {
			return q
		}
		if pod.Spec.Resources != nil {
			return quantity(pod.Spec.Resources.Limits, n)
		}
		return nil
	}
	r := &runtimeapi.LinuxContainerResources{CpuPeriod: cpuPeriod}
	cpuLimit, memLimit := limit(corev1.ResourceCPU), limit(corev1.ResourceMemory)
	if q, ok := c.Resources.Requests[corev1.ResourceCPU]; ok {
		r.CpuShares = shares(q.MilliValue())
	} else if cpuLimit != nil {
		r.CpuShares = shares(cpuLimit.MilliValue())
	} else {
		r.CpuShares = minShares
	}
	if cpuLimit != nil {
		r.CpuQuota = quota(cpuLimit.MilliValue())
	}
	if memLimit != nil {
		r.MemoryLimitInBytes = memLimit.Value()
	}
	return r
}

// containerResources is the CRI form of all that a container may use.
func (k *Kubelet) containerResources(pod *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	r := cpuAndMemory(pod, c)
	r.OomScoreAdj = int64(oomScore(pod, c, k.memory))
	// A container of which one process took too much memory is not left with the
	// rest of its processes, where the kernel can end them together.
	if k.d.Cgroups != nil && k.d.Cgroups.Version() == 2 {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	for name, q := range c.Resources.Limits {
		if size, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix); ok {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: hugepageSize(size), Limit: uint64(q.Value())})
		}
	}
	return r
}

// hugepageSize turns 2Mi into 2MB, as cgroups name it.
func hugepageSize(s string) string { return strings.TrimSuffix(s, "i") + "B" }

// sandboxResources is what the pod as a whole asks for, and its overhead.
func (k *Kubelet) sandboxResources(pod *corev1.Pod) (all, overhead *runtimeapi.LinuxContainerResources) {
	all = &runtimeapi.LinuxContainerResources{CpuPeriod: cpuPeriod, CpuShares: shares(podRequest(pod, corev1.ResourceCPU, true))}
	cpu, bounded := podLimit(pod, corev1.ResourceCPU, true)
	if bounded {
		all.CpuQuota = quota(cpu)
	}
	if mem, bounded := podLimit(pod, corev1.ResourceMemory, false); bounded {
		all.MemoryLimitInBytes = mem
	}
	if len(pod.Spec.Overhead) > 0 {
		overhead = &runtimeapi.LinuxContainerResources{CpuPeriod: cpuPeriod}
		if q := quantity(pod.Spec.Overhead, corev1.ResourceCPU); q != nil {
			overhead.CpuShares, overhead.CpuQuota = shares(q.MilliValue()), quota(q.MilliValue())
		}
		if q := quantity(pod.Spec.Overhead, corev1.ResourceMemory); q != nil {
			overhead.MemoryLimitInBytes = q.Value()
		}
	}
	return all, overhead
}

func amount(l corev1.ResourceList, n corev1.ResourceName, milli bool) (int64, bool) {
	q, ok := l[n]
	if !ok {
		return 0, false
	}
	if milli {
		return q.MilliValue(), true
	}
	return q.Value(), true
}

// podRequest is what a pod's containers request together: the sum of the regular
// ones and sidecars, or the largest moment of initialization.
func podRequest(pod *corev1.Pod, n corev1.ResourceName, milli bool) int64 {
	v, _ := podAmount(pod, n, milli, func(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Requests })
	return v
}

// podLimit is the pod's limit; bounded is false where a container has none.
func podLimit(pod *corev1.Pod, n corev1.ResourceName, milli bool) (v int64, bounded bool) {
	return podAmount(pod, n, milli, func(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Limits })
}

func podAmount(pod *corev1.Pod, n corev1.ResourceName, milli bool, of func(*corev1.ResourceRequirements) corev1.ResourceList) (int64, bool) {
	over, _ := amount(pod.Spec.Overhead, n, milli)
	if r := pod.Spec.Resources; r != nil {
		if v, ok := amount(of(r), n, milli); ok {
			return v + over, true
		}
	}
	var sum, sidecars, peak int64
	all := true
	for i := range pod.Spec.Containers {
		v, ok := amount(of(&pod.Spec.Containers[i].Resources), n, milli)
		sum, all = sum+v, all && ok && v > 0
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		v, ok := amount(of(&c.Resources), n, milli)
		if isSidecar(c) {
			sidecars += v
			all = all && ok && v > 0
			peak = max(peak, sidecars)
		} else {
			peak = max(peak, sidecars+v)
		}
	}
	return max(sum+sidecars, peak) + over, all
}

const (
	oomGuaranteed = -997
	oomBestEffort = 1000
)

// oomScore is what the kernel's out-of-memory killer is told: the more of its
// request a container is likely to exceed, the sooner it goes.
func oomScore(pod *corev1.Pod, c *corev1.Container, capacity int64) int {
	if p := pod.Spec.Priority; p != nil && *p >= 2000001000 {
		return oomGuaranteed
	}
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	if capacity <= 0 {
		return oomBestEffort - 1
	}
	req, _ := amount(c.Resources.Requests, corev1.ResourceMemory, false)
	score := 1000 - 1000*req/capacity
	for i := range pod.Spec.InitContainers {
		if side := &pod.Spec.InitContainers[i]; side.Name == c.Name && isSidecar(side) {
			least := int64(-1)
			for j := range pod.Spec.Containers {
				if v, _ := amount(pod.Spec.Containers[j].Resources.Requests, corev1.ResourceMemory, false); least < 0 || v < least {
					least = v
				}
			}
			score = min(score, 1000-1000*max(least, 0)/capacity)
		}
	}
	return int(min(max(score, 1000+oomGuaranteed), oomBestEffort-1))
}

// memoryCapacity is the machine's memory in bytes.
func memoryCapacity() int64 { return meminfo("MemTotal:") }
