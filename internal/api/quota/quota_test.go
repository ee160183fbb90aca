package quota

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = apiresource.MustParse(pairs[i+1])
	}
	return out
}

func equal(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for n, q := range a {
		if o, ok := b[n]; !ok || q.Cmp(o) != 0 {
			return false
		}
	}
	return true
}

func TestUsage(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	container := func(requests, limits corev1.ResourceList) corev1.Container {
		return corev1.Container{Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
	}
	spec := corev1.PodSpec{
		Containers:     []corev1.Container{container(list("cpu", "100m", "example.com/gpu", "2"), list("memory", "1Gi")), container(list("cpu", "200m"), nil)},
		InitContainers: []corev1.Container{container(list("cpu", "1", "hugepages-2Mi", "4Mi"), nil)},
		Overhead:       list("cpu", "10m"),
	}
	expired := metav1.NewTime(now.Add(-time.Minute))
	for _, c := range []struct {
		name string
		gr   schema.GroupResource
		obj  resource.Object
		want corev1.ResourceList
	}{
		{"pod", schema.GroupResource{Resource: "pods"}, &corev1.Pod{Spec: spec}, list("count/pods", "1", "pods", "1", "cpu", "1010m", "requests.cpu", "1010m",
			"limits.memory", "1Gi", "requests.example.com/gpu", "2", "hugepages-2Mi", "4Mi", "requests.hugepages-2Mi", "4Mi")},
		{"ended", schema.GroupResource{Resource: "pods"}, &corev1.Pod{Spec: spec, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}, list("count/pods", "1")},
		{"stuck", schema.GroupResource{Resource: "pods"}, &corev1.Pod{Spec: spec,
			ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &expired, DeletionGracePeriodSeconds: new(int64(30))}}, list("count/pods", "1")},
		{"service", schema.GroupResource{Resource: "services"}, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: make([]corev1.ServicePort, 2)}},
			list("count/services", "1", "services", "1", "services.nodeports", "2", "services.loadbalancers", "0")},
		{"balancer", schema.GroupResource{Resource: "services"}, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer,
			AllocateLoadBalancerNodePorts: new(false), Ports: []corev1.ServicePort{{}, {NodePort: 30000}}}},
			list("count/services", "1", "services", "1", "services.nodeports", "1", "services.loadbalancers", "1")},
		{"claim", schema.GroupResource{Resource: "persistentvolumeclaims"}, &corev1.PersistentVolumeClaim{
			Spec:   corev1.PersistentVolumeClaimSpec{StorageClassName: new("gold"), Resources: corev1.VolumeResourceRequirements{Requests: list("storage", "1500m")}},
			Status: corev1.PersistentVolumeClaimStatus{AllocatedResources: list("storage", "3")}},
			list("count/persistentvolumeclaims", "1", "persistentvolumeclaims", "1", "requests.storage", "3",
				"gold.storageclass.storage.k8s.io/persistentvolumeclaims", "1", "gold.storageclass.storage.k8s.io/requests.storage", "3")},
		{"secret", schema.GroupResource{Resource: "secrets"}, &corev1.Secret{}, list("count/secrets", "1", "secrets", "1")},
		{"other", schema.GroupResource{Group: "apps", Resource: "deployments"}, &corev1.Secret{}, list("count/deployments.apps", "1")},
	} {
		if got := For(resource.DefaultFeatures(), c.gr).Usage(c.obj, now); !equal(got, c.want) {
			t.Errorf("%s uses %v, want %v", c.name, got, c.want)
		}
	}
	if For(resource.DefaultFeatures(), schema.GroupResource{Resource: "events"}) != nil {
		t.Error("events are counted")
	}
}

func TestScopes(t *testing.T) {
	best := &corev1.Pod{}
	busy := &corev1.Pod{Spec: corev1.PodSpec{ActiveDeadlineSeconds: new(int64(1)), PriorityClassName: "high",
		Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("cpu", "1")}}},
		Affinity: &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
			{PodAffinityTerm: corev1.PodAffinityTerm{Namespaces: []string{"x"}}}}}}}}
	c := For(resource.DefaultFeatures(), schema.GroupResource{Resource: "pods"})
	for _, s := range []struct {
		spec       corev1.ResourceQuotaSpec
		best, busy bool
	}{
		{corev1.ResourceQuotaSpec{}, true, true},
		{corev1.ResourceQuotaSpec{Scopes: []corev1.ResourceQuotaScope{"Terminating"}}, false, true},
		{corev1.ResourceQuotaSpec{Scopes: []corev1.ResourceQuotaScope{"BestEffort", "NotTerminating"}}, true, false},
		{corev1.ResourceQuotaSpec{Scopes: []corev1.ResourceQuotaScope{"NotBestEffort", "CrossNamespacePodAffinity", "PriorityClass"}}, false, true},
		{corev1.ResourceQuotaSpec{Scopes: []corev1.ResourceQuotaScope{"VolumeAttributesClass"}}, false, false},
		{selector("PriorityClass", "In", "high"), false, true},
		{selector("PriorityClass", "NotIn", "high"), true, false},
		{selector("PriorityClass", "DoesNotExist"), true, false},
	} {
		q := &corev1.ResourceQuota{Spec: s.spec, Status: corev1.ResourceQuotaStatus{Hard: list("pods", "1")}}
		for pod, want := range map[*corev1.Pod]bool{best: s.best, busy: s.busy} {
			if got, err := c.Matches(q, pod); err != nil || got != want {
				t.Errorf("%v of %q: %v, %v, want %v", s.spec, pod.Spec.PriorityClassName, got, err, want)
			}
		}
	}
	if _, err := c.Matches(&corev1.ResourceQuota{Spec: selector("PriorityClass", "Near", "x")}, best); err == nil {
		t.Error("an operator that there is not was accepted")
	}
	claims := For(resource.DefaultFeatures(), schema.GroupResource{Resource: "persistentvolumeclaims"})
	q := &corev1.ResourceQuota{Spec: selector("VolumeAttributesClass", "In", "fast"), Status: corev1.ResourceQuotaStatus{Hard: list("requests.storage", "1")}}
	for class, want := range map[string]bool{"fast": true, "slow": false} {
		claim := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{CurrentVolumeAttributesClassName: &class}}
		if got, err := claims.Matches(q, claim); err != nil || got != want {
			t.Errorf("%s: %v, %v", class, got, err)
		}
	}
}

func selector(scope, op string, values ...string) corev1.ResourceQuotaSpec {
	return corev1.ResourceQuotaSpec{ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
		{ScopeName: corev1.ResourceQuotaScope(scope), Operator: corev1.ScopeSelectorOperator(op), Values: values}}}}
}

func TestLists(t *testing.T) {
	a, b := list("x", "1", "y", "2"), list("y", "3", "z", "0")
	for what, c := range map[string]struct{ got, want corev1.ResourceList }{
		"sum":      {Add(a, b), list("x", "1", "y", "5", "z", "0")},
		"increase": {Increase(b, a), list("y", "1")},
		"nonzero":  {Nonzero(b), list("y", "3")},
		"only":     {Only(a, []corev1.ResourceName{"y", "q"}), list("y", "2")},
	} {
		if !equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	if !equal(a, list("x", "1", "y", "2")) {
		t.Errorf("a list changed: %v", a)
	}
	if over := Exceeding(b, a); len(over) != 1 || over[0] != "y" {
		t.Errorf("exceeding: %v", over)
	}
}
