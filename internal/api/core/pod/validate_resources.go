package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Standard resources are those without a domain.
var standardResources = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceStorage,
	corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage, corev1.ResourceRequestsStorage,
	corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
	corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
}

// countedResources are the standard resources that are numbers of objects.
var countedResources = standardResources[11:]

func isHugePages(n corev1.ResourceName) bool {
	return strings.HasPrefix(string(n), corev1.ResourceHugePagesPrefix)
}

// isNative tells a resource of Kubernetes from one that others define.
func isNative(n corev1.ResourceName) bool {
	return !strings.Contains(string(n), "/") || strings.Contains(string(n), corev1.ResourceDefaultNamespacePrefix)
}

func isExtended(n corev1.ResourceName) bool {
	return !isNative(n) && !strings.HasPrefix(string(n), corev1.DefaultResourceRequestsPrefix) &&
		len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(n))) == 0
}

// MayOvercommit tells whether requests may stay below limits.
func MayOvercommit(n corev1.ResourceName) bool { return isNative(n) && !isHugePages(n) }

// divisible tells whether q is a whole number of the huge pages that n names.
func divisible(n corev1.ResourceName, q apiresource.Quantity) bool {
	size, err := apiresource.ParseQuantity(strings.TrimPrefix(string(n), corev1.ResourceHugePagesPrefix))
	if err != nil || size.Sign() <= 0 || size.MilliValue()%1000 != 0 {
		return false
	}
	return q.Value()%size.Value() == 0
}

func indivisibleHugePagesUsed(spec *corev1.PodSpec) bool {
	bad := func(l corev1.ResourceList) bool {
		for n, q := range l {
			if isHugePages(n) && !divisible(n, q) {
				return true
			}
		}
		return false
	}
	return bad(spec.Overhead) || anyContainer(spec, func(c *corev1.Container) bool {
		return bad(c.Resources.Limits) || bad(c.Resources.Requests)
	})
}

// resourceName checks the form of a resource's name, wherever it stands.
func (c *check) resourceName(p *field.Path, n corev1.ResourceName) bool {
	if msgs := validation.IsQualifiedName(string(n)); len(msgs) > 0 {
		c.all(p, n, msgs)
		return false
	}
	if !strings.Contains(string(n), "/") && !slices.Contains(standardResources, n) &&
		!isHugePages(n) && !strings.HasPrefix(string(n), corev1.ResourceRequestsHugePagesPrefix) {
		c.invalid(p, n, "must be a standard resource type or fully qualified")
		return false
	}
	return true
}

func (c *check) containerResource(p *field.Path, n corev1.ResourceName) {
	c.resourceName(p, n)
	if !strings.Contains(string(n), "/") {
		if n != corev1.ResourceCPU && n != corev1.ResourceMemory && n != corev1.ResourceEphemeralStorage && !isHugePages(n) {
			c.invalid(p, n, "must be a standard resource for containers")
		}
	} else if !isNative(n) && !isExtended(n) {
		c.invalid(p, n, "doesn't follow extended resource name standard")
	}
}

func (c *check) podResource(p *field.Path, n corev1.ResourceName) {
	if c.resourceName(p, n) && !resourcehelper.IsSupportedPodLevelResource(n) {
		c.add(field.NotSupported(p, n, slices.Sorted(keysOf(resourcehelper.SupportedPodLevelResources()))))
	}
}

