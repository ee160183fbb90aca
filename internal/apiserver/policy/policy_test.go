package policy

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
)

func TestDefault(t *testing.T) {
	p := Default()
	roles := map[string]*rbacv1.ClusterRole{}
	for _, r := range p.ClusterRoles {
		if roles[r.Name] != nil {
			t.Errorf("cluster role %q twice", r.Name)
		}
		roles[r.Name] = r
		if r.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" || r.Annotations[rbacv1.AutoUpdateAnnotationKey] != "true" {
			t.Errorf("cluster role %q: %v %v", r.Name, r.Labels, r.Annotations)
		}
		if (len(r.Rules) == 0) != (r.AggregationRule != nil) {
			t.Errorf("cluster role %q has %d rules, and gathers by %v", r.Name, len(r.Rules), r.AggregationRule)
		}
	}
	local := map[string]bool{}
	for _, r := range p.Roles {
		local[r.Namespace+"/"+r.Name] = true
	}
	for _, b := range p.ClusterRoleBindings {
		if roles[b.RoleRef.Name] == nil {
			t.Errorf("binding %q is to %q, which there is not", b.Name, b.RoleRef.Name)
		}
	}
	for _, b := range p.RoleBindings {
		if !local[b.Namespace+"/"+b.RoleRef.Name] {
			t.Errorf("binding %q is to %q, which there is not", b.Name, b.RoleRef.Name)
		}
	}
	// holds looks into what a role gathers, too.
	var holds func(role, verb, group, res string) bool
	holds = func(role, verb, group, res string) bool {
		r := roles[role]
		for name, part := range roles {
			if r.AggregationRule != nil && part.Labels["rbac.authorization.k8s.io/aggregate-to-"+role] == "true" && holds(name, verb, group, res) {
				return true
			}
		}
		return slices.ContainsFunc(r.Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.Verbs, verb) && slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, res)
		})
	}
	for _, c := range []struct {
		role, verb, group, res string
		want                   bool
	}{
		{"view", "list", "", "pods", true}, {"view", "get", "", "secrets", false}, {"view", "create", "", "pods", false},
		{"edit", "create", "", "pods", true}, {"edit", "get", "", "secrets", true}, {"edit", "list", "", "pods", true},
		{"edit", "create", "rbac.authorization.k8s.io", "roles", false}, {"admin", "create", "rbac.authorization.k8s.io", "roles", true},
		{"admin", "create", "", "pods", true}, {"admin", "get", "apps", "controllerrevisions", true}, {"admin", "delete", "", "nodes", false},
		{"system:node", "create", "", "serviceaccounts/token", true}, {"cluster-admin", "*", "*", "*", true},
	} {
		if got := holds(c.role, c.verb, c.group, c.res); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	p.AddController("x", []rbacv1.PolicyRule{{Verbs: []string{"get"}}})
	if r, b := p.ClusterRoles[len(p.ClusterRoles)-1], p.ClusterRoleBindings[len(p.ClusterRoleBindings)-1]; r.Name != "system:controller:x" ||
		b.RoleRef.Name != r.Name || b.Subjects[0] != (rbacv1.Subject{Kind: "ServiceAccount", Namespace: "kube-system", Name: "x"}) {
		t.Errorf("%+v %+v", r, b)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"role a\n  get core":     `policy line 2: "  get core" is no rule`,
		"role a\n  get core = x": `policy line 2: "  get core = x" is no rule`,
		"  get core pods":        `policy line 1: "  get core pods" is neither a role, nor a rule, nor a binding`,
		"bind a : x:y":           `policy line 1: "x:y" is no subject`,
		"bind a : y":             `policy line 1: "y" is no subject`,
		"bind a : s:y":           `policy line 1: "s:y" names no namespace`,
		"# a comment\n\nrole":    `policy line 3: "role" is neither a role, nor a rule, nor a binding`,
	} {
		if _, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", strings.ReplaceAll(text, "\n", "|"), err, want)
		}
	}
}
