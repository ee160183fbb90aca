package apiserver_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// asking is a request of user with more headers: pairs of name and value.
func (s *secured) asking(method, path, user, body string, headers ...string) (int, http.Header, map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Test-User", user)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return s.send(req)
}

func (s *secured) mayInCluster(user string, rules ...rbacv1.PolicyRule) {
	s.t.Helper()
	must(client.For[*rbacv1.ClusterRole](s.client).Create(s.t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: rules}))(s.t)
	must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(s.t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: user},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: user}},
	}))(s.t)
}

func TestImpersonation(t *testing.T) {
	s := secure(t)
	s.mayInCluster("old", rbacv1.PolicyRule{Verbs: []string{"impersonate"}, APIGroups: []string{""}, Resources: []string{"users", "groups", "serviceaccounts"}})
	s.mayInCluster("new",
		rbacv1.PolicyRule{Verbs: []string{"impersonate:user-info"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"users"}, ResourceNames: []string{"jane"}},
		rbacv1.PolicyRule{Verbs: []string{"impersonate-on:user-info:create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}})
	const self = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
	for _, c := range []struct {
		user    string
		headers []string
		code    int
		// want is the user that the server sees, or the message.
		want   string
		groups []string
	}{
		{"old", []string{"Impersonate-User", "jane"}, 201, "jane", []string{"system:authenticated"}},
		{"old", []string{"Impersonate-User", "jane", "Impersonate-Group", "dev"}, 201, "jane", []string{"dev", "system:authenticated"}},
		// Who is not authenticated may not even ask.
		{"old", []string{"Impersonate-User", "jane", "Impersonate-Group", "system:unauthenticated"}, 403,
			`selfsubjectreviews.authentication.k8s.io is forbidden: User "jane" cannot create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the cluster scope`, nil},
		{"old", []string{"Impersonate-User", "system:anonymous"}, 403,
			`selfsubjectreviews.authentication.k8s.io is forbidden: User "system:anonymous" cannot create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the cluster scope`, nil},
		{"old", []string{"Impersonate-User", "system:serviceaccount:default:robot"}, 201, "system:serviceaccount:default:robot",
			[]string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}},
		// A mode of its own per verb: what is not allowed by any is told by the first.
		{"new", []string{"Impersonate-User", "jane"}, 201, "jane", []string{"system:authenticated"}},
		{"new", []string{"Impersonate-User", "joe"}, 403,
			`users.authentication.k8s.io "joe" is forbidden: User "new" cannot impersonate:user-info resource "users" in API group "authentication.k8s.io" at the cluster scope`, nil},
		{"new", []string{"Impersonate-User", "jane", "Impersonate-Group", "system:masters"}, 403,
			`groups.authentication.k8s.io "system:masters" is forbidden: User "new" cannot impersonate:user-info resource "groups" in API group "authentication.k8s.io" at the cluster scope: impersonating the system:masters group is not allowed`, nil},
		{"nobody", []string{"Impersonate-User", "system:node:n"}, 403,
			`selfsubjectreviews.authentication.k8s.io is forbidden: User "nobody" cannot impersonate-on:arbitrary-node:create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the cluster scope`, nil},
		{"nobody", []string{"Impersonate-Group", "g"}, 400,
			`requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"g"}, Extra:map[string][]string(nil)} without impersonating a user name`, nil},
	} {
		code, _, out := s.asking("POST", self, c.user, "{}", c.headers...)
		got, _ := out["message"].(string)
		if code == 201 {
			got, _ = at(out, "status", "userInfo", "username").(string)
		}
		if code != c.code || got != c.want {
			t.Errorf("%s %v: %d\n got %s\nwant %s", c.user, c.headers, code, got, c.want)
		}
		var groups []string
		list, _ := at(out, "status", "userInfo", "groups").([]any)
		for _, g := range list {
			groups = append(groups, g.(string))
		}
		if !slices.Equal(groups, c.groups) {
			t.Errorf("%s %v: groups %v", c.user, c.headers, groups)
		}
	}
	if _, _, out := s.asking("GET", "/api/v1/pods", "<b>&", ""); !strings.Contains(out["message"].(string), `User "&lt;b&gt;&amp;" cannot list`) {
		t.Errorf("a message that looks like HTML: %v", out["message"])
	}
}

func TestTokenReviewErrors(t *testing.T) {
	s := secure(t)
	issue := func(r *authenticationv1.TokenRequest) *authenticationv1.TokenRequest {
		t.Helper()
		out := must(client.For[*corev1.ServiceAccount](s.client).In("default").CreateSub(t.Context(), "default", "token", r))(t)
		return out.(*authenticationv1.TokenRequest)
	}
	plain := issue(&authenticationv1.TokenRequest{})
	if got := plain.Spec.Audiences; !slices.Equal(got, []string{"https://test"}) {
		t.Errorf("audiences of a request that names none: %v", got)
	}
	other := issue(&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"a"}}})
	review := func(token string) map[string]any {
		t.Helper()
		_, out := s.do("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "root", "system:masters", "",
			`{"spec":{"token":"`+token+`"},"status":{"error":"sent","user":{"username":"sent"}}}`)
		return out["status"].(map[string]any)
	}
	if st := review("x"); st["error"] != "invalid bearer token" || at(st, "user", "username") != "sent" {
		t.Errorf("no token: %v", st)
	}
	if st := review(other.Status.Token); st["error"] != `[invalid bearer token, token audiences ["a"] is invalid for the target audiences ["https://test"]]` {
		t.Errorf("token for others: %v", st)
	}
	if st := review(plain.Status.Token); st["error"] != "sent" || st["authenticated"] != true {
		t.Errorf("good token: %v", st)
	}
	if err := client.For[*corev1.ServiceAccount](s.client).In("default").Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := review(plain.Status.Token); st["error"] != `[invalid bearer token, serviceaccounts "default" not found]` {
		t.Errorf("account is gone: %v", st)
	}
}

