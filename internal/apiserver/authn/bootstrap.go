package authn

import (
	"context"
	"crypto/subtle"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/bootstraptoken"
	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Bootstrap knows bootstrap tokens, by which nodes ask for their first certificate.
type Bootstrap struct {
	// Audiences are the server's own.
	Audiences []string
	Now       func() time.Time
	// Lookup returns a client that reads Secrets of kube-system.
	Lookup func() *client.Client
}

// Verify checks a token for one of the audiences (nil: the server's). It returns nil
// for whatever is no valid bootstrap token; an error is one of the lookup.
func (b *Bootstrap) Verify(ctx context.Context, token string, audiences []string) (*resource.User, []string, error) {
	id, secret, ok := bootstraptoken.Parse(token)
	if !ok {
		return nil, nil, nil
	}
	both := slices.Clone(b.Audiences)
	if audiences != nil {
		both = slices.DeleteFunc(both, func(a string) bool { return !slices.Contains(audiences, a) })
		if len(both) == 0 {
			return nil, nil, nil
		}
	}
	s, err := read(client.For[*corev1.Secret](b.Lookup()).In(bootstraptoken.Namespace).Get(ctx, bootstraptoken.Prefix+id))
	if err != nil || s == nil || s.DeletionTimestamp != nil {
		return nil, nil, err
	}
	t, err := bootstraptoken.Read(s, b.Now())
	if err != nil || !t.Authentication || subtle.ConstantTimeCompare([]byte(t.Secret), []byte(secret)) != 1 {
		return nil, nil, nil //nolint:nilerr // what is wrong with it is not for who shows it to know
	}
	return &resource.User{Name: bootstraptoken.UserPrefix + id, Groups: t.Groups}, both, nil
}
