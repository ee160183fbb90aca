package explain

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is a kind of objects that can be explained.
type Kind struct {
	GVR        schema.GroupVersionResource
	Kind       string
	Short      []string
	Namespaced bool
}

// Kinds are what can be explained.
func Kinds() []Kind {
	apps := appsv1.SchemeGroupVersion
	core := corev1.SchemeGroupVersion
	return []Kind{
		{core.WithResource("pods"), "Pod", []string{"po"}, true},
		{core.WithResource("persistentvolumeclaims"), "PersistentVolumeClaim", []string{"pvc"}, true},
		{core.WithResource("namespaces"), "Namespace", []string{"ns"}, false},
		{core.WithResource("services"), "Service", []string{"svc"}, true},
		{apps.WithResource("deployments"), "Deployment", []string{"deploy"}, true},
		{apps.WithResource("replicasets"), "ReplicaSet", []string{"rs"}, true},
		{apps.WithResource("statefulsets"), "StatefulSet", []string{"sts"}, true},
		{apps.WithResource("daemonsets"), "DaemonSet", []string{"ds"}, true},
		{batchv1.SchemeGroupVersion.WithResource("jobs"), "Job", nil, true},
		{autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers"), "HorizontalPodAutoscaler", []string{"hpa"}, true},
	}
}

// KindOf finds a kind by the name that a person types: singular, plural or short.
func KindOf(name string) (Kind, bool) {
	name = strings.ToLower(name)
	name, _, _ = strings.Cut(name, ".")
	for _, k := range Kinds() {
		if name == k.GVR.Resource || name == strings.ToLower(k.Kind) {
			return k, true
		}
		for _, s := range k.Short {
			if name == s {
				return k, true
			}
		}
	}
	return Kind{}, false
}

// Overview are the kinds that an overview looks at: what owns others first, so that
// what is blamed already is not told again.
func Overview() []Kind {
	var out []Kind
	for _, name := range []string{"namespace", "deployment", "statefulset", "daemonset", "job", "pod", "persistentvolumeclaim", "service", "horizontalpodautoscaler"} {
		k, _ := KindOf(name)
		out = append(out, k)
	}
	return out
}
