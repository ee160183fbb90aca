package pod

import (
	"fmt"
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

const updatable = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`," +
	"`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)," +
	"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"

func validateUpdate(env resource.Env, pod, old *corev1.Pod) field.ErrorList {
	c := &check{Options: podOptions(env.Features, old)}
	c.add(resource.ValidateMetaUpdate(pod, old)...)
	c.pod(pod)
	c.annotationUpdates(metaPath.Child("annotations"), pod, old)
	if !c.sameContainers(specPath.Child("containers"), pod.Spec.Containers, old.Spec.Containers) ||
		!c.sameContainers(specPath.Child("initContainers"), pod.Spec.InitContainers, old.Spec.InitContainers) ||
		!c.deadline(specPath.Child("activeDeadlineSeconds"), pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds) {
		return c.errs
	}
	c.moreTolerations(specPath.Child("tolerations"), pod.Spec.Tolerations, old.Spec.Tolerations)
	c.fewerGates(specPath.Child("schedulingGates"), pod.Spec.SchedulingGates, old.Spec.SchedulingGates)
	if equal(pod.Spec, old.Spec) {
		return c.errs
	}
	rest := pod.Spec.DeepCopy()
	// An empty list that was none is no change, and is not shown as one.
	if len(rest.InitContainers) == 0 {
		rest.InitContainers = nil
	}
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	rest.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	rest.SchedulingGates = old.Spec.SchedulingGates
	rest.Tolerations = old.Spec.Tolerations
	if was, is := old.Spec.TerminationGracePeriodSeconds, rest.TerminationGracePeriodSeconds; was != nil && *was < 0 && is != nil && *is == 1 {
		rest.TerminationGracePeriodSeconds = was
	}
	if len(old.Spec.SchedulingGates) > 0 {
		c.narrowed(rest, &old.Spec)
	}
	if !equal(*rest, old.Spec) {
		c.forbidden(specPath, updatable+resource.Diff(old.Spec, *rest))
	}
	return c.errs
}

// sameContainers tells whether the containers are as many as before; of each
// only the image may change.
func (c *check) sameContainers(p *field.Path, list, old []corev1.Container) bool {
	if len(list) != len(old) {
		c.forbidden(p, "pod updates may not add or remove containers")
		return false
	}
	for i := range list {
		c.filled(p.Index(i).Child("image"), list[i].Image)
		c.trimmedImage(p.Index(i), list[i].Image)
	}
	return true
}

// deadline tells whether the other rules may go on: a deadline that was set
// may only come nearer.
func (c *check) deadline(p *field.Path, d, old *int64) bool {
	switch {
	case d == nil:
		if old != nil {
			c.invalid(p, d, "must not update from a positive integer to nil value")
		}
	case *d < 0 || *d > math.MaxInt32:
		c.invalid(p, *d, validation.InclusiveRangeError(0, math.MaxInt32))
		return false
	case old != nil && *old < *d:
		c.invalid(p, *d, "must be less than or equal to previous value")
		return false
	}
	return true
}

// moreTolerations: every old toleration is still there, but for its seconds.
func (c *check) moreTolerations(p *field.Path, list, old []corev1.Toleration) {
	kept := func(o corev1.Toleration) bool {
		o.TolerationSeconds = nil
		for _, t := range list {
			t.TolerationSeconds = nil
			if t == o {
				return true
			}
		}
		return false
	}
	for _, o := range old {
		if !kept(o) {
			c.forbidden(p, "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
	c.tolerations(p, list)
}

func (c *check) fewerGates(p *field.Path, list, old []corev1.PodSchedulingGate) {
	had := map[string]bool{}
	for _, g := range old {
		had[g.Name] = true
	}
	last := map[string]int{}
	for i, g := range list {
		if !had[g.Name] {
			last[g.Name] = i
		}
	}
	for _, name := range sortedKeys(last) {
		c.forbidden(p.Index(last[name]).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", name))
	}
}

// narrowed: while a pod is gated, its choice of nodes may become narrower. What
// was checked here is put back in rest, so that it counts as unchanged.
func (c *check) narrowed(rest, old *corev1.PodSpec) {
	if !equal(rest.NodeSelector, old.NodeSelector) {
		for _, k := range sortedKeys(old.NodeSelector) {
			if v, ok := rest.NodeSelector[k]; !ok || v != old.NodeSelector[k] {
				c.invalid(specPath.Child("nodeSelector"), rest.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
				break
			}
		}
		rest.NodeSelector = old.NodeSelector
	}
	was, is := nodeAffinity(old), nodeAffinity(rest)
	if equal(was, is) {
		return
	}
	c.narrowedAffinity(specPath.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"), is, was)
	switch a := rest.Affinity; {
	case a == nil:
		rest.Affinity = &corev1.Affinity{NodeAffinity: was}
	case old.Affinity == nil && a.PodAffinity == nil && a.PodAntiAffinity == nil:
		rest.Affinity = nil
	default:
		a.NodeAffinity = was
	}
}

func nodeAffinity(s *corev1.PodSpec) *corev1.NodeAffinity {
	if s.Affinity == nil {
		return nil
	}
	return s.Affinity.NodeAffinity
}

func (c *check) narrowedAffinity(p *field.Path, is, was *corev1.NodeAffinity) {
	if was == nil || was.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return
	}
	old := was.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	var terms []corev1.NodeSelectorTerm
	if is != nil && is.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = is.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	if len(old) > 0 && len(old) != len(terms) {
		c.invalid(p, resource.Shown(terms), "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	begins := func(list, old []corev1.NodeSelectorRequirement) bool {
		return len(old) <= len(list) && (len(old) == 0 || equal(list[:len(old)], old))
	}
	for i, o := range old {
		t := terms[i]
		// A term without requirements selects nothing: an addition would widen it.
		widened := len(o.MatchExpressions)+len(o.MatchFields) == 0 && len(t.MatchExpressions)+len(t.MatchFields) > 0
		if widened || !begins(t.MatchExpressions, o.MatchExpressions) || !begins(t.MatchFields, o.MatchFields) {
			c.invalid(p.Index(i), resource.Shown(t), "only additions are allowed (no mutations or deletions)")
		}
	}
}
