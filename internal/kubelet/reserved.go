package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/kubelet/cgroup"
	"skiff/internal/kubelet/eviction"
)

// ResourcePIDs names process IDs among what may be reserved.
const ResourcePIDs corev1.ResourceName = "pid"

// Reserved is what the node keeps from its pods (Node Allocatable; systemReserved,
// kubeReserved and enforceNodeAllocatable of KubeletConfiguration).
type Reserved struct {
	// System and Kube are kept for what belongs to no pod: cpu, memory,
	// ephemeral-storage and pid.
	System, Kube corev1.ResourceList
	// Unenforced leaves it to the scheduler to keep to them: all pods together may have
	// what the machine has.
	Unenforced bool
}

// of is how much of a resource is reserved.
func (r Reserved) of(name corev1.ResourceName) resource.Quantity {
	sum := r.System[name].DeepCopy()
	sum.Add(r.Kube[name])
	return sum
}

// left is what remains of an amount, at least nothing.
func (r Reserved) left(name corev1.ResourceName, amount resource.Quantity) resource.Quantity {
	rest := amount.DeepCopy()
	rest.Sub(r.of(name))
	if rest.Sign() < 0 {
		rest.Set(0)
	}
	return rest
}

// check says which reservation, with what is kept by thresholds of eviction, is more
// than the machine has.
func (r Reserved) check(capacity, thresholds corev1.ResourceList) error {
	var wrong []string
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		kept := r.of(name)
		kept.Add(thresholds[name])
		if has := capacity[name]; kept.Cmp(has) > 0 {
			wrong = append(wrong, fmt.Sprintf("Resource %q has a reservation of %s but capacity of %s. Expected capacity >= reservation.", name, kept.String(), has.String()))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("invalid Node Allocatable configuration. %s", strings.Join(wrong, " "))
	}
	return nil
}

// podsLimits are those of all pods together. What thresholds of eviction keep is not
// taken off: pods are to be evicted before the kernel ends them.
func (k *Kubelet) podsLimits() cgroup.Limits {
	r := k.d.Reserved
	if r.Unenforced {
		r = Reserved{}
	}
	all, _ := k.capacity(diskOf(k.d.Host.DataDir))
	cpu, memory := r.left(corev1.ResourceCPU, all[corev1.ResourceCPU]), r.left(corev1.ResourceMemory, all[corev1.ResourceMemory])
	l := cgroup.Limits{Shares: shares(cpu.MilliValue()), Memory: memory.Value()}
	if _, most, ok := processes(); ok {
		pids := r.left(ResourcePIDs, *resource.NewQuantity(most, resource.DecimalSI))
		l.PIDs = pids.Value()
	}
	return l
}

// enforcePeriod is when limits of all pods together are tried again: pods that have
// more memory than that must be evicted first.
const enforcePeriod = time.Minute

// limitPods limits what all pods together may use.
func (k *Kubelet) limitPods(ctx context.Context) {
	for {
		err := k.d.Cgroups.LimitAll(k.podsLimits())
		if err == nil {
			k.nodeEvent(corev1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
			return
		}
		k.nodeEvent(corev1.EventTypeWarning, "FailedNodeAllocatableEnforcement", fmt.Sprintf("Failed to update Node Allocatable Limits %q: %v", "kubepods", err))
		if !sleep(ctx, enforcePeriod) {
			return
		}
	}
}

// observePods measures what all pods together have left of their memory, where a
// threshold of eviction asks for it.
func (k *Kubelet) observePods(set func(s eviction.Signal, available, capacity int64)) {
	asked := slices.ContainsFunc(k.d.Eviction.Thresholds, func(t eviction.Threshold) bool { return t.Signal == eviction.AllocatableMemoryAvailable })
	if !asked || k.d.Cgroups == nil || k.d.Reserved.Unenforced {
		return
	}
	used, err := k.d.Cgroups.Memory()
	if err != nil {
		k.d.Log.Warn("measure the memory of all pods", "err", err)
		return
	}
	may := k.podsLimits().Memory
	set(eviction.AllocatableMemoryAvailable, may-used, may)
}