// A pod's own token outlives what was asked for: its use after that is only noted.
func TestTokenOfPodIsExtended(t *testing.T) {
	s := secure(t)
	must(client.For[*corev1.Pod](s.client).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}))(t)
	seconds := int64(3607)
	out := must(client.For[*corev1.ServiceAccount](s.client).In("default").CreateSub(t.Context(), "default", "token", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"}},
	}))(t).(*authenticationv1.TokenRequest)
	claims := claimsOf(t, out.Status.Token)
	issued := claims["iat"].(float64)
	if life := claims["exp"].(float64) - issued; life != (365 * 24 * time.Hour).Seconds() {
		t.Errorf("the token lives %v s", life)
	}
	if warn := at(claims, "kubernetes.io", "warnafter").(float64) - issued; warn != 3607 {
		t.Errorf("its use is late after %v s", warn)
	}
	if told := out.Status.ExpirationTimestamp.Sub(out.CreationTimestamp.Time); told != 3607*time.Second {
		t.Errorf("the client is told %v", told)
	}
}

func TestOwnersStandOnce(t *testing.T) {
	s := secure(t)
	const ref = `{"apiVersion":"v1","kind":"Pod","name":"a","uid":"u"}`
	code, h, out := s.asking("POST", "/api/v1/namespaces/default/configmaps", "root",
		`{"metadata":{"name":"a","ownerReferences":[`+ref+`,`+ref+`,{"apiVersion":"v1","kind":"Pod","name":"b","uid":"u"}]}}`, "X-Test-Groups", "system:masters")
	if refs, _ := at(out, "metadata", "ownerReferences").([]any); code != 201 || len(refs) != 2 {
		t.Errorf("%d %v", code, out)
	}
	if want := `299 - ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: u"`; h.Get("Warning") != want {
		t.Errorf("warning %q", h.Get("Warning"))
	}
}

// A pod that no node runs goes at once; watchers still see first that it is deleted.
func TestGracelessDeletionIsSeen(t *testing.T) {
	s := secure(t)
	pods := client.For[*corev1.Pod](s.client).In("default")
	made := must(pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}))(t)
	w := must(pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: made.ResourceVersion}))(t)
	code, out := s.do("DELETE", "/api/v1/namespaces/default/pods/p", "root", "system:masters", "", "")
	if code != 200 || at(out, "metadata", "generation") != float64(2) || at(out, "metadata", "deletionGracePeriodSeconds") != float64(0) {
		t.Errorf("%d %v", code, out["metadata"])
	}
	var seen []string
	for e := range w.Events() {
		seen = append(seen, string(e.Type))
		if e.Object.GetDeletionTimestamp() == nil || e.Object.GetGeneration() != 2 {
			t.Errorf("%s: %+v", e.Type, e.Object)
		}
		if e.Type == "DELETED" {
			break
		}
	}
	if !slices.Equal(seen, []string{"MODIFIED", "DELETED"}) {
		t.Errorf("events %v", seen)
	}
}

