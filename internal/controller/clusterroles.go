package controller

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

const clusterRoleAggregation = "clusterrole-aggregation-controller"

// newClusterRoleAggregation returns the controller that writes the rules of cluster
// roles with an aggregation rule (admin, edit, view): those of the roles that it
// selects. Keys are cluster roles.
func newClusterRoleAggregation(d Deps) *control.Controller {
	c := control.New(clusterRoleAggregation, d.Deps)
	var roles *client.Informer[*rbacv1.ClusterRole]
	roles = control.Watch(c, func(client.Change[*rbacv1.ClusterRole]) {
		// Whom a change concerns, its labels before and after say together; the few
		// roles that gather are all asked.
		for r := range roles.All() {
			if r.AggregationRule != nil {
				c.Queue.Add(control.Key{Name: r.Name})
			}
		}
	})
	c.Writes = append(c.Writes, control.Rule(rbacv1.GroupName, []string{"clusterroles"}, "escalate", "patch", "update"))
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		role, ok := roles.Get("", k.Name)
		if !ok || role.AggregationRule == nil {
			return control.Result{}, nil
		}
		want, err := gathered(role, roles.List("", nil))
		if err != nil || apiequality.Semantic.DeepEqual(want, role.Rules) {
			return control.Result{}, err
		}
		patch, err := json.Marshal(struct {
			Kind       string              `json:"kind"`
			APIVersion string              `json:"apiVersion"`
			Metadata   map[string]string   `json:"metadata"`
			Rules      []rbacv1.PolicyRule `json:"rules,omitempty"`
		}{"ClusterRole", rbacv1.SchemeGroupVersion.String(), map[string]string{"name": role.Name}, want})
		if err != nil {
			return control.Result{}, err
		}
		owner := client.New(c.Client.Transport(), clusterRoleAggregation)
		got, err := client.For[*rbacv1.ClusterRole](owner).Patch(ctx, role.Name, types.ApplyPatchType, patch, "")
		if err == nil {
			control.Wrote(c.Pending, k, roles, got)
		}
		return control.Result{}, err
	}
	return c
}

// gathered returns the rules of the roles that an aggregation rule selects, by the
// names of the roles, each rule once.
func gathered(role *rbacv1.ClusterRole, all []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	byName := slices.Clone(all)
	slices.SortFunc(byName, func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	var out []rbacv1.PolicyRule
	for i := range role.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, err
		}
		for _, part := range byName {
			if part.Name == role.Name || !sel.Matches(labels.Set(part.Labels)) {
				continue
			}
			for _, rule := range part.Rules {
				if !slices.ContainsFunc(out, func(have rbacv1.PolicyRule) bool { return apiequality.Semantic.DeepEqual(have, rule) }) {
					out = append(out, rule)
				}
			}
		}
	}
	return out, nil
}
