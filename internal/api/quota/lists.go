package quota

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// The functions of this file return new lists and change none.

// Names returns the names of a list, sorted.
func Names(l corev1.ResourceList) []corev1.ResourceName { return slices.Sorted(maps.Keys(l)) }

// both returns what both have, sorted and once.
func both(a, b []corev1.ResourceName) []corev1.ResourceName {
	var out []corev1.ResourceName
	for _, n := range a {
		if slices.Contains(b, n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Add returns a and b together.
func Add(a, b corev1.ResourceList) corev1.ResourceList {
	out := a.DeepCopy()
	if out == nil {
		out = corev1.ResourceList{}
	}
	for n, q := range b {
		sum := q.DeepCopy()
		if have, ok := out[n]; ok {
			sum = have
			sum.Add(q)
		}
		out[n] = sum
	}
	return out
}

// Increase returns how much more than b is used in a; nothing is negative.
func Increase(a, b corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for n, q := range a {
		more := q.DeepCopy()
		more.Sub(b[n])
		if more.Sign() > 0 {
			out[n] = more
		}
	}
	return out
}

// Only returns the part of l with the names given.
func Only(l corev1.ResourceList, names []corev1.ResourceName) corev1.ResourceList {
	out := corev1.ResourceList{}
	for n, q := range l {
		if slices.Contains(names, n) {
			out[n] = q.DeepCopy()
		}
	}
	return out
}

// Nonzero returns l without what is zero.
func Nonzero(l corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for n, q := range l {
		if !q.IsZero() {
			out[n] = q.DeepCopy()
		}
	}
	return out
}

// Exceeding returns the names, sorted, of which l has more than limit says.
func Exceeding(l, limit corev1.ResourceList) []corev1.ResourceName {
	var out []corev1.ResourceName
	for _, n := range Names(limit) {
		if q, ok := l[n]; ok && q.Cmp(limit[n]) > 0 {
			out = append(out, n)
		}
	}
	return out
}

// Negative returns the names, sorted, of what is below zero.
func Negative(l corev1.ResourceList) []corev1.ResourceName {
	return slices.DeleteFunc(Names(l), func(n corev1.ResourceName) bool { q := l[n]; return q.Sign() >= 0 })
}
