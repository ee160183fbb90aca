package dra

import (
	"errors"
	"fmt"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	dracel "k8s.io/dynamic-resource-allocation/cel"

	"skiff/internal/api/resource"
)

// compiler compiles the expressions that select devices. Its environment is made at
// the first expression, not before.
type compiler struct{ features dracel.Features }

func compilerOf(f resource.Features) compiler {
	return compiler{dracel.Features{
		EnableConsumableCapacity: f.Enabled("DRAConsumableCapacity"),
		EnableListTypeAttributes: f.Enabled("DRAListTypeAttributes"),
	}}
}

// check says what is wrong with an expression: too long, no CEL, of another type, or
// too expensive.
func (c compiler) check(p *field.Path, expression string) field.ErrorList {
	if len(expression) > resourcev1.CELSelectorExpressionMaxLength {
		return field.ErrorList{field.TooLong(p, "", resourcev1.CELSelectorExpressionMaxLength)}
	}
	env := environment.NewExpressions
	r := dracel.GetCompiler(c.features).CompileCELExpression(expression, dracel.Options{EnvType: &env})
	if r.Error != nil {
		return field.ErrorList{celError(p, expression, r.Error)}
	}
	if r.MaxCost > resourcev1.CELSelectorExpressionMaxCost {
		return field.ErrorList{field.Forbidden(p, "too complex, exceeds cost limit")}
	}
	return nil
}

func celError(p *field.Path, expression string, err error) *field.Error {
	var e *cel.Error
	if !errors.As(err, &e) {
		return field.InternalError(p, fmt.Errorf("unsupported error type: %w", err))
	}
	switch e.Type {
	case cel.ErrorTypeRequired:
		return field.Required(p, e.Detail)
	case cel.ErrorTypeInvalid:
		return field.Invalid(p, expression, e.Detail)
	case cel.ErrorTypeInternal:
		return field.InternalError(p, e)
	}
	return field.InternalError(p, fmt.Errorf("unsupported error type: %w", err))
}
