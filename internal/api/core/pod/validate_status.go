package pod

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// validateStatus has no rules for nodeAllocatableResourceClaimStatuses,
// volumeHealth and the digests of image volumes: their features are off, so that
// PrepareUpdate has dropped them.
func validateStatus(env resource.Env, pod, old *corev1.Pod) field.ErrorList {
	c := &check{Options: podOptions(env.Features, old)}
	c.add(resource.ValidateMetaUpdate(pod, old)...)
	c.annotationUpdates(metaPath.Child("annotations"), pod, old)
	s, was, p := &pod.Status, &old.Status, statusPath

	for i, cond := range s.Conditions {
		cp := p.Child("conditions").Index(i)
		c.notNegativeInteger(cp.Child("observedGeneration"), cond.ObservedGeneration)
		switch cond.Type {
		case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized:
		default:
			c.qualified(cp.Child("Type"), string(cond.Type))
		}
	}
	if pod.Spec.NodeName != old.Spec.NodeName {
		c.forbidden(p.Child("nodeName"), "may not be changed directly")
	}
	if n := s.NominatedNodeName; n != "" && n != was.NominatedNodeName {
		c.name(p.Child("nominatedNodeName"), n)
		if old.Spec.NodeName != "" && c.features.Enabled("ClearingNominatedNodeNameAfterBinding") {
			c.forbidden(p.Child("nominatedNodeName"), "may not be set on pods that are already bound to a node")
		}
	}
	c.notNegativeInteger(p.Child("observedGeneration"), s.ObservedGeneration)
	c.add(apivalidation.ValidateImmutableField(s.QOSClass, was.QOSClass, p.Child("qosClass"))...)

	c.transitions(p.Child("containerStatuses"), s.ContainerStatuses, was.ContainerStatuses, &old.Spec, old.Spec.Containers)
	c.transitions(p.Child("initContainerStatuses"), s.InitContainerStatuses, was.InitContainerStatuses, &old.Spec, old.Spec.InitContainers)
	c.transitions(p.Child("ephemeralContainerStatuses"), s.EphemeralContainerStatuses, was.EphemeralContainerStatuses, nil, nil)

	c.claimStatuses(p.Child("resourceClaimStatuses"), s.ResourceClaimStatuses, &pod.Spec)
	c.extendedClaim(p.Child("extendedResourceClaimStatus"), s.ExtendedResourceClaimStatus, &pod.Spec)

	c.podIPs(p.Child("podIPs"), s, was)
	c.hostIPs(p.Child("hostIPs"), s, was)

	c.statusUsers(p.Child("containerStatuses"), s.ContainerStatuses, &pod.Spec)
	c.statusUsers(p.Child("initContainerStatuses"), s.InitContainerStatuses, &pod.Spec)
	c.statusUsers(p.Child("ephemeralContainerStatuses"), s.EphemeralContainerStatuses, &pod.Spec)
	c.allocated(p.Child("containerStatuses"), s.ContainerStatuses, pod.Spec.Containers, s)
	c.allocated(p.Child("initContainerStatuses"), s.InitContainerStatuses, pod.Spec.InitContainers, s)
	for i, cs := range s.EphemeralContainerStatuses {
		if len(cs.AllocatedResourcesStatus) > 0 {
			c.forbidden(p.Child("ephemeralContainerStatuses").Index(i).Child("allocatedResourcesStatus"), "must not be specified in container status")
		}
	}
	return c.errs
}

func (c *check) notNegativeInteger(p *field.Path, n int64) {
	if n < 0 {
		c.invalid(p, n, "must be a non-negative integer")
	}
}

// transitions: a container that has ended, and that no rule restarts, stays
// ended. Without a spec none is restarted.
func (c *check) transitions(p *field.Path, list, old []corev1.ContainerStatus, spec *corev1.PodSpec, ctrs []corev1.Container) {
	const detail = "may not be transitioned to non-terminated state"
	if spec != nil && c.restartRules && c.restartAll && restartAllRule(spec) {
		return
	}
	for i, was := range old {
		end := was.State.Terminated
		if end == nil {
			continue
		}
		for _, is := range list {
			if is.Name != was.Name || is.State.Terminated != nil {
				continue
			}
			if spec == nil {
				c.forbidden(p.Index(i).Child("state"), detail)
				continue
			}
			at := slices.IndexFunc(ctrs, func(c corev1.Container) bool { return c.Name == was.Name })
			if at < 0 || !c.restarts(&ctrs[at], spec, end.ExitCode) {
				c.forbidden(p.Index(i).Child("state"), detail)
			}
			break
		}
	}
}

