package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/lru"

	"skiff/internal/api/resource"
)

// impersonation decides whether a request may act as another user: by one of the
// constrained modes (KEP-5284: a verb of its own per mode, and one for what is
// done in that role), or by the verb "impersonate" alone.
type impersonation struct {
	authorizer Authorizer
	// last remembers by which mode each user acted last: it is tried first, and
	// its refusal is the one that is told.
	last *lru.Cache
}

// rememberedModes bounds impersonation.last.
const rememberedModes = 10_000

func newImpersonation(a Authorizer) *impersonation {
	return &impersonation{authorizer: a, last: lru.New(rememberedModes)}
}

const (
	headerUser  = "Impersonate-User"
	headerUID   = "Impersonate-Uid"
	headerGroup = "Impersonate-Group"
	headerExtra = "Impersonate-Extra-"

	nodeUser           = "system:node:"
	serviceAccountUser = "system:serviceaccount:"

	groupAuthenticated   = "system:authenticated"
	groupUnauthenticated = "system:unauthenticated"
)

// wanted reads from the headers whom the request wants to be, nil where that is
// the asker, and takes them away: what impersonation used must not reach a
// proxied server.
func wantedUser(h http.Header) (*resource.User, error) {
	u := &resource.User{Name: h.Get(headerUser), UID: h.Get(headerUID), Groups: h[headerGroup]}
	extra := false
	for name, values := range h {
		rest, ok := strings.CutPrefix(name, headerExtra)
		if !ok {
			continue
		}
		extra = true
		if len(values) == 0 {
			continue
		}
		key := strings.ToLower(rest)
		if plain, err := url.PathUnescape(key); err == nil {
			key = plain
		}
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[key] = append(u.Extra[key], values...)
	}
	if u.Name == "" {
		if u.UID != "" || len(u.Groups) > 0 || extra {
			return nil, apierrors.NewBadRequest(fmt.Sprintf(
				"requested &user.DefaultInfo{Name:%q, UID:%q, Groups:%#v, Extra:%#v} without impersonating a user name", u.Name, u.UID, u.Groups, u.Extra))
		}
		return nil, nil
	}
	for name := range h {
		if strings.HasPrefix(name, "Impersonate-") {
			delete(h, name)
		}
	}
	return u, nil
}

// as returns whom the request acts as: attr.User where it does not ask for
// another. attr is what the request does.
func (im *impersonation) as(ctx context.Context, h http.Header, attr resource.Attributes) (resource.User, error) {
	want, err := wantedUser(h)
	if err != nil || want == nil {
		return attr.User, err
	}
	first, known := -1, false
	if v, ok := im.last.Get(attr.User.Name); ok {
		first, known = v.(int), true
	}
	order := make([]int, 0, len(modes))
	if known {
		order = append(order, first)
	}
	for i := range modes {
		if i != first {
			order = append(order, i)
		}
	}
	var refusal error
	for _, i := range order {
		m := &modes[i]
		if !m.fits(want, &attr.User) {
			continue
		}
		u, err := im.try(ctx, m, want, attr)
		if err == nil {
			im.last.Add(attr.User.Name, i)
			return *u, nil
		}
		if refusal == nil {
			refusal = err
		}
	}
	return resource.User{}, refusal
}

// mode is a way to act as another.
type mode struct {
	// name is part of the verbs; empty for the old way, which needs one verb only.
	name string
	fits func(want, asker *resource.User) bool
	// narrow changes what is asked of the authorizer, where set.
	narrow func(*resource.Attributes)
}

var modes = [...]mode{
	{name: "associated-node", fits: ownNode, narrow: anyNode},
	{name: "arbitrary-node", fits: func(want, _ *resource.User) bool { _, ok := nodeName(want.Name); return ok && nameOnly(want) }},
	{name: "serviceaccount", fits: func(want, _ *resource.User) bool {
		_, _, ok := serviceAccountName(want.Name)
		return ok && nameOnly(want)
	}},
	{name: "user-info", fits: func(want, _ *resource.User) bool {
		_, node := nodeName(want.Name)
		_, _, account := serviceAccountName(want.Name)
		return !node && !account
	}},
	{fits: func(_, _ *resource.User) bool { return true }},
}

// ownNode: a service account asks to be the node that its token is bound to.
func ownNode(want, asker *resource.User) bool {
	node, ok := nodeName(want.Name)
	if !ok || !nameOnly(want) {
		return false
	}
	if _, _, ok := serviceAccountName(asker.Name); !ok {
		return false
	}
	bound := asker.Extra["authentication.kubernetes.io/node-name"]
	return len(bound) == 1 && bound[0] == node
}

