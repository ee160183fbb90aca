package apiserver

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Version is what /version answers.
type Version struct {
	Major                 string `json:"major"`
	Minor                 string `json:"minor"`
	EmulationMajor        string `json:"emulationMajor"`
	EmulationMinor        string `json:"emulationMinor"`
	MinCompatibilityMajor string `json:"minCompatibilityMajor"`
	MinCompatibilityMinor string `json:"minCompatibilityMinor"`
	GitVersion            string `json:"gitVersion"`
	GitCommit             string `json:"gitCommit"`
	GitTreeState          string `json:"gitTreeState"`
	BuildDate             string `json:"buildDate"`
	GoVersion             string `json:"goVersion"`
	Compiler              string `json:"compiler"`
	Platform              string `json:"platform"`
}

// groups returns the served groups with their versions, in upstream's order; the
// core group has the empty name.
func (s *Server) groups() (order []string, versions map[string][]schema.GroupVersion) {
	versions = map[string][]schema.GroupVersion{}
	for _, k := range s.order {
		gv := k.GroupVersion
		if _, ok := versions[gv.Group]; !ok {
			order = append(order, gv.Group)
		}
		if !slices.Contains(versions[gv.Group], gv) {
			versions[gv.Group] = append(versions[gv.Group], gv)
		}
	}
	slices.SortStableFunc(order, func(a, b string) int { return groupRank(a) - groupRank(b) })
	return order, versions
}

// groupRank is a group's place in discovery: upstream's own groups in the order of
// the priorities that it registers them with, then all others.
func groupRank(group string) int {
	if i := slices.Index(groupOrder, group); i >= 0 {
		return i
	}
	return len(groupOrder)
}

var groupOrder = []string{
	"", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io",
	"networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io", "admissionregistration.k8s.io", "apiextensions.k8s.io",
	"scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io", "resource.k8s.io", "flowcontrol.apiserver.k8s.io",
	"internal.apiserver.k8s.io", "storagemigration.k8s.io", "lifecycle.k8s.io",
}

func (s *Server) serveDiscovery(w http.ResponseWriter, r *http.Request) bool {
	parts := splitPath(r.URL.Path)
	a, err := negotiate(r)
	aggregated := strings.Contains(r.Header.Get("Accept"), "as=APIGroupDiscoveryList")
	if err != nil && !aggregated {
		s.fail(w, r, err)
		return true
	}
	order, versions := s.groups()
	if r.Method != http.MethodGet && s.discovers(parts, versions) {
		s.fail(w, r, noRoute(http.StatusMethodNotAllowed, ""))
		return true
	}
	switch {
	case len(parts) == 1 && parts[0] == "api":
		if aggregated {
			s.sendAggregated(w, r, []string{""}, versions)
			return true
		}
		out := &metav1.APIVersions{ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: s.publicAddress(r)}}}
		for _, gv := range versions[""] {
			out.Versions = append(out.Versions, gv.Version)
		}
		s.sendDiscovery(w, a, withKind(out, "APIVersions", ""))
	case len(parts) == 1 && parts[0] == "apis":
		named := slices.DeleteFunc(slices.Clone(order), func(g string) bool { return g == "" })
		if aggregated {
			s.sendAggregated(w, r, named, versions)
			return true
		}
		out := &metav1.APIGroupList{}
		for _, g := range named {
			out.Groups = append(out.Groups, apiGroup(g, versions[g]))
		}
		s.sendDiscovery(w, a, withKind(out, "APIGroupList", "v1"))
	case len(parts) == 2 && parts[0] == "apis":
		vs, ok := versions[parts[1]]
		if !ok || parts[1] == "" {
			return false
		}
		g := apiGroup(parts[1], vs)
		s.sendDiscovery(w, a, withKind(&g, "APIGroup", "v1"))
	case len(parts) == 2 && parts[0] == "api":
		return s.sendResources(w, a, schema.GroupVersion{Version: parts[1]}, versions[""])
	case len(parts) == 3 && parts[0] == "apis":
		return s.sendResources(w, a, schema.GroupVersion{Group: parts[1], Version: parts[2]}, versions[parts[1]])
	default:
		return false
	}
	return true
}

// discovers tells whether a path is one of discovery's.
func (s *Server) discovers(parts []string, versions map[string][]schema.GroupVersion) bool {
	switch {
	case len(parts) == 1:
		return parts[0] == "api" || parts[0] == "apis"
	case len(parts) == 2 && parts[0] == "api":
		return slices.Contains(versions[""], schema.GroupVersion{Version: parts[1]})
	case len(parts) == 2 && parts[0] == "apis":
		return parts[1] != "" && len(versions[parts[1]]) > 0
	case len(parts) == 3 && parts[0] == "apis":
		return slices.Contains(versions[parts[1]], schema.GroupVersion{Group: parts[1], Version: parts[2]})
	}
	return false
}

// publicAddress is where clients outside the cluster find the server.
func (s *Server) publicAddress(r *http.Request) string {
	if s.PublicAddress != "" {
		return s.PublicAddress
	}
	return r.Host
}

func apiGroup(name string, vs []schema.GroupVersion) metav1.APIGroup {
	g := metav1.APIGroup{Name: name}
	for _, gv := range vs {
		g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
	}
	g.PreferredVersion = g.Versions[0]
	return g
}