func restartAllRule(spec *corev1.PodSpec) bool {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, ctr := range list {
			for _, r := range ctr.RestartPolicyRules {
				if r.Action == corev1.ContainerRestartRuleActionRestartAllContainers {
					return true
				}
			}
		}
	}
	return false
}

// restarts tells whether a container is started again after it ended with code.
func (c *check) restarts(ctr *corev1.Container, spec *corev1.PodSpec, code int32) bool {
	policy := string(spec.RestartPolicy)
	if ctr.RestartPolicy != nil {
		for _, r := range ctr.RestartPolicyRules {
			if r.ExitCodes == nil {
				continue
			}
			in := slices.Contains(r.ExitCodes.Values, code)
			if r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn && !in ||
				r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpNotIn && in {
				continue
			}
			if r.Action == corev1.ContainerRestartRuleActionRestart ||
				r.Action == corev1.ContainerRestartRuleActionRestartAllContainers && c.features.Enabled("RestartAllContainersOnContainerExits") {
				return true
			}
			break
		}
		policy = string(*ctr.RestartPolicy)
	}
	switch policy {
	case "Never":
		return false
	case "OnFailure":
		return code != 0
	}
	return true
}

func (c *check) claimStatuses(p *field.Path, list []corev1.PodResourceClaimStatus, spec *corev1.PodSpec) {
	seen := map[string]bool{}
	for i, s := range list {
		np := p.Index(i).Child("name")
		if !slices.ContainsFunc(spec.ResourceClaims, func(c corev1.PodResourceClaim) bool { return c.Name == s.Name }) {
			c.invalid(np, s.Name, "must match the name of an entry in `spec.resourceClaims`")
		}
		if seen[s.Name] {
			c.duplicate(np, s.Name)
		}
		seen[s.Name] = true
		if n := s.ResourceClaimName; n != nil {
			c.all(p.Index(i).Child("resourceClaimName"), n, resource.DNSSubdomain(*n, false))
		}
	}
}

func (c *check) extendedClaim(p *field.Path, s *corev1.PodExtendedResourceClaimStatus, spec *corev1.PodSpec) {
	if s == nil {
		return
	}
	requests := map[string]corev1.ResourceList{}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, ctr := range list {
			requests[ctr.Name] = ctr.Resources.Requests
		}
	}
	mappings := p.Child("requestMappings")
	if len(s.RequestMappings) == 0 {
		c.required(mappings, "at least one request mapping is required")
	}
	seen := map[corev1.ContainerExtendedResourceRequest]bool{}
	for i, m := range s.RequestMappings {
		mp := mappings.Index(i)
		if list, ok := requests[m.ContainerName]; !ok {
			c.invalid(mp.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name")
		} else if _, ok := list[corev1.ResourceName(m.ResourceName)]; !ok {
			c.invalid(mp.Child("resourceName"), m.ResourceName, "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests")
		}
		c.label(p.Child("requestName"), m.RequestName)
		if seen[m] {
			c.duplicate(mp.Child("containerName"), m.ContainerName)
			c.duplicate(mp.Child("resourceName"), m.ResourceName)
			c.duplicate(mp.Child("requestName"), m.RequestName)
		}
		seen[m] = true
	}
	if c.filled(p.Child("resourceClaimName"), s.ResourceClaimName) {
		c.name(p.Child("resourceClaimName"), s.ResourceClaimName)
	}
}

func (c *check) podIPs(p *field.Path, s, was *corev1.PodStatus) {
	var list, old []string
	for _, ip := range s.PodIPs {
		list = append(list, ip.IP)
	}
	for _, ip := range was.PodIPs {
		old = append(old, ip.IP)
	}
	for i, ip := range list {
		c.ip(p.Index(i), ip, old)
	}
	c.dualStack(p, list, resource.Shown(s.PodIPs))
	switch {
	case (s.PodIP != "") != (len(list) > 0):
		c.invalid(p, resource.Shown(s.PodIPs), "podIP and podIPs must either both be set or both be unset")
	case len(list) > 0 && s.PodIP != list[0]:
		c.invalid(p.Index(0).Child("ip"), list[0], "must be equal to `podIP`")
	}
}

func (c *check) hostIPs(p *field.Path, s, was *corev1.PodStatus) {
	if len(s.HostIPs) == 0 {
		return
	}
	var list, old []string
	for _, ip := range s.HostIPs {
		list = append(list, ip.IP)
	}
	for _, ip := range was.HostIPs {
		old = append(old, ip.IP)
	}
	if s.HostIP != list[0] {
		c.invalid(p.Index(0).Child("ip"), list[0], "must be equal to `hostIP`")
	}
	for i, ip := range list {
		c.ip(p.Index(i), ip, old)
	}
	c.dualStack(p, list, resource.Shown(s.HostIPs))
}

