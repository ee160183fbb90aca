package service

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func warnings(s *corev1.Service) []string {
	var out []string
	add := func(texts ...string) { out = append(out, texts...) }
	spec, path := &s.Spec, field.NewPath("spec")
	if _, ok := s.Annotations[corev1.DeprecatedAnnotationTopologyAwareHints]; ok {
		add(fmt.Sprintf("annotation %s is deprecated, please use %s instead", corev1.DeprecatedAnnotationTopologyAwareHints, corev1.AnnotationTopologyMode))
	}
	if spec.ClusterIP != "" && spec.ClusterIP != corev1.ClusterIPNone {
		for i, ip := range spec.ClusterIPs {
			add(resource.WarnIP(path.Child("clusterIPs").Index(i), ip)...)
		}
	}
	external := spec.ExternalIPs //nolint:staticcheck // served as upstream serves it
	noIP := spec.Type == corev1.ServiceTypeClusterIP && spec.ClusterIP == corev1.ClusterIPNone
	if noIP {
		if spec.LoadBalancerIP != "" { //nolint:staticcheck // served as upstream serves it
			add("spec.loadBalancerIP is ignored for headless services")
		}
		if len(external) > 0 {
			add("spec.externalIPs is ignored for headless services")
		}
		if spec.SessionAffinity != corev1.ServiceAffinityNone {
			add("spec.SessionAffinity is ignored for headless services")
		}
	}
	for i, ip := range external {
		add(resource.WarnIP(path.Child("externalIPs").Index(i), ip)...)
	}
	if len(external) > 0 && !noIP && !isExternalName(s) {
		add("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if ip := spec.LoadBalancerIP; ip != "" { //nolint:staticcheck // served as upstream serves it
		add(resource.WarnIP(path.Child("loadBalancerIP"), ip)...)
	}
	for i, cidr := range spec.LoadBalancerSourceRanges {
		add(resource.WarnCIDR(path.Child("loadBalancerSourceRanges").Index(i), cidr)...)
	}
	if isExternalName(s) && len(external) > 0 {
		add(fmt.Sprintf("spec.externalIPs is ignored when spec.type is %q", corev1.ServiceTypeExternalName))
	}
	if !isExternalName(s) && spec.ExternalName != "" {
		add(fmt.Sprintf("spec.externalName is ignored when spec.type is not %q", corev1.ServiceTypeExternalName))
	}
	if d := spec.TrafficDistribution; d != nil && *d == corev1.ServiceTrafficDistributionPreferClose {
		add(fmt.Sprintf("spec.trafficDistribution: %q is deprecated; use %q", corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone))
	}
	return out
}

func statusWarnings(s *corev1.Service) []string {
	var out []string
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			out = append(out, resource.WarnIP(field.NewPath("status", "loadBalancer", "ingress").Index(i), in.IP)...)
		}
	}
	return out
}
