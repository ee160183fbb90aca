package controller

import (
	"slices"
	"testing"
	"testing/synctest"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

func clusterRole(name, part string, verbs ...string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if part != "" {
		r.Labels = map[string]string{"into": part}
	}
	for _, v := range verbs {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Verbs: []string{v}, APIGroups: []string{""}, Resources: []string{"pods"}})
	}
	return r
}

func gathers(r *rbacv1.ClusterRole, part string) *rbacv1.ClusterRole {
	r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"into": part}}}}
	return r
}

// verbsOf are the verbs of a role's rules, in their order.
func verbsOf(w *world, name string) []string {
	w.t.Helper()
	r, err := client.For[*rbacv1.ClusterRole](w.c).Get(w.ctx, name)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, rule := range r.Rules {
		out = append(out, rule.Verbs...)
	}
	return out
}

func TestAggregatedClusterRoles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newClusterRoleAggregation(d)} },
			clusterRole("b", "view", "list", "get"), clusterRole("a", "view", "watch", "get"), clusterRole("other", "", "delete"),
			// One that gathers may be part of another.
			gathers(clusterRole("view", "edit"), "view"), gathers(clusterRole("edit", ""), "edit"), clusterRole("c", "edit", "create"))
		defer w.stop()
		synctest.Wait()
		check := func(name string, want ...string) {
			t.Helper()
			if got := verbsOf(w, name); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		check("view", "watch", "get", "list")
		check("edit", "create", "watch", "get", "list")
		check("other", "delete")

		// What is taken away goes from all that gathered it.
		a, err := client.For[*rbacv1.ClusterRole](w.c).Get(w.ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		a = a.DeepCopy()
		a.Labels = nil
		if _, err := client.For[*rbacv1.ClusterRole](w.c).Update(w.ctx, a); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		check("view", "list", "get")
		check("edit", "create", "list", "get")
	})
}
