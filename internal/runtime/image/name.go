package image

import (
	"fmt"
	"regexp"
	"strings"
)

// Name is a parsed image name: Docker's grammar and Docker's defaults.
type Name struct {
	Domain string // "docker.io", "localhost:5000"
	Path   string // "library/nginx"
	Tag    string // empty only where Digest is set
	Digest string // "sha256:...", or empty
}

const (
	defaultDomain = "docker.io"
	maxNameLength = 255
)

var (
	domainRE = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`)
	pathRE   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE    = regexp.MustCompile(`^\w[\w.-]{0,127}$`)
	digestRE = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	hex64RE  = regexp.MustCompile(`^[a-f0-9]{64}$`)
	hexRE    = regexp.MustCompile(`^[a-f0-9]{1,64}$`)
)

// ParseName parses and normalises a name: "nginx" is
// docker.io/library/nginx:latest. A name with both a tag and a digest loses the
// tag, since the digest decides. The error wraps ErrInvalidName.
func ParseName(s string) (Name, error) {
	invalid := func(why string) (Name, error) {
		if why == "" {
			return Name{}, fmt.Errorf("%q: %w", s, ErrInvalidName)
		}
		return Name{}, fmt.Errorf("%q: %w: %s", s, ErrInvalidName, why)
	}
	if hex64RE.MatchString(s) {
		return invalid("64 hexadecimal digits are an image ID, not a name")
	}
	var n Name
	rest := s
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		rest, n.Digest = rest[:i], rest[i+1:]
		if !digestRE.MatchString(n.Digest) {
			return invalid("")
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		rest, n.Tag = rest[:i], rest[i+1:]
		if !tagRE.MatchString(n.Tag) {
			return invalid("")
		}
	}
	n.Domain, n.Path = defaultDomain, rest
	if first, remainder, ok := strings.Cut(rest, "/"); ok {
		if strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first {
			n.Domain, n.Path = first, remainder
		}
	}
	if n.Domain == "index.docker.io" {
		n.Domain = defaultDomain
	}
	if n.Domain == defaultDomain && n.Path != "" && !strings.Contains(n.Path, "/") {
		n.Path = "library/" + n.Path
	}
	if strings.ToLower(n.Path) != n.Path {
		return invalid(fmt.Sprintf("repository name (%s) must be lowercase", n.Path))
	}
	if !domainRE.MatchString(n.Domain) || !pathRE.MatchString(n.Path) {
		return invalid("")
	}
	if len(n.Path) > maxNameLength {
		return invalid(fmt.Sprintf("repository name must not be more than %d characters", maxNameLength))
	}
	switch {
	case n.Digest != "":
		n.Tag = ""
	case n.Tag == "":
		n.Tag = "latest"
	}
	return n, nil
}

// Repository is the name without tag and digest.
func (n Name) Repository() string { return n.Domain + "/" + n.Path }

// String is the canonical name.
func (n Name) String() string {
	if n.Digest != "" {
		return n.Repository() + "@" + n.Digest
	}
	return n.Repository() + ":" + n.Tag
}

// Familiar is the name as people write it: without docker.io and library.
func (n Name) Familiar() string {
	s := n.String()
	if n.Domain != defaultDomain {
		return s
	}
	s = strings.TrimPrefix(s, defaultDomain+"/")
	if short := strings.TrimPrefix(s, "library/"); !strings.Contains(short, "/") {
		return short
	}
	return s
}
