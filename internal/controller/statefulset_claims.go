package controller

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Owner references of a StatefulSet's claims (KEP-1847). A claim that is to go with
// its set is owned by the set; one that is to go when its pod is scaled away is owned
// by that pod, from the moment that the pod is condemned.

var podKind = corev1.SchemeGroupVersion.WithKind("Pod")

// claimRetention tells when claims are deleted: with their set, and when it is
// scaled down.
func claimRetention(s *appsv1.StatefulSet) (deleted, scaled bool) {
	p := s.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType, p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// claimOwners tells which of set and pod should own the claims of pod.
func claimOwners(s *appsv1.StatefulSet, p *corev1.Pod) (set, pod bool) {
	deleted, scaled := claimRetention(s)
	_, ordinal := ordinalOf(p.Name)
	condemned := !wantsOrdinal(s, ordinal)
	pod = scaled && condemned
	return deleted && !pod, pod
}

func refers(r metav1.OwnerReference, o metav1.Object, kind schema.GroupVersionKind) bool {
	return r.APIVersion == kind.GroupVersion().String() && r.Kind == kind.Kind && r.Name == o.GetName()
}

func claimOwnedBy(c *corev1.PersistentVolumeClaim, o metav1.Object) bool {
	return slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool { return r.UID == o.GetUID() })
}

// staleRef tells that c is owned by an object of o's name that is not o.
func staleRef(c *corev1.PersistentVolumeClaim, o metav1.Object, kind schema.GroupVersionKind) bool {
	i := slices.IndexFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool { return refers(r, o, kind) })
	return i >= 0 && c.OwnerReferences[i].UID != o.GetUID()
}

// claimConflict tells that c has a controller that is neither the set nor the pod:
// the policy does not hold for it.
func claimConflict(c *corev1.PersistentVolumeClaim, s *appsv1.StatefulSet, p *corev1.Pod) bool {
	if deleted, scaled := claimRetention(s); !deleted && !scaled {
		return false
	}
	return slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool {
		switch {
		case refers(r, s, statefulSetKind):
			return r.UID != s.UID
		case refers(r, p, podKind):
			return r.UID != p.UID
		}
		return r.Controller != nil && *r.Controller
	})
}

// claimOwnersRight tells that nothing is to be changed. A stale reference is left to
// the garbage collector, which removes the claim or the reference.
func claimOwnersRight(c *corev1.PersistentVolumeClaim, s *appsv1.StatefulSet, p *corev1.Pod) bool {
	if staleRef(c, s, statefulSetKind) || staleRef(c, p, podKind) {
		return true
	}
	if claimConflict(c, s, p) {
		return !claimOwnedBy(c, s) && !claimOwnedBy(c, p)
	}
	if slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool {
		return (r.UID == s.UID || r.UID == p.UID) && (r.Controller == nil || !*r.Controller)
	}) {
		return false
	}
	set, pod := claimOwners(s, p)
	return claimOwnedBy(c, s) == set && claimOwnedBy(c, p) == pod
}

// setClaimOwners gives c the owners it should have.
func setClaimOwners(c *corev1.PersistentVolumeClaim, s *appsv1.StatefulSet, p *corev1.Pod) {
	conflict := claimConflict(c, s, p)
	c.OwnerReferences = slices.DeleteFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool {
		return refers(r, s, statefulSetKind) || refers(r, p, podKind)
	})
	if conflict {
		return
	}
	set, pod := claimOwners(s, p)
	if pod {
		c.OwnerReferences = append(c.OwnerReferences, *metav1.NewControllerRef(p, podKind))
	}
	if set {
		c.OwnerReferences = append(c.OwnerReferences, *metav1.NewControllerRef(s, statefulSetKind))
	}
}
