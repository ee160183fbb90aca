package kubelet

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type Authorizer func() error

type nodeState struct {
	mu    sync.Mutex
	alloc corev1.ResourceList
}

func newNodeState() *nodeState                              { return &nodeState{} }
func (n *nodeState) setRuntime(*runtimeapi.VersionResponse) {}
func (n *nodeState) allocatable() corev1.ResourceList {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alloc
}
func (k *Kubelet) runNode(ctx context.Context) error   { <-ctx.Done(); return nil }
func (k *Kubelet) runLease(ctx context.Context) error  { <-ctx.Done(); return nil }
func (k *Kubelet) housekeep(ctx context.Context) error { <-ctx.Done(); return nil }
