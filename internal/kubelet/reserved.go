package kubelet

import (
	"context"
	"fmt"
	"runtime"
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

// forPods is what all pods together may have of what the machine has.
func (r Reserved) forPods(name corev1.ResourceName, has int64) resource.Quantity {
	all := *resource.NewQuantity(has, resource.DecimalSI)
	if r.Unenforced {
		return all
	}
	return r.left(name, all)
}

// podsLimits are those of all pods together. What thresholds of eviction keep is not
// taken off: pods are to be evicted before the kernel ends them.
func (k *Kubelet) podsLimits() cgroup.Limits {
	r := k.d.Reserved
	cpu, memory := r.forPods(corev1.ResourceCPU, int64(runtime.NumCPU())), r.forPods(corev1.ResourceMemory, k.memory)
	l := cgroup.Limits{Shares: shares(cpu.MilliValue()), Memory: max(memory.Value(), 1)} // 0 is no limit
	if _, most, ok := processes(); ok {
		pids := r.forPods(ResourcePIDs, most)
		l.PIDs = max(pids.Value(), 1)
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
		k.nodeEvent(corev1.EventTypeWarning, "FailedNodeAllocatableEnforcement", fmt.Sprintf(`Failed to update Node Allocatable Limits "kubepods": %v`, err))
		if !sleep(ctx, enforcePeriod) {
			return
		}
	}
}

// podsMemory is what all pods together have left of their memory, and what they may
// have; false where no threshold of eviction asks for it, or it cannot be told.
func (k *Kubelet) podsMemory() (left, may int64, ok bool) {
	asked := slices.ContainsFunc(k.d.Eviction.Thresholds, func(t eviction.Threshold) bool { return t.Signal == eviction.AllocatableMemoryAvailable })
	if !asked || k.d.Cgroups == nil || k.d.Reserved.Unenforced {
		return 0, 0, false
	}
	used, err := k.d.Cgroups.Memory()
	if err != nil {
		k.d.Log.Warn("measure the memory of all pods", "err", err)
		return 0, 0, false
	}
	q := k.d.Reserved.forPods(corev1.ResourceMemory, k.memory)
	return q.Value() - used, q.Value(), true
}
