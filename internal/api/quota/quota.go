// Package quota counts what objects use of the resources that a ResourceQuota
// limits: for admission, which refuses what is too much, and for whoever counts a
// namespace anew.
package quota

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"

	"skiff/internal/api/resource"
)

// Counter counts the objects of one resource.
type Counter struct {
	// Matching returns those of names that the objects use, sorted.
	Matching func(names []corev1.ResourceName) []corev1.ResourceName
	// Usage returns what one object uses at the time given.
	Usage func(obj resource.Object, now time.Time) corev1.ResourceList
	// inScope tells whether an object is in a scope; nil: it is in none.
	inScope func(s corev1.ScopedResourceSelectorRequirement, obj resource.Object) (bool, error)
	// required refuses an object that does not say how much it uses of names; nil
	// asks for nothing.
	required func(names []corev1.ResourceName, obj resource.Object) error
}

// ignored are the resources that no quota counts: what is not stored, and events.
var ignored = []schema.GroupResource{
	{Resource: "bindings"}, {Resource: "componentstatuses"},
	{Group: "authentication.k8s.io", Resource: "tokenreviews"}, {Group: "authentication.k8s.io", Resource: "selfsubjectreviews"},
	{Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}, {Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"},
	{Group: "authorization.k8s.io", Resource: "localsubjectaccessreviews"}, {Group: "authorization.k8s.io", Resource: "selfsubjectrulesreviews"},
	{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"},
}

// For returns the counter of a resource, nil where no quota counts it.
func For(f resource.Features, gr schema.GroupResource) *Counter {
	if slices.Contains(ignored, gr) {
		return nil
	}
	if gr.Group == "" {
		switch gr.Resource {
		case "pods":
			return pods(f)
		case "services":
			return services()
		case "persistentvolumeclaims":
			return claims(f)
		case "configmaps", "resourcequotas", "replicationcontrollers", "secrets":
			return objects(countOf(gr), corev1.ResourceName(gr.Resource))
		}
	}
	return objects(countOf(gr))
}

// countOf is the name of the number of objects of a resource.
func countOf(gr schema.GroupResource) corev1.ResourceName {
	return corev1.ResourceName("count/" + gr.String())
}

// objects counts objects as such, under each of the names.
func objects(names ...corev1.ResourceName) *Counter {
	return &Counter{
		Matching: func(list []corev1.ResourceName) []corev1.ResourceName { return both(list, names) },
		Usage: func(resource.Object, time.Time) corev1.ResourceList {
			out := corev1.ResourceList{}
			for _, n := range names {
				out[n] = number(1)
			}
			return out
		},
	}
}

// Matches tells whether a quota counts an object.
func (c *Counter) Matches(q *corev1.ResourceQuota, obj resource.Object) (bool, error) {
	for _, s := range scopesOf(q) {
		in := false
		if c.inScope != nil {
			var err error
			if in, err = c.inScope(s, obj); err != nil {
				return false, err
			}
		}
		if !in {
			return false, nil
		}
	}
	return len(c.Matching(Names(q.Status.Hard))) > 0, nil
}

// Required refuses an object that does not say how much it uses of names.
func (c *Counter) Required(names []corev1.ResourceName, obj resource.Object) error {
	if c.required == nil {
		return nil
	}
	return c.required(names, obj)
}

func scopesOf(q *corev1.ResourceQuota) []corev1.ScopedResourceSelectorRequirement {
	var out []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		out = append(out, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		out = append(out, q.Spec.ScopeSelector.MatchExpressions...)
	}
	return out
}

// selects tells whether a scope's operator and values select one of the names that
// an object has in the scope's sense; an object may have none.
func selects(s corev1.ScopedResourceSelectorRequirement, names ...string) (bool, error) {
	ops := map[corev1.ScopeSelectorOperator]selection.Operator{
		corev1.ScopeSelectorOpIn: selection.In, corev1.ScopeSelectorOpNotIn: selection.NotIn,
		corev1.ScopeSelectorOpExists: selection.Exists, corev1.ScopeSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	op, ok := ops[s.Operator]
	if !ok {
		return false, fmt.Errorf("failed to parse and convert selector: %q is not a valid scope selector operator", s.Operator)
	}
	r, err := labels.NewRequirement(string(s.ScopeName), op, s.Values)
	if err != nil {
		return false, fmt.Errorf("failed to parse and convert selector: %w", err)
	}
	if len(names) == 0 {
		return r.Matches(labels.Set{}), nil
	}
	return slices.ContainsFunc(names, func(n string) bool { return r.Matches(labels.Set{string(s.ScopeName): n}) }), nil
}

func number(n int64) apiresource.Quantity { return *apiresource.NewQuantity(n, apiresource.DecimalSI) }
