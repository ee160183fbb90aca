package service

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

var (
	specPath  = field.NewPath("spec")
	protocols = []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}
)

func validateCreate(env resource.Env, s *corev1.Service) field.ErrorList {
	name := resource.DNS1035Label
	if env.Features.Enabled("RelaxedServiceNameValidation") {
		name = resource.DNSLabel
	}
	return append(resource.ValidateMeta(s, true, name), validate(env, s, nil)...)
}

func validateUpdate(env resource.Env, s, old *corev1.Service) field.ErrorList {
	old = asRead(env, old)
	errs := resource.ValidateMetaUpdate(s, old)
	errs = append(errs, validateAddressChange(s, old)...)
	errs = append(errs, validateFamilyChange(s, old)...)
	errs = append(errs, validateClass(s, old)...)
	if checksHealth(s) && checksHealth(old) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(specPath.Child("healthCheckNodePort"), "field is immutable"))
	}
	return append(errs, validate(env, s, old)...)
}

// validate holds the rules that every service obeys. With old, values that stood
// there already are excused from rules that came later.
func validate(env resource.Env, s, old *corev1.Service) field.ErrorList {
	spec := &s.Spec
	errs := validateTopology(s)
	if len(spec.Ports) == 0 && !headless(s) && !isExternalName(s) {
		errs = append(errs, field.Required(specPath.Child("ports"), ""))
	}
	errs = append(errs, validateByType(s)...)
	names := map[string]bool{}
	for i := range spec.Ports {
		errs = append(errs, validatePort(&spec.Ports[i], len(spec.Ports) > 1, names, specPath.Child("ports").Index(i))...)
	}
	if spec.Selector != nil {
		errs = append(errs, metavalidation.ValidateLabels(spec.Selector, specPath.Child("selector"))...)
	}
	errs = append(errs, validateAffinity(spec)...)
	errs = append(errs, validateAddresses(env, s, old)...)
	errs = append(errs, validateExternalIPs(env, s, old)...)
	types := []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}
	if spec.Type == "" {
		errs = append(errs, field.Required(specPath.Child("type"), ""))
	} else if !slices.Contains(types, spec.Type) {
		errs = append(errs, field.NotSupported(specPath.Child("type"), spec.Type, types))
	}
	errs = append(errs, validatePortSet(spec)...)
	errs = append(errs, validateSourceRanges(env, s, old)...)
	if isLoadBalancer(s) {
		if spec.AllocateLoadBalancerNodePorts == nil {
			errs = append(errs, field.Required(field.NewPath("allocateLoadBalancerNodePorts"), ""))
		}
	} else if spec.AllocateLoadBalancerNodePorts != nil {
		errs = append(errs, field.Forbidden(specPath.Child("allocateLoadBalancerNodePorts"), onlyLoadBalancer))
	}
	errs = append(errs, validateClass(s, nil)...)
	return append(errs, validateTraffic(env, s)...)
}

const onlyLoadBalancer = "may only be used when `type` is 'LoadBalancer'"

func validateTopology(s *corev1.Service) field.ErrorList {
	hints, hasHints := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]
	mode, hasMode := s.Annotations[corev1.AnnotationTopologyMode]
	if hasHints && hasMode && mode != hints {
		return field.ErrorList{field.Invalid(field.NewPath("metadata", "annotations").Key(corev1.AnnotationTopologyMode), mode,
			fmt.Sprintf("must match annotations[%s] when both are specified", corev1.DeprecatedAnnotationTopologyAwareHints))}
	}
	return nil
}

func validateByType(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	spec := &s.Spec
	switch spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if headless(s) {
			errs = append(errs, field.Invalid(specPath.Child("clusterIPs").Index(0), spec.ClusterIPs[0],
				fmt.Sprintf("may not be set to 'None' for %s services", spec.Type)))
		}
	case corev1.ServiceTypeExternalName:
		const unset = "may not be set for ExternalName services"
		if len(spec.ClusterIPs) > 0 {
			errs = append(errs, field.Forbidden(specPath.Child("clusterIPs"), unset))
		}
		if len(spec.IPFamilies) > 0 {
			errs = append(errs, field.Forbidden(specPath.Child("ipFamilies"), unset))
		}
		if spec.IPFamilyPolicy != nil {
			errs = append(errs, field.Forbidden(specPath.Child("ipFamilyPolicy"), unset))
		}
		path := specPath.Child("externalName")
		// A dot at the end marks a name as complete.
		if name := strings.TrimSuffix(spec.ExternalName, "."); name == "" {
			errs = append(errs, field.Required(path, ""))
		} else {
			errs = append(errs, invalid(path, name, validation.IsDNS1123Subdomain(name))...)
		}
	}
	return errs
}

// invalid makes one mistake of every message.
func invalid(path *field.Path, v any, msgs []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range msgs {
		errs = append(errs, field.Invalid(path, v, m))
	}
	return errs
}

