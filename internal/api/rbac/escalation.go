package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/auth/rbac/validation"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// finish is the second half of a Begin that has nothing to undo.
type finish = func(context.Context, bool)

func beginRole(ctx context.Context, env resource.Env, r, old *rbacv1.Role) (finish, error) {
	if privileged(env.User) || resource.OnlyCollected(r, asObject(old)) {
		return nil, nil
	}
	if mayEscalate(ctx, env, "roles", r.Namespace, nameOf(old)) {
		return nil, nil
	}
	return nil, refusal("roles", r.Name, holdsAll(ctx, env, r.Namespace, r.Rules))
}

var everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

func beginClusterRole(ctx context.Context, env resource.Env, r, old *rbacv1.ClusterRole) (finish, error) {
	if privileged(env.User) || resource.OnlyCollected(r, asObject(old)) {
		return nil, nil
	}
	if mayEscalate(ctx, env, "clusterroles", "", nameOf(old)) {
		return nil, nil
	}
	if err := holdsAll(ctx, env, "", r.Rules); err != nil {
		return nil, refusal("clusterroles", r.Name, err)
	}
	// An aggregation rule can gather anything, and keep anything from being
	// taken back: that is for those who hold everything.
	if aggregates(r) || old != nil && aggregates(old) {
		if holdsAll(ctx, env, "", everything) != nil {
			return nil, refusal("clusterroles", r.Name, errors.New("must have cluster-admin privileges to use the aggregationRule"))
		}
	}
	return nil, nil
}

func aggregates(r *rbacv1.ClusterRole) bool {
	return r.AggregationRule != nil && len(r.AggregationRule.ClusterRoleSelectors) > 0
}

func beginRoleBinding(ctx context.Context, env resource.Env, b, old *rbacv1.RoleBinding) (finish, error) {
	if privileged(env.User) || resource.OnlyCollected(b, asObject(old)) {
		return nil, nil
	}
	return nil, mayGrant(ctx, env, "rolebindings", b, b.RoleRef)
}

func beginClusterRoleBinding(ctx context.Context, env resource.Env, b, old *rbacv1.ClusterRoleBinding) (finish, error) {
	if privileged(env.User) || resource.OnlyCollected(b, asObject(old)) {
		return nil, nil
	}
	return nil, mayGrant(ctx, env, "clusterrolebindings", b, b.RoleRef)
}

// mayGrant tells whether the user may bind to ref in b's namespace.
func mayGrant(ctx context.Context, env resource.Env, plural string, b resource.Object, ref rbacv1.RoleRef) error {
	ns := b.GetNamespace()
	a := resource.Attributes{User: env.User, Verb: "bind", Namespace: ns, Group: ref.APIGroup, Version: "*", Name: ref.Name, Resource: "clusterroles"}
	if ref.Kind == "Role" {
		a.Resource = "roles"
	}
	if d, err := env.Authorize(ctx, a); err == nil && d.Allowed {
		return nil
	}
	rules, err := rulesOf(ctx, env.Client, ref, ns)
	if apierrors.IsNotFound(err) {
		// Upstream names what is written, with the name of the role.
		return apierrors.NewNotFound(rbacv1.SchemeGroupVersion.WithResource(plural).GroupResource(), ref.Name)
	}
	if err != nil {
		return err
	}
	return refusal(plural, b.GetName(), holdsAll(ctx, env, ns, rules))
}

func rulesOf(ctx context.Context, c *client.Client, ref rbacv1.RoleRef, ns string) ([]rbacv1.PolicyRule, error) {
	if ref.Kind == "Role" {
		r, err := client.For[*rbacv1.Role](c).In(ns).Get(ctx, ref.Name)
		if err != nil {
			return nil, err
		}
		return r.Rules, nil
	}
	r, err := client.For[*rbacv1.ClusterRole](c).Get(ctx, ref.Name)
	if err != nil {
		return nil, err
	}
	return r.Rules, nil
}

// privileged: members of system:masters can do everything anyway.
func privileged(u resource.User) bool { return slices.Contains(u.Groups, "system:masters") }

func mayEscalate(ctx context.Context, env resource.Env, plural, ns, name string) bool {
	d, err := env.Authorize(ctx, resource.Attributes{
		User: env.User, Verb: "escalate", Namespace: ns, Group: rbacv1.GroupName, Version: "*", Resource: plural, Name: name,
	})
	return err == nil && d.Allowed
}

// asObject keeps a nil of a concrete type from becoming an interface that is not
// nil.
func asObject[T any, P interface {
	*T
	resource.Object
}](o P) resource.Object {
	if o == nil {
		return nil
	}
	return o
}

func nameOf[T any, P interface {
	*T
	resource.Object
}](o P) string {
	if o == nil {
		return ""
	}
	return o.GetName()
}

func refusal(plural, name string, err error) error {
	if err == nil {
		return nil
	}
	return apierrors.NewForbidden(rbacv1.SchemeGroupVersion.WithResource(plural).GroupResource(), name, err)
}

// holdsAll returns what of rules the user does not hold in a namespace.
func holdsAll(ctx context.Context, env resource.Env, ns string, rules []rbacv1.PolicyRule) error {
	held, err := env.Rules(ctx, env.User, ns)
	if err != nil {
		return err
	}
	var own []rbacv1.PolicyRule
	for _, r := range held.Resource {
		own = append(own, rbacv1.PolicyRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
	}
	for _, r := range held.NonResource {
		own = append(own, rbacv1.PolicyRule{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
	}
	covered, missing := validation.Covers(own, rules)
	if covered {
		return nil
	}
	var texts []string
	for _, r := range merged(missing) {
		texts = append(texts, shown(r))
	}
	slices.Sort(texts)
	msg := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		env.User.Name, env.User.Groups, strings.Join(slices.Compact(texts), "\n"))
	if held.Error != "" {
		msg += fmt.Sprintf("; resolution errors: [%s]", held.Error)
	}
	return errors.New(msg)
}

// merged joins rules that differ by their verb alone. Rules with more than one
// group, resource or name stay as they are.
func merged(rules []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	type key struct {
		group, resource, name string
		named                 bool
	}
	at := map[key]int{}
	var out []rbacv1.PolicyRule
	for _, r := range rules {
		if len(r.APIGroups) != 1 || len(r.Resources) != 1 || len(r.ResourceNames) > 1 || len(r.NonResourceURLs) > 0 {
			out = append(out, r)
			continue
		}
		k := key{group: r.APIGroups[0], resource: r.Resources[0], named: len(r.ResourceNames) == 1}
		if k.named {
			k.name = r.ResourceNames[0]
		}
		if i, ok := at[k]; ok {
			out[i].Verbs = append(slices.Clone(out[i].Verbs), r.Verbs...)
			continue
		}
		at[k] = len(out)
		out = append(out, r)
	}
	return out
}

func shown(r rbacv1.PolicyRule) string {
	var parts []string
	for _, p := range []struct {
		name string
		list []string
	}{
		{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs},
		{"ResourceNames", r.ResourceNames}, {"Verbs", r.Verbs},
	} {
		if len(p.list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.list))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