// dualStack asks of several addresses that they are one of each family.
func (c *check) dualStack(p *field.Path, ips []string, shown any) {
	if len(ips) < 2 {
		return
	}
	dual, err := netutils.IsDualStackIPStrings(ips)
	if err != nil {
		c.add(field.InternalError(p, fmt.Errorf("failed to check for dual stack with error:%v", err)))
	}
	if !dual || len(ips) > 2 {
		c.invalid(p, shown, "may specify no more than one IP for each IP family")
	}
}

func (c *check) statusUsers(p *field.Path, list []corev1.ContainerStatus, spec *corev1.PodSpec) {
	for i, s := range list {
		if s.User == nil || s.User.Linux == nil {
			continue
		}
		u, up := s.User.Linux, p.Index(i).Child("user", "linux")
		if isWindows(spec) {
			c.forbidden(up, "cannot be set for a windows pod")
			continue
		}
		if spec.OS != nil && spec.OS.Name != corev1.Linux {
			continue
		}
		if u.UID < 0 || u.UID > math.MaxUint32 {
			c.invalid(up.Child("uid"), u.UID, fmt.Sprintf("must be between 0 and %d, inclusive", int64(math.MaxUint32)))
		}
		c.all(up.Child("gid"), u.GID, validation.IsValidGroupID(u.GID))
		for j, g := range u.SupplementalGroups {
			c.all(up.Child("supplementalGroups").Index(j), g, validation.IsValidGroupID(g))
		}
	}
}

// allocated checks the health of the devices that containers hold.
func (c *check) allocated(p *field.Path, list []corev1.ContainerStatus, ctrs []corev1.Container, s *corev1.PodStatus) {
	const (
		claims   = "must match one of the container's resource claims as 'claim:<claimName>/<requestName>' when container.resources.claims[*].request is set or 'claim:<claimName>' when it is empty"
		requests = "must match one of the container's resource requests"
	)
	for i, cs := range list {
		at := slices.IndexFunc(ctrs, func(c corev1.Container) bool { return c.Name == cs.Name })
		for j, r := range cs.AllocatedResourcesStatus {
			rp := p.Index(i).Child("allocatedResourcesStatus").Index(j)
			if at >= 0 {
				known, detail := false, requests
				if strings.HasPrefix(string(r.Name), claimPrefix) {
					known, detail = claimOf(&ctrs[at], string(r.Name), s.ExtendedResourceClaimStatus), claims
				} else {
					_, known = ctrs[at].Resources.Requests[r.Name]
				}
				if !known {
					c.invalid(rp.Child("name"), r.Name, detail)
				}
			}
			seen := map[corev1.ResourceID]bool{}
			for k, h := range r.Resources {
				hp := rp.Child("resources").Index(k)
				oneOf(c, hp.Child("health"), h.Health, corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)
				if m := h.Message; m != nil {
					if *m == "" {
						c.required(hp.Child("message"), "must be non-empty if specified")
					} else if len(*m) > corev1.ResourceHealthMessageMaxLength {
						c.tooLong(hp.Child("message"), *m, corev1.ResourceHealthMessageMaxLength)
					}
				}
				if seen[h.ResourceID] {
					c.duplicate(hp.Child("resourceID"), h.ResourceID)
				}
				seen[h.ResourceID] = true
			}
		}
	}
}

const claimPrefix = "claim:"

// claimOf tells whether a container uses the claim that a name of the form
// claim:<claim>[/<request>] stands for, itself or through extended resources.
func claimOf(ctr *corev1.Container, name string, extended *corev1.PodExtendedResourceClaimStatus) bool {
	name = strings.TrimPrefix(name, claimPrefix)
	for _, r := range ctr.Resources.Claims {
		own := r.Name
		if r.Request != "" {
			own += "/" + r.Request
		}
		if own == name {
			return true
		}
	}
	claim, request, _ := strings.Cut(name, "/")
	if extended == nil || claim == "" || request == "" || claim != extended.ResourceClaimName {
		return false
	}
	return slices.ContainsFunc(extended.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool {
		q, ok := ctr.Resources.Requests[corev1.ResourceName(m.ResourceName)]
		return m.ContainerName == ctr.Name && m.RequestName == request && ok && !q.IsZero()
	})
}
