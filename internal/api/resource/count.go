package resource

import (
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Count is a number by its field's name; see N.
type Count struct {
	name string
	n    int32
}

// N makes a Count.
func N(name string, n int32) Count { return Count{name, n} }

// NotNegative refuses counts below zero; p is what the fields are in.
func NotNegative(p *field.Path, counts ...Count) field.ErrorList {
	var errs field.ErrorList
	for _, c := range counts {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(c.n), p.Child(c.name))...)
	}
	return errs
}

// NotMore refuses counts of pods that are more than all of them.
func NotMore(p *field.Path, all int32, parts ...Count) field.ErrorList {
	var errs field.ErrorList
	for _, c := range parts {
		if c.n > all {
			errs = append(errs, field.Invalid(p.Child(c.name), c.n, "cannot be greater than status.replicas"))
		}
	}
	return errs
}

// NotDecremented refuses a collision count that is lower than it was.
func NotDecremented(p *field.Path, n, old *int32) field.ErrorList {
	if old == nil || n != nil && *n >= *old {
		return nil
	}
	var is int32
	if n != nil {
		is = *n
	}
	return field.ErrorList{field.Invalid(p, is, "cannot be decremented")}
}
