package apiserver

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"

	"skiff/internal/api/resource"
	"skiff/internal/metrics"
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
	case p == "/metrics":
		metrics.Handler(s.Metrics).ServeHTTP(w, r)
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
	case strings.HasPrefix(r.URL.Path, "/debug/pprof/") || p == "/debug/pprof":
		serveProfile(w, r)
	case s.serveDiscovery(w, r):
	default:
		notServed(w)
	}
}

// serveProfile answers with profiles of this process (net/http/pprof's paths). Who
// may get them is the authorizer's, as of every path.
func serveProfile(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/debug/pprof":
		http.Redirect(w, r, "/debug/pprof/", http.StatusFound)
	case "/debug/pprof/profile":
		pprof.Profile(w, r)
	case "/debug/pprof/symbol":
		pprof.Symbol(w, r)
	case "/debug/pprof/trace":
		pprof.Trace(w, r)
	default:
		pprof.Index(w, r)
	}
}

func (s *Server) paths() []string {
	out := []string{"/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"}
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
