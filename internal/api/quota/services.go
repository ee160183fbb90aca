package quota

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

// services counts services, and the node ports and load balancers that they ask
// for.
func services() *Counter {
	names := []corev1.ResourceName{countOf(schema.GroupResource{Resource: "services"}), corev1.ResourceServices,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers}
	return &Counter{
		Matching: func(list []corev1.ResourceName) []corev1.ResourceName { return both(list, names) },
		Usage: func(obj resource.Object, _ time.Time) corev1.ResourceList {
			s, ok := obj.(*corev1.Service)
			if !ok {
				return nil
			}
			ports, balancers := 0, int64(0)
			switch s.Spec.Type {
			case corev1.ServiceTypeNodePort:
				ports = len(s.Spec.Ports)
			case corev1.ServiceTypeLoadBalancer:
				ports, balancers = len(s.Spec.Ports), 1
				if a := s.Spec.AllocateLoadBalancerNodePorts; a != nil && !*a {
					// Only the ports that it names.
					ports = len(slices.DeleteFunc(slices.Clone(s.Spec.Ports), func(p corev1.ServicePort) bool { return p.NodePort == 0 }))
				}
			}
			return corev1.ResourceList{names[0]: number(1), names[1]: number(1), names[2]: number(int64(ports)), names[3]: number(balancers)}
		},
	}
}

// ofClass is between the name of a storage class and that of a resource.
const ofClass = ".storageclass.storage.k8s.io/"

// claims counts claims and the storage that they request, also by storage class.
func claims(f resource.Features) *Counter {
	count := countOf(schema.GroupResource{Resource: "persistentvolumeclaims"})
	names := []corev1.ResourceName{corev1.ResourcePersistentVolumeClaims, corev1.ResourceRequestsStorage}
	c := &Counter{
		Matching: func(list []corev1.ResourceName) []corev1.ResourceName {
			out := both(list, append([]corev1.ResourceName{count}, names...))
			for _, n := range list {
				if slices.ContainsFunc(names, func(r corev1.ResourceName) bool { return strings.HasSuffix(string(n), ofClass+string(r)) }) {
					out = append(out, n)
				}
			}
			slices.Sort(out)
			return slices.Compact(out)
		},
		Usage: func(obj resource.Object, _ time.Time) corev1.ResourceList {
			claim, ok := obj.(*corev1.PersistentVolumeClaim)
			if !ok {
				return nil
			}
			out := corev1.ResourceList{count: number(1), corev1.ResourcePersistentVolumeClaims: number(1)}
			if q, ok := storage(claim); ok {
				out[corev1.ResourceRequestsStorage] = q
			}
			if class := classOf(claim); class != "" {
				for _, n := range names {
					if q, ok := out[n]; ok {
						out[corev1.ResourceName(class+ofClass)+n] = q
					}
				}
			}
			return out
		},
	}
	if f.Enabled("VolumeAttributesClass") {
		c.inScope = inClaimScope
	}
	return c
}

func classOf(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

// storage is what a claim requests, in whole bytes, or what it was given already
// where that is more.
func storage(c *corev1.PersistentVolumeClaim) (apiresource.Quantity, bool) {
	q, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return q, false
	}
	q = q.DeepCopy()
	q.RoundUp(0)
	if given, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && given.Cmp(q) > 0 {
		q = given.DeepCopy()
		q.RoundUp(0)
	}
	return q, true
}

// inClaimScope: the one scope of claims is by the classes of attributes that a
// claim has, wants, or is about to get.
func inClaimScope(s corev1.ScopedResourceSelectorRequirement, obj resource.Object) (bool, error) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok || s.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
		return false, nil
	}
	var names []string
	for _, n := range []*string{claim.Spec.VolumeAttributesClassName, claim.Status.CurrentVolumeAttributesClassName} {
		if n != nil && *n != "" {
			names = append(names, *n)
		}
	}
	if m := claim.Status.ModifyVolumeStatus; m != nil && m.TargetVolumeAttributesClassName != "" {
		names = append(names, m.TargetVolumeAttributesClassName)
	}
	if s.Operator == corev1.ScopeSelectorOpExists {
		return len(names) > 0, nil
	}
	return selects(s, names...)
}
