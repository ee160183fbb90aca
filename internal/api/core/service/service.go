// Package service declares core/v1 services.
//
// Cluster addresses and node ports are allocated before a write is prepared and
// validated (begin), and given back where it fails, or when the service is
// deleted: the rules of this package see what was allocated.
package service

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// Service declares core/v1 services.
func Service() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Service", Plural: "services", Singular: "service",
		ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/services/specs/",
		ReturnDeleted: true,
		New:           func() resource.Object { return &corev1.Service{} },
		NewList:       func() runtime.Object { return &corev1.ServiceList{} },
		Columns:       columns(),
		Subresources: []resource.Subresource{
			{Name: "proxy", Kind: corev1.SchemeGroupVersion.WithKind("ServiceProxyOptions"), Connect: true,
				Verbs: []string{"create", "delete", "get", "patch", "update"}},
			statusDoor(),
		},
	}, resource.StrategyOf[*corev1.Service]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		ResetFields: []string{"status"},
		Default:     setDefaults,
		PrepareCreate: func(_ resource.Env, s *corev1.Service) {
			s.Status = corev1.ServiceStatus{}
		},
		PrepareUpdate: func(env resource.Env, s, old *corev1.Service) {
			s.Status = *old.Status.DeepCopy()
			dropByType(s, asRead(env, old))
		},
		ValidateCreate: validateCreate,
		ValidateUpdate: validateUpdate,
		Warnings:       func(_ resource.Env, s, _ *corev1.Service) []string { return warnings(s) },
		Canonicalize: func(s *corev1.Service) {
			// Upstream hides it on reading.
			if s.Spec.Type == corev1.ServiceTypeExternalName {
				s.Spec.InternalTrafficPolicy = nil
			}
		},
		BeginFirst: true,
		Begin:      begin,
		Deleted: func(ctx context.Context, env resource.Env, s *corev1.Service) {
			if env.Services == nil {
				return
			}
			// What cannot be given back now is found by the allocator's repair.
			if err := releaseAll(context.WithoutCancel(ctx), env, s); err != nil {
				slog.Warn("allocations of a deleted service stay taken", "ns", s.Namespace, "service", s.Name, "err", err)
			}
		},
		Selectable: func(s *corev1.Service) fields.Set {
			return fields.Set{"spec.clusterIP": s.Spec.ClusterIP, "spec.type": string(s.Spec.Type)}
		},
		Row: row,
	})
}

func statusDoor() resource.Subresource {
	return resource.StatusOf(resource.StrategyOf[*corev1.Service]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec"},
		Default:             setDefaults,
		PrepareUpdate: func(_ resource.Env, s, old *corev1.Service) {
			s.Spec = *old.Spec.DeepCopy()
		},
		ValidateUpdate: func(env resource.Env, s, old *corev1.Service) field.ErrorList {
			errs := resource.ValidateMetaUpdate(s, old)
			return append(errs, validateLoadBalancerStatus(env, s, old)...)
		},
		Warnings: func(_ resource.Env, s, _ *corev1.Service) []string { return statusWarnings(s) },
		Canonicalize: func(s *corev1.Service) {
			if s.Spec.Type == corev1.ServiceTypeExternalName {
				s.Spec.InternalTrafficPolicy = nil
			}
		},
	})
}

// headless: the service has endpoints but no address.
func headless(s *corev1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// external: traffic from outside the cluster may reach it.
func external(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeClusterIP:
		return len(s.Spec.ExternalIPs) > 0
	}
	return false
}

// checksHealth: load balancers ask the service's health check node port.
func checksHealth(s *corev1.Service) bool {
	return isLoadBalancer(s) && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func isLoadBalancer(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeLoadBalancer }

func isExternalName(s *corev1.Service) bool { return s.Spec.Type == corev1.ServiceTypeExternalName }

func samePointee[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
