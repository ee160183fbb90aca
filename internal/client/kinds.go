package client

import (
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
)

// Kind is a built-in kind as clients know it.
type Kind struct {
	GVR        schema.GroupVersionResource
	GVK        schema.GroupVersionKind
	Namespaced bool
	New        func() Object
	NewList    func() runtime.Object
}

func kind[T, L any, PT interface {
	*T
	Object
}, PL interface {
	*L
	runtime.Object
}](gv schema.GroupVersion, plural, name string, namespaced bool) *Kind {
	return &Kind{
		GVR: gv.WithResource(plural), GVK: gv.WithKind(name), Namespaced: namespaced,
		New:     func() Object { return PT(new(T)) },
		NewList: func() runtime.Object { return PL(new(L)) },
	}
}

// Kinds are the built-in kinds that have a collection.
var Kinds = []*Kind{
	kind[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", "Namespace", false),
	kind[corev1.Node, corev1.NodeList](corev1.SchemeGroupVersion, "nodes", "Node", false),
	kind[corev1.Pod, corev1.PodList](corev1.SchemeGroupVersion, "pods", "Pod", true),
	kind[corev1.Service, corev1.ServiceList](corev1.SchemeGroupVersion, "services", "Service", true),
	kind[corev1.Endpoints, corev1.EndpointsList](corev1.SchemeGroupVersion, "endpoints", "Endpoints", true), //nolint:staticcheck // served as upstream serves it
	kind[corev1.ConfigMap, corev1.ConfigMapList](corev1.SchemeGroupVersion, "configmaps", "ConfigMap", true),
	kind[corev1.Secret, corev1.SecretList](corev1.SchemeGroupVersion, "secrets", "Secret", true),
	kind[corev1.ServiceAccount, corev1.ServiceAccountList](corev1.SchemeGroupVersion, "serviceaccounts", "ServiceAccount", true),
	kind[corev1.Event, corev1.EventList](corev1.SchemeGroupVersion, "events", "Event", true),
	kind[eventsv1.Event, eventsv1.EventList](eventsv1.SchemeGroupVersion, "events", "Event", true),
	kind[coordinationv1.Lease, coordinationv1.LeaseList](coordinationv1.SchemeGroupVersion, "leases", "Lease", true),
	kind[appsv1.ReplicaSet, appsv1.ReplicaSetList](appsv1.SchemeGroupVersion, "replicasets", "ReplicaSet", true),
	kind[appsv1.Deployment, appsv1.DeploymentList](appsv1.SchemeGroupVersion, "deployments", "Deployment", true),
	kind[appsv1.StatefulSet, appsv1.StatefulSetList](appsv1.SchemeGroupVersion, "statefulsets", "StatefulSet", true),
	kind[appsv1.DaemonSet, appsv1.DaemonSetList](appsv1.SchemeGroupVersion, "daemonsets", "DaemonSet", true),
	kind[appsv1.ControllerRevision, appsv1.ControllerRevisionList](appsv1.SchemeGroupVersion, "controllerrevisions", "ControllerRevision", true),
	kind[corev1.ReplicationController, corev1.ReplicationControllerList](corev1.SchemeGroupVersion, "replicationcontrollers", "ReplicationController", true),
	kind[corev1.PodTemplate, corev1.PodTemplateList](corev1.SchemeGroupVersion, "podtemplates", "PodTemplate", true),
	kind[corev1.ResourceQuota, corev1.ResourceQuotaList](corev1.SchemeGroupVersion, "resourcequotas", "ResourceQuota", true),
	kind[corev1.LimitRange, corev1.LimitRangeList](corev1.SchemeGroupVersion, "limitranges", "LimitRange", true),
	kind[batchv1.Job, batchv1.JobList](batchv1.SchemeGroupVersion, "jobs", "Job", true),
	kind[batchv1.CronJob, batchv1.CronJobList](batchv1.SchemeGroupVersion, "cronjobs", "CronJob", true),
	kind[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](policyv1.SchemeGroupVersion, "poddisruptionbudgets", "PodDisruptionBudget", true),
	kind[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](autoscalingv2.SchemeGroupVersion, "horizontalpodautoscalers", "HorizontalPodAutoscaler", true),
	kind[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](discoveryv1.SchemeGroupVersion, "endpointslices", "EndpointSlice", true),
	kind[networkingv1.IPAddress, networkingv1.IPAddressList](networkingv1.SchemeGroupVersion, "ipaddresses", "IPAddress", false),
	kind[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](networkingv1.SchemeGroupVersion, "servicecidrs", "ServiceCIDR", false),
	kind[networkingv1.Ingress, networkingv1.IngressList](networkingv1.SchemeGroupVersion, "ingresses", "Ingress", true),
	kind[networkingv1.IngressClass, networkingv1.IngressClassList](networkingv1.SchemeGroupVersion, "ingressclasses", "IngressClass", false),
	kind[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](networkingv1.SchemeGroupVersion, "networkpolicies", "NetworkPolicy", true),
	kind[nodev1.RuntimeClass, nodev1.RuntimeClassList](nodev1.SchemeGroupVersion, "runtimeclasses", "RuntimeClass", false),
	kind[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](schedulingv1.SchemeGroupVersion, "priorityclasses", "PriorityClass", false),
	kind[schedulingv1beta1.PodGroup, schedulingv1beta1.PodGroupList](schedulingv1beta1.SchemeGroupVersion, "podgroups", "PodGroup", true),
	kind[schedulingv1beta1.Workload, schedulingv1beta1.WorkloadList](schedulingv1beta1.SchemeGroupVersion, "workloads", "Workload", true),
	kind[corev1.PersistentVolume, corev1.PersistentVolumeList](corev1.SchemeGroupVersion, "persistentvolumes", "PersistentVolume", false),
	kind[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](corev1.SchemeGroupVersion, "persistentvolumeclaims", "PersistentVolumeClaim", true),
	kind[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](certificatesv1.SchemeGroupVersion, "certificatesigningrequests", "CertificateSigningRequest", false),
	kind[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](certificatesv1.SchemeGroupVersion, "clustertrustbundles", "ClusterTrustBundle", false),
	kind[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](certificatesv1.SchemeGroupVersion, "podcertificaterequests", "PodCertificateRequest", true),
	kind[metricsv1.NodeMetrics, metricsv1.NodeMetricsList](metricsv1.SchemeGroupVersion, "nodes", "NodeMetrics", false),
	kind[metricsv1.PodMetrics, metricsv1.PodMetricsList](metricsv1.SchemeGroupVersion, "pods", "PodMetrics", true),
	kind[resourcev1.DeviceClass, resourcev1.DeviceClassList](resourcev1.SchemeGroupVersion, "deviceclasses", "DeviceClass", false),
	kind[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](resourcev1.SchemeGroupVersion, "devicetaintrules", "DeviceTaintRule", false),
	kind[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](resourcev1.SchemeGroupVersion, "resourceclaims", "ResourceClaim", true),
	kind[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](resourcev1.SchemeGroupVersion, "resourceclaimtemplates", "ResourceClaimTemplate", true),
	kind[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](resourcev1.SchemeGroupVersion, "resourceslices", "ResourceSlice", false),
	kind[storagev1.CSIDriver, storagev1.CSIDriverList](storagev1.SchemeGroupVersion, "csidrivers", "CSIDriver", false),
	kind[storagev1.CSINode, storagev1.CSINodeList](storagev1.SchemeGroupVersion, "csinodes", "CSINode", false),
	kind[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](storagev1.SchemeGroupVersion, "csistoragecapacities", "CSIStorageCapacity", true),
	kind[storagev1.StorageClass, storagev1.StorageClassList](storagev1.SchemeGroupVersion, "storageclasses", "StorageClass", false),
	kind[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](storagev1.SchemeGroupVersion, "volumeattachments", "VolumeAttachment", false),
	kind[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](storagev1.SchemeGroupVersion, "volumeattributesclasses", "VolumeAttributesClass", false),
	kind[rbacv1.Role, rbacv1.RoleList](rbacv1.SchemeGroupVersion, "roles", "Role", true),
	kind[rbacv1.RoleBinding, rbacv1.RoleBindingList](rbacv1.SchemeGroupVersion, "rolebindings", "RoleBinding", true),
	kind[rbacv1.ClusterRole, rbacv1.ClusterRoleList](rbacv1.SchemeGroupVersion, "clusterroles", "ClusterRole", false),
	kind[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](rbacv1.SchemeGroupVersion, "clusterrolebindings", "ClusterRoleBinding", false),
	kind[authenticationv1.TokenReview, corev1.List](authenticationv1.SchemeGroupVersion, "tokenreviews", "TokenReview", false),
	kind[authorizationv1.SubjectAccessReview, corev1.List](authorizationv1.SchemeGroupVersion, "subjectaccessreviews", "SubjectAccessReview", false),
}

var byType, byGVR = index(Kinds)

func index(kinds []*Kind) (map[reflect.Type]*Kind, map[schema.GroupVersionResource]*Kind) {
	types := make(map[reflect.Type]*Kind, len(kinds))
	gvrs := make(map[schema.GroupVersionResource]*Kind, len(kinds))
	for _, k := range kinds {
		types[reflect.TypeOf(k.New())] = k
		gvrs[k.GVR] = k
	}
	return types, gvrs
}

// KindFor returns the kind of a resource, nil where it is not built in.
func KindFor(gvr schema.GroupVersionResource) *Kind { return byGVR[gvr] }
