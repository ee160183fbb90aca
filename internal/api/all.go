// Package api lists the built-in API resources. Each is declared in one file (or,
// for the few large ones, one folder) below.
package api

import (
	"skiff/internal/api/apps"
	"skiff/internal/api/authentication"
	"skiff/internal/api/authorization"
	"skiff/internal/api/autoscaling"
	"skiff/internal/api/batch"
	"skiff/internal/api/coordination"
	"skiff/internal/api/core"
	"skiff/internal/api/core/pod"
	"skiff/internal/api/core/service"
	"skiff/internal/api/discovery"
	"skiff/internal/api/networking"
	"skiff/internal/api/policy"
	"skiff/internal/api/rbac"
	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling"
)

// All returns the built-in resources, in the order of discovery.
func All() []*resource.Resource {
	events, newEvents := core.Events()
	autoscalers, oldAutoscalers := autoscaling.HorizontalPodAutoscalers()
	return []*resource.Resource{
		pod.Binding(),
		core.ConfigMap(),
		core.Endpoints(),
		events,
		core.LimitRange(),
		core.Namespace(),
		core.Node(),
		pod.Pod(),
		core.PodTemplate(),
		core.ReplicationController(),
		core.ResourceQuota(),
		core.Secret(),
		core.ServiceAccount(),
		service.Service(),
		apps.ControllerRevision(),
		apps.DaemonSet(),
		apps.Deployment(),
		apps.ReplicaSet(),
		apps.StatefulSet(),
		authentication.SelfSubjectReview(),
		authentication.TokenReview(),
		authorization.LocalSubjectAccessReview(),
		authorization.SelfSubjectAccessReview(),
		authorization.SelfSubjectRulesReview(),
		authorization.SubjectAccessReview(),
		autoscalers,
		oldAutoscalers,
		batch.CronJob(),
		batch.Job(),
		coordination.Lease(),
		discovery.EndpointSlice(),
		newEvents,
		policy.PodDisruptionBudget(),
		rbac.ClusterRole(),
		rbac.ClusterRoleBinding(),
		rbac.Role(),
		rbac.RoleBinding(),
		scheduling.PriorityClass(),
		networking.IPAddress(),
		networking.ServiceCIDR(),
	}
}
