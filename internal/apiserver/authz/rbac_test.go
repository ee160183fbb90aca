package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
	"skiff/internal/cache"
)

// still is a server whose objects do not change: tests enter them themselves.
type still struct{ fresh int }

func (*still) Follow(context.Context, schema.GroupVersionResource) (*cache.Snapshot, *cache.Watcher, error) {
	return nil, nil, nil
}

func (s *still) Fresh(context.Context) error { s.fresh++; return nil }

func rule(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), APIGroups: strings.Split(groups, " "), Resources: strings.Fields(resources), ResourceNames: names}
}

func TestRules(t *testing.T) {
	get := func(res, sub, name string) resource.Attributes {
		return resource.Attributes{Verb: "get", Resource: res, Subresource: sub, Name: name}
	}
	path := func(p string) resource.Attributes { return resource.Attributes{Verb: "get", Path: p} }
	urls := func(u ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: u}
	}
	for _, c := range []struct {
		name string
		rule rbacv1.PolicyRule
		a    resource.Attributes
		want bool
	}{
		{"exact", rule("get", "", "pods"), get("pods", "", ""), true},
		{"verb", rule("list", "", "pods"), get("pods", "", ""), false},
		{"all verbs", rule("*", "", "pods"), get("pods", "", ""), true},
		{"group", rule("get", "apps", "pods"), get("pods", "", ""), false},
		{"all groups", rule("get", "*", "pods"), get("pods", "", ""), true},
		{"resource does not give its subresource", rule("get", "", "pods"), get("pods", "log", ""), false},
		{"subresource", rule("get", "", "pods/log"), get("pods", "log", ""), true},
		{"subresource does not give its resource", rule("get", "", "pods/log"), get("pods", "", ""), false},
		{"any resource's", rule("get", "", "*/scale"), get("deployments", "scale", ""), true},
		{"another's", rule("get", "", "*/scale"), get("deployments", "status", ""), false},
		{"*/ needs a subresource", rule("get", "", "*/"), get("deployments", "", ""), false},
		{"pods/* is no pattern", rule("get", "", "pods/*"), get("pods", "log", ""), false},
		{"all", rule("get", "", "*"), get("pods", "log", ""), true},
		{"name", rule("get", "", "pods", "a", "b"), get("pods", "", "b"), true},
		{"another name", rule("get", "", "pods", "a"), get("pods", "", "b"), false},
		{"no name", rule("get", "", "pods", "a"), get("pods", "", ""), false},
		{"resources do not give paths", rule("*", "*", "*"), path("/metrics"), false},
		{"path", urls("/metrics"), path("/metrics"), true},
		{"below", urls("/metrics"), path("/metrics/x"), false},
		{"prefix", urls("/apis/*"), path("/apis/apps/v1"), true},
		{"prefix with a slash", urls("/apis/*"), path("/apis"), false},
		{"any path", urls("*"), path("/x"), true},
		{"paths do not give resources", urls("*"), get("pods", "", ""), false},
	} {
		q := newQuestion(&c.a)
		if got := q.allowedBy(&c.rule); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestIndex(t *testing.T) {
	s := &still{}
	r := NewRBAC(s)
	r.setRole(nsName{"", "reader"}, &rbacv1.ClusterRole{Rules: []rbacv1.PolicyRule{rule("get", "", "pods")}})
	r.setRole(nsName{"a", "reader"}, &rbacv1.Role{Rules: []rbacv1.PolicyRule{rule("get", "", "secrets")}})
	may := func(user, ns, res string, groups ...string) string {
		t.Helper()
		d, err := r.Authorize(t.Context(), resource.Attributes{User: resource.User{Name: user, Groups: groups}, Verb: "get", Namespace: ns, Resource: res})
		if err != nil {
			t.Fatal(err)
		}
		if d.Allowed != strings.Contains(d.Reason, "allowed by") {
			t.Errorf("%+v", d)
		}
		return d.Reason
	}
	bind := func(ns, name, kind, role string, subjects ...rbacv1.Subject) {
		ref := rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role}
		if ns == "" {
			r.setBinding(nsName{ns, name}, &rbacv1.ClusterRoleBinding{RoleRef: ref, Subjects: subjects})
		} else {
			r.setBinding(nsName{ns, name}, &rbacv1.RoleBinding{RoleRef: ref, Subjects: subjects})
		}
	}
	user := func(n string) rbacv1.Subject { return rbacv1.Subject{Kind: "User", Name: n} }
	bind("", "all", "ClusterRole", "reader", user("u"), rbacv1.Subject{Kind: "Group", Name: "g"}, rbacv1.Subject{Kind: "ServiceAccount", Namespace: "a", Name: "s"})
	bind("a", "own", "Role", "reader", user("u"), rbacv1.Subject{Kind: "ServiceAccount", Name: "s"})
	for _, c := range []struct{ got, want string }{
		{may("u", "a", "pods"), `RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to User "u"`},
		{may("x", "a", "pods", "g"), `RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to Group "g"`},
		{may("system:serviceaccount:a:s", "b", "pods"), `RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to ServiceAccount "s/a"`},
		{may("system:serviceaccount:b:s", "b", "pods"), ""},
		{may("u", "a", "secrets"), `RBAC: allowed by RoleBinding "own/a" of Role "reader" to User "u"`},
		{may("system:serviceaccount:a:s", "a", "secrets"), `RBAC: allowed by RoleBinding "own/a" of Role "reader" to ServiceAccount "s/a"`},
		{may("u", "b", "secrets"), ""},
		{may("u", "", "secrets"), ""},
	} {
		if c.got != c.want {
			t.Errorf("\n got %q\nwant %q", c.got, c.want)
		}
	}
	if s.fresh != 3 {
		t.Errorf("waited %d times, want once per refusal", s.fresh)
	}
	// A binding that changes, and one that goes.
	bind("a", "own", "Role", "reader", user("v"))
	r.setBinding(nsName{"", "all"}, nil)
	if may("u", "a", "secrets") != "" || may("u", "a", "pods") != "" || may("v", "a", "secrets") == "" {
		t.Error("an old binding counts, or a new one does not")
	}
	bind("a", "lost", "Role", "none", user("u"))
	bind("", "lost", "ClusterRole", "none", user("u"))
	if got, want := may("u", "a", "pods"), `RBAC: [clusterrole.rbac.authorization.k8s.io "none" not found, role.rbac.authorization.k8s.io "none" not found]`; got != want {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	for k := range r.bindings {
		r.setBinding(k, nil)
	}
	if len(r.granted) != 0 {
		t.Errorf("left behind: %v", r.granted)
	}
}

func TestRuleList(t *testing.T) {
	r := NewRBAC(&still{})
	r.setRole(nsName{"", "r"}, &rbacv1.ClusterRole{Rules: []rbacv1.PolicyRule{rule("get", "", "pods"), {Verbs: []string{"get"}, NonResourceURLs: []string{"/x"}}}})
	// One binding that fits twice counts once.
	r.setBinding(nsName{"", "b"}, &rbacv1.ClusterRoleBinding{
		RoleRef:  rbacv1.RoleRef{Kind: "ClusterRole", Name: "r"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "u"}, {Kind: "Group", Name: "g"}, {Kind: "Group", Name: "h"}},
	})
	l, err := Union{Masters{}, NewNode(&still{}, nil), r}.Rules(t.Context(), resource.User{Name: "u", Groups: []string{"g", "h"}}, "a")
	if err != nil || len(l.Resource) != 1 || len(l.NonResource) != 1 || l.Incomplete || l.Error != "" {
		t.Errorf("%+v %v", l, err)
	}
	l, err = Union{Masters{}, NewNode(&still{}, nil), r}.Rules(t.Context(), resource.User{Name: "system:node:n", Groups: []string{"system:nodes"}}, "a")
	if err != nil || !l.Incomplete || l.Error != "node authorizer does not support user rule resolution" {
		t.Errorf("%+v %v", l, err)
	}
}

