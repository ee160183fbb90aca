package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/admission"
	"skiff/internal/apiserver/authn"
	"skiff/internal/apiserver/authz"
	"skiff/internal/apiserver/policy"
	"skiff/internal/client"
	"skiff/internal/store/mem"
)

// who takes the user from headers, and otherwise asks for tokens: a front proxy
// without its certificates.
type who struct{ *authn.Authenticator }

func (w who) Authenticate(r *http.Request) (*resource.User, error) {
	if name := r.Header.Get("X-Test-User"); name != "" {
		u := &resource.User{Name: name, Groups: []string{"system:authenticated"}}
		if g := r.Header.Get("X-Test-Groups"); g != "" {
			u.Groups = append(strings.Split(g, ","), u.Groups...)
		}
		return u, nil
	}
	return w.Authenticator.Authenticate(r)
}

type objects struct{ *apiserver.Server }

// secured is a server as a cluster has it: RBAC with the default policy, the node
// authorizer, admission.
type secured struct {
	t      *testing.T
	srv    *apiserver.Server
	url    string
	client *client.Client
}

func secure(t *testing.T) *secured {
	t.Helper()
	st := mem.New(mem.Config{})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &objects{}
	tokens, err := authn.NewTokens(authn.TokensConfig{
		Issuer: "https://test", Audiences: []string{"https://test"}, Key: key, Verify: []crypto.PublicKey{key.Public()}, Now: time.Now,
		Lookup: func() *client.Client { return o.System() },
	})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := apiserver.New(apiserver.Deps{
		Store: st, Resources: api.All(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)), VerifyCache: true,
		AddToScheme:   []func(*runtime.Scheme) error{authenticationv1.AddToScheme, policyv1.AddToScheme},
		Authenticator: who{&authn.Authenticator{Tokens: tokens, Now: time.Now}},
		Authorizer:    authz.Union{authz.Masters{}, authz.NewNode(o, policy.NodeRules()), authz.NewRBAC(o)},
		Admission:     admission.Default(), Tokens: tokens,
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Server = srv
	s := &secured{t: t, srv: srv, url: serve(t, srv, st), client: srv.System()}
	for _, ns := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		s.namespace(ns)
	}
	p := policy.Default()
	aggregate(p.ClusterRoles)
	for _, r := range p.ClusterRoles {
		must(client.For[*rbacv1.ClusterRole](s.client).Create(t.Context(), r))(t)
	}
	for _, b := range p.ClusterRoleBindings {
		must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(t.Context(), b))(t)
	}
	for _, r := range p.Roles {
		must(client.For[*rbacv1.Role](s.client).Create(t.Context(), r))(t)
	}
	for _, b := range p.RoleBindings {
		must(client.For[*rbacv1.RoleBinding](s.client).Create(t.Context(), b))(t)
	}
	for _, c := range scheduling.SystemClasses() {
		must(client.For[*schedulingv1.PriorityClass](s.client).Create(t.Context(), c))(t)
	}
	return s
}

