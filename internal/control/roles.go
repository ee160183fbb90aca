package control

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Roles returns the cluster roles, and their bindings to the service accounts in
// kube-system, that controllers need: one of each per name, with the rules of all
// controllers of that name that want one, marked as upstream marks its bootstrap policy.
func Roles(cs []*Controller) ([]*rbacv1.ClusterRole, []*rbacv1.ClusterRoleBinding) {
	rules := map[string][]rbacv1.PolicyRule{}
	var names []string
	for _, c := range cs {
		if c.Roleless {
			continue
		}
		if _, ok := rules[c.Name]; !ok {
			names = append(names, c.Name)
		}
		for _, r := range c.Rules() {
			same := func(o rbacv1.PolicyRule) bool {
				return slices.Equal(o.APIGroups, r.APIGroups) && slices.Equal(o.Resources, r.Resources) && slices.Equal(o.Verbs, r.Verbs)
			}
			if !slices.ContainsFunc(rules[c.Name], same) {
				rules[c.Name] = append(rules[c.Name], r)
			}
		}
	}
	slices.Sort(names)
	var roles []*rbacv1.ClusterRole
	var bindings []*rbacv1.ClusterRoleBinding
	for _, name := range names {
		meta := func() metav1.ObjectMeta {
			return metav1.ObjectMeta{
				Name:        "system:controller:" + name,
				Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
				Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
			}
		}
		roles = append(roles, &rbacv1.ClusterRole{ObjectMeta: meta(), Rules: rules[name]})
		bindings = append(bindings, &rbacv1.ClusterRoleBinding{
			ObjectMeta: meta(),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:controller:" + name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: name}},
		})
	}
	return roles, bindings
}
