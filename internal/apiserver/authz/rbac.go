package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// RBAC allows what roles bound to the user allow. It never denies.
//
// A decision sees every role and binding whose write was acknowledged before a
// request: before it refuses, it waits for what it may not have seen yet.
type RBAC struct {
	objects Objects

	mu    sync.RWMutex
	feeds []*feed
	// version counts the changes of the index.
	version int
	// roles are the rules by namespace ("" for cluster roles) and name.
	roles map[nsName][]rbacv1.PolicyRule
	// granted are the bindings by namespace ("" for cluster role bindings).
	granted map[string]*grants
	// bindings has what was entered for a binding, to take it out again.
	bindings map[nsName]*binding
}

type nsName struct{ ns, name string }

// grants are the bindings of one namespace, by subject. Service accounts stand
// among the users, under their user names.
type grants struct {
	users, groups map[string][]*grant
}

// grant is one subject of a binding.
type grant struct {
	b *binding
	// reason is the text of a permission that follows from it.
	reason string
}

type binding struct {
	nsName
	role     rbacv1.RoleRef
	subjects []rbacv1.Subject
}

// NewRBAC returns the decider over the roles and bindings of objects.
func NewRBAC(objects Objects) *RBAC {
	r := &RBAC{
		objects: objects, roles: map[nsName][]rbacv1.PolicyRule{}, granted: map[string]*grants{}, bindings: map[nsName]*binding{},
	}
	follow := func(plural string, set func(nsName, client.Object), reset func()) {
		r.feeds = append(r.feeds, &feed{
			gvr: rbacv1.SchemeGroupVersion.WithResource(plural), reset: reset,
			set: func(ns, name string, o client.Object) { set(nsName{ns, name}, o) },
		})
	}
	inNamespace := func(k nsName) bool { return k.ns != "" }
	inCluster := func(k nsName) bool { return k.ns == "" }
	follow("clusterroles", r.setRole, func() { dropIf(r.roles, inCluster) })
	follow("roles", r.setRole, func() { dropIf(r.roles, inNamespace) })
	follow("clusterrolebindings", r.setBinding, func() { r.dropBindings(inCluster) })
	follow("rolebindings", r.setBinding, func() { r.dropBindings(inNamespace) })
	return r
}

func dropIf[V any](m map[nsName]V, which func(nsName) bool) {
	for k := range m {
		if which(k) {
			delete(m, k)
		}
	}
}

func (r *RBAC) setRole(k nsName, o client.Object) {
	switch o := o.(type) {
	case *rbacv1.ClusterRole:
		r.roles[k] = o.Rules
	case *rbacv1.Role:
		r.roles[k] = o.Rules
	default:
		delete(r.roles, k)
	}
}

func (r *RBAC) setBinding(k nsName, o client.Object) {
	r.removeBinding(k)
	b := &binding{nsName: k}
	switch o := o.(type) {
	case *rbacv1.ClusterRoleBinding:
		b.role, b.subjects = o.RoleRef, o.Subjects
	case *rbacv1.RoleBinding:
		b.role, b.subjects = o.RoleRef, o.Subjects
	default:
		return
	}
	r.bindings[k] = b
	g := r.granted[k.ns]
	if g == nil {
		g = &grants{users: map[string][]*grant{}, groups: map[string][]*grant{}}
		r.granted[k.ns] = g
	}
	for i := range b.subjects {
		m, key := g.of(b, &b.subjects[i])
		// The first subject that applies names the reason.
		if m != nil && !slices.ContainsFunc(m[key], func(have *grant) bool { return have.b == b }) {
			m[key] = append(m[key], &grant{b: b, reason: b.reason(&b.subjects[i])})
		}
	}
}

// of returns where a subject is indexed.
func (g *grants) of(b *binding, s *rbacv1.Subject) (map[string][]*grant, string) {
	switch s.Kind {
	case rbacv1.UserKind:
		return g.users, s.Name
	case rbacv1.GroupKind:
		return g.groups, s.Name
	case rbacv1.ServiceAccountKind:
		ns := s.Namespace
		if ns == "" {
			ns = b.ns
		}
		if ns != "" {
			return g.users, "system:serviceaccount:" + ns + ":" + s.Name
		}
	}
	return nil, ""
}

func (b *binding) reason(s *rbacv1.Subject) string {
	who := s.Name
	if s.Kind == rbacv1.ServiceAccountKind {
		ns := s.Namespace
		if ns == "" {
			ns = b.ns
		}
		who += "/" + ns
	}
	kind, name := "ClusterRoleBinding", b.name
	if b.ns != "" {
		kind, name = "RoleBinding", b.name+"/"+b.ns
	}
	return fmt.Sprintf("RBAC: allowed by %s %q of %s %q to %s %q", kind, name, b.role.Kind, b.role.Name, s.Kind, who)
}

func (r *RBAC) removeBinding(k nsName) {
	b := r.bindings[k]
	if b == nil {
		return
	}
	delete(r.bindings, k)
	g := r.granted[k.ns]
	for i := range b.subjects {
		m, key := g.of(b, &b.subjects[i])
		if m == nil {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(m[key]), func(have *grant) bool { return have.b == b })
		if len(left) == 0 {
			delete(m, key)
		} else {
			m[key] = left
		}
	}
	if len(g.users) == 0 && len(g.groups) == 0 {
		delete(r.granted, k.ns)
	}
}

