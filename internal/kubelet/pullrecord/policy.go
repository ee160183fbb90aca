// Package pullrecord remembers with whose credentials the kubelet pulled images, so
// that a pod may use one that is present only if it could have pulled it itself
// (KEP-2535). The files and the decisions are those of upstream's kubelet: an image
// without a record was brought by others, and is preloaded.
package pullrecord

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Policies, the values of imagePullCredentialsVerificationPolicy.
const (
	// NeverVerify lets every pod use every image that is present.
	NeverVerify = "NeverVerify"
	// NeverVerifyPreloadedImages verifies for what the kubelet pulled.
	NeverVerifyPreloadedImages = "NeverVerifyPreloadedImages"
	// NeverVerifyAllowlistedImages verifies for all but those of a list.
	NeverVerifyAllowlistedImages = "NeverVerifyAllowlistedImages"
	// AlwaysVerify verifies for all.
	AlwaysVerify = "AlwaysVerify"
)

// Policy says for which images a pod's credentials are verified. The zero value is
// NeverVerifyPreloadedImages.
type Policy struct {
	word     string
	exact    []string
	prefixes []string
}

// ParsePolicy reads the settings of KubeletConfiguration; policy "" is
// NeverVerifyPreloadedImages. field is that which is wrong, where err is not nil.
func ParsePolicy(policy string, allowlist []string) (p Policy, field string, err error) {
	const policyField, listField = "imagePullCredentialsVerificationPolicy", "preloadedImagesVerificationAllowlist"
	p.word = policy
	all := []string{NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages, AlwaysVerify}
	if policy != "" && !slices.Contains(all, policy) {
		return p, policyField, fmt.Errorf("%q: must be %s", policy, strings.Join(all[:3], ", ")+" or "+all[3])
	}
	if len(allowlist) > 0 && policy != NeverVerifyAllowlistedImages {
		return p, listField, fmt.Errorf("cannot be set unless %s is %s", policyField, NeverVerifyAllowlistedImages)
	}
	for _, pattern := range allowlist {
		prefix, wild := strings.CutSuffix(pattern, "*")
		switch {
		case pattern != strings.TrimSpace(pattern):
			err = fmt.Errorf("%q: spaces around it are not allowed", pattern)
		case strings.Contains(prefix, "*") || wild && !strings.HasSuffix(prefix, "/"):
			err = fmt.Errorf("%q: a * is allowed as the last element of a path alone, such as registry.example/team/*", pattern)
		case wild && prefix == "/":
			err = fmt.Errorf("%q: it needs the name of a registry", pattern)
		case wild:
			p.prefixes = append(p.prefixes, prefix)
		case !reference.MatchString(pattern):
			err = fmt.Errorf("%q: must be the name of an image, such as registry.example/team/app", pattern)
		case Repository(pattern) != pattern:
			err = fmt.Errorf("%q: it may have neither a tag nor a digest", pattern)
		default:
			p.exact = append(p.exact, pattern)
		}
		if err != nil {
			return p, listField, err
		}
	}
	return p, "", nil
}

// reference is what the name of an image may look like.
var reference = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9.-]+|\[[a-fA-F0-9:]+\])(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[\w][\w.-]*)?(?:@\S+)?$`)

// Repository is an image's name without tag and digest, and otherwise as it was
// written.
func Repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	return image
}

// verifies tells whether who asks for an image that is present must show credentials;
// pulled says that the kubelet pulled it.
func (p Policy) verifies(image string, pulled bool) bool {
	switch p.word {
	case NeverVerify:
		return false
	case AlwaysVerify:
		return true
	case NeverVerifyAllowlistedImages:
		name := Repository(image)
		return !slices.Contains(p.exact, name) && !slices.ContainsFunc(p.prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	}
	return pulled
}