func TestGroupsStandInUpstreamsOrder(t *testing.T) {
	s := secure(t)
	_, out := s.do("GET", "/apis", "root", "system:masters", "", "")
	var got []string
	for _, g := range out["groups"].([]any) {
		got = append(got, at(g.(map[string]any), "name").(string))
	}
	// By the priorities of upstream's API services.
	order := []string{"apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "networking.k8s.io", "rbac.authorization.k8s.io",
		"scheduling.k8s.io", "coordination.k8s.io", "discovery.k8s.io"}
	left := slices.DeleteFunc(slices.Clone(got), func(g string) bool { return !slices.Contains(order, g) })
	if !slices.Equal(left, order) {
		t.Errorf("groups %v", got)
	}
}

func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no token", token)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnacceptableAnswersComeBeforeTheWrite(t *testing.T) {
	s := secure(t)
	masters := []string{"X-Test-Groups", "system:masters", "Accept"}
	const maps = "/api/v1/namespaces/default/configmaps"
	if code, _, out := s.asking("POST", maps, "root", `{"metadata":{"name":"a"}}`, append(masters, "text/html")...); code != 406 {
		t.Errorf("%d %v", code, out)
	}
	if code, _, _ := s.asking("GET", maps+"/a", "root", "", masters[:2]...); code != 404 {
		t.Errorf("a refused request made the object: %d", code)
	}
	// A review has no Table; another clause may be met.
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	const self = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
	if code, _, out := s.asking("POST", self, "root", "{}", append(masters, table)...); code != 406 || out["reason"] != "NotAcceptable" {
		t.Errorf("%d %v", code, out)
	}
	if code, _, out := s.asking("POST", self, "root", "{}", append(masters, table+",application/json")...); code != 201 || out["kind"] != "SelfSubjectReview" {
		t.Errorf("%d %v", code, out)
	}
	if code, _, out := s.asking("PUT", self+"/x", "root", "{}", masters[:2]...); code != 404 {
		t.Errorf("a review has no items: %d %v", code, out)
	}
}

func TestPreconditionsOfADeletion(t *testing.T) {
	s := secure(t)
	must(client.For[*corev1.Event](s.client).Create(t.Context(), &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, InvolvedObject: corev1.ObjectReference{Namespace: "default"},
	}))(t)
	for _, c := range []struct{ path, want string }{
		{"/api/v1/namespaces/default", `Operation cannot be fulfilled on namespaces "default": Precondition failed: UID in precondition: other, UID in object meta: UID`},
		{"/apis/events.k8s.io/v1/namespaces/default/events/e", `Operation cannot be fulfilled on Event "e": the UID in the precondition (other) does not match the UID in record (UID). The object might have been deleted and then recreated`},
	} {
		code, _, out := s.asking("DELETE", c.path, "root", `{"preconditions":{"uid":"other"}}`, "X-Test-Groups", "system:masters")
		if got := uids.ReplaceAllString(out["message"].(string), "UID"); code != 409 || got != c.want {
			t.Errorf("%d\n got %s\nwant %s", code, got, c.want)
		}
	}
}

func TestReplicaSetsSelectByMetadataOnly(t *testing.T) {
	s := secure(t)
	_, _, out := s.asking("GET", "/apis/apps/v1/replicasets?fieldSelector=status.replicas%3D1", "root", "", "X-Test-Groups", "system:masters")
	if want := `"status.replicas" is not a known field selector: only "metadata.name", "metadata.namespace"`; out["message"] != want {
		t.Errorf("%v", out["message"])
	}
}

