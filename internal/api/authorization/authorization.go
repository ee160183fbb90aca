// Package authorization declares the resources of authorization.k8s.io: questions
// about what somebody may do, answered at once and never stored.
package authorization

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

const mustBeEmpty = "must be empty"

var createOnly = []string{"create"}

// SubjectAccessReview asks whether anybody may do something.
func SubjectAccessReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authorizationv1.SchemeGroupVersion, Kind: "SubjectAccessReview", Plural: "subjectaccessreviews", Singular: "subjectaccessreview",
		Verbs: createOnly,
		New:   func() resource.Object { return &authorizationv1.SubjectAccessReview{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			r := obj.(*authorizationv1.SubjectAccessReview)
			errs := append(validateSpec(&r.Spec), emptyMeta(r.ObjectMeta, mustBeEmpty)...)
			if len(errs) > 0 {
				return nil, invalid(errs)
			}
			r.Status = answer(ctx, env, userOf(&r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
			return r, nil
		},
	}
}

// LocalSubjectAccessReview asks whether anybody may do something in one namespace.
func LocalSubjectAccessReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authorizationv1.SchemeGroupVersion, Kind: "LocalSubjectAccessReview", Plural: "localsubjectaccessreviews",
		Singular: "localsubjectaccessreview", Namespaced: true, Verbs: createOnly,
		New: func() resource.Object { return &authorizationv1.LocalSubjectAccessReview{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			r := obj.(*authorizationv1.LocalSubjectAccessReview)
			errs := validateSpec(&r.Spec)
			errs = append(errs, emptyMeta(r.ObjectMeta, "must be empty except for namespace")...)
			if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
				errs = append(errs, field.Invalid(field.NewPath("spec.resourceAttributes.namespace"), a.Namespace, "must match metadata.namespace"))
			}
			if a := r.Spec.NonResourceAttributes; a != nil {
				errs = append(errs, field.Invalid(field.NewPath("spec.nonResourceAttributes"), resource.Shown(a), "disallowed on this kind of request"))
			}
			if len(errs) > 0 {
				return nil, invalid(errs)
			}
			r.Status = answer(ctx, env, userOf(&r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
			return r, nil
		},
	}
}

// SelfSubjectAccessReview asks whether the asker may do something.
func SelfSubjectAccessReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authorizationv1.SchemeGroupVersion, Kind: "SelfSubjectAccessReview", Plural: "selfsubjectaccessreviews",
		Singular: "selfsubjectaccessreview", Verbs: createOnly,
		New: func() resource.Object { return &authorizationv1.SelfSubjectAccessReview{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			r := obj.(*authorizationv1.SelfSubjectAccessReview)
			errs := validateAttributes(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
			errs = append(errs, emptyMeta(r.ObjectMeta, mustBeEmpty)...)
			if len(errs) > 0 {
				return nil, invalid(errs)
			}
			r.Status = answer(ctx, env, env.User, r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
			return r, nil
		},
	}
}

// SelfSubjectRulesReview asks for all that the asker may do in a namespace.
func SelfSubjectRulesReview() *resource.Resource {
	return &resource.Resource{
		GroupVersion: authorizationv1.SchemeGroupVersion, Kind: "SelfSubjectRulesReview", Plural: "selfsubjectrulesreviews",
		Singular: "selfsubjectrulesreview", Verbs: createOnly,
		New: func() resource.Object { return &authorizationv1.SelfSubjectRulesReview{} },
		Post: func(ctx context.Context, env resource.Env, obj resource.Object) (resource.Object, error) {
			ns := obj.(*authorizationv1.SelfSubjectRulesReview).Spec.Namespace
			if ns == "" {
				return nil, apierrors.NewBadRequest("no namespace on request")
			}
			l, err := env.Rules(ctx, env.User, ns)
			out := &authorizationv1.SelfSubjectRulesReview{Status: authorizationv1.SubjectRulesReviewStatus{
				ResourceRules:    make([]authorizationv1.ResourceRule, 0, len(l.Resource)),
				NonResourceRules: make([]authorizationv1.NonResourceRule, 0, len(l.NonResource)),
				Incomplete:       l.Incomplete, EvaluationError: l.Error,
			}}
			if err != nil {
				out.Status.EvaluationError = err.Error()
			}
			for _, r := range l.Resource {
				out.Status.ResourceRules = append(out.Status.ResourceRules, authorizationv1.ResourceRule(r))
			}
			for _, r := range l.NonResource {
				out.Status.NonResourceRules = append(out.Status.NonResourceRules, authorizationv1.NonResourceRule(r))
			}
			// The rules are the index's own: the answer is the asker's.
			return out.DeepCopy(), nil
		},
	}
}

func userOf(s *authorizationv1.SubjectAccessReviewSpec) resource.User {
	u := resource.User{Name: s.User, UID: s.UID, Groups: s.Groups}
	if s.Extra != nil {
		u.Extra = make(map[string][]string, len(s.Extra))
		for k, v := range s.Extra {
			u.Extra[k] = v
		}
	}
	return u
}

// invalid is upstream's answer, which leaves the kind out.
func invalid(errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: authorizationv1.GroupName}, "", errs)
}

