// Package authz decides what a user may do. The deciders are asked in order; the
// first that allows or denies has decided.
package authz

import (
	"context"
	"errors"
	"slices"
	"strings"

	"skiff/internal/api/resource"
)

// Authorizer is one decider.
type Authorizer interface {
	Authorize(ctx context.Context, a resource.Attributes) (resource.Decision, error)
	Rules(ctx context.Context, u resource.User, namespace string) (resource.RuleList, error)
}

// Union asks several in order. Nobody's consent is a refusal, with the reasons of
// all, each after the name of its decider where that has one (Named).
type Union []Authorizer

// Named is a decider whose name shows in reasons.
type Named interface{ Name() string }

// Authorize implements Authorizer.
func (us Union) Authorize(ctx context.Context, a resource.Attributes) (resource.Decision, error) {
	var reasons []string
	var errs []error
	for _, u := range us {
		d, err := u.Authorize(ctx, a)
		if err != nil {
			errs = append(errs, err)
		}
		if d.Allowed || d.Denied {
			return d, err
		}
		if n, ok := u.(Named); ok && d.Reason != "" {
			reasons = append(reasons, n.Name()+": "+d.Reason)
		} else if d.Reason != "" {
			reasons = append(reasons, d.Reason)
		}
	}
	return resource.Decision{Reason: strings.Join(reasons, "\n")}, errors.Join(errs...)
}

// Rules implements Authorizer.
func (us Union) Rules(ctx context.Context, u resource.User, namespace string) (resource.RuleList, error) {
	var out resource.RuleList
	var texts []string
	for _, a := range us {
		l, err := a.Rules(ctx, u, namespace)
		if err != nil {
			texts = append(texts, err.Error())
			out.Incomplete = true
		}
		out.Resource = append(out.Resource, l.Resource...)
		out.NonResource = append(out.NonResource, l.NonResource...)
		out.Incomplete = out.Incomplete || l.Incomplete
		if l.Error != "" {
			texts = append(texts, l.Error)
		}
	}
	out.Error = strings.Join(texts, ", ")
	return out, nil
}

// Masters lets the members of system:masters do everything.
type Masters struct{}

// Authorize implements Authorizer.
func (Masters) Authorize(_ context.Context, a resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: slices.Contains(a.User.Groups, "system:masters")}, nil
}

// Rules implements Authorizer: this is no rule, and upstream lists none for it.
func (Masters) Rules(context.Context, resource.User, string) (resource.RuleList, error) {
	return resource.RuleList{}, nil
}
