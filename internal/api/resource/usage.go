package resource

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Live is what makes the objects of a resource that is not stored: each is about one
// object of another resource, and has its name, namespace and labels. They are read
// with get and list alone, and selected by what that object has.
type Live struct {
	// Of is the other resource.
	Of schema.GroupVersionResource
	// Measure makes objects about those given, in their order; it leaves out those of
	// which nothing is known. It must not change what it is given.
	Measure func(ctx context.Context, env Env, objs []Object) ([]Object, error)
}

// UsageSource knows what nodes and pods use. The answers are in the order of what
// was asked about; one whose At is zero says that nothing is known.
type UsageSource interface {
	NodeUsage(ctx context.Context, nodes []*corev1.Node) ([]Usage, error)
	PodUsage(ctx context.Context, pods []*corev1.Pod) ([]PodUsage, error)
}

// Usage is what was used, on average, in the Window that ended At: processors in
// cores, and the memory of the working set in bytes.
type Usage struct {
	At     time.Time
	Window time.Duration
	Used   corev1.ResourceList
}

// PodUsage is the usage of a pod's containers, all in the same window.
type PodUsage struct {
	At         time.Time
	Window     time.Duration
	Containers []ContainerUsage
}

// ContainerUsage is what one container used.
type ContainerUsage struct {
	Name string
	Used corev1.ResourceList
}
