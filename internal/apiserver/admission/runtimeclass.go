package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/apiserver"
)

// RuntimeClass lets pods name only classes that exist, gives them the overhead of
// theirs (KEP-688), and restricts them to the nodes that support it.
type RuntimeClass struct{}

// Name implements apiserver.Admission.
func (RuntimeClass) Name() string { return "RuntimeClass" }

var errOverhead = errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")

// Admit implements apiserver.Admission.
func (RuntimeClass) Admit(ctx context.Context, a *apiserver.Attributes) error {
	p := newPod(a)
	if p == nil {
		return nil
	}
	c, err := classOf(ctx, a, p)
	if err != nil || c == nil {
		return err
	}
	if c.Overhead != nil {
		if len(p.Spec.Overhead) > 0 && !apiequality.Semantic.DeepEqual(p.Spec.Overhead, c.Overhead.PodFixed) {
			return forbidden(a, errOverhead)
		}
		p.Spec.Overhead = c.Overhead.PodFixed.DeepCopy()
	}
	if s := c.Scheduling; s != nil {
		for _, k := range slices.Sorted(maps.Keys(s.NodeSelector)) {
			if have, ok := p.Spec.NodeSelector[k]; ok && have != s.NodeSelector[k] {
				return forbidden(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, s.NodeSelector[k], k, have))
			}
		}
		if p.Spec.NodeSelector == nil {
			p.Spec.NodeSelector = maps.Clone(s.NodeSelector)
		} else {
			maps.Copy(p.Spec.NodeSelector, s.NodeSelector)
		}
		p.Spec.Tolerations = mergeTolerations(p.Spec.Tolerations, s.Tolerations)
	}
	return nil
}

// Validate implements apiserver.Admission.
func (RuntimeClass) Validate(ctx context.Context, a *apiserver.Attributes) error {
	p := newPod(a)
	if p == nil {
		return nil
	}
	c, err := classOf(ctx, a, p)
	switch {
	case err != nil:
		return err
	case c != nil && c.Overhead != nil:
		if !apiequality.Semantic.DeepEqual(p.Spec.Overhead, c.Overhead.PodFixed) {
			return forbidden(a, errOverhead)
		}
	case p.Spec.Overhead != nil:
		return forbidden(a, errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
	}
	return nil
}

// classOf returns the class that a pod names, nil for none.
func classOf(ctx context.Context, a *apiserver.Attributes, p *corev1.Pod) (*nodev1.RuntimeClass, error) {
	if p.Spec.RuntimeClassName == nil {
		return nil, nil
	}
	c, err := cached[*nodev1.RuntimeClass](ctx, a.Env.Client, "", *p.Spec.RuntimeClassName)
	if apierrors.IsNotFound(err) {
		return nil, forbidden(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", *p.Spec.RuntimeClassName))
	}
	return c, err
}

// mergeTolerations returns the tolerations of both lists, in order, without those
// that another one includes. Of equal ones the first stays.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	all := slices.Concat(first, second)
	var out []corev1.Toleration
	for i, t := range all {
		included := func(o corev1.Toleration) bool { return includes(o, t) }
		includedLater := func(o corev1.Toleration) bool { return !apiequality.Semantic.DeepEqual(o, t) && includes(o, t) }
		if !slices.ContainsFunc(out, included) && !slices.ContainsFunc(all[i+1:], includedLater) {
			out = append(out, t)
		}
	}
	return out
}

// includes tells whether a tolerates all that b does.
func includes(a, b corev1.Toleration) bool {
	switch {
	case apiequality.Semantic.DeepEqual(a, b):
		return true
	case a.Key != b.Key && (a.Key != "" || a.Operator != corev1.TolerationOpExists):
		return false
	case a.Effect != b.Effect && a.Effect != "":
		return false
	case a.Effect == corev1.TaintEffectNoExecute && a.TolerationSeconds != nil &&
		(b.TolerationSeconds == nil || *b.TolerationSeconds > *a.TolerationSeconds):
		return false
	}
	switch a.Operator {
	case corev1.TolerationOpExists:
		return true
	case corev1.TolerationOpEqual, "":
		// Upstream does not take the empty operator of b for Equal.
		return b.Operator == corev1.TolerationOpEqual && a.Value == b.Value
	}
	return false
}
