package apiserver

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

func (s *Server) strategicPatcher(rq *request, gvk schema.GroupVersionKind, fresh func() Object, patch []byte, o *metav1.PatchOptions) func(Object) (Object, error) {
	schemaOf := fresh()
	checked := o.FieldValidation != metav1.FieldValidationIgnore
	// The merge takes its arguments apart: each try parses the patch anew.
	parse := func() (p map[string]any, strict []error, err error) {
		p = map[string]any{}
		if checked {
			strict, err = kjson.UnmarshalStrict(patch, &p)
		} else {
			err = kjson.UnmarshalCaseSensitivePreserveInts(patch, &p)
		}
		if err != nil {
			return nil, nil, apierrors.NewBadRequest(err.Error())
		}
		return p, strict, nil
	}
	return func(cur Object) (Object, error) {
		p, strict, err := parse()
		if err != nil {
			return nil, err
		}
		if len(strict) == 0 {
			if into := mergeParts(cur, p, schemaOf); into != nil {
				return into, nil
			}
			if p, strict, err = parse(); err != nil {
				return nil, err
			}
		}
		original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(cur)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		original["kind"], original["apiVersion"] = gvk.Kind, gvk.GroupVersion().String()
		merged, err := strategicpatch.StrategicMergeMapPatch(original, p, schemaOf)
		if err != nil {
			return nil, strategicError(err)
		}
		into := fresh()
		bad := func(err error) error {
			return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), fmt.Sprintf("%+v", p), err.Error())})
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(merged, into, checked); err != nil {
			se, ok := runtime.AsStrictDecodingError(err)
			if !ok {
				return nil, bad(err)
			}
			if err := rq.strictness(o.FieldValidation, append(strict, se.Errors()...), bad); err != nil {
				return nil, err
			}
		} else if err := rq.strictness(o.FieldValidation, strict, bad); err != nil {
			return nil, err
		}
		into.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		return into, nil
	}
}

// mergeParts applies a patch to those parts of an object (metadata, spec, status) that
// it names, so that no other is taken apart and put together again: most patches are a
// kubelet's, of a pod's status. It returns nil where that is not possible, or the
// result is not sound; then the whole object has to be merged, which also says what is
// wrong.
func mergeParts(cur Object, p map[string]any, schemaOf Object) Object {
	v := reflect.ValueOf(cur).Elem()
	parts := partsOf(v.Type())
	original := make(map[string]any, len(p))
	for key := range p {
		i, ok := parts[key]
		if !ok {
			return nil
		}
		part := v.Field(i).Addr().Interface()
		if m, ok := part.(*metav1.ObjectMeta); ok {
			// They are long, and hardly ever what is meant.
			meta, ok := p[key].(map[string]any)
			if _, names := meta["managedFields"]; !ok || names || meta["$patch"] != nil {
				return nil
			}
			less := *m
			less.ManagedFields = nil
			part = &less
		}
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(part)
		if err != nil {
			return nil
		}
		original[key] = u
	}
	merged, err := strategicpatch.StrategicMergeMapPatch(original, p, schemaOf)
	if err != nil {
		return nil
	}
	// What the patch does not name is the current object's, which is shared.
	into := shallow(cur)
	to := reflect.ValueOf(into).Elem()
	for key := range p {
		to.Field(parts[key]).SetZero()
	}
	into = into.DeepCopyObject().(Object)
	to = reflect.ValueOf(into).Elem()
	for key := range p {
		if merged[key] == nil {
			continue
		}
		u, ok := merged[key].(map[string]any)
		if !ok || runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u, to.Field(parts[key]).Addr().Interface(), true) != nil {
			return nil
		}
	}
	if _, ok := p["metadata"]; ok {
		var managed []metav1.ManagedFieldsEntry
		for _, m := range cur.GetManagedFields() {
			managed = append(managed, *m.DeepCopy())
		}
		into.SetManagedFields(managed)
	}
	return into
}

var marshaler = reflect.TypeFor[json.Marshaler]()

// partsOf are the fields of an object that are JSON objects of their own, by name: not
// times and quantities.
func partsOf(t reflect.Type) map[string]int {
	m := map[string]int{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" && f.Type.Kind() == reflect.Struct && !reflect.PointerTo(f.Type).Implements(marshaler) {
			m[name] = i
		}
	}
	return m
}