// aggregate writes the rules of roles that gather others, as their controller does.
func aggregate(roles []*rbacv1.ClusterRole) {
	// edit gathers view, and admin edit: three rounds reach everything.
	for range 3 {
		for _, r := range roles {
			if r.AggregationRule == nil {
				continue
			}
			r.Rules = nil
			for _, part := range roles {
				if part != r && part.Labels["rbac.authorization.k8s.io/aggregate-to-"+r.Name] == "true" {
					r.Rules = append(r.Rules, part.Rules...)
				}
			}
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// namespace makes a namespace with its default service account.
func (s *secured) namespace(name string) {
	s.t.Helper()
	must(client.For[*corev1.Namespace](s.client).Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))(s.t)
	must(client.For[*corev1.ServiceAccount](s.client).Create(s.t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}))(s.t)
}

func (s *secured) as(user string, groups ...string) *client.Client {
	return client.New(s.srv.Local(resource.User{Name: user, Groups: append(groups, "system:authenticated")}), "test")
}

func (s *secured) do(method, path, user, groups, token, body string) (int, map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if user != "" {
		req.Header.Set("X-Test-User", user)
		req.Header.Set("X-Test-Groups", groups)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	code, _, out := s.send(req)
	return code, out
}

// send sends a request whose answer is JSON.
func (s *secured) send(req *http.Request) (int, http.Header, map[string]any) {
	s.t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		s.t.Fatalf("%s %s: %d %s", req.Method, req.URL, resp.StatusCode, b)
	}
	return resp.StatusCode, resp.Header, out
}

func (s *secured) refused(code int, message, method, path, user, body string) {
	s.t.Helper()
	got, out := s.do(method, path, user, "", "", body)
	if got != code || out["message"] != message {
		s.t.Errorf("%s %s as %q: %d\n got %q\nwant %q", method, path, user, got, out["message"], message)
	}
}

func TestRBAC(t *testing.T) {
	s := secure(t)
	s.refused(403, `pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default"`, "GET", "/api/v1/namespaces/default/pods", "jane", "")
	s.refused(403, `nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope`, "GET", "/api/v1/nodes", "jane", "")
	s.refused(403, `deployments.apps "d" is forbidden: User "jane" cannot get resource "deployments/status" in API group "apps" in the namespace "default"`, "GET", "/apis/apps/v1/namespaces/default/deployments/d/status", "jane", "")
	s.refused(403, `forbidden: User "system:anonymous" cannot get path "/apis"`, "GET", "/apis", "", "")
	if code, _ := s.do("GET", "/version", "", "", "", ""); code != 200 {
		t.Errorf("anonymous /version: %d", code)
	}
	if code, _ := s.do("GET", "/apis", "jane", "", "", ""); code != 200 {
		t.Errorf("discovery of jane: %d", code)
	}
	ctx := t.Context()
	ask := func(c *client.Client, user string, groups []string, a *authorizationv1.ResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
		t.Helper()
		r := must(client.For[*authorizationv1.SubjectAccessReview](c).Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: groups, ResourceAttributes: a},
		}))(t)
		return r.Status
	}
	list := &authorizationv1.ResourceAttributes{Namespace: "default", Verb: "list", Resource: "pods"}
	if st := ask(s.client, "jane", nil, list); st.Allowed || st.Denied || st.Reason != "" {
		t.Errorf("%+v", st)
	}
	// What was bound counts at once.
	bindings := client.For[*rbacv1.RoleBinding](s.client).In("default")
	must(bindings.Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "readers"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}, {Kind: "Group", Name: "watchers"}, {Kind: "ServiceAccount", Name: "robot"}},
	}))(t)
	for _, c := range []struct {
		user   string
		groups []string
		reason string
	}{
		{"jane", nil, `RBAC: allowed by RoleBinding "readers/default" of ClusterRole "view" to User "jane"`},
		{"joe", []string{"watchers"}, `RBAC: allowed by RoleBinding "readers/default" of ClusterRole "view" to Group "watchers"`},
		{"system:serviceaccount:default:robot", nil, `RBAC: allowed by RoleBinding "readers/default" of ClusterRole "view" to ServiceAccount "robot/default"`},
	} {
		if st := ask(s.client, c.user, c.groups, list); !st.Allowed || st.Reason != c.reason {
			t.Errorf("%s: %+v", c.user, st)
		}
	}
	if code, _ := s.do("GET", "/api/v1/namespaces/default/pods", "jane", "", "", ""); code != 200 {
		t.Errorf("jane lists pods: %d", code)
	}
	s.refused(403, `secrets is forbidden: User "jane" cannot list resource "secrets" in API group "" in the namespace "default"`, "GET", "/api/v1/namespaces/default/secrets", "jane", "")
	// And what was taken away does not: a refusal waits for what it may miss, a
	// permission is as new as the cache.
	if err := bindings.Delete(ctx, "readers", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.srv.Fresh(ctx); err != nil {
		t.Fatal(err)
	}
	if st := ask(s.client, "jane", nil, list); st.Allowed {
		t.Errorf("after the binding is gone: %+v", st)
	}
	// A role that is not there.
	must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "lost"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "nowhere"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}},
	}))(t)
	s.refused(403, `pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default": rbac: RBAC: clusterrole.rbac.authorization.k8s.io "nowhere" not found`, "GET", "/api/v1/namespaces/default/pods", "jane", "")
}