func emptyMeta(m metav1.ObjectMeta, text string) field.ErrorList {
	rest := m
	rest.ManagedFields = nil
	if text != mustBeEmpty {
		rest.Namespace = ""
	}
	if apiequality.Semantic.DeepEqual(rest, metav1.ObjectMeta{}) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, text)}
}

func validateSpec(s *authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	errs := validateAttributes(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func validateAttributes(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) field.ErrorList {
	var errs field.ErrorList
	if (r == nil) == (n == nil) {
		errs = append(errs, field.Invalid(field.NewPath("spec"), resource.Shown(n), "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if r == nil {
		return errs
	}
	path := field.NewPath("spec.resourceAttributes")
	if s := r.FieldSelector; s != nil {
		p := path.Child("fieldSelector")
		errs = append(errs, validateSelector(s.RawSelector, len(s.Requirements), p)...)
		o := metav1validation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}
		for i, q := range s.Requirements {
			errs = append(errs, metav1validation.ValidateFieldSelectorRequirement(q, o, p.Child("requirements").Index(i))...)
		}
	}
	if s := r.LabelSelector; s != nil {
		p := path.Child("labelSelector")
		errs = append(errs, validateSelector(s.RawSelector, len(s.Requirements), p)...)
		o := metav1validation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}
		for i, q := range s.Requirements {
			errs = append(errs, metav1validation.ValidateLabelSelectorRequirement(q, o, p.Child("requirements").Index(i))...)
		}
	}
	return errs
}

func validateSelector(raw string, requirements int, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if raw != "" && requirements > 0 {
		errs = append(errs, field.Invalid(p.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
	}
	if raw == "" && requirements == 0 {
		errs = append(errs, field.Required(p.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", p)))
	}
	return errs
}

func answer(ctx context.Context, env resource.Env, u resource.User, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	var a resource.Attributes
	var ignored []string
	if r != nil {
		a = resource.Attributes{
			User: u, Verb: r.Verb, Namespace: r.Namespace, Group: r.Group, Version: r.Version, Resource: r.Resource,
			Subresource: r.Subresource, Name: r.Name,
		}
		if a.Version == "" {
			a.Version = "*"
		}
		ignored = selectors(&a, r)
	} else {
		a = resource.Attributes{User: u, Verb: n.Verb, Path: n.Path}
	}
	d, err := env.Authorize(ctx, a)
	if err != nil {
		ignored = append([]string{err.Error()}, ignored...)
	}
	return authorizationv1.SubjectAccessReviewStatus{
		Allowed: d.Allowed, Denied: d.Denied, Reason: d.Reason, EvaluationError: strings.Join(ignored, "; "),
	}
}

// selectors writes what the selectors demand in the form of a request, and returns
// what of them could not be understood: ignoring it asks for more, never for less.
func selectors(a *resource.Attributes, r *authorizationv1.ResourceAttributes) []string {
	var ignored []string
	note := func(which string, kept, bad int) {
		switch {
		case bad > 0 && kept > 0:
			ignored = append(ignored, "spec.resourceAttributes."+which+" partially ignored due to parse error")
		case bad > 0:
			ignored = append(ignored, "spec.resourceAttributes."+which+" ignored due to parse error")
		}
	}
	if s := r.FieldSelector; s != nil {
		var terms []fields.Selector
		bad := 0
		if s.RawSelector != "" {
			if sel, err := fields.ParseSelector(s.RawSelector); err == nil {
				terms = append(terms, sel)
			} else {
				bad++
			}
		}
		for _, q := range s.Requirements {
			switch {
			case len(q.Values) == 1 && q.Operator == metav1.FieldSelectorOpIn:
				terms = append(terms, fields.OneTermEqualSelector(q.Key, q.Values[0]))
			case len(q.Values) == 1 && q.Operator == metav1.FieldSelectorOpNotIn:
				terms = append(terms, fields.OneTermNotEqualSelector(q.Key, q.Values[0]))
			default:
				bad++
			}
		}
		if len(terms) > 0 {
			a.FieldSelector = fields.AndSelectors(terms...).String()
		}
		note("fieldSelector", len(terms), bad)
	}
	if s := r.LabelSelector; s != nil {
		var terms []string
		bad := 0
		if s.RawSelector != "" {
			if sel, err := labels.Parse(s.RawSelector); err == nil {
				terms = append(terms, sel.String())
			} else {
				bad++
			}
		}
		for _, q := range s.Requirements {
			op, ok := labelOps[q.Operator]
			req, err := labels.NewRequirement(q.Key, op, q.Values)
			if !ok || err != nil {
				bad++
				continue
			}
			terms = append(terms, req.String())
		}
		a.LabelSelector = strings.Join(terms, ",")
		note("labelSelector", len(terms), bad)
	}
	return ignored
}

var labelOps = map[metav1.LabelSelectorOperator]selection.Operator{
	metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
	metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
}
