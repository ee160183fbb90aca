package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/userns"
)

func (k *Kubelet) newUserNamespaces() error {
	first, length, err := userns.HostIDs("/etc")
	if err != nil {
		return fmt.Errorf("kubelet mappings: %w", err)
	}
	var problems []error
	k.users, problems, err = userns.New(userns.Deps{
		Dir: k.podDir, MaxPods: k.d.MaxPods, IDsPerPod: k.d.IDsPerPod, First: first, Length: length,
		All: func() (out []types.UID) {
			for _, name := range dirs(k.d.Host.Data("kubelet", "pods")) {
				out = append(out, types.UID(name))
			}
			return out
		},
	})
	for _, p := range problems {
		k.d.Log.Error("user namespaces", "err", p)
	}
	return err
}

func ownUsers(pod *corev1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// userNamespace is the one that a pod's sandbox and containers get. A pod that wants its
// own has its IDs from the first call on.
func (w *worker) userNamespace(ctx context.Context, pod *corev1.Pod) (*runtimeapi.UserNamespace, error) {
	if !ownUsers(pod) {
		return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}, nil
	}
	handler, err := w.k.runtimeHandler(ctx, pod)
	if err != nil {
		return nil, err
	}
	if err := w.k.supportsUserNamespaces(ctx, handler); err != nil {
		return nil, err
	}
	first, n, err := w.k.users.Get(pod.UID)
	if err != nil {
		return nil, err
	}
	ids := func() []*runtimeapi.IDMapping {
		return []*runtimeapi.IDMapping{{HostId: first, ContainerId: 0, Length: n}}
	}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids(), Gids: ids()}, nil
}

// supportsUserNamespaces asks the runtime, whenever such a pod comes: that is seldom.
func (k *Kubelet) supportsUserNamespaces(ctx context.Context, handler string) error {
	refusal := errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
	if handler != "" {
		refusal = fmt.Errorf("can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", handler)
	}
	st, err := k.d.Runtime.Status(ctx, false)
	if err != nil {
		return fmt.Errorf("%w: %w", refusal, err)
	}
	handlers := st.GetRuntimeHandlers()
	i := slices.IndexFunc(handlers, func(h *runtimeapi.RuntimeHandler) bool { return h.GetName() == handler })
	switch {
	case len(handlers) == 0: // a runtime that is older than the question
		return refusal
	case i < 0:
		return fmt.Errorf("%w: the handler %q is not known", refusal, handler)
	case !handlers[i].GetFeatures().GetUserNamespaces():
		return refusal
	}
	return nil
}