// TestBindingsCountAtOnce: a request that follows the answer to a new binding sees
// it, however busy the server is.
func TestBindingsCountAtOnce(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				user := fmt.Sprintf("u%d-%d", w, i)
				mine := client.For[*corev1.ConfigMap](s.as(user)).In("default")
				if _, _, err := mine.List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
					t.Errorf("before: %v", err)
				}
				_, err := client.For[*rbacv1.RoleBinding](s.client).Create(ctx, &rbacv1.RoleBinding{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: user}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"},
					Subjects: []rbacv1.Subject{{Kind: "User", Name: user}},
				})
				if err != nil {
					t.Error(err)
				}
				if _, _, err := mine.List(ctx, metav1.ListOptions{}); err != nil {
					t.Errorf("after: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func TestServiceAccountToken(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	made := must(client.For[*corev1.ServiceAccount](s.client).In("default").CreateSub(ctx, "default", "token", &authenticationv1.TokenRequest{}))(t)
	token := made.(*authenticationv1.TokenRequest).Status.Token
	code, out := s.do("GET", "/api/v1/namespaces/default/configmaps", "", "", token, "")
	if want := `configmaps is forbidden: User "system:serviceaccount:default:default" cannot list resource "configmaps" in API group "" in the namespace "default"`; code != 403 || out["message"] != want {
		t.Errorf("%d %v", code, out["message"])
	}
	must(client.For[*rbacv1.RoleBinding](s.client).In("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "edit"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "default", Namespace: "default"}},
	}))(t)
	if code, out := s.do("POST", "/api/v1/namespaces/default/configmaps", "", "", token, `{"metadata":{"name":"a"}}`); code != 201 {
		t.Errorf("%d %v", code, out)
	}
	code, out = s.do("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "", "", token, `{}`)
	if name := at(out, "status", "userInfo", "username"); code != 201 || name != "system:serviceaccount:default:default" {
		t.Errorf("%d %v", code, out)
	}
	code, out = s.do("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "root", "system:masters", "", `{"spec":{"token":"`+token+`"}}`)
	if at(out, "status", "authenticated") != true || at(out, "status", "user", "username") != "system:serviceaccount:default:default" || code != 201 {
		t.Errorf("%d %v", code, out)
	}
	if _, out = s.do("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "root", "system:masters", "", `{"spec":{"token":"x"}}`); at(out, "status", "error") != "invalid bearer token" {
		t.Errorf("%v", out)
	}
	code, out = s.do("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "root", "system:masters", "", `{"spec":{}}`)
	if code != 400 || out["message"] != "token is required for TokenReview in authentication" {
		t.Errorf("%d %v", code, out)
	}
	if code, out := s.do("GET", "/apis", "", "", token+"x", ""); code != 401 {
		t.Errorf("%d %v", code, out)
	}
}

func TestReviews(t *testing.T) {
	s := secure(t)
	const base = "/apis/authorization.k8s.io/v1/"
	for _, c := range []struct{ path, body, want string }{
		{"selfsubjectaccessreviews", `{"spec":{}}`, `.authorization.k8s.io "" is invalid: spec: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified`},
		{"selfsubjectrulesreviews", `{"spec":{}}`, `no namespace on request`},
	} {
		if _, out := s.do("POST", base+c.path, "jane", "", "", c.body); out["message"] != c.want {
			t.Errorf("%s: %v", c.path, out["message"])
		}
	}
	_, out := s.do("POST", base+"selfsubjectrulesreviews", "jane", "", "", `{"spec":{"namespace":"default"}}`)
	if n := len(at(out, "status", "resourceRules").([]any)); n != 2 || at(out, "status", "incomplete") != false {
		t.Errorf("%v", out)
	}
	_, out = s.do("POST", base+"namespaces/default/localsubjectaccessreviews", "root", "system:masters", "", `{"spec":{"user":"jane","resourceAttributes":{"namespace":"other","verb":"get","resource":"pods"}}}`)
	if want := `.authorization.k8s.io "" is invalid: spec.resourceAttributes.namespace: Invalid value: "other": must match metadata.namespace`; out["message"] != want {
		t.Error(out["message"])
	}
	_, out = s.do("POST", base+"subjectaccessreviews", "root", "system:masters", "", `{"spec":{"user":"system:node:n1","groups":["system:nodes"],"resourceAttributes":{"verb":"list","resource":"pods","fieldSelector":{"requirements":[{"key":"spec.nodeName","operator":"In","values":["n1"]}]}}}}`)
	if at(out, "status", "allowed") != true {
		t.Error(out)
	}
}

func TestEscalation(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	must(client.For[*rbacv1.RoleBinding](s.client).In("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "admins"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "admin"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}},
	}))(t)
	const roles, bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings"
	if code, out := s.do("POST", roles, "ann", "", "", `{"metadata":{"name":"r"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}`); code != 201 {
		t.Errorf("%d %v", code, out)
	}
	s.refused(403, `roles.rbac.authorization.k8s.io "x" is forbidden: user "ann" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:[""], Resources:["nodes"], Verbs:["get" "list"]}`, "POST", roles, "ann", `{"metadata":{"name":"x"},"rules":[{"verbs":["get","list"],"apiGroups":[""],"resources":["nodes","pods"]}]}`)
	s.refused(403, `rolebindings.rbac.authorization.k8s.io "x" is forbidden: user "ann" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:
{APIGroups:["*"], Resources:["*"], Verbs:["*"]}
{NonResourceURLs:["*"], Verbs:["*"]}`, "POST", bindings, "ann", `{"metadata":{"name":"x"},"roleRef":{"kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"User","name":"ann"}]}`)
	s.refused(404, `rolebindings.rbac.authorization.k8s.io "none" not found`, "POST", bindings, "ann", `{"metadata":{"name":"x"},"roleRef":{"kind":"ClusterRole","name":"none"}}`)
	if code, out := s.do("POST", bindings, "ann", "", "", `{"metadata":{"name":"ok"},"roleRef":{"kind":"ClusterRole","name":"view"},"subjects":[{"kind":"User","name":"bob"}]}`); code != 201 {
		t.Errorf("%d %v", code, out)
	}
	// Explicit permission to bind one role, and to escalate.
	must(client.For[*rbacv1.Role](s.client).In("default").Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "granter"}, Rules: []rbacv1.PolicyRule{
			{Verbs: []string{"bind"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"clusterroles"}, ResourceNames: []string{"cluster-admin"}},
			{Verbs: []string{"escalate"}, APIGroups: []string{rbacv1.GroupName}, Resources: []string{"roles"}},
		},
	}))(t)
	must(client.For[*rbacv1.RoleBinding](s.client).In("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "granters"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "granter"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}},
	}))(t)
	if code, out := s.do("POST", bindings, "ann", "", "", `{"metadata":{"name":"x"},"roleRef":{"kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"User","name":"zoe"}]}`); code != 201 {
		t.Errorf("%d %v", code, out)
	}
	if code, out := s.do("POST", roles, "ann", "", "", `{"metadata":{"name":"y"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["nodes"]}]}`); code != 201 {
		t.Errorf("%d %v", code, out)
	}
	s.refused(422, `RoleBinding.rbac.authorization.k8s.io "ok" is invalid: roleRef: Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"ClusterRole","Name":"edit"}: field is immutable`,
		"PATCH", bindings+"/ok", "ann", `{"roleRef":{"name":"edit"}}`)
	s.refused(422, `Role.rbac.authorization.k8s.io "bad" is invalid: [rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs, rules[1].apiGroups: Required value: resource rules must supply at least one api group, rules[1].resources: Required value: resource rules must supply at least one resource, rules[0].verbs: Required value]`,
		"POST", roles, "ann", `{"metadata":{"name":"bad"},"rules":[{"nonResourceURLs":["/x"]},{"verbs":["get"]}]}`)
	s.refused(422, `RoleBinding.rbac.authorization.k8s.io "bad" is invalid: [roleRef.kind: Unsupported value: "X": supported values: "Role", "ClusterRole", subjects[0].kind: Unsupported value: "Y": supported values: "ServiceAccount", "User", "Group"]`,
		"POST", bindings, "ann", `{"metadata":{"name":"bad"},"roleRef":{"kind":"X","name":"y"},"subjects":[{"kind":"Y","name":"z"}]}`)
}

