// Package api lists the built-in API resources. Each is declared in one file (or,
// for the few large ones, one folder) below.
package api

import (
	"skiff/internal/api/apps"
	"skiff/internal/api/authentication"
	"skiff/internal/api/authorization"
	"skiff/internal/api/coordination"
	"skiff/internal/api/core"
	"skiff/internal/api/core/pod"
	"skiff/internal/api/core/service"
	"skiff/internal/api/discovery"
	"skiff/internal/api/networking"
	"skiff/internal/api/rbac"
	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling"
)

// All returns the built-in resources, in the order of discovery.
func All() []*resource.Resource {
	events, newEvents := core.Events()
	return []*resource.Resource{
		pod.Binding(),
		core.ConfigMap(),
		core.Endpoints(),
		events,
		core.Namespace(),
		core.Node(),
		pod.Pod(),
		core.Secret(),
		core.ServiceAccount(),
		service.Service(),
		apps.Deployment(),
		apps.ReplicaSet(),
		authentication.SelfSubjectReview(),
		authentication.TokenReview(),
		authorization.LocalSubjectAccessReview(),
		authorization.SelfSubjectAccessReview(),
		authorization.SelfSubjectRulesReview(),
		authorization.SubjectAccessReview(),
		coordination.Lease(),
		discovery.EndpointSlice(),
		newEvents,
		rbac.ClusterRole(),
		rbac.ClusterRoleBinding(),
		rbac.Role(),
		rbac.RoleBinding(),
		scheduling.PriorityClass(),
		networking.IPAddress(),
		networking.ServiceCIDR(),
	}
}
