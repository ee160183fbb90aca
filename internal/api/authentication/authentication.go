// Package authentication declares the resources of authentication.k8s.io:
// questions about who somebody is, answered at once and never stored.
package authentication

import (
	"context"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

const invalidToken = "invalid bearer token"

// TokenReview asks whose a bearer token is.
func TokenReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authenticationv1.SchemeGroupVersion, Kind: "TokenReview", Plural: "tokenreviews", Singular: "tokenreview",
		Verbs: []string{"create"},
		New:   func() resource.Object { return &authenticationv1.TokenReview{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			r := obj.(*authenticationv1.TokenReview)
			if r.Spec.Token == "" {
				return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
			}
			var audiences []string // nil: the server's own
			if len(r.Spec.Audiences) > 0 {
				audiences = r.Spec.Audiences
			}
			u, valid, err := env.Authenticate(ctx, r.Spec.Token, audiences)
			// A status that was sent stays where nothing is known instead, as upstream.
			r.Status.Authenticated = err == nil && u != nil
			switch {
			case err != nil:
				// Upstream asks twice, and only its own loopback token knows nothing of
				// service accounts.
				r.Status.Error = fmt.Sprintf("[%s, %v]", invalidToken, err)
			case u == nil:
				r.Status.Error = invalidToken
			default:
				r.Status.User = infoOf(u)
				r.Status.Audiences = valid
			}
			return r, nil
		},
	}
}

// SelfSubjectReview asks who the asker is.
func SelfSubjectReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authenticationv1.SchemeGroupVersion, Kind: "SelfSubjectReview", Plural: "selfsubjectreviews", Singular: "selfsubjectreview",
		Verbs: []string{"create"},
		New:   func() resource.Object { return &authenticationv1.SelfSubjectReview{} },
		Post: func(_ context.Context, env resource.Env, _ resource.Object) (resource.Object, error) {
			return &authenticationv1.SelfSubjectReview{
				ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(env.Now().Truncate(time.Second))},
				Status:     authenticationv1.SelfSubjectReviewStatus{UserInfo: infoOf(&env.User)},
			}, nil
		},
	}
}

func infoOf(u *resource.User) authenticationv1.UserInfo {
	out := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: slices.Clone(u.Groups)}
	if len(u.Extra) > 0 {
		out.Extra = make(map[string]authenticationv1.ExtraValue, len(u.Extra))
		for k, v := range u.Extra {
			out.Extra[k] = slices.Clone(v)
		}
	}
	return out
}