// TestUpdateThatCreates: some resources are created by an update. That takes the
// permission to create.
func TestUpdateThatCreates(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	rule := func(verbs ...string) {
		must(client.For[*rbacv1.ClusterRole](s.client).Update(ctx, &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: "leases"},
			Rules:      []rbacv1.PolicyRule{{Verbs: verbs, APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}}},
		}))(t)
	}
	must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "leases"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "leases"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}},
	}))(t)
	const path, body = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l", `{"metadata":{"name":"l"},"spec":{"holderIdentity":"x"}}`
	rule("update")
	s.refused(403, `leases.coordination.k8s.io "l" is forbidden: User "jane" cannot create resource "leases" in API group "coordination.k8s.io" in the namespace "default"`, "PUT", path, "jane", body)
	rule("update", "create")
	if code, out := s.do("PUT", path, "jane", "", "", body); code != 201 {
		t.Errorf("%d %v", code, out)
	}
}

func pod(ns, name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
}

func wantErr(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	maps := func(ns string) client.Resource[*corev1.ConfigMap] {
		return client.For[*corev1.ConfigMap](s.client).In(ns)
	}
	_, err := maps("nowhere").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	wantErr(t, err, `namespaces "nowhere" not found`)
	if !apierrors.IsNotFound(err) {
		t.Errorf("%T", err)
	}
	namespaces := client.For[*corev1.Namespace](s.client)
	// A namespace that was made just now takes objects, every time.
	for i := range 200 {
		name := "n" + strings.Repeat("x", i%40) + string(rune('a'+i%26)) + string(rune('a'+i/26))
		must(namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))(t)
		must(maps(name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}))(t)
		if err := namespaces.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		_, err := maps(name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
		wantErr(t, err, `configmaps "b" is forbidden: unable to create new content in namespace `+name+` because it is being terminated`)
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			t.Error("no cause NamespaceTerminating")
		}
	}
	for _, name := range []string{"default", "kube-system", "kube-public"} {
		wantErr(t, namespaces.Delete(ctx, name, metav1.DeleteOptions{}), `namespaces "`+name+`" is forbidden: this namespace may not be deleted`)
	}
}