// anyNode makes the question the same for every node: whose node it is was
// checked already.
func anyNode(a *resource.Attributes) {
	keys := make([]string, 0, len(a.User.Extra))
	for k := range a.User.Extra {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	a.User.Extra = map[string][]string{"authentication.kubernetes.io/associated-node-keys": keys}
	if a.Verb == "impersonate:associated-node" {
		a.Name = "*"
	}
}

// manyChecks is from how many groups or extra values on one question about all of
// them comes first.
const manyChecks = 4

// try asks all that the mode demands, and returns the user as the server sees it.
func (im *impersonation) try(ctx context.Context, m *mode, want *resource.User, attr resource.Attributes) (*resource.User, error) {
	ask := func(a resource.Attributes) error {
		if m.narrow != nil {
			m.narrow(&a)
		}
		d, err := im.authorizer.Authorize(ctx, a)
		if d.Allowed {
			return nil
		}
		switch {
		case apierrors.IsForbidden(err):
			return err
		case err != nil && d.Reason != "":
			return forbidden(a, fmt.Sprintf("%v: %s", err, d.Reason))
		case err != nil:
			return forbidden(a, err.Error())
		}
		return forbidden(a, d.Reason)
	}
	constrained, verb, names := m.name != "", "impersonate", ""
	if constrained {
		on := attr
		on.Verb = "impersonate-on:" + m.name + ":" + attr.Verb
		if err := ask(on); err != nil {
			return nil, err
		}
		verb += ":" + m.name
		names = "authentication.k8s.io"
	}
	of := func(group, plural, name string) resource.Attributes {
		return resource.Attributes{User: attr.User, Verb: verb, Group: group, Version: "v1", Resource: plural, Name: name}
	}
	u := *want
	a := of(names, "users", want.Name)
	if node, ok := nodeName(want.Name); ok && constrained {
		a.Resource, a.Name = "nodes", node
		u.Groups = []string{"system:nodes"}
	}
	if ns, name, ok := serviceAccountName(want.Name); ok {
		a.Resource, a.Namespace, a.Name = "serviceaccounts", ns, name
		if len(want.Groups) == 0 {
			u.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + ns}
		}
	}
	if err := ask(a); err != nil {
		return nil, err
	}
	if want.UID != "" {
		if err := ask(of("authentication.k8s.io", "uids", want.UID)); err != nil {
			return nil, err
		}
	}
	if err := askGroups(ask, of(names, "groups", ""), want.Groups, constrained); err != nil {
		return nil, err
	}
	if err := askExtra(ask, of("authentication.k8s.io", "userextras", ""), want.Extra, constrained); err != nil {
		return nil, err
	}
	switch {
	case u.Name == "system:anonymous":
		u.Groups = withGroup(u.Groups, groupUnauthenticated)
	case !slices.Contains(u.Groups, groupUnauthenticated):
		u.Groups = withGroup(u.Groups, groupAuthenticated)
	}
	return &u, nil
}

func askGroups(ask func(resource.Attributes) error, a resource.Attributes, groups []string, constrained bool) error {
	if constrained {
		if slices.Contains(groups, "") {
			return forbidden(a, "impersonating the empty string group is not allowed")
		}
		if slices.Contains(groups, "system:masters") {
			a.Name = "system:masters"
			return forbidden(a, "impersonating the system:masters group is not allowed")
		}
		if len(groups) >= manyChecks {
			a.Name = "*"
			if ask(a) == nil {
				return nil
			}
		}
	}
	for _, g := range groups {
		a.Name = g
		if err := ask(a); err != nil {
			return err
		}
	}
	return nil
}

func askExtra(ask func(resource.Attributes) error, a resource.Attributes, extra map[string][]string, constrained bool) error {
	if constrained {
		if err := validExtra(extra); err != nil {
			return forbidden(a, err.Error())
		}
		n := 0
		for _, values := range extra {
			n += len(values)
		}
		if max(n, len(extra)) >= manyChecks {
			all := a
			all.Subresource, all.Name = "*", "*"
			if ask(all) == nil {
				return nil
			}
		}
	}
	for k, values := range extra {
		for _, v := range values {
			a.Subresource, a.Name = k, v
			if err := ask(a); err != nil {
				return err
			}
		}
	}
	return nil
}

func validExtra(extra map[string][]string) error {
	for k, values := range extra {
		if k == "" {
			return errors.New("impersonating the empty string key in extra is not allowed")
		}
		if err := validation.IsDomainPrefixedPath(field.NewPath("extra", "key"), k).ToAggregate(); err != nil {
			return fmt.Errorf("impersonating an invalid key in extra is not allowed: %w", err)
		}
		switch {
		case k != strings.ToLower(k):
			return fmt.Errorf("impersonating a non-lowercase key in extra is not allowed: %q", k)
		case len(values) == 0:
			return errors.New("impersonating empty values in extra is not allowed")
		case slices.Contains(values, ""):
			return errors.New("impersonating the empty string value in extra is not allowed")
		}
	}
	return nil
}

func nameOnly(u *resource.User) bool { return u.UID == "" && len(u.Groups) == 0 && len(u.Extra) == 0 }

// withGroup returns groups and g, without changing the slice given.
func withGroup(groups []string, g string) []string {
	if slices.Contains(groups, g) {
		return groups
	}
	return append(slices.Clip(groups), g)
}

func nodeName(user string) (string, bool) {
	name, ok := strings.CutPrefix(user, nodeUser)
	return name, ok && len(apivalidation.NameIsDNSSubdomain(name, false)) == 0
}

func serviceAccountName(user string) (ns, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, serviceAccountUser)
	if !ok || strings.Count(rest, ":") != 1 {
		return "", "", false
	}
	ns, name, _ = strings.Cut(rest, ":")
	return ns, name, len(apivalidation.ValidateNamespaceName(ns, false)) == 0 && len(apivalidation.ValidateServiceAccountName(name, false)) == 0
}
