package build

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/kube-openapi/pkg/common"

	"skiff/internal/api/resource"
)

// prefixOf is the path below which a group and version is served.
func prefixOf(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.String()
}

// single is a document of one GET: the lists that discovery consists of.
func single(path, operation, doc string, m model, produces []string) *service {
	return &service{root: path, routes: []common.Route{&route{
		method: http.MethodGet, path: path + "/", operation: operation, doc: doc, produces: produces, consumes: produces,
		writes: m, responses: []common.StatusCodeResponse{response{http.StatusOK, "OK", m}},
	}}}
}

// services returns the routes of everything that is served, by the document of
// OpenAPI v3 that they belong to.
func services(all []*resource.Resource) (map[string]*service, error) {
	out := map[string]*service{
		"api":     single("/api", "getAPIVersions", "get available API versions", modelOf(metav1.APIVersions{}), objectTypes),
		"apis":    single("/apis", "getAPIVersions", "get available API versions", modelOf(metav1.APIGroupList{}), objectTypes),
		"version": single("/version", "getCodeVersion", "get the version information for this server", modelOf(version.Info{}), []string{"application/json"}),
	}
	for _, r := range all {
		root := prefixOf(r.GroupVersion)
		doc := strings.TrimPrefix(root, "/")
		svc := out[doc]
		if svc == nil {
			svc = single(root, "getAPIResources", "get available resources", modelOf(metav1.APIResourceList{}), objectTypes)
			out[doc] = svc
		}
		if g := r.GroupVersion.Group; g != "" && out["apis/"+g] == nil {
			out["apis/"+g] = single("/apis/"+g, "getAPIGroup", "get information of a group", modelOf(metav1.APIGroup{}), objectTypes)
		}
		w := &writer{svc: svc, r: r, root: root}
		if err := w.resource(); err != nil {
			return nil, fmt.Errorf("%s: %w", r.GVR(), err)
		}
	}
	return out, nil
}

// writer writes the routes of one resource.
type writer struct {
	svc  *service
	r    *resource.Resource
	root string
}

