package pod

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// pullPolicyFor is the pull policy of an image that has none: Always for the tag
// latest, which is also the tag of an image with neither tag nor digest. What is
// no image reference at all counts as tagged.
func pullPolicyFor(image string) corev1.PullPolicy {
	if imageTag(image) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// The grammar of image references, of github.com/distribution/reference.
var (
	imageRef = func() *regexp.Regexp {
		const (
			domainPart = `(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])`
			domain     = `(?:` + domainPart + `(?:\.` + domainPart + `)*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?`
			component  = `[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*`
			path       = component + `(?:/` + component + `)*`
			tag        = `[\w][\w.-]{0,127}`
			digest     = `[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*[:][[:xdigit:]]{32,}`
		)
		return regexp.MustCompile(`^((?:` + domain + `/)?` + path + `)(?::(` + tag + `))?(?:@(` + digest + `))?$`)
	}()
	imageID = regexp.MustCompile(`^[a-f0-9]{64}$`)
	// digestLengths are the digest algorithms known, with the number of hex digits.
	digestLengths = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}
)

// imageTag returns the tag of an image reference, "latest" where it names
// neither tag nor digest, and nothing where it is no reference.
func imageTag(image string) string {
	const maxName = 255
	if imageID.MatchString(image) {
		return ""
	}
	host, rest, found := strings.Cut(image, "/")
	if !found || (!strings.ContainsAny(host, ".:") && host != "localhost" && strings.ToLower(host) == host) {
		host, rest = "docker.io", image
	}
	if strings.HasSuffix(host, "docker.io") && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	name := rest
	if i := strings.Index(name, ":"); i >= 0 {
		name = name[:i]
	}
	if strings.ToLower(name) != name {
		return ""
	}
	m := imageRef.FindStringSubmatch(host + "/" + rest)
	if m == nil || len(m[1]) > maxName {
		return ""
	}
	if m[3] != "" {
		algorithm, hex, _ := strings.Cut(m[3], ":")
		if digestLengths[algorithm] != len(hex) || strings.ToLower(hex) != hex {
			return ""
		}
	}
	if m[2] == "" && m[3] == "" {
		return "latest"
	}
	return m[2]
}
