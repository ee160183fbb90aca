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
