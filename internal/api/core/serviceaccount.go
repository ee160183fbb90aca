package core

import (
	"context"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// ServiceAccount declares core/v1 serviceaccounts and their token door.
func ServiceAccount() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "ServiceAccount", Plural: "serviceaccounts", Singular: "serviceaccount",
		ShortNames: []string{"sa"}, Namespaced: true, Prefix: "/registry/serviceaccounts/", ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.ServiceAccount{} },
		NewList: func() runtime.Object { return &corev1.ServiceAccountList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{{
			Name: "token", Kind: authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), Verbs: []string{"create"},
			NewBody: func() resource.Object { return &authenticationv1.TokenRequest{} },
			Post:    issueToken,
			Echoed:  true,
			Default: defaultTokenRequest,
		}},
	}, resource.StrategyOf[*corev1.ServiceAccount]{
		UnconditionalUpdate: true,
		PrepareCreate: func(_ resource.Env, s *corev1.ServiceAccount) {
			s.Secrets = onlyNames(s.Secrets)
		},
		PrepareUpdate: func(_ resource.Env, s, _ *corev1.ServiceAccount) {
			s.Secrets = onlyNames(s.Secrets)
		},
		ValidateCreate: func(_ resource.Env, s *corev1.ServiceAccount) field.ErrorList {
			return resource.ValidateMeta(s, true, resource.DNSSubdomain)
		},
		ValidateUpdate: func(_ resource.Env, s, old *corev1.ServiceAccount) field.ErrorList {
			return append(resource.ValidateMetaUpdate(s, old), resource.ValidateMeta(s, true, resource.DNSSubdomain)...)
		},
		Warnings: func(_ resource.Env, s, old *corev1.ServiceAccount) []string {
			const key = "kubernetes.io/enforce-mountable-secrets"
			if old != nil {
				if _, ok := old.Annotations[key]; ok {
					return nil
				}
			}
			if _, ok := s.Annotations[key]; !ok {
				return nil
			}
			return []string{"metadata.annotations[" + key + "]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"}
		},
		Row: func(s *corev1.ServiceAccount, now time.Time) []any {
			return []any{s.Name, resource.Age(s.CreationTimestamp, now)}
		},
	})
}

// onlyNames keeps of each reference what upstream keeps: its name.
func onlyNames(refs []corev1.ObjectReference) []corev1.ObjectReference {
	for i := range refs {
		refs[i] = corev1.ObjectReference{Name: refs[i].Name}
	}
	return refs
}

const (
	defaultTokenSeconds = 3600
	minTokenSeconds     = 600
	maxTokenSeconds     = 1 << 32

	// extendedTokenSeconds is the life that admission asks for the token of a pod's
	// own volume. Such a token is good for extendedTokenLife, for clients that do
	// not read it again; use after what was asked for is noted (KEP-1205).
	extendedTokenSeconds = 3607
	extendedTokenLife    = 365 * 24 * time.Hour
)

func defaultTokenRequest(body resource.Object) {
	spec := &body.(*authenticationv1.TokenRequest).Spec
	if spec.ExpirationSeconds == nil {
		s := int64(defaultTokenSeconds)
		spec.ExpirationSeconds = &s
	}
}

