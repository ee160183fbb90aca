// Package policy has the roles and bindings that every cluster has; policy.txt is
// the table.
package policy

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

//go:embed policy.txt
var table string

// Policy is a set of RBAC objects.
type Policy struct {
	ClusterRoles        []*rbacv1.ClusterRole
	ClusterRoleBindings []*rbacv1.ClusterRoleBinding
	Roles               []*rbacv1.Role
	RoleBindings        []*rbacv1.RoleBinding
}

// Default returns the policy of every cluster. Roles that gather others (admin,
// edit, view) have no rules yet: a controller writes them.
func Default() Policy {
	p, err := parse(table)
	if err != nil {
		// The table is part of the program.
		panic(err)
	}
	return p
}

// NodeRules are the rules of system:node, which the node authorizer narrows.
func NodeRules() []rbacv1.PolicyRule {
	for _, r := range Default().ClusterRoles {
		if r.Name == "system:node" {
			return r.Rules
		}
	}
	return nil
}

// AddController adds the role system:controller:<name> with rules, and its binding
// to the service account kube-system/<name>.
func (p *Policy) AddController(name string, rules []rbacv1.PolicyRule) {
	full := "system:controller:" + name
	p.ClusterRoles = append(p.ClusterRoles, &rbacv1.ClusterRole{ObjectMeta: meta("", full), Rules: rules})
	p.ClusterRoleBindings = append(p.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta("", full), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: full},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: name}},
	})
}

const partOf = "rbac.authorization.k8s.io/aggregate-to-"

func meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: ns, Name: name,
		Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
	}
}

func parse(text string) (Policy, error) {
	var p Policy
	var rules *[]rbacv1.PolicyRule
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		switch {
		case strings.HasPrefix(line, "  ") && rules != nil:
			r, ok := parseRule(words)
			if !ok {
				return p, fmt.Errorf("policy line %d: %q is no rule", n, line)
			}
			*rules = append(*rules, r)
		case words[0] == "role" && len(words) > 1:
			rules = p.role(words[1], words[2:])
		case words[0] == "bind" && slices.Contains(words, ":"):
			if err := p.bind(words[1:]); err != nil {
				return p, fmt.Errorf("policy line %d: %w", n, err)
			}
		default:
			return p, fmt.Errorf("policy line %d: %q is neither a role, nor a rule, nor a binding", n, line)
		}
	}
	return p, nil
}

func (p *Policy) role(name string, marks []string) *[]rbacv1.PolicyRule {
	if ns, name, ok := strings.Cut(name, "/"); ok {
		r := &rbacv1.Role{ObjectMeta: meta(ns, name)}
		p.Roles = append(p.Roles, r)
		return &r.Rules
	}
	r := &rbacv1.ClusterRole{ObjectMeta: meta("", name)}
	for _, m := range marks {
		switch m[0] {
		case '+':
			r.Labels[partOf+m[1:]] = "true"
		case '<':
			r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{
				MatchLabels: map[string]string{partOf + m[1:]: "true"},
			}}}
		}
	}
	p.ClusterRoles = append(p.ClusterRoles, r)
	return &r.Rules
}

var shortVerbs = map[string][]string{
	"R":  {"get", "list", "watch"},
	"W":  {"create", "delete", "deletecollection", "patch", "update"},
	"RW": {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
	"RU": {"get", "list", "patch", "update", "watch"},
}

func parseRule(words []string) (rbacv1.PolicyRule, bool) {
	var r rbacv1.PolicyRule
	if len(words) < 3 {
		return r, false
	}
	if r.Verbs = shortVerbs[words[0]]; r.Verbs == nil {
		r.Verbs = strings.Split(words[0], ",")
	}
	if words[1] == "@" {
		r.NonResourceURLs = words[2:]
		return r, true
	}
	r.APIGroups = strings.Split(words[1], ",")
	for i, g := range r.APIGroups {
		if g == "core" {
			r.APIGroups[i] = ""
		}
	}
	r.Resources = words[2:]
	if i := slices.Index(r.Resources, "="); i >= 0 {
		r.ResourceNames = r.Resources[i+1:]
		r.Resources = r.Resources[:i:i]
	}
	return r, len(r.Resources) > 0
}

func (p *Policy) bind(words []string) error {
	colon := slices.Index(words, ":")
	ns, name, inNS := strings.Cut(words[0], "/")
	if !inNS {
		ns, name = "", words[0]
	}
	ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
	if inNS {
		ref.Kind = "Role"
	}
	if colon == 2 {
		ref.Name = words[1]
	}
	var subjects []rbacv1.Subject
	for _, w := range words[colon+1:] {
		kind, who, ok := strings.Cut(w, ":")
		if !ok {
			return fmt.Errorf("%q is no subject", w)
		}
		switch kind {
		case "u":
			subjects = append(subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: who})
		case "g":
			subjects = append(subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: who})
		case "s":
			sns, sname, ok := strings.Cut(who, "/")
			if !ok {
				return fmt.Errorf("%q names no namespace", w)
			}
			subjects = append(subjects, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: sns, Name: sname})
		default:
			return fmt.Errorf("%q is no subject", w)
		}
	}
	if inNS {
		p.RoleBindings = append(p.RoleBindings, &rbacv1.RoleBinding{ObjectMeta: meta(ns, name), RoleRef: ref, Subjects: subjects})
		return nil
	}
	p.ClusterRoleBindings = append(p.ClusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", name), RoleRef: ref, Subjects: subjects})
	return nil
}
