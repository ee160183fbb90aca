package framework

import (
	corev1 "k8s.io/api/core/v1"
)

// Resource is an amount of every resource: CPU in thousandths of a core, memory
// and ephemeral storage in bytes, all others in their own unit. The zero value
// is nothing of anything.
type Resource struct {
	MilliCPU         int64
	Memory           int64
	EphemeralStorage int64
	Pods             int64
	// Scalar are extended resources, huge pages and attachable volumes.
	Scalar map[corev1.ResourceName]int64
}

// ResourceOf converts a list, rounding up to whole units.
func ResourceOf(list corev1.ResourceList) Resource {
	var r Resource
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.MilliCPU = q.MilliValue()
		case corev1.ResourceMemory:
			r.Memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.EphemeralStorage = q.Value()
		case corev1.ResourcePods:
			r.Pods = q.Value()
		default:
			if r.Scalar == nil {
				r.Scalar = map[corev1.ResourceName]int64{}
			}
			r.Scalar[name] = q.Value()
		}
	}
	return r
}

// Of returns the amount of one resource.
func (r *Resource) Of(name corev1.ResourceName) int64 {
	switch name {
	case corev1.ResourceCPU:
		return r.MilliCPU
	case corev1.ResourceMemory:
		return r.Memory
	case corev1.ResourceEphemeralStorage:
		return r.EphemeralStorage
	case corev1.ResourcePods:
		return r.Pods
	}
	return r.Scalar[name]
}

// Add adds o; not its Pods.
func (r *Resource) Add(o *Resource) { r.add(o, 1) }

// add adds o, or takes it away where sign is -1. Sums saturate: an absurd
// request of one pod must not turn a full node into an empty one.
func (r *Resource) add(o *Resource, sign int64) {
	r.MilliCPU = saturate(r.MilliCPU, sign*o.MilliCPU)
	r.Memory = saturate(r.Memory, sign*o.Memory)
	r.EphemeralStorage = saturate(r.EphemeralStorage, sign*o.EphemeralStorage)
	for name, v := range o.Scalar {
		if r.Scalar == nil {
			r.Scalar = map[corev1.ResourceName]int64{}
		}
		if n := saturate(r.Scalar[name], sign*v); n != 0 {
			r.Scalar[name] = n
		} else {
			delete(r.Scalar, name)
		}
	}
}

func saturate(a, b int64) int64 {
	const top = 1<<63 - 1
	c := a + b
	if b > 0 && c < a {
		return top
	}
	if b < 0 && c > a {
		return -top
	}
	return c
}

// Equal tells whether both are the same amounts.
func (r *Resource) Equal(o *Resource) bool {
	if r.MilliCPU != o.MilliCPU || r.Memory != o.Memory || r.EphemeralStorage != o.EphemeralStorage || r.Pods != o.Pods || len(r.Scalar) != len(o.Scalar) {
		return false
	}
	for name, v := range r.Scalar {
		if w, ok := o.Scalar[name]; !ok || w != v {
			return false
		}
	}
	return true
}

// usage is what a pod takes of a node: what it requests, and the same with a
// small amount assumed for containers that request nothing, which scores use so
// that such pods do not all land on one node.
type usage struct {
	requested Resource
	nonZero   Resource // MilliCPU and Memory alone
}

func (u *usage) equal(o *usage) bool {
	return u.requested.Equal(&o.requested) && u.nonZero.MilliCPU == o.nonZero.MilliCPU && u.nonZero.Memory == o.nonZero.Memory
}