// withKind makes the JSON form with its type first.
func withKind(v any, kind, version string) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs
	}
	head := `{"kind":"` + kind + `",`
	if version != "" {
		head += `"apiVersion":"` + version + `",`
	}
	return append([]byte(head), b[1:]...)
}

func (s *Server) sendDiscovery(w http.ResponseWriter, a answer, b []byte) {
	a.media = jsonOnly(a).media
	b, err := finishJSON(a, b)
	if err != nil {
		s.Log.Error("encode discovery", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.sendBytes(w, a, http.StatusOK, b)
}

func (s *Server) sendResources(w http.ResponseWriter, a answer, gv schema.GroupVersion, served []schema.GroupVersion) bool {
	if !slices.Contains(served, gv) {
		return false
	}
	out := &metav1.APIResourceList{GroupVersion: gv.String()}
	for _, k := range s.sorted(gv) {
		r := metav1.APIResource{
			Name: k.Plural, SingularName: k.Singular, Namespaced: k.Namespaced, Kind: k.Kind, Verbs: k.ServedVerbs(),
			ShortNames: k.ShortNames, Categories: k.Categories, StorageVersionHash: k.versionHash(),
		}
		out.APIResources = append(out.APIResources, r)
		for i := range k.Subresources {
			sub := &k.Subresources[i]
			sr := metav1.APIResource{Name: k.Plural + "/" + sub.Name, Namespaced: k.Namespaced, Kind: k.Kind, Verbs: sub.Verbs}
			if !sub.Kind.Empty() {
				sr.Kind = sub.Kind.Kind
				if sub.Kind.GroupVersion() != gv {
					sr.Group, sr.Version = sub.Kind.Group, sub.Kind.Version
				}
			}
			out.APIResources = append(out.APIResources, sr)
		}
	}
	b := withKind(out, "APIResourceList", "")
	if gv.Group != "" {
		b = withKind(out, "APIResourceList", "v1")
	}
	s.sendDiscovery(w, a, b)
	return true
}

func (s *Server) sorted(gv schema.GroupVersion) []*kind {
	var ks []*kind
	for _, k := range s.order {
		if k.GroupVersion == gv {
			ks = append(ks, k)
		}
	}
	slices.SortFunc(ks, func(a, b *kind) int { return strings.Compare(a.Plural, b.Plural) })
	for _, k := range ks {
		slices.SortFunc(k.Subresources, func(a, b subresource) int { return strings.Compare(a.Name, b.Name) })
	}
	return ks
}

// versionHash names the storage version, as upstream computes it: the first 8
// bytes of a SHA-256... of "group/version/kind", base64.
func (k *kind) versionHash() string {
	if k.col == nil {
		return ""
	}
	gv := k.stored.GroupVersion
	if !k.stored.Stored.Empty() {
		gv = k.stored.Stored
	}
	return storageVersionHash(gv.Group, gv.Version, k.stored.Kind)
}

func (s *Server) sendAggregated(w http.ResponseWriter, r *http.Request, groups []string, versions map[string][]schema.GroupVersion) {
	out := &apidiscovery.APIGroupDiscoveryList{}
	for _, g := range groups {
		d := apidiscovery.APIGroupDiscovery{}
		d.Name = g
		for _, gv := range versions[g] {
			v := apidiscovery.APIVersionDiscovery{Version: gv.Version, Freshness: apidiscovery.DiscoveryFreshnessCurrent}
			for _, k := range s.sorted(gv) {
				v.Resources = append(v.Resources, k.discovery())
			}
			d.Versions = append(d.Versions, v)
		}
		out.Items = append(out.Items, d)
	}
	out.Kind, out.APIVersion = "APIGroupDiscoveryList", "apidiscovery.k8s.io/v2"
	b, err := json.Marshal(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	etag := fmt.Sprintf("\"%X\"", sha512.Sum512(b))
	w.Header().Set("ETag", etag)
	w.Header().Set("Vary", "Accept")
	w.Header().Set("Cache-Control", "public")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Type", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	w.WriteHeader(http.StatusOK)
	_, err = w.Write(append(b, '\n'))
	s.sent(err)
}

func (k *kind) discovery() apidiscovery.APIResourceDiscovery {
	scope := apidiscovery.ScopeCluster
	if k.Namespaced {
		scope = apidiscovery.ScopeNamespace
	}
	d := apidiscovery.APIResourceDiscovery{
		Resource: k.Plural, ResponseKind: k.responseKind(k.gvk),
		Scope: scope, SingularResource: k.Singular, Verbs: k.ServedVerbs(), ShortNames: k.ShortNames, Categories: k.Categories,
	}
	for i := range k.Subresources {
		sub := &k.Subresources[i]
		kind := sub.Kind
		if kind.Empty() {
			kind = k.gvk
		}
		d.Subresources = append(d.Subresources, apidiscovery.APISubresourceDiscovery{
			Subresource: sub.Name, ResponseKind: k.responseKind(kind), Verbs: sub.Verbs,
		})
	}
	return d
}

// responseKind names the group version of a kind only where it is not the one that
// the resource is listed under.
func (k *kind) responseKind(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
	if gvk.GroupVersion() == k.gvk.GroupVersion() {
		return &metav1.GroupVersionKind{Kind: gvk.Kind}
	}
	return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
}
