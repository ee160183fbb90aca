package authz

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/selection"

	"skiff/internal/api/resource"
)

// Node allows nodes (users system:node:NAME of the group system:nodes) what they
// need and no more: their own objects, the pods bound to them, and what those pods
// refer to. For everything else the rules given decide. It never denies.
type Node struct {
	rules []rbacv1.PolicyRule
	graph *graph
}

// NewNode returns the decider on nodes; rules are those of the role system:node.
func NewNode(objects Objects, rules []rbacv1.PolicyRule) *Node {
	return &Node{rules: rules, graph: newGraph(objects)}
}

// Name implements Named.
func (*Node) Name() string { return "node" }

// NodeName returns the node that a user is; isNode with an empty name is one that
// does not say which.
func NodeName(u *resource.User) (name string, isNode bool) {
	name, ok := strings.CutPrefix(u.Name, "system:node:")
	if !ok || !slices.Contains(u.Groups, "system:nodes") {
		return "", false
	}
	return name, true
}

// Rules implements Authorizer.
func (*Node) Rules(_ context.Context, u resource.User, _ string) (resource.RuleList, error) {
	if _, ok := NodeName(&u); ok {
		return resource.RuleList{Incomplete: true}, errors.New("node authorizer does not support user rule resolution")
	}
	return resource.RuleList{}, nil
}

// Authorize implements Authorizer.
func (n *Node) Authorize(ctx context.Context, a resource.Attributes) (resource.Decision, error) {
	node, ok := NodeName(&a.User)
	if !ok {
		return resource.Decision{}, nil
	}
	if node == "" {
		return no(fmt.Sprintf("unknown node for user %q", a.User.Name))
	}
	if a.Path == "" {
		if f := narrowed[a.Group+"/"+a.Resource]; f != nil {
			return f(n, ctx, node, &a)
		}
	}
	q := newQuestion(&a)
	for i := range n.rules {
		if q.allowedBy(&n.rules[i]) {
			return yes()
		}
	}
	return no("")
}

func yes() (resource.Decision, error) { return resource.Decision{Allowed: true}, nil }

func no(reason string) (resource.Decision, error) { return resource.Decision{Reason: reason}, nil }

// narrowed are the resources of which a node gets a part.
var narrowed = map[string]func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error){
	"/secrets": func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
		return n.read(ctx, node, secrets, a)
	},
	"/configmaps": func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
		return n.read(ctx, node, configMaps, a)
	},
	"/persistentvolumeclaims": (*Node).claim,
	"/persistentvolumes": func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
		return n.get(ctx, node, volumes, a)
	},
	"resource.k8s.io/resourceclaims": func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
		return n.get(ctx, node, resourceClaims, a)
	},
	"storage.k8s.io/volumeattachments": func(n *Node, ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
		return n.get(ctx, node, attachments, a)
	},
	"/serviceaccounts":               (*Node).account,
	"coordination.k8s.io/leases":     (*Node).lease,
	"storage.k8s.io/csinodes":        (*Node).csiNode,
	"resource.k8s.io/resourceslices": (*Node).slice,
	"/nodes":                         (*Node).node,
	"/pods":                          (*Node).pod,
	"certificates.k8s.io/podcertificaterequests": (*Node).certificate,
}

// related allows what the graph connects with the node.
func (n *Node) related(ctx context.Context, node string, k vertexKind, a *resource.Attributes) (resource.Decision, error) {
	if a.Name == "" {
		return no("No Object name found")
	}
	ok, err := n.graph.connects(ctx, node, k, a.Namespace, a.Name)
	if err != nil {
		return resource.Decision{}, err
	}
	if !ok {
		return no(fmt.Sprintf("no relationship found between node '%s' and this object", node))
	}
	return yes()
}

func (n *Node) get(ctx context.Context, node string, k vertexKind, a *resource.Attributes) (resource.Decision, error) {
	if a.Verb != "get" {
		return no("can only get individual resources of this type")
	}
	if a.Subresource != "" {
		return no("cannot get subresource")
	}
	return n.related(ctx, node, k, a)
}

func (n *Node) read(ctx context.Context, node string, k vertexKind, a *resource.Attributes) (resource.Decision, error) {
	switch {
	case a.Verb != "get" && a.Verb != "list" && a.Verb != "watch":
		return no("can only read resources of this type")
	case a.Subresource != "":
		return no("cannot read subresource")
	case a.Namespace == "":
		return no("can only read namespaced object of this type")
	}
	return n.related(ctx, node, k, a)
}

