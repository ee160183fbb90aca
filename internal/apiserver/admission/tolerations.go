package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/apiserver"
)

// DefaultTolerationSeconds lets pods stay on a node that fails for a while before
// they are evicted, unless they say how long themselves.
type DefaultTolerationSeconds struct{ noValidation }

const defaultToleration = int64(300)

// Name implements apiserver.Admission.
func (DefaultTolerationSeconds) Name() string { return "DefaultTolerationSeconds" }

// Admit implements apiserver.Admission.
func (DefaultTolerationSeconds) Admit(_ context.Context, a *apiserver.Attributes) error {
	if a.Subresource != "" || resourceOf(a) != podsResource || a.Operation != apiserver.OpCreate && a.Operation != apiserver.OpUpdate {
		return nil
	}
	p, ok := a.Object.(*corev1.Pod)
	if !ok {
		return nil
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if tolerates(p.Spec.Tolerations, key) {
			continue
		}
		seconds := defaultToleration
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
	return nil
}

func tolerates(list []corev1.Toleration, key string) bool {
	for _, t := range list {
		if (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// TaintNodesByCondition keeps pods off a new node until a controller has seen it
// Ready.
type TaintNodesByCondition struct{ noValidation }

// Name implements apiserver.Admission.
func (TaintNodesByCondition) Name() string { return "TaintNodesByCondition" }

// Admit implements apiserver.Admission.
func (TaintNodesByCondition) Admit(_ context.Context, a *apiserver.Attributes) error {
	n, ok := a.Object.(*corev1.Node)
	if !ok || a.Operation != apiserver.OpCreate || a.Subresource != "" {
		return nil
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady && t.Effect == corev1.TaintEffectNoSchedule {
			return nil
		}
	}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
	return nil
}