func TestNodeRules(t *testing.T) {
	n := NewNode(&still{}, []rbacv1.PolicyRule{rule("get", "", "services")})
	who := func(name string) resource.User { return resource.User{Name: name, Groups: []string{"system:nodes"}} }
	for _, c := range []struct {
		user                            resource.User
		verb, group, res, sub, ns, name string
		fieldSelector, reason           string
		allowed                         bool
	}{
		{user: resource.User{Name: "system:node:n"}, verb: "get", res: "services"},
		{user: who("system:node:"), verb: "get", res: "services", reason: `unknown node for user "system:node:"`},
		{user: who("system:node:n"), verb: "get", res: "services", allowed: true},
		{user: who("system:node:n"), verb: "list", res: "services"},
		{user: who("system:node:n"), verb: "update", res: "nodes", name: "other", allowed: true},
		{user: who("system:node:n"), verb: "delete", res: "nodes", name: "n"},
		{user: who("system:node:n"), verb: "patch", res: "nodes", sub: "status", allowed: true},
		{user: who("system:node:n"), verb: "get", res: "nodes", name: "n", allowed: true},
		{user: who("system:node:n"), verb: "get", res: "nodes", name: "m", reason: "node 'n' cannot read 'm', only its own Node object"},
		{user: who("system:node:n"), verb: "watch", res: "pods", fieldSelector: "spec.nodeName=n,status.phase!=x", allowed: true},
		{user: who("system:node:n"), verb: "watch", res: "pods", fieldSelector: "spec.nodeName!=n", reason: "can only list/watch pods with spec.nodeName field selector"},
		{user: who("system:node:n"), verb: "get", res: "secrets", ns: "a", reason: "No Object name found"},
		{user: who("system:node:n"), verb: "get", res: "secrets", name: "s", reason: "can only read namespaced object of this type"},
		{user: who("system:node:n"), verb: "delete", res: "secrets", ns: "a", name: "s", reason: "can only read resources of this type"},
		{user: who("system:node:n"), verb: "list", res: "persistentvolumes", reason: "can only get individual resources of this type"},
		{user: who("system:node:n"), verb: "list", group: "storage.k8s.io", res: "volumeattachments", reason: "can only get individual resources of this type"},
		{user: who("system:node:n"), verb: "get", group: "storage.k8s.io", res: "volumeattachments", sub: "status", name: "va", reason: "cannot get subresource"},
		{user: who("system:node:n"), verb: "create", res: "serviceaccounts", ns: "a", name: "s", reason: "can only create token subresource of serviceaccount"},
		{user: who("system:node:n"), verb: "update", group: "coordination.k8s.io", res: "leases", ns: "a", name: "n", reason: `can only access leases in the "kube-node-lease" system namespace`},
		{user: who("system:node:n"), verb: "update", group: "coordination.k8s.io", res: "leases", ns: "kube-node-lease", name: "m", reason: "can only access node lease with the same name as the requesting node"},
		{user: who("system:node:n"), verb: "list", group: "coordination.k8s.io", res: "leases", ns: "kube-node-lease", reason: "can only get, create, update, patch, or delete a node lease"},
		{user: who("system:node:n"), verb: "update", group: "coordination.k8s.io", res: "leases", ns: "kube-node-lease", name: "n", allowed: true},
		{user: who("system:node:n"), verb: "get", group: "storage.k8s.io", res: "csinodes", name: "m", reason: "can only access CSINode with the same name as the requesting node"},
		{user: who("system:node:n"), verb: "list", group: "resource.k8s.io", res: "resourceslices", fieldSelector: "spec.nodeName=n", allowed: true},
		{user: who("system:node:n"), verb: "create", group: "certificates.k8s.io", res: "podcertificaterequests", ns: "a", allowed: true},
		{user: who("system:node:n"), verb: "watch", group: "certificates.k8s.io", res: "podcertificaterequests", fieldSelector: "spec.nodeName=n,metadata.name=x", allowed: true},
		{user: who("system:node:n"), verb: "watch", group: "certificates.k8s.io", res: "podcertificaterequests", fieldSelector: "spec.nodeName=m", reason: "can only list/watch podcertificaterequests with nodeName field selector"},
		{user: who("system:node:n"), verb: "update", group: "certificates.k8s.io", res: "podcertificaterequests", ns: "a", name: "r", reason: "nodes may not update podcertificaterequests"},
		{user: who("system:node:n"), verb: "patch", group: "certificates.k8s.io", res: "podcertificaterequests", sub: "status", ns: "a", name: "r", reason: "nodes may not access the status subresource of PodCertificateRequests"},
		{user: who("system:node:n"), verb: "create", res: "pods", sub: "eviction", ns: "a", name: "p", allowed: true},
		{user: who("system:node:n"), verb: "create", res: "pods", sub: "exec", ns: "a", name: "p"},
	} {
		d, err := n.Authorize(t.Context(), resource.Attributes{
			User: c.user, Verb: c.verb, Group: c.group, Resource: c.res, Subresource: c.sub, Namespace: c.ns, Name: c.name, FieldSelector: c.fieldSelector,
		})
		if err != nil || d.Allowed != c.allowed || d.Reason != c.reason {
			t.Errorf("%+v: %+v %v", c, d, err)
		}
	}
}