func TestPodAdmission(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	pods := client.For[*corev1.Pod](s.client).In("default")
	accounts := client.For[*corev1.ServiceAccount](s.client).In("default")
	must(accounts.Create(ctx, &corev1.ServiceAccount{
		ObjectMeta:       metav1.ObjectMeta{Name: "strict", Annotations: map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"}},
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}, Secrets: []corev1.ObjectReference{{Name: "mine"}},
	}))(t)
	p := must(pods.Create(ctx, pod("default", "plain")))(t)
	if p.Spec.ServiceAccountName != "default" || *p.Spec.Priority != 0 || *p.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("%+v", p.Spec)
	}
	if len(p.Spec.Volumes) != 1 || !strings.HasPrefix(p.Spec.Volumes[0].Name, "kube-api-access-") || len(p.Spec.Volumes[0].Projected.Sources) != 3 ||
		*p.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken.ExpirationSeconds != 3607 {
		t.Errorf("volumes %+v", p.Spec.Volumes)
	}
	if m := p.Spec.Containers[0].VolumeMounts; len(m) != 1 || m[0].Name != p.Spec.Volumes[0].Name || !m[0].ReadOnly || m[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" {
		t.Errorf("mounts %+v", m)
	}
	tol := p.Spec.Tolerations
	if len(tol) != 2 || tol[0].Key != corev1.TaintNodeNotReady || *tol[0].TolerationSeconds != 300 || tol[1].Key != corev1.TaintNodeUnreachable {
		t.Errorf("tolerations %+v", tol)
	}
	no := false
	for _, c := range []struct {
		name string
		with func(p *corev1.Pod)
		want string
	}{
		{"account", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "none" }, `error looking up service account default/none: serviceaccount "none" not found`},
		{"class", func(p *corev1.Pod) { p.Spec.PriorityClassName = "none" }, `no PriorityClass with name none was found`},
		{"priority", func(p *corev1.Pod) { n := int32(7); p.Spec.Priority = &n }, `the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name`},
		{"secret", func(p *corev1.Pod) {
			p.Spec.ServiceAccountName = "strict"
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "other"}}}}
		}, `volume with secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		{"env", func(p *corev1.Pod) {
			p.Spec.ServiceAccountName = "strict"
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "other"}}}}
		}, `container c with envFrom referencing secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		{"mirror", func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			p.Spec.ServiceAccountName = "default"
		}, `a mirror pod may not reference service accounts`},
	} {
		p := pod("default", c.name)
		c.with(p)
		_, err := pods.Create(ctx, p)
		wantErr(t, err, `pods "`+c.name+`" is forbidden: `+c.want)
	}
	strict := pod("default", "strict")
	strict.Spec.ServiceAccountName, strict.Spec.AutomountServiceAccountToken, strict.Spec.PriorityClassName = "strict", &no, "system-node-critical"
	p = must(pods.Create(ctx, strict))(t)
	if len(p.Spec.Volumes) != 0 || len(p.Spec.ImagePullSecrets) != 1 || p.Spec.ImagePullSecrets[0].Name != "pull" || *p.Spec.Priority != 2000001000 {
		t.Errorf("%+v", p.Spec)
	}
	// Classes.
	classes := client.For[*schedulingv1.PriorityClass](s.client)
	for _, c := range []struct {
		class schedulingv1.PriorityClass
		want  string
	}{
		{schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "system-x"}}, `PriorityClass.scheduling.k8s.io "system-x" is invalid: metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class`},
		{schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "big"}, Value: 1000000001}, `PriorityClass.scheduling.k8s.io "big" is invalid: value: Forbidden: maximum allowed value of a user defined priority is 1000000000`},
	} {
		_, err := classes.Create(ctx, &c.class)
		wantErr(t, err, c.want)
	}
	must(classes.Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "usual"}, Value: 5, GlobalDefault: true}))(t)
	if p := must(pods.Create(ctx, pod("default", "usual")))(t); *p.Spec.Priority != 5 || p.Spec.PriorityClassName != "usual" {
		t.Errorf("%+v", p.Spec)
	}
	_, err := classes.Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "second"}, GlobalDefault: true})
	wantErr(t, err, `priorityclasses.scheduling.k8s.io "second" is forbidden: PriorityClass usual is already marked as default. Only one default can exist`)
	wantErr(t, classes.Delete(ctx, "system-node-critical", metav1.DeleteOptions{}), `priorityclasses.scheduling.k8s.io "system-node-critical" is forbidden: this is a system priority class and cannot be deleted`)
}

