package app

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/explanation"
	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/explain"
)

// explanations are the resources of explain.skiff.io. What they tell is read as the
// user who asks: nobody learns more than he could read himself (docs/adr/011).
func (s *server) explanations() []*resource.Resource {
	var of []explanation.Subject
	for _, k := range explain.Kinds() {
		of = append(of, explanation.Subject{Of: k.GVR, Kind: k.Kind, Namespaced: k.Namespaced})
	}
	return explanation.Resources(of, func(ctx context.Context, env resource.Env, objs []resource.Object) ([]*explanation.Explanation, error) {
		r := explain.Reader{
			Client: client.New(s.api.Local(env.User), "explain"), Now: env.Now, Resources: s.listable, Objects: s.objectsAs(env.User),
			Logs: func(ctx context.Context, ns, pod, container string, previous bool) (string, error) {
				return s.lastLines(ctx, env, ns, pod, container, previous)
			},
		}
		return r.Known(ctx, env.Verb == "list", objs)
	})
}

// listable are the namespaced resources that hold a namespace.
func (s *server) listable(context.Context) ([]schema.GroupVersionResource, map[string]string, error) {
	var out []schema.GroupVersionResource
	for _, r := range s.api.Served() {
		if r.Namespaced && r.Prefix != "" && r.Twin == nil {
			out = append(out, r.GVR())
		}
	}
	return out, nil, nil
}

func (s *server) objectsAs(u resource.User) func(context.Context, schema.GroupVersionResource, string) ([]client.Object, error) {
	return func(ctx context.Context, r schema.GroupVersionResource, ns string) ([]client.Object, error) {
		l, err := s.api.Local(u).List(ctx, client.Ref{GVR: r, Namespace: ns}, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		return l.Items, nil
	}
}

// lastLines asks a kubelet for the end of a container's log, for a user who may.
func (s *server) lastLines(ctx context.Context, env resource.Env, ns, pod, container string, previous bool) (string, error) {
	d, err := env.Authorize(ctx, resource.Attributes{User: env.User, Verb: "get", Namespace: ns, Version: "v1", Resource: "pods", Subresource: "log", Name: pod})
	if err != nil {
		return "", err
	}
	if !d.Allowed {
		return "", fmt.Errorf("logs of pod %s: %s may not read them", pod, env.User.Name)
	}
	p, err := client.For[*corev1.Pod](s.api.System()).In(ns).Get(ctx, pod)
	if err != nil {
		return "", err
	}
	n, err := client.For[*corev1.Node](s.api.System()).Get(ctx, p.Spec.NodeName)
	if err != nil {
		return "", err
	}
	u, t, err := s.nodes.Kubelet(ctx, n)
	if err != nil {
		return "", err
	}
	u.Path = "/containerLogs/" + ns + "/" + pod + "/" + container
	u.RawQuery = url.Values{"tailLines": {"5"}, "previous": {fmt.Sprint(previous)}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("logs of pod %s: %w", pod, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("logs of pod %s: %s", pod, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return string(b), err
}

// explainRole lets everybody ask, since the answer holds what he may read alone.
const explainRole = "skiff:explain"

func explainPolicy() (*rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding) {
	return &rbacv1.ClusterRole{
			ObjectMeta: metav1.ObjectMeta{Name: explainRole, Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}},
			Rules:      []rbacv1.PolicyRule{{APIGroups: []string{explanation.GroupVersion.Group}, Resources: []string{"*"}, Verbs: []string{"get", "list"}}},
		}, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: explainRole, Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: explainRole},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "system:authenticated"}},
		}
}
