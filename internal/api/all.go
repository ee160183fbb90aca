// Package api lists the built-in API resources. Each is declared in one file (or,
// for the few large ones, one folder) below.
package api

import (
	"skiff/internal/api/apps"
	"skiff/internal/api/authentication"
	"skiff/internal/api/authorization"
	"skiff/internal/api/autoscaling"
	"skiff/internal/api/batch"
	"skiff/internal/api/certificates"
	"skiff/internal/api/coordination"
	"skiff/internal/api/core"
	"skiff/internal/api/core/pod"
	"skiff/internal/api/core/service"
	"skiff/internal/api/discovery"
	"skiff/internal/api/dra"
	"skiff/internal/api/metrics"
	"skiff/internal/api/networking"
	"skiff/internal/api/node"
	"skiff/internal/api/policy"
	"skiff/internal/api/rbac"
	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling"
	"skiff/internal/api/storage"
)

// All returns the built-in resources, in the order of discovery.
func All() []*resource.Resource {
	events, newEvents := core.Events()
	autoscalers, oldAutoscalers := autoscaling.HorizontalPodAutoscalers()
	nodeMetrics, nodeMetricsBeta := metrics.NodeMetrics()
	podMetrics, podMetricsBeta := metrics.PodMetrics()
	return []*resource.Resource{
		pod.Binding(),
		core.ConfigMap(),
		core.Endpoints(),
		events,
		core.LimitRange(),
		core.Namespace(),
		core.Node(),
		core.PersistentVolumeClaim(),
		core.PersistentVolume(),
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
		certificates.CertificateSigningRequest(),
		certificates.ClusterTrustBundle(),
		certificates.PodCertificateRequest(),
		coordination.Lease(),
		discovery.EndpointSlice(),
		newEvents,
		policy.PodDisruptionBudget(),
		rbac.ClusterRole(),
		rbac.ClusterRoleBinding(),
		rbac.Role(),
		rbac.RoleBinding(),
		scheduling.PriorityClass(),
		scheduling.PodGroup(),
		scheduling.Workload(),
		networking.Ingress(),
		networking.IngressClass(),
		networking.IPAddress(),
		networking.NetworkPolicy(),
		networking.ServiceCIDR(),
		node.RuntimeClass(),
		nodeMetrics,
		podMetrics,
		nodeMetricsBeta,
		podMetricsBeta,
		dra.DeviceClass(),
		dra.DeviceTaintRule(),
		dra.ResourceClaim(),
		dra.ResourceClaimTemplate(),
		dra.ResourceSlice(),
		storage.CSIDriver(),
		storage.CSINode(),
		storage.CSIStorageCapacity(),
		storage.StorageClass(),
		storage.VolumeAttachment(),
		storage.VolumeAttributesClass(),
	}
}