func keysOf[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// quantity checks an amount of a resource.
func (c *check) quantity(p *field.Path, n corev1.ResourceName, q apiresource.Quantity) {
	if q.Sign() < 0 {
		c.invalid(p, q.String(), "must be greater than or equal to 0")
	}
	if (slices.Contains(countedResources, n) || isExtended(n)) && q.MilliValue()%1000 != 0 {
		c.invalid(p, q, "must be an integer")
	}
}

// amount is quantity for what is not a resource of a node.
func (c *check) amount(p *field.Path, q apiresource.Quantity) {
	if n := q.Value(); n < 0 {
		c.invalid(p, n, "must be a valid resource quantity")
	}
}

// ValidateQuantity checks an amount of a resource, as a node reports it.
func ValidateQuantity(p *field.Path, n corev1.ResourceName, q apiresource.Quantity) field.ErrorList {
	c := &check{}
	c.quantity(p, n, q)
	return c.errs
}

// ValidateOverhead checks what running a pod costs besides its containers.
func ValidateOverhead(p *field.Path, l corev1.ResourceList) field.ErrorList {
	c := &check{}
	c.requirements(p, &corev1.ResourceRequirements{Limits: l}, nil, c.containerResource)
	return c.errs
}

// requirements checks requests and limits; name is the rule for the names, and
// claims are the names of the pod's claims, sorted.
func (c *check) requirements(p *field.Path, r *corev1.ResourceRequirements, claims []string, name func(*field.Path, corev1.ResourceName)) {
	limits, requests := p.Child("limits"), p.Child("requests")
	base, huge := false, false // of cpu or memory, and of huge pages
	one := func(p *field.Path, n corev1.ResourceName, q apiresource.Quantity) {
		name(p, n)
		c.quantity(p, n, q)
		base = base || n == corev1.ResourceCPU || n == corev1.ResourceMemory
	}
	pages := func(p *field.Path, n corev1.ResourceName, q apiresource.Quantity) {
		if !isHugePages(n) {
			return
		}
		huge = true
		if !c.indivisibleHugePages && !divisible(n, q) {
			c.invalid(p, q.String(), fmt.Sprintf("%s is not positive integer multiple of %s", q.String(), n))
		}
	}
	for _, n := range sortedKeys(r.Limits) {
		q := r.Limits[n]
		one(limits.Key(string(n)), n, q)
		pages(limits.Key(string(n)), n, q)
	}
	for _, n := range sortedKeys(r.Requests) {
		q := r.Requests[n]
		one(requests.Key(string(n)), n, q)
		limit, limited := r.Limits[n]
		switch {
		case !limited && !MayOvercommit(n):
			c.required(limits, "Limit must be set for non overcommitable resources")
		case limited && q.Cmp(limit) != 0 && !MayOvercommit(n):
			c.invalid(requests, q.String(), fmt.Sprintf("must be equal to %s limit of %s", n, limit.String()))
		case limited && q.Cmp(limit) > 0:
			c.invalid(requests, q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", n, limit.String()))
		}
		pages(requests.Key(string(n)), n, q)
	}
	if huge && !base {
		c.forbidden(p, "HugePages require cpu or memory")
	}
	c.claimRefs(p.Child("claims"), r.Claims, claims)
}

// claimRefs checks a container's use of the pod's claims: a claim whole, or
// requests of it, not both.
func (c *check) claimRefs(p *field.Path, refs []corev1.ResourceClaim, claims []string) {
	whole, parts := map[string]bool{}, map[string]int{}
	requested := map[corev1.ResourceClaim]bool{}
	for i, r := range refs {
		rp := p.Index(i)
		if !c.filled(rp, r.Name) {
			continue
		}
		switch {
		case whole[r.Name]:
			c.duplicate(rp, r.Name)
		case r.Request == "":
			for range parts[r.Name] {
				c.duplicate(rp, r.Name)
			}
			whole[r.Name] = true
		default:
			c.label(rp.Child("request"), r.Request)
			if requested[r] {
				c.duplicate(rp, r.Name+"/"+r.Request)
			} else {
				requested[r] = true
				parts[r.Name]++
			}
		}
		if !slices.Contains(claims, r.Name) {
			err := field.NotFound(rp, r.Name)
			err.Detail = "must be one of the names in pod.spec.resourceClaims"
			if len(claims) == 0 {
				err.Detail += " which is empty"
			} else {
				err.Detail += ": " + strings.Join(claims, ", ")
			}
			c.add(err)
		}
	}
}

// podResources checks the resources of a pod as a whole against those of its
// containers.
func (c *check) podResources(p *field.Path, s scope) {
	r := s.spec.Resources
	if r == nil {
		return
	}
	if isWindows(s.spec) {
		c.forbidden(p, "may not be set for a windows pod")
		return
	}
	if r.Claims != nil {
		c.forbidden(p.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	c.requirements(p, r, s.claims, c.podResource)

	pod := &corev1.Pod{Spec: *s.spec}
	requests := resourcehelper.AggregateContainerRequests(pod, resourcehelper.PodResourcesOptions{})
	for _, n := range sortedKeys(requests) {
		if have, ok := r.Requests[n]; ok && have.Cmp(requests[n]) < 0 {
			q := requests[n]
			c.invalid(p.Child("requests").Key(string(n)), have.String(), "must be greater than or equal to aggregate container requests of "+q.String())
		}
	}
	limits := resourcehelper.AggregateContainerLimits(pod, resourcehelper.PodResourcesOptions{})
	for _, n := range sortedKeys(limits) {
		if have, ok := r.Limits[n]; ok && isHugePages(n) && have.Cmp(limits[n]) < 0 {
			q := limits[n]
			c.invalid(p.Child("limits").Key(string(n)), have.String(), "must be greater than or equal to aggregate container limits of "+q.String())
		}
	}
	for i, ctr := range s.spec.Containers {
		for _, n := range sortedKeys(ctr.Resources.Limits) {
			q := ctr.Resources.Limits[n]
			if have, ok := r.Limits[n]; ok && q.Cmp(have) > 0 {
				c.invalid(p.Child("containers").Index(i).Key(string(n)).Child("limits"), q.String(), "must be less than or equal to pod limits of "+have.String())
			}
		}
	}
}

// ValidateResourceName checks the name of any resource, ValidateContainerResource
// that of one that containers may request.
func ValidateResourceName(p *field.Path, n corev1.ResourceName) field.ErrorList {
	c := &check{}
	c.resourceName(p, n)
	return c.errs
}

// ValidateContainerResource see ValidateResourceName.
func ValidateContainerResource(p *field.Path, n corev1.ResourceName) field.ErrorList {
	c := &check{}
	c.containerResource(p, n)
	return c.errs
}

// ValidateQuotaResource checks the name of a resource that a quota limits, and the
// amount.
func ValidateQuotaResource(p *field.Path, n corev1.ResourceName, q apiresource.Quantity) field.ErrorList {
	c := &check{}
	c.resourceName(p, n)
	if !strings.Contains(string(n), "/") && !IsQuotaResource(n) {
		c.invalid(p, n, "must be a standard resource for quota")
	}
	c.quantity(p, n, q)
	return c.errs
}

// IsQuotaResource tells whether quotas may limit a resource without a domain.
func IsQuotaResource(n corev1.ResourceName) bool {
	return slices.Contains(standardResources, n) && n != corev1.ResourceStorage ||
		isHugePages(n) || strings.HasPrefix(string(n), corev1.ResourceRequestsHugePagesPrefix)
}
