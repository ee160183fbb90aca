package apiserver

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

// info is what a URL and a method ask for, before it is known whether that
// exists. It follows upstream's URL scheme (API conventions, "Resources").
type info struct {
	resource    bool // a request below /api/v1 or /apis/group/version
	verb        string
	group       string
	version     string
	namespace   string
	plural      string
	name        string
	subresource string
	// rest is the path after a proxy subresource, with its leading slash.
	rest string
	// pathWatch: the deprecated /watch/ form.
	pathWatch bool
	path      string
	received  time.Time
}

var namespaceSubresources = map[string]bool{"status": true, "finalize": true}

func parsePath(method string, u *url.URL) info {
	in := info{path: u.Path, verb: strings.ToLower(method)}
	parts := splitPath(u.Path)
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		in.version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		in.group, in.version, parts = parts[1], parts[2], parts[3:]
	default:
		return in
	}
	in.resource = true
	if parts[0] == "watch" && len(parts) >= 2 {
		in.pathWatch = true
		parts = parts[1:]
	}
	if parts[0] == "namespaces" && len(parts) > 1 {
		in.namespace = parts[1]
		if len(parts) > 2 && !namespaceSubresources[parts[2]] {
			parts = parts[2:]
		}
	}
	in.plural = parts[0]
	if len(parts) > 1 {
		in.name = parts[1]
	}
	if len(parts) > 2 {
		in.subresource = parts[2]
	}
	if in.subresource == "proxy" {
		if i := strings.Index(u.Path, "/"+in.name+"/proxy"); i >= 0 {
			in.rest = u.Path[i+len(in.name)+len("/proxy")+1:]
		}
	}
	in.verb = verbOf(method)
	if in.name == "" {
		switch in.verb {
		case "get":
			in.verb = "list"
			if w := u.Query().Get("watch"); w != "" && w != "false" && w != "0" {
				in.verb = "watch"
			}
		case "delete":
			in.verb = "deletecollection"
		}
	}
	if in.pathWatch {
		in.verb = "watch"
	}
	return in
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodGet, http.MethodHead:
		return "get"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return ""
}

func splitPath(p string) []string {
	p = strings.Trim(p, "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// request is one request for a resource.
type request struct {
	verb            string
	kind            *kind
	sub             *resource.Subresource
	namespace, name string
	user            resource.User
	// manager is the field manager where the options name none.
	manager  string
	warnings []string
}

func (rq *request) subName() string {
	if rq.sub == nil {
		return ""
	}
	return rq.sub.Name
}

// strategy returns the rules of the door.
func (rq *request) strategy() *resource.Strategy {
	if rq.sub != nil && rq.sub.Status != nil {
		return rq.sub.Status
	}
	return &rq.kind.Strategy
}

func (rq *request) gr() schema.GroupResource { return rq.kind.GroupResource() }

func (rq *request) warn(text string) {
	for _, w := range rq.warnings {
		if w == text {
			return
		}
	}
	rq.warnings = append(rq.warnings, text)
}

// warnStrict warns of a strict decoding error: of each line where YAML packs
// several into one.
func (rq *request) warnStrict(err error) {
	text := err.Error()
	for _, prefix := range []string{"yaml: unmarshal errors:\n", "error converting YAML to JSON: yaml: unmarshal errors:\n"} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			for line := range strings.SplitSeq(rest, "\n") {
				rq.warn(strings.TrimSpace(line))
			}
			return
		}
	}
	rq.warn(text)
}

// key of the object below its collection's prefix.
func (rq *request) key() string { return keyOf(rq.kind.Namespaced, rq.namespace, rq.name) }

func keyOf(namespaced bool, ns, name string) string {
	if namespaced {
		return ns + "/" + name
	}
	return name
}

func (rq *request) notFound() error { return apierrors.NewNotFound(rq.gr(), rq.name) }

func (rq *request) attributes() resource.Attributes {
	return resource.Attributes{
		User: rq.user, Verb: rq.verb, Namespace: rq.namespace, Group: rq.kind.GroupVersion.Group,
		Version: rq.kind.GroupVersion.Version, Resource: rq.kind.Plural, Subresource: rq.subName(), Name: rq.name,
	}
}