func (w *writer) resource() error {
	r := w.r
	verbs := r.ServedVerbs()
	has := func(v string) bool { return slices.Contains(verbs, v) }
	obj := modelOf(r.New())
	gvk := r.GVK()
	kind := r.Kind
	base, scope, scoped := w.root+"/"+r.Plural, []common.Parameter(nil), ""
	if r.Namespaced {
		base, scope, scoped = w.root+"/namespaces/{namespace}/"+r.Plural, []common.Parameter{namespace}, "Namespaced"
	}
	item := base + "/{name}"
	named := append(slices.Clone(scope), nameOf(kind))
	watched := func(p string) string { return w.root + "/watch" + strings.TrimPrefix(p, w.root) }

	type lister struct {
		path, scoped, suffix string
		params               []common.Parameter
	}
	lists := []lister{{base, scoped, "", scope}}
	if r.Namespaced {
		lists = append(lists, lister{w.root + "/" + r.Plural, "", "ForAllNamespaces", nil})
	}
	var list model
	if r.NewList != nil {
		list = modelOf(r.NewList())
	}
	for _, l := range lists {
		if has("list") {
			doc := "list objects of kind " + kind
			if has("watch") {
				doc = "list or watch objects of kind " + kind
			}
			w.add(&route{method: http.MethodGet, path: l.path, operation: "list" + l.scoped + kind + l.suffix, doc: doc, params: join(l.params, options(metav1.ListOptions{})), produces: join(objectTypes, streamTypes), writes: list, responses: ok(list)}, "list", gvk)
		}
		if has("list") && has("watch") {
			e := modelOf(metav1.WatchEvent{})
			w.add(&route{method: http.MethodGet, path: watched(l.path), operation: "watch" + l.scoped + kind + "List" + l.suffix, doc: "watch individual changes to a list of " + kind + ". deprecated: use the 'watch' parameter with a list operation instead.", params: join(l.params, options(metav1.ListOptions{})), produces: join(objectTypes, streamTypes), writes: e, responses: ok(e)}, "watchlist", gvk)
		}
	}
	status := modelOf(metav1.Status{})
	if has("create") {
		w.add(w.post(base, "create"+scoped+kind, "create "+article(kind)+kind, scope, obj), "post", gvk)
	}
	if has("deletecollection") {
		w.add(&route{method: http.MethodDelete, path: base, operation: "deletecollection" + scoped + kind, doc: "delete collection of " + kind, reads: modelOf(metav1.DeleteOptions{}),
			params: join(scope, []common.Parameter{body(false)}, options(metav1.DeleteOptions{}), options(metav1.ListOptions{}, "watch", "allowWatchBookmarks")), produces: objectTypes, writes: status, responses: ok(status)}, "deletecollection", gvk)
	}
	if has("get") {
		w.add(w.get(item, "read"+scoped+kind, "read the specified "+kind, named, obj), "get", gvk)
	}
	if has("update") {
		w.add(w.put(item, "replace"+scoped+kind, "replace the specified "+kind, named, obj), "put", gvk)
	}
	if has("patch") {
		w.add(w.patch(item, "patch"+scoped+kind, "partially update the specified "+kind, named, obj), "patch", gvk)
	}
	if has("delete") {
		out := status
		// A deleted namespace is answered with, but upstream does not say so.
		if r.ReturnDeleted && r.Plural != "namespaces" {
			out = obj
		}
		w.add(&route{method: http.MethodDelete, path: item, operation: "delete" + scoped + kind, doc: "delete " + article(kind) + kind, reads: modelOf(metav1.DeleteOptions{}), params: join(named, []common.Parameter{body(false)}, options(metav1.DeleteOptions{})),
			produces: objectTypes, writes: out, responses: []common.StatusCodeResponse{response{http.StatusOK, "OK", out}, response{http.StatusAccepted, "Accepted", out}}}, "delete", gvk)
	}
	if has("watch") {
		e := modelOf(metav1.WatchEvent{})
		w.add(&route{method: http.MethodGet, path: watched(item), operation: "watch" + scoped + kind, doc: "watch changes to an object of kind " + kind + ". deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter.",
			params: join(named, options(metav1.ListOptions{})), produces: join(objectTypes, streamTypes), writes: e, responses: ok(e)}, "watch", gvk)
	}
	for i := range r.Subresources {
		if err := w.subresource(&r.Subresources[i], item, scope, scoped); err != nil {
			return fmt.Errorf("subresource %q: %w", r.Subresources[i].Name, err)
		}
	}
	return nil
}

// connectOptions are the query parameters of the subresources that are connected
// to a node or a pod.
var connectOptions = map[string]any{
	"pods/attach": corev1.PodAttachOptions{}, "pods/exec": corev1.PodExecOptions{}, "pods/portforward": corev1.PodPortForwardOptions{},
	"pods/proxy": corev1.PodProxyOptions{}, "services/proxy": corev1.ServiceProxyOptions{}, "nodes/proxy": corev1.NodeProxyOptions{},
}

