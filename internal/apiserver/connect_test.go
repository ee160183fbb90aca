package apiserver_test

import (
	"net/http"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// TestStreamsNeedCreate: who may get pods/exec may not run anything, though a
// WebSocket's handshake is a GET.
func TestStreamsNeedCreate(t *testing.T) {
	s := secure(t)
	doors := []string{"pods/exec", "pods/attach", "pods/portforward"}
	for user, verbs := range map[string][]string{"reader": {"get"}, "runner": {"get", "create"}} {
		must(client.For[*rbacv1.Role](s.client).In("default").Create(t.Context(), &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: doors, Verbs: verbs}},
		}))(t)
		must(client.For[*rbacv1.RoleBinding](s.client).In("default").Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: user},
			Subjects: []rbacv1.Subject{{Kind: "User", Name: user}},
		}))(t)
	}
	for _, door := range []string{"exec", "attach", "portforward"} {
		path := "/api/v1/namespaces/default/pods/p/" + door
		s.refused(http.StatusForbidden, `pods "p" is forbidden: `, "GET", path, "reader", "")
		// Allowed, this one learns that the pod is not there.
		s.refused(http.StatusNotFound, `pods "p" not found`, "GET", path, "runner", "")
		s.refused(http.StatusNotFound, `pods "p" not found`, "POST", path, "runner", "")
	}
}
