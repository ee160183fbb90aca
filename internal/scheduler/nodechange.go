package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/scheduler/framework"
)

// nodeChange tells what of a node changed that plugins look at; 0 for nothing.
func nodeChange(old, new *corev1.Node) framework.EventKind {
	var k framework.EventKind
	if old.UID != new.UID {
		k |= framework.NodeAllocatable | framework.NodeLabels | framework.NodeTaints
	}
	if !sameList(old.Status.Allocatable, new.Status.Allocatable) {
		k |= framework.NodeAllocatable
	}
	if !maps.Equal(old.Labels, new.Labels) {
		k |= framework.NodeLabels
	}
	if old.Spec.Unschedulable != new.Spec.Unschedulable || !equality.Semantic.DeepEqual(old.Spec.Taints, new.Spec.Taints) {
		k |= framework.NodeTaints
	}
	if !slices.Equal(old.Status.DeclaredFeatures, new.Status.DeclaredFeatures) {
		k |= framework.NodeFeatures
	}
	if !slices.EqualFunc(old.Status.Images, new.Status.Images, func(a, b corev1.ContainerImage) bool {
		return a.SizeBytes == b.SizeBytes && slices.Equal(a.Names, b.Names)
	}) {
		k |= framework.NodeOther
	}
	return k
}

func sameList(a, b corev1.ResourceList) bool {
	return maps.EqualFunc(a, b, func(x, y resource.Quantity) bool { return x.Cmp(y) == 0 })
}
