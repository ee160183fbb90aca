package app

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/admission"
	"skiff/internal/apiserver/alloc"
	"skiff/internal/apiserver/authz"
	"skiff/internal/apiserver/fields"
	"skiff/internal/apiserver/policy"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/pki"
	"skiff/internal/store/mem"
)

// nobody authenticates nobody: the tests come from inside.
type nobody struct{}

func (nobody) Authenticate(*http.Request) (*resource.User, error) { return nil, nil }

func (nobody) Token(context.Context, string, []string) (*resource.User, []string, error) {
	return nil, nil, nil
}

func bootServer(t *testing.T) *server {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	set := &Settings{
		APIServiceIP: netip.MustParseAddr("10.96.0.1"), DNSIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		ServiceRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, NodePortFirst: 30000, NodePortLast: 32767,
	}
	set.APIPort = 6443
	spec, err := pki.ServerSpec(pki.Server{NodeName: "n"})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.Ensure(t.Context(), t.TempDir(), spec, pki.Deps{Now: time.Now, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	st := mem.New(mem.Config{})
	o := &serverObjects{}
	s := &server{set: set, log: log, store: st, pki: certs}
	s.alloc, err = alloc.New(alloc.Deps{
		Client: func() *client.Client { return o.System() }, Store: st, ServiceCIDRs: set.ServiceRanges,
		FirstPort: 30000, LastPort: 32767, Now: time.Now, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.api, err = apiserver.New(apiserver.Deps{
		Store: st, Resources: api.All(), Log: log, Authenticator: nobody{}, VerifyCache: true, Admission: admission.Default(),
		Authorizer: authz.Union{authz.Masters{}, authz.NewNode(o, policy.NodeRules()), authz.NewRBAC(o)}, Services: s.alloc,
		FieldManagers: fields.New(api.All()),
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Server = s.api
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.api.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.api.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("server is not ready")
	}
	if err := s.alloc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBootstrap(t *testing.T) {
	s := bootServer(t)
	ctx := t.Context()
	c := s.api.System()
	watcher := &control.Controller{Name: "watcher-controller", Writes: []rbacv1.PolicyRule{control.Rule("", []string{"pods"}, "delete")}}
	boot := func() {
		t.Helper()
		if err := s.bootstrap(ctx, []*control.Controller{watcher}); err != nil {
			t.Fatal(err)
		}
	}
	revision := func() int64 {
		t.Helper()
		rev, err := s.store.Revision(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	boot()
	namespaces, err := existing[*corev1.Namespace](ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(namespaces)); !slices.Equal(got, []string{"/default", "/kube-node-lease", "/kube-public", "/kube-system"}) {
		t.Error(got)
	}
	classes, err := existing[*schedulingv1.PriorityClass](ctx, c)
	if err != nil || len(classes) != 2 {
		t.Error(classes, err)
	}
	svc, err := client.For[*corev1.Service](c).In("default").Get(ctx, "kubernetes")
	if err != nil || svc.Spec.ClusterIP != "10.96.0.1" || svc.Spec.Ports[0].TargetPort.IntVal != 6443 {
		t.Errorf("%+v %v", svc, err)
	}
	dns, err := client.For[*corev1.Service](c).In("kube-system").Get(ctx, "kube-dns")
	if err != nil || dns.Spec.ClusterIP != "10.96.0.10" || len(dns.Spec.Ports) != 2 {
		t.Errorf("%+v %v", dns, err)
	}
	cm, err := client.For[*corev1.ConfigMap](c).In("kube-system").Get(ctx, "extension-apiserver-authentication")
	if err != nil || len(cm.Data) != 7 || cm.Data["requestheader-allowed-names"] != `["front-proxy-client"]` {
		t.Errorf("%+v %v", cm, err)
	}
	// A second start writes nothing.
	before := revision()
	boot()
	if after := revision(); after != before {
		t.Errorf("the second start wrote %d times", after-before)
	}

	// What an administrator took from the policy comes back, what he added stays,
	// and what he marked is left alone.
	roles, bindings := client.For[*rbacv1.ClusterRole](c), client.For[*rbacv1.ClusterRoleBinding](c)
	change := func(name string, f func(*rbacv1.ClusterRole)) {
		t.Helper()
		r, err := roles.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		r = r.DeepCopy()
		f(r)
		if _, err := roles.Update(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	own := rbacv1.PolicyRule{Verbs: []string{"get"}, APIGroups: []string{"example.com"}, Resources: []string{"things"}}
	change("system:discovery", func(r *rbacv1.ClusterRole) { r.Rules = []rbacv1.PolicyRule{own}; r.Labels = nil })
	change("system:basic-user", func(r *rbacv1.ClusterRole) { r.Rules = nil; r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false" })
	change("system:controller:watcher-controller", func(r *rbacv1.ClusterRole) { r.Rules = nil })
	for _, name := range []string{"system:node-proxier", "system:monitoring"} {
		if err := bindings.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := bindings.Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "system:monitoring"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"},
	}); err != nil {
		t.Fatal(err)
	}
	endpoints := client.For[*discoveryv1.EndpointSlice](c).In("default")
	s.set.NodeAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	boot()
	if r, err := roles.Get(ctx, "system:discovery"); err != nil || len(r.Rules) < 2 || r.Rules[0].Resources[0] != "things" || r.Labels["kubernetes.io/bootstrapping"] == "" {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := roles.Get(ctx, "system:basic-user"); err != nil || len(r.Rules) != 0 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := roles.Get(ctx, "system:controller:watcher-controller"); err != nil || len(r.Rules) == 0 {
		t.Errorf("%+v %v", r, err)
	}
	if b, err := bindings.Get(ctx, "system:node-proxier"); err != nil || b.Subjects[0].Name != "system:kube-proxy" {
		t.Errorf("%+v %v", b, err)
	}
	if b, err := bindings.Get(ctx, "system:monitoring"); err != nil || b.RoleRef.Name != "system:monitoring" {
		t.Errorf("%+v %v", b, err)
	}
	if sl, err := endpoints.Get(ctx, "kubernetes"); err != nil || sl.Endpoints[0].Addresses[0] != "192.0.2.9" {
		t.Errorf("%+v %v", sl, err)
	}
	// The controller may do what it declares, and no more.
	as := s.local("system:serviceaccount:kube-system:watcher-controller", "watcher-controller", "system:serviceaccounts", "system:serviceaccounts:kube-system")
	if err := client.For[*corev1.Pod](as).In("default").Delete(ctx, "none", metav1.DeleteOptions{}); err == nil || err.Error() != `pods "none" not found` {
		t.Error(err)
	}
	if err := client.For[*corev1.Secret](as).In("default").Delete(ctx, "none", metav1.DeleteOptions{}); err == nil || err.Error() != `secrets "none" is forbidden: User "system:serviceaccount:kube-system:watcher-controller" cannot delete resource "secrets" in API group "" in the namespace "default"` {
		t.Error(err)
	}
}
