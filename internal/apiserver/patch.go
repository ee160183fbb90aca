package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"skiff/internal/codec"
)

// maxJSONPatchOperations is upstream's cap.
const maxJSONPatchOperations = 10000

// patch is the patch verb. It tells whether the object was created (by apply).
func (s *Server) patch(ctx context.Context, rq *request, t types.PatchType, patch []byte, o *metav1.PatchOptions) (Object, bool, error) {
	if errs := metav1validation.ValidatePatchOptions(o, t); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "", errs)
	}
	if err := readable(t, patch); err != nil {
		return nil, false, err
	}
	uo := &metav1.UpdateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation}
	if t == types.ApplyPatchType {
		return s.apply(ctx, rq, patch, o, uo)
	}
	change, err := s.patcher(rq, t, patch, o)
	if err != nil {
		return nil, false, err
	}
	if rq.sub != nil && rq.sub.SetView != nil {
		out, err := s.putView(ctx, rq, uo, change)
		return out, false, err
	}
	return s.update(ctx, rq, uo, false, func(_ context.Context, cur Object) (Object, error) {
		obj, err := change(cur)
		if err != nil {
			return nil, err
		}
		if rq.kind.Default != nil {
			rq.kind.Default(obj)
		}
		if err := rq.checkPatched(obj); err != nil {
			return nil, err
		}
		return s.manage(rq, cur, obj, o.FieldManager)
	})
}

// readable refuses a patch that is no JSON (or YAML, to apply) at all.
func readable(t types.PatchType, patch []byte) error {
	if t == types.ApplyPatchType {
		if bothAlike(patch) {
			return nil
		}
		if _, err := utilyaml.ToJSON(patch); err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("error encoding patch: %v", err))
		}
		return nil
	}
	if !json.Valid(patch) {
		return apierrors.NewBadRequest("invalid JSON patch")
	}
	return nil
}

// apply is server-side apply: it creates what is not there.
func (s *Server) apply(ctx context.Context, rq *request, config []byte, o *metav1.PatchOptions, uo *metav1.UpdateOptions) (Object, bool, error) {
	if s.FieldManagers == nil {
		return nil, false, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", rq.gr(), rq.name, "server-side apply is not available", 0, true)
	}
	force := o.Force != nil && *o.Force
	make := func(_ context.Context, cur Object) (Object, error) {
		live := cur
		if live == nil {
			live = rq.kind.New()
		}
		parsed, clean := decodeAlike(config)
		if parsed == nil {
			parsed = map[string]any{}
			if err := yaml.Unmarshal(config, &parsed); err != nil {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
			}
		}
		obj, err := s.FieldManagers.Apply(rq.kind.Resource, rq.subName(), live, parsed, o.FieldManager, force)
		if err != nil {
			return nil, asIs(err)
		}
		if !clean && o.FieldValidation != metav1.FieldValidationIgnore {
			if err := yaml.UnmarshalStrict(config, &map[string]any{}); err != nil {
				if o.FieldValidation == metav1.FieldValidationStrict {
					return nil, apierrors.NewBadRequest(fmt.Sprintf("error strict decoding patch: %v", err))
				}
				rq.warnStrict(err)
			}
		}
		if uid := obj.GetUID(); cur == nil && uid != "" {
			return nil, apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", uid))
		}
		if err := rq.checkPatched(obj); err != nil {
			return nil, err
		}
		return obj, nil
	}
	if rq.sub != nil && rq.sub.SetView != nil {
		parent := *rq
		parent.sub = nil
		out, _, err := s.update(ctx, &parent, uo, false, make)
		if err != nil {
			return nil, false, err
		}
		view, err := rq.sub.View(out)
		return view, false, err
	}
	return s.update(ctx, rq, uo, rq.sub == nil, make)
}

// bothAlike tells that a document is JSON that means the same as YAML: the latter
// takes many times longer to read, and most clients apply JSON.
func bothAlike(doc []byte) bool {
	if len(doc) == 0 || doc[0] != '{' {
		return false
	}
	for i, c := range doc {
		if (c < 0x20 && c != '\n') || c >= 0x7f || c == '\\' || (c == '<' && i+1 < len(doc) && doc[i+1] == '<') {
			return false
		}
	}
	return json.Valid(doc)
}

// decodeAlike decodes a document that is bothAlike, as YAML does: nil for any
// other. Clean tells that no field stands in it twice.
func decodeAlike(doc []byte) (parsed map[string]any, clean bool) {
	if !bothAlike(doc) {
		return nil, false
	}
	var once map[string]any
	if objections, err := kjson.UnmarshalStrict(doc, &once); err != nil || len(objections) > 0 {
		return nil, false
	}
	// Numbers are floating point, as YAML's.
	if err := json.Unmarshal(doc, &parsed); err != nil {
		return nil, false
	}
	return parsed, true
}

// asIs passes an error without a code on as upstream does: its text alone.
func asIs(err error) error {
	var api apierrors.APIStatus
	if errors.As(err, &api) {
		return err
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: err.Error()}}
}

