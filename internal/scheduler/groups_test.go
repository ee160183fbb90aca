package scheduler

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client/clienttest"
)

// Pods without constraints are spread among those of their service, and of the
// ReplicaSet that owns them, although another node has more to give.
func TestDefaultSpread(t *testing.T) {
	web := map[string]string{"app": "web"}
	yes := true
	owner := []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "rs", Controller: &yes}}
	for _, tt := range []struct {
		name   string
		object *corev1.Service
		set    *appsv1.ReplicaSet
		nodes  int
	}{
		{name: "alone", nodes: 1},
		{name: "service", nodes: 2, object: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "svc"}, Spec: corev1.ServiceSpec{Selector: web},
		}},
		{name: "other service", nodes: 1, object: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default", UID: "svc"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "db"}},
		}},
		{name: "owner", nodes: 2, set: &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "rs"},
			Spec:       appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: web}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := clienttest.New(node("a", "cpu", "64", "memory", "64Gi", "pods", "110"), node("b", "cpu", "2", "memory", "2Gi", "pods", "110"))
			if tt.object != nil {
				api.Put(tt.object)
			}
			if tt.set != nil {
				api.Put(tt.set)
			}
			r := run(t, api)
			used := map[string]bool{}
			for _, name := range []string{"p1", "p2", "p3"} {
				p := pod(name, "cpu", "100m", "memory", "100Mi")
				p.Labels = web
				p.OwnerReferences = owner
				api.Put(p)
				r.until(name+" bound", func() bool { return r.node(name) != "" })
				used[r.node(name)] = true
			}
			if len(used) != tt.nodes {
				t.Errorf("the pods are on %v, want %d nodes", used, tt.nodes)
			}
		})
	}
}

// A term selects namespaces by their labels, and a pod that waits for another
// runs as soon as that one does.
func TestNearInNamespace(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", UID: "ns", Labels: map[string]string{"team": "x"}}})
	r := run(t, api)
	p := pod("p")
	p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}},
	}}}}
	api.Put(p)
	r.until("a refusal", func() bool {
		return r.message("p") == "Unschedulable: 0/2 nodes are available: 2 node(s) didn't match pod affinity rules. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
	})
	db := on(pod("db"), "b")
	db.Namespace, db.Labels = "other", map[string]string{"app": "db"}
	api.Put(db)
	r.until("p bound", func() bool { return r.node("p") != "" })
	if got := r.node("p"); got != "b" {
		t.Errorf("the pod is on %s, want b", got)
	}
}