// issueToken answers a TokenRequest (KEP-1205). A token bound to an object is
// valid only as long as that object is.
func issueToken(ctx context.Context, env resource.Env, ops resource.Ops, ns, name string, body resource.Object, _ metav1.CreateOptions) (resource.Object, error) {
	req := body.(*authenticationv1.TokenRequest)
	gvk := authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
	for _, part := range []struct{ field, have, want string }{{"name", req.Name, name}, {"namespace", req.Namespace, ns}} {
		if part.have != "" && part.have != part.want {
			return nil, apierrors.NewInvalid(gvk.GroupKind(), name, field.ErrorList{field.Invalid(field.NewPath("metadata", part.field), part.have,
				"must match the service account "+part.field+" if specified")})
		}
	}
	obj, err := ops.Get(ctx, ns, name)
	if err != nil {
		return nil, err
	}
	sa := obj.(*corev1.ServiceAccount)
	if req.UID != "" && req.UID != sa.UID {
		return nil, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, sa.UID))
	}
	req.Name, req.Namespace, req.UID = name, ns, sa.UID
	now := env.Now().Truncate(time.Second)
	req.CreationTimestamp = metav1.NewTime(now)
	req.Status = authenticationv1.TokenRequestStatus{}
	spec := &req.Spec
	if len(spec.Audiences) == 0 && env.Tokens != nil {
		spec.Audiences = env.Tokens.Audiences()
	}
	var errs field.ErrorList
	path := field.NewPath("spec")
	if s := *spec.ExpirationSeconds; s < minTokenSeconds {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), s, "may not specify a duration less than 10 minutes"))
	} else if s > maxTokenSeconds {
		errs = append(errs, field.Invalid(path.Child("expirationSeconds"), s, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(spec.Attestations) > 0 {
		// Webhook configurations, which they are for, cannot be bound to while
		// their feature is off.
		errs = field.ErrorList{field.Invalid(path.Child("attestations"), spec.Attestations, "attestations may only be specified with a webhook bound object reference")}
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(gvk.GroupKind(), "", errs)
	}
	t := resource.TokenSpec{
		Namespace: ns, ServiceAccount: name, UID: string(sa.UID), Audiences: spec.Audiences,
		Lifetime: time.Duration(*spec.ExpirationSeconds) * time.Second,
	}
	if ref := spec.BoundObjectRef; ref != nil {
		if err := bindToken(ctx, env, ns, name, ref, &t); err != nil {
			return nil, err
		}
	}
	if env.Tokens == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("this server has no key to sign tokens with"))
	}
	own := env.Tokens.Audiences()
	if t.BoundKind == "Pod" && *spec.ExpirationSeconds == extendedTokenSeconds &&
		!slices.ContainsFunc(spec.Audiences, func(a string) bool { return !slices.Contains(own, a) }) {
		t.WarnAfter, t.Lifetime = t.Lifetime, extendedTokenLife
	}
	token, _, err := env.Tokens.Issue(ctx, t)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("failed to generate token: %w", err))
	}
	req.Status = authenticationv1.TokenRequestStatus{
		Token: token, ExpirationTimestamp: metav1.NewTime(now.Add(time.Duration(*spec.ExpirationSeconds) * time.Second)),
	}
	return req, nil
}

func bindToken(ctx context.Context, env resource.Env, ns, sa string, ref *authenticationv1.BoundObjectReference, t *resource.TokenSpec) error {
	var uid string
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	switch gvk.GroupKind() {
	case schema.GroupKind{Kind: "Pod"}:
		p, err := client.For[*corev1.Pod](env.Client).In(ns).Get(ctx, ref.Name)
		if err != nil {
			return err
		}
		if p.Spec.ServiceAccountName != sa {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", sa))
		}
		uid, t.NodeName = string(p.UID), p.Spec.NodeName
		if p.Spec.NodeName != "" {
			if n, err := client.For[*corev1.Node](env.Client).Get(ctx, p.Spec.NodeName); err == nil {
				t.NodeUID = string(n.UID)
			} else if !apierrors.IsNotFound(err) {
				return err
			}
		}
	case schema.GroupKind{Kind: "Node"}:
		n, err := client.For[*corev1.Node](env.Client).Get(ctx, ref.Name)
		if err != nil {
			return err
		}
		uid = string(n.UID)
	case schema.GroupKind{Kind: "Secret"}:
		s, err := client.For[*corev1.Secret](env.Client).In(ns).Get(ctx, ref.Name)
		if err != nil {
			return err
		}
		uid = string(s.UID)
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
	}
	if ref.UID != "" && string(ref.UID) != uid {
		return apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, ref.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	t.BoundKind, t.BoundName, t.BoundUID = ref.Kind, ref.Name, uid
	return nil
}
