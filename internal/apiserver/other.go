package apiserver

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/api/resource"
)

type subresource = resource.Subresource

func storageVersionHash(group, version, kind string) string {
	sum := sha256.Sum256([]byte(group + "/" + version + "/" + kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// issuerPaths are Issuer's (OpenID Connect Discovery 1.0; RFC 7517).
var issuerPaths = []string{"/.well-known/openid-configuration", "/openid/v1/jwks"}

// serveOther answers requests that are not for a resource.
func (s *Server) serveOther(w http.ResponseWriter, r *http.Request) {
	p := strings.TrimSuffix(r.URL.Path, "/")
	switch {
	case p == "/version":
		b, err := json.MarshalIndent(s.Version, "", "  ")
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.sendBytes(w, answer{media: "application/json"}, http.StatusOK, b)
	case p == "/healthz" || p == "/livez" || p == "/readyz" || strings.HasPrefix(p, "/healthz/") || strings.HasPrefix(p, "/livez/") || strings.HasPrefix(p, "/readyz/"):
		s.serveHealth(w, r, p)
	case strings.HasPrefix(p, "/openapi/") && s.OpenAPI != nil:
		s.OpenAPI.ServeHTTP(w, r)
	case s.Issuer != nil && slices.Contains(issuerPaths, p):
		s.Issuer.ServeHTTP(w, r)
	case p == "":
		b, err := json.MarshalIndent(map[string][]string{"paths": s.paths()}, "", "  ")
		if err != nil {
			s.fail(w, r, err)
			return
		}
		s.sendBytes(w, answer{media: "application/json"}, http.StatusOK, b)
	case s.serveDiscovery(w, r):
	default:
		notServed(w)
	}
}

func (s *Server) paths() []string {
	out := []string{"/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
	if s.Issuer != nil {
		out = append(out, issuerPaths...)
	}
	order, versions := s.groups()
	for _, g := range order {
		if g == "" {
			continue
		}
		out = append(out, "/apis/"+g)
		for _, gv := range versions[g] {
			out = append(out, "/apis/"+gv.String())
		}
	}
	slices.Sort(out)
	return out
}

// serveHealth answers health checks: the process lives, the cache is filled, the
// store answers.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request, p string) {
	type check struct {
		name string
		err  error
	}
	checks := []check{{name: "ping"}, {name: "log"}}
	if !strings.HasPrefix(p, "/livez") {
		_, err := s.Store.Revision(r.Context())
		checks = append(checks, check{"etcd", err})
	}
	if strings.HasPrefix(p, "/readyz") {
		var err error
		select {
		case <-s.Ready():
		default:
			err = fmt.Errorf("cache is not filled yet")
		}
		checks = append(checks, check{"informer-sync", err})
		if s.Bootstrapped != nil {
			var err error
			select {
			case <-s.Bootstrapped:
			default:
				err = fmt.Errorf("default roles are not there yet")
			}
			checks = append(checks, check{"poststarthook/rbac/bootstrap-roles", err})
		}
	}
	if _, name, one := strings.Cut(strings.TrimPrefix(p, "/"), "/"); one {
		checks = slices.DeleteFunc(checks, func(c check) bool { return c.name != name })
		if len(checks) == 0 {
			notServed(w)
			return
		}
	}
	exclude := r.URL.Query()["exclude"]
	var b strings.Builder
	failed := false
	for _, c := range checks {
		switch {
		case slices.Contains(exclude, c.name):
			fmt.Fprintf(&b, "[+]%s excluded: ok\n", c.name)
		case c.err != nil:
			failed = true
			fmt.Fprintf(&b, "[-]%s failed: reason withheld\n", c.name)
			s.Log.Warn("health check failed", "check", c.name, "err", c.err)
		default:
			fmt.Fprintf(&b, "[+]%s ok\n", c.name)
		}
	}
	kind := strings.Split(strings.TrimPrefix(p, "/"), "/")[0]
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if failed {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, b.String()+kind+" check failed\n")
		return
	}
	if _, verbose := r.URL.Query()["verbose"]; verbose {
		_, _ = io.WriteString(w, b.String()+kind+" check passed\n")
		return
	}
	_, _ = io.WriteString(w, "ok")
}

// impersonate changes who asks, where the request demands it and the user may.
func (s *Server) impersonate(r *http.Request, u resource.User) (*resource.User, error) {
	name := r.Header.Get("Impersonate-User")
	groups := r.Header.Values("Impersonate-Group")
	uid := r.Header.Get("Impersonate-Uid")
	extra := map[string][]string{}
	for k, v := range r.Header {
		if rest, ok := strings.CutPrefix(strings.ToLower(k), "impersonate-extra-"); ok {
			extra[rest] = v
		}
	}
	if name == "" {
		if len(groups) > 0 || uid != "" || len(extra) > 0 {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("requested [{Group %v}] without impersonating a user", strings.Join(groups, ", ")))
		}
		return &u, nil
	}
	ask := func(a resource.Attributes) error {
		a.User, a.Verb, a.Version = u, "impersonate", "v1"
		return s.authorize(r.Context(), a)
	}
	as := resource.User{Name: name, UID: uid, Groups: groups}
	if rest, ok := strings.CutPrefix(name, "system:serviceaccount:"); ok && strings.Count(rest, ":") == 1 {
		ns, sa, _ := strings.Cut(rest, ":")
		if err := ask(resource.Attributes{Resource: "serviceaccounts", Namespace: ns, Name: sa}); err != nil {
			return nil, err
		}
		if len(groups) == 0 {
			as.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + ns}
		}
	} else if err := ask(resource.Attributes{Resource: "users", Name: name}); err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := ask(resource.Attributes{Resource: "groups", Name: g}); err != nil {
			return nil, err
		}
	}
	if uid != "" {
		if err := ask(resource.Attributes{Group: "authentication.k8s.io", Resource: "uids", Name: uid}); err != nil {
			return nil, err
		}
	}
	for k, vs := range extra {
		for _, v := range vs {
			if err := ask(resource.Attributes{Group: "authentication.k8s.io", Resource: "userextras", Subresource: k, Name: v}); err != nil {
				return nil, err
			}
		}
	}
	if len(extra) > 0 {
		as.Extra = extra
	}
	if as.Name != "system:anonymous" && !slices.Contains(as.Groups, "system:authenticated") && !slices.Contains(as.Groups, "system:unauthenticated") {
		as.Groups = append(slices.Clone(as.Groups), "system:authenticated")
	}
	// What impersonation used must not reach a proxied server.
	for k := range r.Header {
		if strings.HasPrefix(strings.ToLower(k), "impersonate-") {
			r.Header.Del(k)
		}
	}
	return &as, nil
}