func TestGraph(t *testing.T) {
	g := newGraph(&still{})
	set := func(p *corev1.Pod) { g.connect(vertex{pods, p.Namespace, p.Name}, p.Spec.NodeName, verticesOf(p)) }
	pod := func(name, node string, with func(*corev1.PodSpec)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}, Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "sa"}}
		if with != nil {
			with(&p.Spec)
		}
		return p
	}
	claim := func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}
	}
	set(pod("one", "n", claim))
	set(pod("two", "n", nil))
	set(pod("three", "m", nil))
	pv := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{Namespace: "a", Name: "c"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			NodeStageSecretRef: &corev1.SecretReference{Namespace: "b", Name: "stage"}, ControllerPublishSecretRef: &corev1.SecretReference{Namespace: "b", Name: "control"},
		}},
	}}
	g.volume("pv", pv)
	want := func(node string, v vertex, want bool) {
		t.Helper()
		if got := g.has(node, v); got != want {
			t.Errorf("%s %v: %v", node, v, got)
		}
	}
	want("n", vertex{pods, "a", "one"}, true)
	want("m", vertex{pods, "a", "one"}, false)
	want("n", vertex{accounts, "a", "sa"}, true)
	want("m", vertex{accounts, "a", "sa"}, true)
	want("n", vertex{claims, "a", "c"}, true)
	want("n", vertex{volumes, "", "pv"}, true)
	want("m", vertex{volumes, "", "pv"}, false)
	want("n", vertex{secrets, "b", "stage"}, true)
	want("m", vertex{secrets, "b", "stage"}, false)
	want("n", vertex{secrets, "b", "control"}, false)
	want("n", vertex{volumes, "", "unknown"}, false)
	i := slices.IndexFunc(g.feeds, func(f *feed) bool { return f.gvr.Resource == "volumeattachments" })
	g.feeds[i].set("", "va", &storagev1.VolumeAttachment{Spec: storagev1.VolumeAttachmentSpec{NodeName: "n"}})
	want("n", vertex{attachments, "", "va"}, true)
	want("m", vertex{attachments, "", "va"}, false)
	g.feeds[i].set("", "va", nil)
	want("n", vertex{attachments, "", "va"}, false)
	// One of two pods goes: the other still needs the account.
	g.connect(vertex{pods, "a", "one"}, "", nil)
	want("n", vertex{accounts, "a", "sa"}, true)
	want("n", vertex{claims, "a", "c"}, false)
	want("n", vertex{secrets, "b", "stage"}, false)
	g.volume("pv", nil)
	// A mirror pod gives nothing but itself.
	mirror := pod("mirror", "n", claim)
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	set(mirror)
	want("n", vertex{pods, "a", "mirror"}, true)
	want("n", vertex{claims, "a", "c"}, false)
	for k := range g.edges {
		g.connect(k, "", nil)
	}
	if len(g.nodes)+len(g.edges)+len(g.claimOf)+len(g.secretsOf)+len(g.volumesOf) != 0 {
		t.Errorf("left behind: %v %v", g.nodes, g.edges)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	r := NewRBAC(&still{})
	for i := range 10000 {
		name := fmt.Sprintf("r%d", i)
		r.setRole(nsName{"", name}, &rbacv1.ClusterRole{Rules: []rbacv1.PolicyRule{rule("get list watch", "", "pods"), rule("get", "apps", "deployments")}})
		r.setBinding(nsName{"", name}, &rbacv1.ClusterRoleBinding{RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: name}, Subjects: []rbacv1.Subject{{Kind: "User", Name: fmt.Sprintf("u%d", i)}}})
	}
	a := resource.Attributes{User: resource.User{Name: "u77", Groups: []string{"g", "system:authenticated"}}, Verb: "get", Group: "apps", Resource: "deployments", Namespace: "a"}
	b.ReportAllocs()
	for b.Loop() {
		if d, err := r.Authorize(b.Context(), a); err != nil || !d.Allowed {
			b.Fatal(d, err)
		}
	}
}
