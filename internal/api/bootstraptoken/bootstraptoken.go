// Package bootstraptoken reads the tokens by which nodes make first contact: Secrets
// of the type bootstrap.kubernetes.io/token in kube-system.
package bootstraptoken

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Namespace is where tokens are; Prefix begins the name of a token's Secret, which
// ends with the token's ID.
const (
	Namespace = "kube-system"
	Prefix    = "bootstrap-token-"
)

// UserPrefix begins the name of who shows a token, Group is a group of them all.
const (
	UserPrefix = "system:bootstrap:"
	Group      = "system:bootstrappers"
)

var (
	form      = regexp.MustCompile(`\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)
	nameForm  = regexp.MustCompile(`\A` + Prefix + `([a-z0-9]{6})\z`)
	groupForm = regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`)
)

// Parse takes a token, ID.SECRET, apart.
func Parse(token string) (id, secret string, ok bool) {
	m := form.FindStringSubmatch(token)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// Token is a bootstrap token as its Secret has it.
type Token struct {
	ID, Secret string
	// Signing: it signs the cluster's description (cluster-info). Authentication: it
	// logs in, which none does that would be in a group of another kind.
	Signing, Authentication bool
	// Groups are those of who shows it, sorted.
	Groups []string
}

// Read returns the token of a Secret, which holds now: an error says what is wrong
// with it.
func Read(s *corev1.Secret, now time.Time) (Token, error) {
	t := Token{
		ID: string(s.Data["token-id"]), Secret: string(s.Data["token-secret"]),
		Signing: string(s.Data["usage-bootstrap-signing"]) == "true", Authentication: string(s.Data["usage-bootstrap-authentication"]) == "true",
		Groups: []string{Group},
	}
	m := nameForm.FindStringSubmatch(s.Name)
	switch {
	case s.Type != corev1.SecretTypeBootstrapToken:
		return Token{}, fmt.Errorf("secret %q is of type %q", s.Name, s.Type)
	case m == nil || m[1] != t.ID:
		return Token{}, fmt.Errorf("secret %q has the token ID %q", s.Name, t.ID)
	case t.Secret == "":
		return Token{}, fmt.Errorf("secret %q has no token-secret", s.Name)
	}
	if ends, ok := Expiration(s); ok && !now.Before(ends) {
		return Token{}, fmt.Errorf("secret %q has expired", s.Name)
	}
	if extra := string(s.Data["auth-extra-groups"]); extra != "" {
		for g := range strings.SplitSeq(extra, ",") {
			if !groupForm.MatchString(g) {
				t.Authentication = false
				continue
			}
			t.Groups = append(t.Groups, g)
		}
	}
	slices.Sort(t.Groups)
	t.Groups = slices.Compact(t.Groups)
	return t, nil
}

// Expiration is when a token ends, where it does. One that cannot be read has ended
// long ago.
func Expiration(s *corev1.Secret) (time.Time, bool) {
	text := string(s.Data["expiration"])
	if text == "" {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Unix(0, 0), true
	}
	return t, true
}
