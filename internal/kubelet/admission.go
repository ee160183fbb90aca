package kubelet

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// ranBefore tells of a pod that this node took in before: it is never refused.
func (k *Kubelet) ranBefore(pod *corev1.Pod, o *observed) bool {
	return len(o.sandboxes) > 0 || len(o.containers) > 0 || pod.Status.StartTime != nil
}

// admit refuses a pod that this node has no room for, or that it must not or cannot
// run. k.admission is held.
func (k *Kubelet) admit(pod *corev1.Pod) *verdict {
	if v := k.refuse(pod); v != nil {
		return v
	}
	if v := forbiddenSysctl(pod, k.d.AllowedUnsafeSysctls); v != nil {
		return v
	}
	if v := otherOS(pod); v != nil {
		return v
	}
	if k.allocatable() != nil {
		if v := k.room(pod); v != nil {
			return v
		}
		if v := k.misplaced(pod); v != nil {
			return v
		}
		for _, p := range k.others(pod) {
			if v := portConflict(pod, p); v != nil {
				return v
			}
		}
	}
	return unconfinable(pod, appArmorOn)
}

// others are the pods that take up room beside pod, as they have been allocated.
// k.admission is held.
func (k *Kubelet) others(pod *corev1.Pod) []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range k.allWorkers() {
		p, gone := w.current()
		st := w.status.current()
		if w.uid == pod.UID || gone || p.Spec.Containers == nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded ||
			st.StartTime == nil || st.Phase == corev1.PodFailed || st.Phase == corev1.PodSucceeded {
			continue
		}
		out = append(out, w.allocation.apply(p))
	}
	return out
}

// allocatable is what the node has for pods: as its object says or, before that is
// known, as it will say. It is nil where the kubelet keeps no node.
func (k *Kubelet) allocatable() corev1.ResourceList {
	if l := k.node.allocatable(); l != nil || k.d.NoNode {
		return l
	}
	_, l := k.capacity(diskOf(k.d.Host.DataDir))
	return l
}

// room tells why the node cannot give a pod what it asks for. k.admission is held.
func (k *Kubelet) room(pod *corev1.Pod) *verdict {
	allocatable := k.allocatable()
	if allocatable == nil {
		return nil
	}
	var cpu, mem, count int64
	for _, p := range k.others(pod) {
		cpu += podRequest(p, corev1.ResourceCPU, true)
		mem += podRequest(p, corev1.ResourceMemory, false)
		count++
	}
	short := func(name string, requested, used, capacity int64) *verdict {
		return &verdict{reason: "OutOf" + name, message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity), rejected: true}
	}
	if limit := allocatable[corev1.ResourcePods]; count+1 > limit.Value() {
		return short("pods", 1, count, limit.Value())
	}
	check := func(name corev1.ResourceName, want, used int64, have resource.Quantity, milli bool) *verdict {
		capacity := have.Value()
		if milli {
			capacity = have.MilliValue()
		}
		if want > 0 && used+want > capacity {
			return short(string(name), want, used, capacity)
		}
		return nil
	}
	if v := check(corev1.ResourceCPU, podRequest(pod, corev1.ResourceCPU, true), cpu, allocatable[corev1.ResourceCPU], true); v != nil {
		return v
	}
	return check(corev1.ResourceMemory, podRequest(pod, corev1.ResourceMemory, false), mem, allocatable[corev1.ResourceMemory], false)
}

// portConflict refuses a host port that another pod has.
func portConflict(pod, other *corev1.Pod) *verdict {
	for _, a := range hostPorts(pod) {
		for _, b := range hostPorts(other) {
			if a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || a.ip == "" || b.ip == "") {
				return &verdict{reason: "NodePorts", message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports", rejected: true}
			}
		}
	}
	return nil
}

type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var out []hostPort
	for i := range pod.Spec.Containers {
		for _, p := range pod.Spec.Containers[i].Ports {
			if p.HostPort <= 0 {
				continue
			}
			h := hostPort{p.HostIP, p.Protocol, p.HostPort}
			if h.ip == "0.0.0.0" {
				h.ip = ""
			}
			if h.protocol == "" {
				h.protocol = corev1.ProtocolTCP
			}
			out = append(out, h)
		}
	}
	return out
}