func (n *Node) claim(ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	if a.Subresource != "status" {
		return n.get(ctx, node, claims, a)
	}
	if a.Verb != "update" && a.Verb != "patch" {
		return no("can only get/update/patch this type")
	}
	return n.related(ctx, node, claims, a)
}

func (n *Node) account(ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	switch {
	case a.Verb == "get" && a.Subresource == "":
		return n.read(ctx, node, accounts, a)
	case a.Verb != "create" || a.Name == "":
		return no("can only create tokens for individual service accounts")
	case a.Subresource != "token":
		return no("can only create token subresource of serviceaccount")
	}
	return n.related(ctx, node, accounts, a)
}

const nodeLeases = "kube-node-lease"

func (n *Node) lease(_ context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	switch {
	case !ownVerb(a.Verb):
		return no("can only get, create, update, patch, or delete a node lease")
	case a.Namespace != nodeLeases:
		return no(fmt.Sprintf("can only access leases in the %q system namespace", nodeLeases))
	case a.Verb != "create" && a.Name != node: // the name of a new one is for admission to check
		return no("can only access node lease with the same name as the requesting node")
	}
	return yes()
}

func (n *Node) csiNode(_ context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	switch {
	case a.Subresource == "status":
		return no("CSINode status access requires CSIVolumeHealth feature")
	case a.Subresource != "":
		return no("cannot authorize CSINode subresources")
	case !ownVerb(a.Verb):
		return no("can only get, create, update, patch, or delete a CSINode")
	case a.Verb != "create" && a.Name != node:
		return no("can only access CSINode with the same name as the requesting node")
	}
	return yes()
}

func ownVerb(v string) bool {
	switch v {
	case "get", "create", "update", "patch", "delete":
		return true
	}
	return false
}

func (n *Node) slice(ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	if a.Subresource != "" {
		return no("cannot authorize ResourceSlice subresources")
	}
	switch a.Verb {
	case "create": // what it says is for admission to check
		return yes()
	case "get", "update", "patch", "delete":
		return n.related(ctx, node, slicesOfNode, a)
	case "watch", "list", "deletecollection":
		if selectsOnly(a.FieldSelector, "spec.nodeName", node) {
			return yes()
		}
		return no("can only list/watch/deletecollection resourceslices with nodeName field selector")
	}
	return no("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection")
}

func (n *Node) certificate(ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	if a.Subresource != "" {
		return no("nodes may not access the status subresource of PodCertificateRequests")
	}
	switch a.Verb {
	case "create":
		return yes()
	case "get":
		return n.related(ctx, node, certificateRequests, a)
	case "list", "watch":
		if selectsOnly(a.FieldSelector, "spec.nodeName", node) {
			return yes()
		}
		return no("can only list/watch podcertificaterequests with nodeName field selector")
	}
	return no(fmt.Sprintf("nodes may not %s podcertificaterequests", a.Verb))
}

func (n *Node) node(_ context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	switch {
	case a.Subresource == "" && slices.Contains([]string{"create", "update", "patch"}, a.Verb),
		a.Subresource == "status" && slices.Contains([]string{"update", "patch"}, a.Verb):
		// That it is its own is for admission to check.
		return yes()
	case a.Subresource == "" && slices.Contains([]string{"get", "list", "watch"}, a.Verb):
		switch a.Name {
		case node:
			return yes()
		case "":
			return no(fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", node))
		}
		return no(fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", node, a.Name))
	}
	return no("")
}

func (n *Node) pod(ctx context.Context, node string, a *resource.Attributes) (resource.Decision, error) {
	switch a.Subresource + ":" + a.Verb {
	case ":get":
		return n.get(ctx, node, pods, a)
	case ":list", ":watch":
		if selectsOnly(a.FieldSelector, "spec.nodeName", node) {
			return yes()
		}
		if a.Name != "" {
			return n.related(ctx, node, pods, a)
		}
		return no("can only list/watch pods with spec.nodeName field selector")
	case ":create", ":delete", "status:update", "status:patch", "eviction:create":
		// That the pod is bound to the node is for admission to check.
		return yes()
	}
	return no("")
}

// selectsOnly tells that a selector demands that a field has a value.
func selectsOnly(selector, key, value string) bool {
	if selector == "" {
		return false
	}
	s, err := fields.ParseSelector(selector)
	if err != nil {
		return false
	}
	for _, r := range s.Requirements() {
		if r.Field == key && r.Operator == selection.Equals && r.Value == value {
			return true
		}
	}
	return false
}