// checkPatched refuses a patch that gave the object another name or namespace.
func (rq *request) checkPatched(obj Object) error {
	if err := checkNamespace(rq.kind, rq.namespace, obj); err != nil {
		return err
	}
	switch got := obj.GetName(); got {
	case rq.name:
		return nil
	case "":
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", rq.name))
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", got, rq.name))
	}
}

// jsonOperation is one operation of a JSON patch, to find fields that are none.
type jsonOperation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	From  string `json:"from"`
	Value any    `json:"value"`
}

// patcher returns the function that applies a patch to an object (or a view). It
// returns new objects.
func (s *Server) patcher(rq *request, t types.PatchType, patch []byte, o *metav1.PatchOptions) (func(Object) (Object, error), error) {
	gvk, fresh := rq.kind.gvk, rq.kind.New
	if rq.sub != nil && rq.sub.NewView != nil {
		gvk, fresh = rq.sub.Kind, rq.sub.NewView
	}
	checked := o.FieldValidation != metav1.FieldValidationIgnore
	switch t {
	case types.JSONPatchType:
		return s.jsonPatcher(rq, gvk, fresh, o, func(doc []byte) ([]byte, []error, error) {
			var strict []error
			if checked {
				var list []jsonOperation
				var err error
				if strict, err = kjson.UnmarshalStrict(patch, &list); err != nil {
					// Upstream's text names its type.
					text := strings.ReplaceAll(err.Error(), fmt.Sprintf("%T", jsonOperation{}), "handlers.jsonPatchOp")
					return nil, nil, apierrors.NewBadRequest("error decoding patch: " + text)
				}
				for i, e := range strict {
					strict[i] = fmt.Errorf("json patch %w", e)
				}
			}
			p, err := jsonpatch.DecodePatch(patch)
			if err != nil {
				return nil, nil, apierrors.NewBadRequest(err.Error())
			}
			if len(p) > maxJSONPatchOperations {
				return nil, nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxJSONPatchOperations, len(p)))
			}
			out, err := p.Apply(doc)
			if err != nil {
				return nil, nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
			}
			return out, strict, nil
		}), nil
	case types.MergePatchType:
		return s.jsonPatcher(rq, gvk, fresh, o, func(doc []byte) ([]byte, []error, error) {
			var strict []error
			if checked {
				v := map[string]any{}
				var err error
				if strict, err = kjson.UnmarshalStrict(patch, &v); err != nil {
					return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
				}
			}
			out, err := jsonpatch.MergePatch(doc, patch)
			if errors.Is(err, jsonpatch.ErrBadJSONPatch) {
				return nil, nil, apierrors.NewBadRequest(err.Error())
			}
			if err != nil {
				return nil, nil, asIs(err)
			}
			return out, strict, nil
		}), nil
	case types.StrategicMergePatchType:
		return s.strategicPatcher(rq, gvk, fresh, patch, o), nil
	}
	return nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", rq.gr(), rq.name, "", 0, true)
}

// strictness passes strict decoding errors on as the field validation directive
// says: nothing, warnings, or an error made by fail.
func (rq *request) strictness(directive string, strict []error, fail func(error) error) error {
	if len(strict) == 0 {
		return nil
	}
	switch directive {
	case metav1.FieldValidationIgnore:
		return nil
	case metav1.FieldValidationStrict:
		return fail(runtime.NewStrictDecodingError(strict))
	}
	for _, e := range strict {
		rq.warnStrict(e)
	}
	return nil
}

func (s *Server) jsonPatcher(rq *request, gvk schema.GroupVersionKind, fresh func() Object, o *metav1.PatchOptions, apply func([]byte) ([]byte, []error, error)) func(Object) (Object, error) {
	return func(cur Object) (Object, error) {
		doc, err := codec.Object(cur)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		out, strict, err := apply(codec.WithType(gvk, doc))
		if err != nil {
			return nil, err
		}
		bad := func(err error) error {
			return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), string(out), err.Error())})
		}
		into := fresh()
		obj, _, err := s.codec.Decode(codec.JSON, out, o.FieldValidation != metav1.FieldValidationIgnore, gvk, into)
		if se, ok := runtime.AsStrictDecodingError(err); ok {
			strict, err = append(strict, se.Errors()...), nil
		}
		if err != nil {
			return nil, bad(err)
		}
		if obj != into {
			return nil, bad(fmt.Errorf("unable to decode %T into %T", obj, into))
		}
		if err := rq.strictness(o.FieldValidation, strict, bad); err != nil {
			return nil, err
		}
		return into, nil
	}
}

func strategicError(err error) error {
	switch {
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList),
		errors.Is(err, mergepatch.ErrUnsupportedStrategicMergePatchFormat):
		return apierrors.NewBadRequest(err.Error())
	case errors.Is(err, mergepatch.ErrNoListOfLists), errors.Is(err, mergepatch.ErrPatchContentNotMatchRetainKeys):
		return apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return asIs(err)
}