func TestDefaultAccountIsAwaited(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	must(client.For[*corev1.Namespace](s.client).Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}}))(t)
	made := make(chan error, 1)
	go func() {
		_, err := client.For[*corev1.Pod](s.client).Create(ctx, pod("new", "early"))
		made <- err
	}()
	select {
	case err := <-made:
		t.Fatalf("created without an account: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	must(client.For[*corev1.ServiceAccount](s.client).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "new", Name: "default"}}))(t)
	if err := <-made; err != nil {
		t.Fatal(err)
	}
}

func TestNodes(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	n1, n2 := s.as("system:node:n1", "system:nodes"), s.as("system:node:n2", "system:nodes")
	node := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	if made := must(client.For[*corev1.Node](n1).Create(ctx, node("n1")))(t); len(made.Spec.Taints) != 1 || made.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
		t.Errorf("taints %+v", made.Spec.Taints)
	}
	_, err := client.For[*corev1.Node](n1).Create(ctx, node("n2"))
	wantErr(t, err, `nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2"`)
	bad := node("n2")
	bad.Labels = map[string]string{"node-role.kubernetes.io/control-plane": "", "node-restriction.kubernetes.io/x": "", "kubernetes.io/os": "linux", "mine": ""}
	_, err = client.For[*corev1.Node](n2).Create(ctx, bad)
	wantErr(t, err, `nodes "n2" is forbidden: node "n2" is not allowed to set the following labels: node-restriction.kubernetes.io/x, node-role.kubernetes.io/control-plane`)
	me := must(client.For[*corev1.Node](n1).Get(ctx, "n1"))(t).DeepCopy()
	me.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	_, err = client.For[*corev1.Node](n1).Update(ctx, me)
	wantErr(t, err, `nodes "n1" is forbidden: node "n1" is not allowed to modify taints`)
	_, err = client.For[*corev1.Node](n2).Get(ctx, "n1")
	wantErr(t, err, `nodes "n1" is forbidden: User "system:node:n2" cannot get resource "nodes" in API group "" at the cluster scope: node: node 'n2' cannot read 'n1', only its own Node object`)
	_, _, err = client.For[*corev1.Node](n2).List(ctx, metav1.ListOptions{})
	wantErr(t, err, `nodes is forbidden: User "system:node:n2" cannot list resource "nodes" in API group "" at the cluster scope: node: node 'n2' cannot read all nodes, only its own Node object`)

	// A node gets what its pods need, once they are its own.
	for _, name := range []string{"used", "unused"} {
		must(client.For[*corev1.Secret](s.client).In("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}))(t)
	}
	get := func(c *client.Client, name string) error {
		_, err := client.For[*corev1.Secret](c).In("default").Get(ctx, name)
		return err
	}
	p := pod("default", "p")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "used"}}}}
	made := must(client.For[*corev1.Pod](s.client).Create(ctx, p))(t)
	no := func(node, verb, what, name string) string {
		return what + ` "` + name + `" is forbidden: User "system:node:` + node + `" cannot ` + verb + ` resource "` + what + `" in API group "" in the namespace "default": node: no relationship found between node '` + node + `' and this object`
	}
	wantErr(t, get(n1, "used"), no("n1", "get", "secrets", "used"))
	for _, err := range s.client.Bind(ctx, []*corev1.Binding{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := get(n1, "used"); err != nil {
		t.Error(err)
	}
	wantErr(t, get(n1, "unused"), no("n1", "get", "secrets", "unused"))
	wantErr(t, get(n2, "used"), no("n2", "get", "secrets", "used"))
	if _, _, err := client.For[*corev1.Pod](n1).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}); err != nil {
		t.Error(err)
	}
	_, _, err = client.For[*corev1.Pod](n2).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	wantErr(t, err, `pods is forbidden: User "system:node:n2" cannot list resource "pods" in API group "" at the cluster scope: node: can only list/watch pods with spec.nodeName field selector`)
	if _, err := client.For[*corev1.Secret](n1).In("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=used"}); err != nil {
		t.Error(err)
	}

	// Tokens, status, eviction, leases.
	token := func(c *client.Client, ref *authenticationv1.BoundObjectReference, audiences ...string) error {
		_, err := client.For[*corev1.ServiceAccount](c).In("default").CreateSub(ctx, "default", "token", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref, Audiences: audiences},
		})
		return err
	}
	bound := &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: made.UID}
	wantErr(t, token(n1, nil), `serviceaccounts "default" is forbidden: node requested token not bound to a pod`)
	if err := token(n1, bound); err != nil {
		t.Error(err)
	}
	wantErr(t, token(n1, bound, "vault"), `serviceaccounts "default" is forbidden: system:node:n1 is not authorized to request tokens for audience "vault"`)
	wantErr(t, token(n2, bound), `serviceaccounts "default" is forbidden: User "system:node:n2" cannot create resource "serviceaccounts/token" in API group "" in the namespace "default": node: no relationship found between node 'n2' and this object`)
	status := must(client.For[*corev1.Pod](s.client).In("default").Get(ctx, "p"))(t).DeepCopy()
	status.Status.Phase = corev1.PodRunning
	_, err = client.For[*corev1.Pod](n2).UpdateStatus(ctx, status)
	wantErr(t, err, `pods "p" is forbidden: node "n2" can only update pod status for pods with spec.nodeName set to itself`)
	must(client.For[*corev1.Pod](n1).UpdateStatus(ctx, status))(t)
	wantErr(t, client.For[*corev1.Pod](n2).In("default").Delete(ctx, "p", metav1.DeleteOptions{}), `pods "p" is forbidden: node "n2" can only delete pods with spec.nodeName set to itself`)
	_, err = client.For[*corev1.Pod](n1).Create(ctx, pod("default", "own"))
	wantErr(t, err, `pods "own" is forbidden: pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods`)
	if err := client.For[*corev1.Pod](n1).In("default").Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Error(err)
	}
	if err := s.srv.Fresh(ctx); err != nil {
		t.Fatal(err)
	}
	wantErr(t, get(n1, "used"), no("n1", "get", "secrets", "used"))
}