func validatePort(p *corev1.ServicePort, named bool, names map[string]bool, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if p.Name != "" {
		errs = append(errs, invalid(path.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
		if names[p.Name] {
			errs = append(errs, field.Duplicate(path.Child("name"), p.Name))
		}
		names[p.Name] = true
	} else if named {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	errs = append(errs, invalid(path.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))...)
	if p.Protocol == "" {
		errs = append(errs, field.Required(path.Child("protocol"), ""))
	} else if !slices.Contains(protocols, p.Protocol) {
		errs = append(errs, field.NotSupported(path.Child("protocol"), p.Protocol, protocols))
	}
	target := path.Child("targetPort")
	switch t := p.TargetPort; t.Type {
	case intstr.Int:
		errs = append(errs, invalid(target, t.IntValue(), validation.IsValidPortNum(t.IntValue()))...)
	case intstr.String:
		errs = append(errs, invalid(target, t.StrVal, validation.IsValidPortName(t.StrVal))...)
	default:
		errs = append(errs, field.InternalError(target, fmt.Errorf("unknown type: %v", t.Type)))
	}
	if p.AppProtocol != nil {
		errs = append(errs, invalid(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
	}
	return errs
}

// validatePortSet looks at a service's ports together.
func validatePortSet(spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	path := specPath.Child("ports")
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, p := range spec.Ports {
			if p.NodePort != 0 {
				errs = append(errs, field.Forbidden(path.Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
		}
	}
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	nodes, ports := map[key]bool{}, map[key]bool{}
	for i, p := range spec.Ports {
		if p.NodePort == 0 {
			continue
		}
		k := key{p.Protocol, p.NodePort}
		if nodes[k] {
			errs = append(errs, field.Duplicate(path.Index(i).Child("nodePort"), p.NodePort))
		}
		nodes[k] = true
	}
	for i, p := range spec.Ports {
		k := key{p.Protocol, p.Port}
		if ports[k] {
			errs = append(errs, field.Duplicate(path.Index(i), resource.Shown(corev1.ServicePort{Protocol: p.Protocol, Port: p.Port})))
		}
		ports[k] = true
	}
	return errs
}

func validateAffinity(spec *corev1.ServiceSpec) field.ErrorList {
	path, kinds := specPath.Child("sessionAffinity"), []corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone}
	config := specPath.Child("sessionAffinityConfig")
	var errs field.ErrorList
	if spec.SessionAffinity == "" {
		errs = append(errs, field.Required(path, ""))
	} else if !slices.Contains(kinds, spec.SessionAffinity) {
		errs = append(errs, field.NotSupported(path, spec.SessionAffinity, kinds))
	}
	switch c := spec.SessionAffinityConfig; spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		if c != nil {
			errs = append(errs, field.Forbidden(config, "must not be set when session affinity is None"))
		}
	case corev1.ServiceAffinityClientIP:
		const why = "when session affinity type is ClientIP"
		switch {
		case c == nil:
			errs = append(errs, field.Required(config, why))
		case c.ClientIP == nil:
			errs = append(errs, field.Required(config.Child("clientIP"), why))
		case c.ClientIP.TimeoutSeconds == nil:
			errs = append(errs, field.Required(config.Child("clientIP", "timeoutSeconds"), why))
		default:
			if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > maxAffinitySeconds {
				errs = append(errs, field.Invalid(config.Child("clientIP", "timeoutSeconds"), t,
					fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds)))
			}
		}
	}
	return errs
}

func validateExternalIPs(env resource.Env, s, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	var had []string
	if old != nil {
		had = old.Spec.ExternalIPs //nolint:staticcheck // served as upstream serves it
	}
	for i, ip := range s.Spec.ExternalIPs { //nolint:staticcheck // served as upstream serves it
		path := specPath.Child("externalIPs").Index(i)
		if bad := legacyIP(env, path, ip, had); len(bad) > 0 {
			errs = append(errs, bad...)
		} else {
			errs = append(errs, resource.ValidateEndpointIP(ip, path)...)
		}
	}
	return errs
}

func legacyIP(env resource.Env, path *field.Path, ip string, had []string) field.ErrorList {
	return validation.IsValidIPForLegacyField(path, ip, env.Features.Enabled("StrictIPCIDRValidation"), had)
}

func legacyCIDR(env resource.Env, path *field.Path, cidr string, had []string) field.ErrorList {
	return validation.IsValidCIDRForLegacyField(path, cidr, env.Features.Enabled("StrictIPCIDRValidation"), had)
}

// validateSourceRanges looks at the field, or without it at the annotation that
// came before it. Blanks around a range are allowed in both.
func validateSourceRanges(env resource.Env, s, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	if ranges := s.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		path := specPath.Child("LoadBalancerSourceRanges")
		if !isLoadBalancer(s) {
			errs = append(errs, field.Forbidden(path, onlyLoadBalancer))
		}
		var had []string
		if old != nil {
			for _, r := range old.Spec.LoadBalancerSourceRanges {
				had = append(had, strings.TrimSpace(r))
			}
		}
		for i, r := range ranges {
			errs = append(errs, legacyCIDR(env, path.Index(i), strings.TrimSpace(r), had)...)
		}
		return errs
	}
	v, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	if !ok {
		return nil
	}
	path := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	if !isLoadBalancer(s) {
		errs = append(errs, field.Forbidden(path, onlyLoadBalancer))
	}
	if old != nil && old.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] == v {
		return errs
	}
	if v = strings.TrimSpace(v); v != "" {
		for r := range strings.SplitSeq(v, ",") {
			errs = append(errs, legacyCIDR(env, path, strings.TrimSpace(r), nil)...)
		}
	}
	return errs
}

// validateClass validates the load balancer class, or (with old) its change.
func validateClass(s, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path, class := specPath.Child("loadBalancerClass"), s.Spec.LoadBalancerClass
	if old != nil && isLoadBalancer(old) && isLoadBalancer(s) && !samePointee(class, old.Spec.LoadBalancerClass) {
		errs = append(errs, field.Invalid(path, class, changed))
	}
	if class == nil {
		return errs
	}
	if !isLoadBalancer(s) {
		return append(errs, field.Forbidden(path, onlyLoadBalancer))
	}
	return append(errs, invalid(path, *class, validation.IsQualifiedName(*class))...)
}

// maxAffinitySeconds is how long a client may stay with one endpoint: a day.
const maxAffinitySeconds = 86400

const changed = "may not change once set"

func validateTraffic(env resource.Env, s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	spec := &s.Spec
	path, policies := specPath.Child("externalTrafficPolicy"), []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}
	switch p := spec.ExternalTrafficPolicy; {
	case !external(s):
		if p != "" {
			errs = append(errs, field.Invalid(path, p, "may only be set for externally-accessible services"))
		}
	case p == "":
		errs = append(errs, field.Required(path, ""))
	case !slices.Contains(policies, p):
		errs = append(errs, field.NotSupported(path, p, policies))
	}

	path = specPath.Child("healthCheckNodePort")
	switch p := spec.HealthCheckNodePort; {
	case !checksHealth(s):
		if p != 0 {
			errs = append(errs, field.Invalid(path, p, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
	case p == 0:
		errs = append(errs, field.Required(path, ""))
	default:
		errs = append(errs, invalid(path, p, validation.IsValidPortNum(int(p)))...)
	}

	path = specPath.Child("internalTrafficPolicy")
	internal := []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}
	if p := spec.InternalTrafficPolicy; p != nil {
		if !slices.Contains(internal, *p) {
			errs = append(errs, field.NotSupported(path, *p, internal))
		}
	} else if t := spec.Type; t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer || t == corev1.ServiceTypeClusterIP {
		errs = append(errs, field.Required(path, ""))
	}

	if d := spec.TrafficDistribution; d != nil {
		known := []string{corev1.ServiceTrafficDistributionPreferClose}
		if env.Features.Enabled("PreferSameTrafficDistribution") {
			known = append(known, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
		}
		if !slices.Contains(known, *d) {
			errs = append(errs, field.NotSupported(specPath.Child("trafficDistribution"), *d, known))
		}
	}
	return errs
}

func validateLoadBalancerStatus(env resource.Env, s, old *corev1.Service) field.ErrorList {
	path, ingress := field.NewPath("status", "loadBalancer", "ingress"), s.Status.LoadBalancer.Ingress
	if !isLoadBalancer(s) && len(ingress) > 0 {
		return field.ErrorList{field.Forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'")}
	}
	var errs field.ErrorList
	var had []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			had = append(had, in.IP)
		}
	}
	modes := []corev1.LoadBalancerIPMode{corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP}
	for i, in := range ingress {
		p := path.Index(i)
		if in.IP != "" {
			errs = append(errs, legacyIP(env, p.Child("ip"), in.IP, had)...)
		}
		switch mode := p.Child("ipMode"); {
		case in.IPMode == nil:
			if in.IP != "" {
				errs = append(errs, field.Required(mode, "must be specified when `ip` is set"))
			}
		case in.IP == "":
			errs = append(errs, field.Forbidden(mode, "may not be specified when `ip` is not set"))
		case !slices.Contains(modes, *in.IPMode):
			errs = append(errs, field.NotSupported(mode, in.IPMode, modes))
		}
		if h := in.Hostname; h != "" {
			errs = append(errs, invalid(p.Child("hostname"), h, validation.IsDNS1123Subdomain(h))...)
			if netutils.ParseIPSloppy(h) != nil {
				errs = append(errs, field.Invalid(p.Child("hostname"), h, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}
