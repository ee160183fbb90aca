// Package storage declares the resources of storage.k8s.io.
package storage

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func set[T any](p **T, def T) {
	if *p == nil {
		*p = &def
	}
}

func value[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// validateProvisioner checks the name of who makes volumes: a domain and a name.
func validateProvisioner(p *field.Path, name string) field.ErrorList {
	var errs field.ErrorList
	name = strings.ToLower(name)
	for _, msg := range validation.IsQualifiedName(name) {
		errs = append(errs, field.Invalid(p, name, msg))
	}
	return errs
}

const (
	maxParameters     = 512
	maxParametersSize = 256 << 10 // bytes, keys and values
)

func validateParameters(p *field.Path, m map[string]string) field.ErrorList {
	if len(m) > maxParameters {
		return field.ErrorList{field.TooLong(p, "", maxParameters)}
	}
	var errs field.ErrorList
	size := 0
	for k, v := range m {
		if k == "" {
			errs = append(errs, field.Invalid(p, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		errs = append(errs, field.TooLong(p, "", maxParametersSize))
	}
	return errs
}

// selectorWarnings are about labels that nodes once had.
func selectorWarnings(p *field.Path, s *metav1.LabelSelector) []string {
	if s == nil {
		return nil
	}
	var out []string
	for i, e := range s.MatchExpressions {
		if text, ok := pod.DeprecatedNodeLabels[e.Key]; ok {
			out = append(out, fmt.Sprintf("%s: %s is %s", p.Child("matchExpressions").Index(i).Child("key"), e.Key, text))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		if text, ok := pod.DeprecatedNodeLabels[k]; ok {
			out = append(out, fmt.Sprintf("%s: %s", p.Child("matchLabels").Child(k), text))
		}
	}
	return out
}