func (r *RBAC) dropBindings(which func(nsName) bool) {
	for k := range r.bindings {
		if which(k) {
			r.removeBinding(k)
		}
	}
}

// pull brings the index to what the server knows.
func (r *RBAC) pull(ctx context.Context) (version int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.feeds {
		changed, err := f.pull(ctx, r.objects)
		if err != nil {
			return 0, err
		}
		if changed {
			r.version++
		}
	}
	return r.version, nil
}

// Name implements Named.
func (*RBAC) Name() string { return "rbac" }

// Authorize implements Authorizer.
func (r *RBAC) Authorize(ctx context.Context, a resource.Attributes) (resource.Decision, error) {
	seen, err := r.pull(ctx)
	if err != nil {
		return resource.Decision{}, err
	}
	d := r.decide(&a)
	if d.Allowed {
		return d, nil
	}
	if err := r.objects.Fresh(ctx); err != nil {
		return resource.Decision{}, err
	}
	now, err := r.pull(ctx)
	if err != nil || now == seen {
		return d, err
	}
	return r.decide(&a), nil
}

func (r *RBAC) decide(a *resource.Attributes) resource.Decision {
	r.mu.RLock()
	defer r.mu.RUnlock()
	q := newQuestion(a)
	var out resource.Decision
	var missing []error
	r.visit(&a.User, a.Namespace, func(g *grant, rules []rbacv1.PolicyRule, err error) bool {
		if err != nil {
			missing = append(missing, err)
			return true
		}
		for i := range rules {
			if q.allowedBy(&rules[i]) {
				out = resource.Decision{Allowed: true, Reason: g.reason}
				return false
			}
		}
		return true
	})
	if !out.Allowed && len(missing) > 0 {
		out.Reason = fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(missing))
	}
	return out
}

// visit calls f with what is granted to a user, cluster-wide first, until f
// returns false.
func (r *RBAC) visit(u *resource.User, namespace string, f func(*grant, []rbacv1.PolicyRule, error) bool) {
	scopes := []string{""}
	if namespace != "" {
		scopes = append(scopes, namespace)
	}
	for _, ns := range scopes {
		g := r.granted[ns]
		if g == nil {
			continue
		}
		if !r.visitList(g.users[u.Name], f) {
			return
		}
		for _, group := range u.Groups {
			if !r.visitList(g.groups[group], f) {
				return
			}
		}
	}
}

func (r *RBAC) visitList(list []*grant, f func(*grant, []rbacv1.PolicyRule, error) bool) bool {
	for _, g := range list {
		rules, err := r.rules(g.b)
		if !f(g, rules, err) {
			return false
		}
	}
	return true
}

func (r *RBAC) rules(b *binding) ([]rbacv1.PolicyRule, error) {
	k, kind := nsName{"", b.role.Name}, "clusterrole"
	switch b.role.Kind {
	case "ClusterRole":
	case "Role":
		k.ns, kind = b.ns, "role"
	default:
		return nil, fmt.Errorf("unsupported role reference kind: %q", b.role.Kind)
	}
	rules, ok := r.roles[k]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: rbacv1.GroupName, Resource: kind}, b.role.Name)
	}
	return rules, nil
}

// Rules implements Authorizer.
func (r *RBAC) Rules(ctx context.Context, u resource.User, namespace string) (resource.RuleList, error) {
	if err := r.objects.Fresh(ctx); err != nil {
		return resource.RuleList{}, err
	}
	if _, err := r.pull(ctx); err != nil {
		return resource.RuleList{}, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out resource.RuleList
	var missing []error
	seen := map[*binding]bool{}
	r.visit(&u, namespace, func(g *grant, rules []rbacv1.PolicyRule, err error) bool {
		if seen[g.b] {
			return true
		}
		seen[g.b] = true
		if err != nil {
			missing = append(missing, err)
		}
		for _, rule := range rules {
			if len(rule.Resources) > 0 {
				out.Resource = append(out.Resource, resource.ResourceRule{
					Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
				})
			}
			if len(rule.NonResourceURLs) > 0 {
				out.NonResource = append(out.NonResource, resource.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
			}
		}
		return true
	})
	if len(missing) > 0 {
		out.Error = utilerrors.NewAggregate(missing).Error()
	}
	return out, nil
}

// question is a request as rules are asked about it.
type question struct {
	*resource.Attributes
	// combined is the resource with its subresource.
	combined string
}

func newQuestion(a *resource.Attributes) question {
	q := question{Attributes: a, combined: a.Resource}
	if a.Subresource != "" {
		q.combined += "/" + a.Subresource
	}
	return q
}

func (q *question) allowedBy(r *rbacv1.PolicyRule) bool {
	if !has(r.Verbs, q.Verb) {
		return false
	}
	if q.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, q.onPath)
	}
	return has(r.APIGroups, q.Group) && slices.ContainsFunc(r.Resources, q.onResource) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, q.Name))
}

func has(list []string, v string) bool {
	for _, s := range list {
		if s == v || s == "*" {
			return true
		}
	}
	return false
}

func (q *question) onPath(url string) bool {
	if url == "*" || url == q.Path {
		return true
	}
	prefix, ok := strings.CutSuffix(url, "*")
	return ok && strings.HasPrefix(q.Path, strings.TrimRight(prefix, "*"))
}

func (q *question) onResource(res string) bool {
	if res == "*" || res == q.combined {
		return true
	}
	sub, ok := strings.CutPrefix(res, "*/")
	return ok && q.Subresource != "" && sub == q.Subresource
}