func (w *writer) subresource(sub *resource.Subresource, parent string, scope []common.Parameter, scoped string) error {
	r, kind := w.r, w.r.Kind
	gvk := sub.Kind
	if gvk.Empty() {
		gvk = r.GVK()
	}
	path := parent + "/" + sub.Name
	title := capital(sub.Name)
	named := append(slices.Clone(scope), nameOf(gvk.Kind))
	if sub.Connect && sub.Name == "log" {
		rt := w.get(path, "read"+scoped+kind+title, "read log of the specified "+kind, join(named, options(corev1.PodLogOptions{})), text)
		rt.produces = append([]string{"text/plain"}, objectTypes...)
		w.add(rt, "get", gvk)
		return nil
	}
	if sub.Connect {
		o, known := connectOptions[r.Plural+"/"+sub.Name]
		if !known {
			return fmt.Errorf("options of a connected subresource are not known")
		}
		methods := []string{http.MethodGet, http.MethodPost}
		if sub.Name == "proxy" {
			methods = []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodOptions, http.MethodPatch}
		}
		for _, m := range methods {
			rt := route{method: m, path: path, operation: "connect" + capital(strings.ToLower(m)) + scoped + kind + title, doc: "connect " + m + " requests to " + sub.Name + " of " + kind, params: join(named, options(o)), produces: anyType, consumes: anyType, writes: text}
			w.addBare(&rt, "connect", gvk)
			if sub.Name == "proxy" {
				deep := rt
				deep.path, deep.operation = path+"/{path}", rt.operation+"WithPath"
				deep.params = join(rt.params, []common.Parameter{subpath})
				w.addBare(&deep, "connect", gvk)
			}
		}
		return nil
	}
	obj := modelOf(r.New())
	switch {
	case sub.NewView != nil:
		obj = modelOf(sub.NewView())
	case sub.NewBody != nil:
		obj = modelOf(sub.NewBody())
	}
	for _, v := range sub.Verbs {
		switch v {
		case "get":
			w.add(w.get(path, "read"+scoped+kind+title, "read "+sub.Name+" of the specified "+kind, named, obj), "get", gvk)
		case "update":
			w.add(w.put(path, "replace"+scoped+kind+title, "replace "+sub.Name+" of the specified "+kind, named, obj), "put", gvk)
		case "patch":
			w.add(w.patch(path, "patch"+scoped+kind+title, "partially update "+sub.Name+" of the specified "+kind, named, obj), "patch", gvk)
		case "create":
			rt := w.post(path, "create"+scoped+kind+title, "create "+sub.Name+" of "+article(kind)+kind, named, obj)
			w.add(rt, "post", gvk)
		}
	}
	return nil
}

func (w *writer) get(path, op, doc string, params []common.Parameter, m model) *route {
	return &route{method: http.MethodGet, path: path, operation: op, doc: doc, params: params, produces: objectTypes, writes: m, responses: ok(m)}
}

func (w *writer) put(path, op, doc string, params []common.Parameter, m model) *route {
	return &route{method: http.MethodPut, path: path, operation: op, doc: doc, params: join(params, []common.Parameter{body(true)}, options(metav1.UpdateOptions{})), reads: m, produces: objectTypes, writes: m, responses: okCreated(m)}
}

func (w *writer) patch(path, op, doc string, params []common.Parameter, m model) *route {
	return &route{method: http.MethodPatch, path: path, operation: op, doc: doc, params: join(params, []common.Parameter{body(true)}, options(metav1.PatchOptions{})), reads: modelOf(metav1.Patch{}), consumes: patchTypes, produces: objectTypes, writes: m, responses: okCreated(m)}
}

func (w *writer) post(path, op, doc string, params []common.Parameter, m model) *route {
	return &route{method: http.MethodPost, path: path, operation: op, doc: doc, params: join(params, []common.Parameter{body(true)}, options(metav1.CreateOptions{})), reads: m, produces: objectTypes, writes: m,
		responses: append(okCreated(m), response{http.StatusAccepted, "Accepted", m})}
}

func ok(m model) []common.StatusCodeResponse {
	return []common.StatusCodeResponse{response{http.StatusOK, "OK", m}}
}

func okCreated(m model) []common.StatusCodeResponse {
	return append(ok(m), response{http.StatusCreated, "Created", m})
}

func (w *writer) add(rt *route, action string, gvk schema.GroupVersionKind) {
	rt.params = join(rt.params, []common.Parameter{pretty})
	w.addBare(rt, action, gvk)
}

func (w *writer) addBare(rt *route, action string, gvk schema.GroupVersionKind) {
	if rt.consumes == nil {
		rt.consumes = anyType
	}
	rt.metadata = map[string]any{"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvkValue(gvk)}
	w.svc.routes = append(w.svc.routes, rt)
}

func join[T any](lists ...[]T) []T { return slices.Concat(lists...) }

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func article(kind string) string {
	switch {
	case strings.HasSuffix(kind, "s") && !strings.HasSuffix(kind, "ss"):
		return ""
	case strings.ContainsRune("aeiou", unicode.ToLower(rune(kind[0]))):
		return "an "
	}
	return "a "
}