func TestRoutesAndMediaTypes(t *testing.T) {
	s := secure(t)
	const maps = "/api/v1/namespaces/default/configmaps"
	for _, name := range []string{"a", "b", "c"} {
		must(client.For[*corev1.ConfigMap](s.client).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}))(t)
	}
	const noRoute = "the server could not find the requested resource"
	const noMethod = "the server does not allow this method on the requested resource"
	const types = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
	for _, c := range []struct {
		method, path, accept, media string
		code                        int
		message                     string
	}{
		{"GET", "/api/v2/namespaces", "", "", 404, noRoute},
		{"GET", "/api/v1/namespaces/default/namespaces", "", "", 404, noRoute},
		{"POST", "/api", "", "", 405, noMethod},
		{"POST", "/apis/apps/v1", "", "", 405, noMethod},
		{"GET", maps + "/..", "", "", 400, `Name parameter invalid: "..": may not be '..'`},
		{"POST", maps, "", "application/json;;;=", 415, "the body of the request was in an unknown format - accepted media types include: " + types},
		{"GET", maps + "/a", "application/*", "", 406, "406: Not Acceptable\n\nAvailable representations: " + types},
		{"GET", maps, "application/cbor", "", 406, "406: Not Acceptable\n\nAvailable representations: " + types +
			", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"},
		{"GET", maps, "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", "", 406, "only the following media types are accepted: " + types},
		{"GET", maps + "/a", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "", 406,
			"you requested PartialObjectMetadataList, but the requested object is not a list (*core.ConfigMap)"},
		{"GET", maps, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "", 406,
			"you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)"},
		{"GET", maps + "?timeout=x", "", "", 400, `invalid timeout specified in the request URL - time: invalid duration "x"`},
		// {"v":"meta.k8s.io/v1","rv":5,"start":"../../a"}
		{"GET", maps + "?continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiIuLi8uLi9hIn0", "", "", 400, "invalid continue token: continue key is not valid: ../../a"},
		{"GET", "/api/v1/namespaces/default/services/missing/proxy/", "", "", 503, `no endpoints available for service "missing"`},
	} {
		headers := []string{"X-Test-Groups", "system:masters"}
		if c.accept != "" {
			headers = append(headers, "Accept", c.accept)
		}
		if c.media != "" {
			headers = append(headers, "Content-Type", c.media)
		}
		code, _, out := s.asking(c.method, c.path, "root", "{}", headers...)
		if code != c.code || out["message"] != c.message {
			t.Errorf("%s %s (%s%s): %d\n got %v\nwant %v", c.method, c.path, c.accept, c.media, code, out["message"], c.message)
		}
	}
	_, h, _ := s.asking("GET", maps+"/a", "root", "", "X-Test-Groups", "system:masters", "Accept", "application/yaml;q=0.1,application/json;q=0.9")
	if got := h.Get("Content-Type"); got != "application/json" {
		t.Errorf("by quality: %s", got)
	}
	// Whatever there is comes whole.
	_, _, out := s.asking("GET", maps+"?limit=1&resourceVersion=0", "root", "", "X-Test-Groups", "system:masters")
	if items := out["items"].([]any); len(items) < 3 {
		t.Errorf("a list of version 0 was cut to %d", len(items))
	}
}

// A watch may begin where the server has not been yet: it tells only what comes after.
func TestWatchFromTheFuture(t *testing.T) {
	s := secure(t)
	maps := client.For[*corev1.ConfigMap](s.client).In("default")
	make := func(name string) int64 {
		t.Helper()
		o := must(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}))(t)
		n := must(strconv.ParseInt(o.ResourceVersion, 10, 64))(t)
		return n
	}
	now := make("a")
	w := must(maps.Watch(t.Context(), metav1.ListOptions{ResourceVersion: strconv.FormatInt(now+1, 10)}))(t)
	make("b") // at now+1: known to the client
	make("c")
	if e := <-w.Events(); e.Type != "ADDED" || e.Object.GetName() != "c" {
		t.Errorf("%s %v", e.Type, e.Object)
	}
}

// A dry run has no compare-and-swap that finds an old state out: it must see what
// was written before it.
func TestDryRunsSeeTheLastWrite(t *testing.T) {
	s := secure(t)
	maps := client.For[*corev1.ConfigMap](s.client).In("default")
	must(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}}))(t)
	transport := s.client.Transport()
	ref := client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("configmaps"), Namespace: "default", Name: "a"}
	for i := range 500 {
		n := strconv.Itoa(i)
		must(maps.Patch(t.Context(), "a", types.MergePatchType, []byte(`{"data":{"n":"`+n+`"}}`), ""))(t)
		out := must(transport.Patch(t.Context(), ref, types.MergePatchType, []byte(`{"data":{"dry":"x"}}`), metav1.PatchOptions{DryRun: []string{"All"}}))(t)
		if got := out.(*corev1.ConfigMap).Data["n"]; got != n {
			t.Fatalf("a dry run after write %s saw %q", n, got)
		}
	}
}

// The second eviction of a pod that is going changes nothing.
func TestEvictionAgainWritesNothing(t *testing.T) {
	s := secure(t)
	pods := client.For[*corev1.Pod](s.client).In("default")
	must(pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}))(t)
	evict := func() string {
		t.Helper()
		code, _, out := s.asking("POST", "/api/v1/namespaces/default/pods/p/eviction", "root",
			`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p"}}`, "X-Test-Groups", "system:masters")
		if code != 201 {
			t.Fatalf("%d %v", code, out)
		}
		return must(pods.Get(t.Context(), "p"))(t).ResourceVersion
	}
	if first, second := evict(), evict(); first != second {
		t.Errorf("version %s became %s", first, second)
	}
}
