package service

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/api/resource"
)

func columns() []metav1.TableColumnDefinition {
	doc := corev1.ServiceSpec{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		resource.NameColumn(),
		resource.Column("Type", "string", doc["type"], 0),
		resource.Column("Cluster-IP", "string", doc["clusterIP"], 0),
		resource.Column("External-IP", "string", doc["externalIPs"], 0),
		resource.Column("Port(s)", "string", doc["ports"], 0),
		resource.AgeColumn(),
		resource.Column("Selector", "string", doc["selector"], 1),
	}
}

func row(s *corev1.Service, now time.Time) []any {
	ip := "<none>"
	if len(s.Spec.ClusterIPs) > 0 {
		ip = s.Spec.ClusterIPs[0]
	}
	ports := make([]string, len(s.Spec.Ports))
	for i, p := range s.Spec.Ports {
		if p.NodePort > 0 {
			ports[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		} else {
			ports[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		}
	}
	return []any{
		s.Name, string(s.Spec.Type), ip, externalCell(s), orNone(strings.Join(ports, ",")),
		resource.Age(s.CreationTimestamp, now), labels.FormatLabels(s.Spec.Selector),
	}
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func externalCell(s *corev1.Service) string {
	ips := s.Spec.ExternalIPs //nolint:staticcheck // served as upstream serves it
	switch s.Spec.Type {
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort:
		return orNone(strings.Join(ips, ","))
	case corev1.ServiceTypeLoadBalancer:
		given := map[string]bool{}
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IP != "" {
				given[in.IP] = true
			} else if in.Hostname != "" {
				given[in.Hostname] = true
			}
		}
		if all := append(slices.Sorted(maps.Keys(given)), ips...); len(all) > 0 {
			return strings.Join(all, ",")
		}
		return "<pending>"
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	}
	return "<unknown>"
}
